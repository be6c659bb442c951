"""Whoever answers a conversation: a model of ours, or one behind an address. Teachers and judges are used through this.

messages -> answer(messages, ...) -> Answer(text, tokens, finish)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Answer:
    """What came back.

    Args:
        text: of the assistant.
        prompt_tokens, completion_tokens: as the answerer counts them; 0 where it does not say.
        finish: `stop` (it had said all), `length` (cut off) or `refused` (its own filter kept it back).
    """

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish: str = "stop"


@runtime_checkable
class Answers(Protocol):
    """Answers conversations; may be called from several threads at once.

    Attributes:
        name: of the model, for ledgers and reports.
        licence: SPDX id or name of the licence of its weights and outputs; "unknown" where nobody has said.
        terms: the contract with whoever runs it (`openai`, `anthropic`, `google`, ...); "" where there is none.
    """

    name: str
    licence: str
    terms: str

    def answer(
        self,
        messages: Sequence[Mapping[str, Any]],
        max_tokens: int = 512,
        temperature: float = 0.7,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Answer:
        """Answer the conversation.

        Raises:
            NomoatError: nobody answers in time, or what comes back cannot be read.
        """
        ...
