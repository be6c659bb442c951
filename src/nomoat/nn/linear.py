"""Linear layers with the first weights of their dialect.

Where output projections start at zero: std 1 / sqrt(inputs) elsewhere, so that every activation has unit variance.
Else GPT-2's: std 0.02 at width 768, by the root of the width elsewhere, and output projections divided by
sqrt(2 depth) (the stack does that). Radford et al. 2019.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from nomoat.nn.dialect import Dialect


def first_std(inputs: int, dialect: Dialect) -> float:
    """The standard deviation of a fresh weight with that many inputs."""
    return (1.0 if dialect.zero_init else 0.02 * math.sqrt(768)) / math.sqrt(inputs)


def draw_(weight: Tensor, std: float) -> Tensor:
    """Fill with normal numbers. Nothing to fill on the meta device, where torch would first import 800 modules."""
    return weight if weight.is_meta else nn.init.normal_(weight, std=std)


def linear(inputs: int, outputs: int, bias: bool, dialect: Dialect) -> nn.Linear:
    """A linear layer with normal weights and zero bias."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    draw_(layer.weight, first_std(inputs, dialect))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def output_linear(inputs: int, outputs: int, bias: bool, dialect: Dialect) -> nn.Linear:
    """The last layer of a part: all zeros where the dialect has zero-initialised projections."""
    layer = linear(inputs, outputs, bias, dialect)
    if dialect.zero_init:
        nn.init.zeros_(layer.weight)
    return layer
