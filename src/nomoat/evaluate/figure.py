"""A figure with its 95 % interval, and the three ways by which evaluation comes by one.

hits of n            -> wilson    (Wilson 1927: shares, also near 0 and 1)
values_N             -> mean      (percentile bootstrap, Efron 1979)
a statistic of sets  -> jackknife (groups left out in turn: Quenouille 1956, Tukey 1958)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from nomoat.evaluate.bits import interval

Z = 1.959964  # the normal distribution's 97.5 % point


class Figure(NamedTuple):
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Figure:
        """In another unit."""
        return Figure(*(factor * each for each in self))

    def shown(self, form: str = ".3f") -> str:
        """`0.512 (0.47 to 0.55)`, as a table has it; a dash where there is nothing."""
        if math.isnan(self.value):
            return "-"
        if math.isnan(self.low):
            return f"{self.value:{form}}"
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"


NOTHING = Figure(math.nan, math.nan, math.nan)


def wilson(hits: float, count: int) -> Figure:
    """The share hits / count with Wilson's score interval; nothing where there is nothing to count."""
    if not count:
        return NOTHING
    share, bent = hits / count, Z * Z / count
    middle = (share + bent / 2) / (1 + bent)
    reach = Z * math.sqrt(share * (1 - share) / count + bent / (4 * count)) / (1 + bent)
    low, high = (0.0 if hits == 0 else middle - reach), (1.0 if hits == count else middle + reach)  # not 1 - 1e-16
    return Figure(share, low, high)


def mean(values_N: NDArray[Any], seed: int = 0) -> Figure:
    """The mean with its bootstrap interval."""
    if not len(values_N):
        return NOTHING
    return Figure(float(values_N.mean()), *interval(values_N, np.ones(len(values_N)), seed))


def jackknife(statistic: Callable[[int | None], float], groups: int) -> Figure:
    """A statistic of independent sets, its standard error from leaving out one group of each set at a time.

    Args:
        statistic: its value without that group; with None, of everything.
        groups: how many there are.
    """
    value = statistic(None)
    without_G = np.array([statistic(group) for group in range(groups)])
    error = math.sqrt((groups - 1) / groups * float(((without_G - without_G.mean()) ** 2).sum()))
    return Figure(value, value - Z * error, value + Z * error)


def plain(value: Any) -> Any:
    """Figures and what holds them as JSON's values: null for what is no number, no tensors."""
    if isinstance(value, Figure):
        return {name: plain(each) for name, each in value._asdict().items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        held = {field.name: getattr(value, field.name) for field in fields(value)}
        return {name: plain(each) for name, each in held.items() if not isinstance(each, torch.Tensor)}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value
