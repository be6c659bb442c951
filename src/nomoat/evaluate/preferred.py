"""Which of two answers does a model prefer? On held-out pairs, before and after tuning, beside a bag of words.

    couples of answers -> scores of both -> share in which the better one wins, with its interval
                       -> counts of words of both -> logistic regression on their difference -> the same share

A bag of words that does as well says that the two sides differ in style, and little of what else was learned.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from nomoat.evaluate.bits import interval

Scores = NDArray[np.float32]
DECAY = 1e-3  # of the bag of words' weights


@dataclass(frozen=True)
class Share:
    """A figure and its 95 % interval over couples."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, parts_C: NDArray[Any]) -> Share:
        """The mean of parts [couples]."""
        return cls(float(parts_C.mean()), *interval(parts_C, np.ones(len(parts_C))))


def wins(scores_C2: NDArray[Any]) -> Share:
    """How often the better answer has the higher score; a tie is half a win."""
    return Share.of((np.sign(scores_C2[:, 0] - scores_C2[:, 1]) + 1) / 2)


@dataclass(frozen=True)
class Preferred:
    """What preference tuning came to, on held-out answers.

    Args:
        source: the pairs.
        couples: how many were compared.
        after: how often the better answer is the likelier one (a reward model: has the higher reward).
        before: the same before training; None of a reward model.
        gained: how often the better answer has gained more than the worse; None of a reward model.
        words: a bag of words, trained on the same rows.
        margin: how much more the better answer has gained, in nats (a reward model: the difference of rewards).
        chosen: log-probability of the better answers in nats an answer, before and after; None of a reward model.
        change: the mean of its change.
    """

    source: str
    couples: int
    after: Share
    before: Share | None
    gained: Share | None
    words: Share
    margin: float
    chosen: tuple[float, float] | None
    change: Share | None

    @property
    def warnings(self) -> list[str]:
        """What is not as it should be, in plain words."""
        said = []
        if self.change is not None and self.change.value < 0:
            said.append(
                f"The chosen answers have become less likely, by {-self.change.value:.2f} nats an answer (95 %: "
                f"{-self.change.high:.2f} to {-self.change.low:.2f}): the model moves away from both sides. Raise "
                "--nll, or lower the budget."
            )
        if self.words.value >= self.after.low:
            said.append(
                "A bag of words tells the two sides apart about as well: they differ in style, and this figure says "
                "little of what else was learned."
            )
        return said

    def rows(self) -> list[tuple[str, str]]:
        """Name and figure of each line."""
        shown = [("before", self.before), ("after", self.after), ("a bag of words", self.words)]
        lines = [(name, _percent(share)) for name, share in shown if share is not None]
        if self.gained is not None:
            lines.append(("gained more than the other", _percent(self.gained)))
        lines.append(("margin", f"{self.margin:+.2f}"))
        if self.chosen is not None and self.change is not None:
            change = f"{self.change.value:+.2f}, 95 %: {self.change.low:+.2f} to {self.change.high:+.2f}"
            lines.append(("log-probability of the better", f"{self.chosen[0]:.2f} -> {self.chosen[1]:.2f} ({change})"))
        return lines

    def as_text(self) -> str:
        """For the terminal."""
        head = f"Which answer does it prefer? The better of {self.couples:,} held-out couples of {self.source}:"
        lines = [f"  {name:<32}{figure}" for name, figure in self.rows()]
        return "\n".join([head, "", *lines, "", *self.warnings]).rstrip()

    def as_markdown(self) -> str:
        """For the card."""
        rows = [f"| {name} | {figure} |" for name, figure in self.rows()]
        head = f"The better of {self.couples:,} held-out couples of answers is preferred (margins in nats):"
        return "\n".join(["## Preference", "", head, "", "| | |", "|---|---|", *rows, "", *self.warnings]) + "\n"

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "warnings": self.warnings}


def preferred(
    source: str, couples_C2: NDArray[np.int64], before: Scores | None, after: Scores, words: Share
) -> Preferred:
    """Put the figures together.

    Args:
        source: name of the pairs.
        couples_C2: numbers of a better and a worse answer [couples, 2].
        before: score of each answer before training [answers]; None of a reward model.
        after: the same after it.
        words: the bag of words' share.
    """
    after_C2 = after[couples_C2]
    if before is None:
        margin = float((after_C2[:, 0] - after_C2[:, 1]).mean())
        return Preferred(source, len(couples_C2), wins(after_C2), None, None, words, margin, None, None)
    before_C2 = before[couples_C2]
    gain_C2 = after_C2 - before_C2
    chosen = (float(before_C2[:, 0].mean()), float(after_C2[:, 0].mean()))
    margin = float((gain_C2[:, 0] - gain_C2[:, 1]).mean())
    likelier, gained, change = wins(after_C2), wins(gain_C2), Share.of(gain_C2[:, 0])
    return Preferred(source, len(couples_C2), likelier, wins(before_C2), gained, words, margin, chosen, change)


def bag_of_words(
    answers: Mapping[int, str], learned_C2: NDArray[np.int64], asked_C2: NDArray[np.int64], steps: int = 200
) -> Share:
    """How often a logistic regression on counts of words, trained on couples, prefers the better of others.

    Args:
        answers: number -> text.
        learned_C2: numbers of a better and a worse answer [couples, 2], to learn from.
        asked_C2: likewise, to be asked.
        steps: of gradient descent.
    """
    counts = {number: Counter(re.findall(r"\w+|[^\w\s]", text.lower())) for number, text in answers.items()}
    known = sorted({word for number in np.unique(learned_C2).tolist() for word in counts[number]})
    column = {word: place for place, word in enumerate(known)}
    learned, asked = _differences(counts, column, learned_C2), _differences(counts, column, asked_C2)
    weight = torch.zeros(len(known), requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.softplus(-(learned @ weight)).mean() + DECAY * weight.square().sum()
        loss.backward()
        optimizer.step()
    margin_C = (asked @ weight.detach()).numpy()
    return wins(np.stack([margin_C, np.zeros_like(margin_C)], 1))


def _differences(counts: Mapping[int, Counter[str]], column: Mapping[str, int], couples: Any) -> torch.Tensor:
    """Counts of the better side less those of the worse [couples, words]."""
    found = torch.zeros(len(couples), len(column))
    for row, couple in enumerate(couples.tolist()):
        for number, sign in zip(couple, (1, -1), strict=True):
            for word, count in counts[number].items():
                if word in column:
                    found[row, column[word]] += sign * count
    return found


def _percent(share: Share) -> str:
    return f"{share.value:.1%} (95 %: {share.low:.1%} to {share.high:.1%})"
