"""Who writes: a language model as a `Writer` of steps and answers, and how long it must think.

    prompts, texts -> tokens -> write together -> up to the next mark (a step) or the end (whole) -> pieces
    forced: thinks at least so long ("Wait" where it would stop) and at most so long, then answers

Budget forcing: Muennighoff et al. 2025, arXiv:2501.19393 (s1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nomoat.core.errors import ConfigError
from nomoat.sampling.tokens import SamplingOptions
from nomoat.sampling.write import Spells, continue_tokens
from nomoat.search.thoughts import Piece

ROWS = 256
"""Texts that are written together at most."""


@dataclass(frozen=True)
class Forcing:
    """How long is thought before an answer.

    Args:
        least: tokens; a text that would end before goes on with `again`.
        most: tokens; a text that has not ended by then is cut and goes on with `close`. 0: no limit.
        again: what is written in place of an early end.
        close: what ends the thinking.
        times: `again` is written at most so often.
    """

    least: int = 0
    most: int = 0
    again: str = "Wait, "
    close: str = "\nFinal answer: "
    times: int = 8

    def __post_init__(self) -> None:
        if self.least < 0 or self.most < 0 or (self.most and self.least > self.most):
            raise ConfigError(
                f"thinking at least {self.least} and at most {self.most} tokens cannot be",
                "the least is not above the most",
                "lower --min-think or raise --max-think",
            )


@dataclass
class ModelWriter:
    """A language model that goes on with texts.

    Args:
        model: reads token by token.
        tokenizer: of its tokens.
        options: temperature and so on; `max_tokens` of a piece; `stop` ends an answer.
        mark: ends a step, and belongs to it.
        context_length: that the model looks back on; None: its own.
        forcing: how long is thought before an answer is written whole.
        begin: what stands before each text, as token ids; None: as the tokenizer says.
    """

    model: Any
    tokenizer: Spells
    options: SamplingOptions = SamplingOptions()
    mark: str = "\n"
    context_length: int | None = None
    forcing: Forcing = Forcing()
    begin: Sequence[int] | None = None

    def __call__(self, prompts: Sequence[str], texts: Sequence[str], whole: bool, seed: int) -> list[Piece]:
        """The next step of each, or all the rest."""
        whole_texts = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        if not whole:
            stop = (*self.options.stop, self.mark)
            return self._written(whole_texts, replace(self.options, stop=stop, seed=seed), self.mark)
        if self.forcing == Forcing():
            return self._written(whole_texts, replace(self.options, seed=seed), "")
        return self._forced(whole_texts, seed)

    def _written(self, texts: list[str], options: SamplingOptions, mark: str) -> list[Piece]:
        """Pieces of all texts; one that stopped at the mark has it, and goes on."""
        begin = self.tokenizer.begin if self.begin is None else self.begin
        rows = [[*begin, *map(int, self.tokenizer.encode(text))] or [self.tokenizer.eot] for text in texts]
        pieces = list[Piece]()
        for first in range(0, len(rows), ROWS):
            own = replace(options, seed=options.seed * 1009 + first)  # each block of rows has chance of its own
            for each in continue_tokens(
                self.model, self.tokenizer, rows[first : first + ROWS], own, self.context_length
            ):
                at_mark = bool(mark) and each.reason == "stop"
                text = each.text + mark if at_mark else each.text
                pieces.append(Piece(text, len(each.tokens), each.logprob, not at_mark))
        return pieces

    def _forced(self, texts: list[str], seed: int) -> list[Piece]:
        """Whole answers after thinking at least and at most so long."""
        forcing, options = self.forcing, self.options
        most = forcing.most or options.max_tokens
        made = [Piece("", 0, 0.0, False) for _ in texts]
        for turn in range(forcing.times + 1):
            going = [row for row, piece in enumerate(made) if piece.tokens < (forcing.least if turn else most)]
            if not going:
                break
            if turn:
                for row in going:
                    made[row] = made[row]._replace(text=made[row].text.rstrip() + " " + forcing.again)
            room = max(1, most - min(made[row].tokens for row in going))
            limited = replace(options, max_tokens=room, seed=seed * 31 + turn)
            more = self._written([texts[row] + made[row].text for row in going], limited, "")
            for row, piece in zip(going, more, strict=True):
                made[row] = _joined(made[row], piece)
        if not forcing.close:
            return [piece._replace(done=True) for piece in made]
        made = [piece._replace(text=piece.text.rstrip() + forcing.close) for piece in made]
        ends = self._written(
            [text + piece.text for text, piece in zip(texts, made, strict=True)],
            replace(options, seed=seed * 31 - 1),
            "",
        )
        return [_joined(piece, end) for piece, end in zip(made, ends, strict=True)]


def _joined(piece: Piece, more: Piece) -> Piece:
    return Piece(piece.text + more.text, piece.tokens + more.tokens, piece.logprob + more.logprob, True)
