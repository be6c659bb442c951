"""Speculation: a cheap guess at the next few tokens, checked by the model in one call.

    tokens -> Drafts.propose -> Draft (K tokens) -> decode (L = 1 + K) -> accept -> 1 to 1 + K tokens

What is written is distributed exactly as without drafts. A draft that is one guess (n-gram lookup, the draft model's
most likely token) is even written token for token as without: each token is drawn as ever, and the draft only saves
calls while it agrees.

Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318; lookup in the text itself: Yang et al.
2023, arXiv:2304.04487, and in earlier ones: Oliaro et al. 2024, arXiv:2411.04975.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nomoat.core.types import Decodes
from nomoat.sampling.seats import Seat, Seats
from nomoat.sampling.tokens import SamplingOptions, draw, pick, probabilities
from nomoat.sampling.write import CHUNK

MOST = 16
"""Tokens of the longest draft."""
LATELY = 0.1
"""Weight of one more token in the share of drafted tokens that were accepted lately."""
RETRY = 16
"""Drafts that do not pay are tried again once in so many times."""
GREEDY = SamplingOptions(temperature=0)
Chance = torch.Generator | None


@dataclass(frozen=True)
class Draft:
    """A guess.

    Args:
        tokens: K of them; none: no guess.
        probabilities_KV: what each token was drawn from; None: each is one guess, with all the probability.
        kind: what the guess rests on, such as the length of a match: acceptance is counted for each kind.
    """

    tokens: tuple[int, ...] = ()
    probabilities_KV: Tensor | None = None
    kind: int = 0


class Drafts(Protocol):
    """Whatever guesses how a text goes on."""

    def propose(self, tokens: Sequence[int], k: int, options: SamplingOptions = GREEDY, chance: Chance = None) -> Draft:
        """At most `k` tokens after the text, fewer where more would not pay; what is drawn is drawn from `chance`."""

    def saw(self, draft: Draft, accepted: int) -> None:
        """Learn how many of a draft's tokens were right."""

    def keep(self, tokens: Sequence[int]) -> None:
        """Learn a text that has ended."""


def accept(logits_LV: Tensor, draft: Draft, options: SamplingOptions, chance: torch.Generator) -> list[int]:
    """The tokens that follow: those of the draft that are accepted, and one that the model draws itself.

    Args:
        logits_LV: the model's, after the text and after each token of the draft: L = K + 1.
        draft: what was fed.
        options: temperature and cuts; each token given has the `probabilities` that they make of its logits.
        chance: on the CPU.
    """
    if draft.probabilities_KV is not None:
        return _accept_drawn(probabilities(logits_LV, options), draft.probabilities_KV, draft.tokens, chance)
    # Drawing with the row's own chance and comparing accepts a token as often as it is probable, as it should be, and
    # uses as much chance as there are tokens: the text is that of a row without drafts.
    given: list[int] = []
    for row, guess in enumerate((*draft.tokens, None)):
        given += pick(logits_LV[row : row + 1], options, chance).tolist()
        if given[-1] != guess:
            break
    return given


def _accept_drawn(p_LV: Tensor, q_KV: Tensor, guess: Sequence[int], chance: torch.Generator) -> list[int]:
    """Accept x with probability min(1, p(x) / q(x)); the first refused is drawn from what p has more than q."""
    right, last_1V = len(guess), p_LV[-1:]
    for row, token in enumerate(guess):
        if float(torch.rand((), generator=chance)) * float(q_KV[row, token]) >= float(p_LV[row, token]):
            more_1V = (p_LV[row : row + 1] - q_KV[row : row + 1]).clamp(min=0)
            right, last_1V = row, more_1V if more_1V.any() else p_LV[row : row + 1]  # none: they differ by rounding
            break
    return [*guess[:right], *draw(last_1V, torch.rand(1, generator=chance)).tolist()]


class Paced:
    """Drafts as long as pay, by the share of their tokens that was accepted lately.

    Where each token is accepted with probability a if the one before it was, k of them give (1 - a^(k+1)) / (1 - a)
    tokens for the price of 1 + cost k steps of the model.
    """

    def __init__(self, cost: float) -> None:
        shares = [*(percent / 100 for percent in range(100)), 0.999]
        self._best = [max(range(MOST + 1), key=lambda k: (1 - a ** (k + 1)) / (1 - a) / (1 + cost * k)) for a in shares]
        self._share: dict[int, float] = {}
        self._asked = 0

    def paying(self, kind: int = 0) -> int:
        """Tokens to draft."""
        self._asked += 1
        return self._best[int(100 * self._share.get(kind, 0.5))] or int(self._asked % RETRY == 0)

    def saw(self, draft: Draft, accepted: int) -> None:
        """See Drafts."""
        tried = min(len(draft.tokens), accepted + 1)
        if tried:
            stays = (1 - LATELY) ** tried
            self._share[draft.kind] = stays * self._share.get(draft.kind, 0.5) + (1 - stays) * accepted / tried


class NgramDrafts(Paced):
    """What followed the last tokens where they stood before, in this text or in the texts that ended lately.

    The longest match is taken, and of those the latest. How fast a text comes can then depend on the texts that others
    had written here, as with the prefix cache; `recent=0` looks into the text itself only.

    Args:
        shortest, longest: tokens that must, and can, be matched.
        recent: tokens of ended texts that are kept.
        cost: of checking one more token, in steps of the model.
    """

    def __init__(self, shortest: int = 2, longest: int = 16, recent: int = 32768, cost: float = 0.1) -> None:
        super().__init__(cost)
        self.shortest, self.longest, self.recent = shortest, longest, recent
        self._past = ""

    def propose(self, tokens: Sequence[int], k: int, options: SamplingOptions = GREEDY, chance: Chance = None) -> Draft:
        """See Drafts; without a match no tokens."""
        text = self._past + _letters(tokens)
        matched, at = 0, len(text) - 1
        for length in range(self.shortest, min(self.longest, len(tokens)) + 1):
            start = text.rfind(text[-length:], 0, at)  # a longer match ends no later
            if start < 0:
                break
            matched, at = length, start + length
        count = min(k, self.paying(matched)) if matched else 0
        return Draft(tuple(map(ord, text[at : at + count])), kind=matched)

    def keep(self, tokens: Sequence[int]) -> None:
        """See Drafts."""
        self._past = (self._past + _letters(tokens))[-self.recent :] if self.recent else ""


def _letters(tokens: Sequence[int]) -> str:
    """The tokens as characters: Python searches nothing faster than a string."""
    return array("I", tokens).tobytes().decode(f"utf-32-{sys.byteorder[0]}e", "surrogatepass")


class ModelDrafts(Paced):
    """A small model writes the draft; its memory is kept in step by rewinding.

    Args:
        model: with the vocabulary of the model that checks.
        slots: texts that it remembers.
        sampled: draw the draft instead of taking the most likely tokens. More is accepted at high temperatures, but
            what a seed gives then depends on when there were drafts.
        cost: of drafting and checking one more token, in steps of the checking model.
    """

    def __init__(self, model: Decodes, slots: int = 2, sampled: bool = False, cost: float = 0.3) -> None:
        super().__init__(cost)
        self.sampled = sampled
        self._length: int = model.config.context_length  # type: ignore[attr-defined]
        with torch.no_grad():
            self._seats = Seats(model, slots, self._length, spare=0)

    @torch.no_grad()
    def propose(self, tokens: Sequence[int], k: int, options: SamplingOptions = GREEDY, chance: Chance = None) -> Draft:
        """See Drafts; no tokens where the small model's context is full."""
        k = min(k, self._length - len(tokens) + 1, self.paying())
        if k < 1:
            return Draft()
        drawn = chance if self.sampled and options.temperature > 0 else None
        seat = self._seats.take(tokens)
        try:
            q = self._write(seat, k, options, drawn)
            return Draft(tuple(seat.tokens[-k:]), None if drawn is None else torch.cat(q))
        finally:
            self._seats.leave(seat, own=len(tokens))

    def _write(self, seat: Seat, k: int, options: SamplingOptions, chance: Chance) -> list[Tensor]:
        """Add k tokens to the seat's text; for each the row [1, V] that it was taken from."""
        q: list[Tensor] = []
        while len(q) < k:
            logits_BV = self._seats.feed([seat], [seat.tokens[seat.read :][:CHUNK]], last=True)[:, -1]
            if seat.waiting:
                continue
            if not q:
                self._seats.remember(seat)
            q.append(logits_BV if chance is None else probabilities(logits_BV, options))
            drawn_B = pick(q[-1], GREEDY, ()) if chance is None else draw(q[-1], torch.rand(1, generator=chance))
            seat.tokens += drawn_B.tolist()
        return q

    def keep(self, tokens: Sequence[int]) -> None:
        """Nothing to do: the memory keeps what it has read."""
