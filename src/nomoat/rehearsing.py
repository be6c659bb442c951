"""Rehearsing: what a chat model asks and answers by itself, written before it is tuned and shown to it meanwhile.

    template -> head of a user's turn -> the model writes a question -> and its likeliest answer -> lessons

A model that was taught to chat has read the questions too, so that it can ask them: no list of prompts is needed, and
the questions are of the kinds that it was made for.

Xu et al. 2024, arXiv:2406.08464 (Magpie: questions drawn from behind the head of the user's turn); Robins 1995
(pseudo-rehearsal).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomoat.core.run import Run, load
from nomoat.core.types import Decodes
from nomoat.data.conversations import Conversation
from nomoat.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nomoat.data.chat import Chat

Watch = Callable[[Mapping[str, Any]], None]

QUESTION, ANSWER = 64, 96
"""Most tokens of each. A longer answer is learned without its end."""
TOKENS = 128
"""About so many has a conversation."""
FEWEST, MOST = 16, 256
"""Conversations that are written."""
WAVE = 32
"""Questions drawn together."""
WAVES = 3 * MOST // WAVE
"""After so many it is given up: a weak model ends few of its questions, or asks the same."""


def rehearsal(
    base: Run,
    tokens: float,
    context_length: int,
    device: str,
    root: Path,
    seconds: float | None = None,
    watch: Watch | None = None,
) -> Path | None:
    """The folder of a base's conversations with itself, written once for the same question; None: it can write none.

    Args:
        base: the run of a model that has a chat template.
        tokens: about how many of them are shown in a pass; of fewer than `FEWEST` conversations and of more than `MOST`
            so many are written.
        context_length: most tokens of a conversation.
        device: where it writes.
        root: where data lies.
        seconds: what the writing may take; what there is by then is used.
        watch: told {"kind": "phase", ...}.
    """
    from nomoat.core.device import choose
    from nomoat.data.chat import Chat
    from nomoat.data.lessons import write_lessons
    from nomoat.data.tokenizer import load as read
    from nomoat.evaluate.tuned import other_prompts
    from nomoat.nn.native import quickest

    wanted = max(FEWEST, min(round(tokens / TOKENS), MOST))
    tokenizer, chat = read(base.path / "tokenizer.json"), Chat.of(base.path)
    held = (base.path / "chat.json").read_text(encoding="utf-8")
    key = repr((base.name, tokenizer.hash, held, wanted, context_length, QUESTION, ANSWER, tuple(other_prompts())))
    folder = root / f"rehearsal-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    if folder.exists():
        return folder
    began, rows = time.perf_counter(), list[Conversation]()
    writer = quickest(load(base).to(choose(device)))
    licence = (base.read_json("ledger.json") or {}).get("licence")
    known = {_plain(text) for text in other_prompts()}
    for text, answer, cut in conversations(writer, tokenizer, chat):
        if _plain(text) not in known:
            known.add(_plain(text))
            messages = ({"role": "user", "content": text}, {"role": "assistant", "content": answer})
            rows.append(Conversation(messages, base.label, len(rows) + 1, "rehearsal", licence, "of the base",
                                     base.label, generation=1, open_end=cut))  # fmt: skip
        late = seconds is not None and time.perf_counter() - began > seconds
        if len(rows) == wanted or (late and len(rows) >= FEWEST):
            break
        if watch is not None and len(rows) % FEWEST == 0:
            said = f"the base writes what it is to remember: {len(rows):,} of {wanted:,}"
            watch({"kind": "phase", "phase": "rehearsing", "detail": said})
    if len(rows) < FEWEST:
        return None
    write_lessons(folder, rows, base.path, context_length, settings={"rehearsal": base.name}, held_out_share=0.0)
    return folder


def conversations(writer: Decodes, tokenizer: Tokenizer, chat: Chat) -> Iterator[tuple[str, str, bool]]:
    """Question, likeliest answer, and whether it goes on, of one conversation after the other, up to `WAVES` of them.

    Args:
        writer: the model.
        tokenizer: its words.
        chat: its template.
    """
    from nomoat.evaluate.tuned import answers
    from nomoat.sampling.tokens import SamplingOptions
    from nomoat.sampling.write import write

    head, end = user_turn(chat, tokenizer)
    ends = {*tokenizer.stops, end}
    for wave in range(WAVES):
        drawn: list[list[int]] = [[] for _ in range(WAVE)]
        drawing = SamplingOptions(temperature=0.8, top_p=0.95, max_tokens=QUESTION, seed=wave)
        for row, token, _ in write(writer, [head] * WAVE, drawing, tuple(ends)):
            drawn[row].append(token)
        whole = [tokens[:-1] for tokens in drawn if tokens[-1] in ends]
        texts = [text for tokens in whole if (text := tokenizer.decode(tokens).strip())]
        asked = [[{"role": "user", "content": text}] for text in texts]
        for text, (_, one) in zip(texts, answers(writer, tokenizer, chat, asked, ANSWER), strict=True):
            if answer := one.text.strip():
                yield text, answer, one.reason == "length"


def user_turn(chat: Chat, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """The tokens before what a user says, and the first behind it: what stays the same whatever is said."""
    one, other = (chat.tokens([{"role": "user", "content": text}], tokenizer)[0] for text in ("Why", "How come"))
    head = [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))]
    behind = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one[len(head) :]), reversed(other), strict=False))
    return head or [tokenizer.opening], [one[-1], *(token for token, _ in behind)][-1]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
