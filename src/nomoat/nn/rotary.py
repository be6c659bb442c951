"""Rotary positions: each pair of a head's numbers is turned by an angle that grows with the position.

    positions [B, L] or [B, L, axes] -> angles (cos, sin) [B, L, 1, K'/2] -> turn(x_BLHK, angles) -> x_BLHK

Positions are data: with more than one axis (pictures: row, column) the turned part of the head is split among them.
The pairs are (i, i + K'/2), as in transformers. A negative position means none: the head is not turned.
Su et al. 2021, arXiv:2104.09864; scaling: Chen et al. 2023, arXiv:2306.15595 (linear), Grattafiori et al. 2024,
arXiv:2407.21783 (llama3), Peng et al. 2023, arXiv:2309.00071 (yarn).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nomoat.core.errors import ConfigError
from nomoat.nn.dialect import Dialect, RopeScaling


@dataclass(frozen=True)
class Rotary:
    """The frequencies of one axis, in radians a position, and the factor on cosine and sine."""

    frequencies: tuple[float, ...]
    axes: int = 1
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
            return cls(tuple(plain), axes)
        stretched = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}[scaling.kind](plain, scaling, dialect)
        return cls(tuple(stretched), axes, _temperature(scaling))

    def angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine [B, L, 1, K'/2] of positions [B, L] or [B, L, axes]."""
        precise = torch.promote_types(dtype, torch.float32)
        frequency = torch.tensor(self.frequencies, dtype=precise, device=positions.device)
        positions = positions.clamp(min=0).view(*positions.shape[:2], self.axes, 1)
        theta = (positions * frequency).flatten(2).unsqueeze(2)
        return (theta.cos() * self.temperature).to(dtype), (theta.sin() * self.temperature).to(dtype)


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


class _Turn(torch.autograd.Function):
    """Written by halves into one new tensor: two passes where the textbook form takes six."""

    @staticmethod
    def forward(x_BLHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = cos.shape[-1]
        y_BLHK = torch.empty(x_BLHK.shape, dtype=x_BLHK.dtype, device=x_BLHK.device)
        left, right, rest = x_BLHK.tensor_split((half, 2 * half), dim=-1)
        new_left, new_right, new_rest = y_BLHK.tensor_split((half, 2 * half), dim=-1)
        torch.mul(left, cos, out=new_left).addcmul_(right, sin, value=-1)
        torch.mul(right, cos, out=new_right).addcmul_(left, sin)
        new_rest.copy_(rest)
        return y_BLHK

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _Turn.apply(grad, cos, -sin), None, None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor, *_: Any) -> Tensor:
        return _Turn.apply(x_t, *ctx.saved_tensors)


def turn(x_BLHK: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
    """Turn the first K' numbers of each head by the angles; the rest stays."""
    assert angles is not None
    return _Turn.apply(x_BLHK, *angles)


def keep(x_BLHK: Tensor, angles: tuple[Tensor, Tensor] | None) -> Tensor:
    """Nothing is turned: the dialect has no rotary positions."""
    return x_BLHK
