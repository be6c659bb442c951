"""What a model of some size is expected to end at on a text, before it is trained.

    held-out text read by a 3-gram model of 1/4, 1/2, all of the training text -> Curve: how hard this text is
    Curve, parameters, tokens -> Law -> bits per byte

Texts differ by far more than models do: after a minute of the same training captions of pictures cost 1.1 bits per
byte, instructions with their answers 2.1. A 3-gram model, counted in a second, differs in the same way and sees how
much more text helps; what a network comes to is a nearly common multiple of it. Law and n-gram meet at the same number
of different tokens; tokens read again help the network alone. What no n-gram sees is text that copies from its own
beginning, such as sums worked out under a question: there a network ends up to a third lower than this expects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """Held-out bits per byte of a 3-gram model, by the tokens that it was counted on.

    Args:
        points: (tokens, bits per byte), rising in tokens; at least one.
    """

    points: tuple[tuple[int, float], ...]

    def at(self, tokens: float) -> float:
        """Bits per byte at any number of different tokens: straight lines between the points, both axes in logs."""
        logs = [(math.log(count), math.log(bits)) for count, bits in self.points]
        if len(logs) == 1:
            return self.points[0][1]
        place = min(max(1, sum(x < math.log(tokens) for x, _ in logs)), len(logs) - 1)
        (x_1, y_1), (x_2, y_2) = logs[place - 1 : place + 1]
        return math.exp(y_1 + (math.log(tokens) - x_1) * (y_2 - y_1) / (x_2 - x_1))


@dataclass(frozen=True)
class Law:
    """bits per byte = the 3-gram model's on as many different tokens x R;  R = floor + (size / N)^a + (data / worth)^b.

    The form of R is that of Hoffmann et al. 2022, arXiv:2203.15556; repeated tokens are discounted as in Muennighoff et
    al. 2023, arXiv:2305.16264. `benchmarks/law.py` fits the five numbers; docs/experiments.md says to what, and how
    well they hold on folders that were left out.

    Args:
        floor, size, data, a, b: the five numbers.
        repeat: epochs after which repeated tokens are worth little (R* of Muennighoff et al.).
        share: half of the interval that holds four of five runs like those of the fit.
        fitted: (parameters, tokens) up to which there were runs; beyond them the interval grows.
    """

    floor: float = 0.467
    size: float = 960.0
    data: float = 63_600.0
    a: float = 0.3005
    b: float = 0.307
    repeat: float = 6.0
    share: float = 0.06
    fitted: tuple[float, float] = (2e6, 5e6)

    def worth(self, tokens: float, unique: float) -> float:
        """Fresh tokens that `tokens` read from a text of `unique` tokens are worth."""
        again = max(0.0, tokens / unique - 1)
        return min(tokens, unique) + unique * self.repeat * (1 - math.exp(-again / self.repeat))

    def ratio(self, parameters: float, tokens: float, unique: float) -> float:
        """R: bits per byte of the network, over those of the 3-gram model."""
        return self.floor + (self.size / parameters) ** self.a + (self.data / self.worth(tokens, unique)) ** self.b

    def within(self, parameters: float, tokens: float) -> float:
        """The share by which four of five runs stay within what is expected."""
        beyond = (
            max(0.0, math.log(found / known)) for found, known in zip((parameters, tokens), self.fitted, strict=True)
        )
        return min(0.5, self.share + 0.03 * sum(beyond))


LAW = Law()


def curve_of(points: Sequence[tuple[int, float]]) -> Curve | None:
    """The curve through these points; None where there are none."""
    return Curve(tuple(points)) if points else None
