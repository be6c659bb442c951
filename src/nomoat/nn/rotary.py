"""Rotary positions: each pair of a head's numbers is turned by an angle that grows with the position.

    positions [B, L] or [B, L, axes] -> angles (cos, sin) [B, L, 1, K] -> turn(x_BLHK, angles) -> x_BLHK

Positions are data: with more than one axis (pictures: row, column) the turned part of the head is split among them.
The pairs are (i, i + K'/2), as in transformers. A negative position means none: the head is not turned.
Su et al. 2021, arXiv:2104.09864; scaling: Chen et al. 2023, arXiv:2306.15595 (linear), Grattafiori et al. 2024,
arXiv:2407.21783 (llama3), Peng et al. 2023, arXiv:2309.00071 (yarn).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nomoat.core.errors import ConfigError
from nomoat.nn.derive import plainly_derived
from nomoat.nn.dialect import Dialect, RopeScaling


class Angles(NamedTuple):
    """Cosine, and sine with its sign, [B, L, 1, K]; the first 2 `pairs` numbers of a head are turned."""

    cos: Tensor
    sin: Tensor
    pairs: int


@dataclass(frozen=True)
class Rotary:
    """The frequencies of one axis, in radians a position, and the factor on cosine and sine.

    `rest` numbers at the end of each head are not turned.
    """

    frequencies: tuple[float, ...]
    axes: int = 1
    rest: int = 0
    temperature: float = 1.0

    @classmethod
    def of(cls, dialect: Dialect, head_width: int, axes: int) -> Rotary:
        """The dialect's frequencies. Raises ConfigError where the turned share cannot be split in pairs."""
        turned = round(head_width * dialect.rope_share)
        if turned < 2 * axes or turned % (2 * axes):
            raise ConfigError(
                f"{turned} of a head's {head_width} numbers cannot be turned in pairs for {axes} position axes",
                fix=f"choose head_width x rope_share as a multiple of {2 * axes}",
            )
        pairs = turned // 2 // axes
        plain = [dialect.rope_base ** (-pair / pairs) for pair in range(pairs)]
        scaling = dialect.rope_scaling
        if scaling is None:
            return cls(tuple(plain), axes, head_width - turned)
        stretched = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}[scaling.kind](plain, scaling, dialect)
        return cls(tuple(stretched), axes, head_width - turned, _temperature(scaling))

    def angles(self, positions: Tensor, dtype: torch.dtype) -> Angles:
        """The angles [B, L, 1, K] of positions [B, L] or [B, L, axes]."""
        precise = torch.promote_types(dtype, torch.float32)
        frequency = torch.tensor(self.frequencies, dtype=precise, device=positions.device)
        positions = positions.clamp(min=0).view(*positions.shape[:2], self.axes, 1)
        theta = (positions * frequency).flatten(2).unsqueeze(2)
        cos, sin = theta.cos() * self.temperature, theta.sin() * self.temperature
        rest = theta.new_zeros(*theta.shape[:3], self.rest)
        whole, crossed = torch.cat((cos, cos, rest + 1), -1), torch.cat((-sin, sin, rest), -1)
        return Angles(whole.to(dtype), crossed.to(dtype), theta.shape[-1])


def _temperature(scaling: RopeScaling) -> float:
    if scaling.temperature is not None:
        return scaling.temperature
    return 0.1 * math.log(scaling.factor) + 1 if scaling.kind == "yarn" and scaling.factor > 1 else 1.0


def _linear(plain: list[float], scaling: RopeScaling, dialect: Dialect) -> list[float]:
    return [frequency / scaling.factor for frequency in plain]


def _llama3(plain: list[float], scaling: RopeScaling, dialect: Dialect) -> list[float]:
    stretched = []
    for frequency in plain:
        turns = scaling.original_length * frequency / (2 * math.pi)  # full circles within the original length
        keep = min(1.0, max(0.0, (turns - scaling.low) / (scaling.high - scaling.low)))
        stretched.append(frequency * (keep + (1 - keep) / scaling.factor))
    return stretched


def _yarn(plain: list[float], scaling: RopeScaling, dialect: Dialect) -> list[float]:
    pairs = len(plain)

    def pair_with(turns: float) -> float:
        return pairs * math.log(scaling.original_length / (turns * 2 * math.pi)) / math.log(dialect.rope_base)

    first = max(math.floor(pair_with(scaling.high)), 0)
    last = min(math.ceil(pair_with(scaling.low)), 2 * pairs - 1)
    span = (last - first) or 0.001
    stretched = []
    for pair, frequency in enumerate(plain):
        keep = 1 - min(1.0, max(0.0, (pair - first) / span))
        stretched.append(frequency * (keep + (1 - keep) / scaling.factor))
    return stretched


def turn(x_BLHK: Tensor, angles: Angles | None) -> Tensor:
    """Turn each head by the angles."""
    assert angles is not None
    inputs = (x_BLHK, *angles)
    return _turned(*inputs) if plainly_derived(inputs) else _Turn.apply(*inputs)


def _turned(x_BLHK: Tensor, cos: Tensor, sin: Tensor, pairs: int) -> Tensor:
    """x cos + (right half, left half) sin: three passes."""
    left, right, rest = x_BLHK.tensor_split((pairs, 2 * pairs), dim=-1)
    return torch.addcmul(torch.cat((right, left, rest), dim=-1).mul_(sin), x_BLHK, cos)


class _Turn(torch.autograd.Function):
    """Backwards it is the same with the sine's sign turned, where PyTorch would take twice as many passes."""

    @staticmethod
    def forward(ctx: Any, x_BLHK: Tensor, cos: Tensor, sin: Tensor, pairs: int) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.pairs = pairs
        return _turned(x_BLHK, cos, sin, pairs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin, ctx.pairs), None, None, None


def keep(x_BLHK: Tensor, angles: Angles | None) -> Tensor:
    """Nothing is turned: the dialect has no rotary positions."""
    return x_BLHK
