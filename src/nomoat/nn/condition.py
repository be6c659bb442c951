"""The condition port: one vector a row shifts, scales and gates each part of every layer (adaLN-zero).

    cond_BD -> SiLU (once a call) -> linear, zero at first -> shift, scale, gate [B, 1, D]
    x -> norm -> x (1 + scale) + shift -> part -> y (1 + gate) -> added to the stream

All three are 0 at the start, so a trunk that gains this port still computes what it did. A stack with
zero-initialised output projections then also starts as the identity, as in the paper.
Peebles and Xie 2022, arXiv:2212.09748.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nomoat.nn.scene import Scene


class Modulation(NamedTuple):
    """What the condition does to one part's input (`enter`) and output (`leave`)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor

    def enter(self, x_BLD: Tensor) -> Tensor:
        """x (1 + scale) + shift."""
        return torch.addcmul(self.shift, x_BLD, self.scale)

    def leave(self, y_BLD: Tensor) -> Tensor:
        """y (1 + gate)."""
        return y_BLD * self.gate


class Unmodulated:
    """No condition: input and output pass as they are."""

    def enter(self, x_BLD: Tensor) -> Tensor:
        """x."""
        return x_BLD

    def leave(self, y_BLD: Tensor) -> Tensor:
        """y."""
        return y_BLD


UNMODULATED = Unmodulated()


class NoPort(nn.Module):
    """Stands where a stack has no condition port."""

    def forward(self, scene: Scene) -> Unmodulated:
        """Nothing is modulated."""
        return UNMODULATED


class CondPort(nn.Module):
    """From the condition to one part's modulation; left out in a call, nothing is modulated."""

    def __init__(self, cond_width: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(cond_width, 3 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, scene: Scene) -> Modulation | Unmodulated:
        """The modulation [B, 1, D] of the scene's condition."""
        if scene.cond_B1D is None:
            return UNMODULATED
        shift, scale, gate = self.linear(scene.cond_B1D).chunk(3, dim=-1)
        return Modulation(shift, 1 + scale, 1 + gate)


def make_port(cond_width: int, width: int) -> nn.Module:
    """A condition port, or what stands in its place where `cond_width` is 0."""
    return CondPort(cond_width, width) if cond_width else NoPort()
