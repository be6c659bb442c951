"""What a recipe will come to, from what its first answers came to.

stage -> tokens of its answers, and what each of them gave -> expected rows and tokens of a draft of that stage
spent + drafts at hand + as many new ones as are still needed -> rows, tokens read, tokens written
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from nomoat.core.teacher import Answer

KEPT = "kept"


class Expected(NamedTuple):
    """Rows, and tokens read and written for them."""

    rows: float
    read: float
    written: float


class Forecast:
    """Learns from each answer."""

    def __init__(self) -> None:
        self._answers: Counter[str] = Counter()
        self._read: Counter[str] = Counter()
        self._written: Counter[str] = Counter()
        self._gave: Counter[tuple[str, str]] = Counter()

    def saw(self, stage: str, answer: Answer, gave: Iterable[str]) -> None:
        """An answer to a draft of this stage, and the stages of what came of it; `KEPT` for a row that was kept."""
        self._answers[stage] += 1
        self._read[stage] += answer.prompt_tokens
        self._written[stage] += answer.completion_tokens
        self._gave.update((stage, each) for each in gave)

    def of(self, stage: str) -> Expected:
        """What a draft of this stage will come to, with all that follows from it."""
        if stage == KEPT:
            return Expected(1.0, 0.0, 0.0)
        count = max(1, self._answers[stage])
        whole = [0.0, self._read[stage] / count, self._written[stage] / count]
        for (source, child), times in self._gave.items():
            if source == stage:
                whole = [own + times / count * each for own, each in zip(whole, self.of(child), strict=True)]
        return Expected(*whole)

    def whole(self, at_hand: Iterable[str], first: str, rows: int, wanted: int, most: float) -> Expected:
        """What is still to come.

        Args:
            at_hand: stages of the drafts on their way.
            first: stage of a new draft.
            rows, wanted: kept so far, and in all.
            most: new drafts that there can be.
        """
        begun = [self.of(stage) for stage in at_hand]
        held = sum(each.rows for each in begun)
        fresh = self.of(first)
        more = min(most, max(0.0, (wanted - rows - held) / fresh.rows if fresh.rows else most))
        used = min(1.0, (wanted - rows) / held) if held else 1.0
        parts = [(each, used) for each in begun] + [(fresh, more)]
        return Expected(*(sum(each[place] * times for each, times in parts) for place in range(3)))
