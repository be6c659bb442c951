"""The MLP of a layer: widen, bend, narrow; gated where the dialect says so.

    x_BLD -> up [F or 2F, D] -> activation (x gate) -> down [D, F] -> y_BLD

Shazeer 2020, arXiv:2002.05202 (gated forms); So et al. 2021, arXiv:2109.08668 (squared ReLU).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.nn.dialect import Dialect
from nomoat.nn.linear import fused_linear, linear, output_linear
from nomoat.nn.scene import ALONE, Scene


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "relu2": _relu2,
    "silu": F.silu,
}


class MLP(nn.Module):
    """down(activation(up(x)))."""

    def __init__(self, width: int, inner: int, dialect: Dialect) -> None:
        super().__init__()
        self.up = linear(width, inner, dialect.bias == "all", dialect)
        self.down = output_linear(inner, width, dialect.bias == "all", dialect)
        self.activation = ACTIVATIONS[dialect.activation]

    def forward(self, x_BLD: Tensor, scene: Scene = ALONE, memory: None = None) -> Tensor:
        """[B, L, D] to [B, L, D]; of the scene only the rows' adapters matter."""
        return scene.linear(self.down, self.activation(scene.linear(self.up, x_BLD)))


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)); `up` holds the gate's rows first, then its own."""

    def __init__(self, width: int, inner: int, dialect: Dialect) -> None:
        super().__init__()
        self.up = fused_linear(width, (inner, inner), dialect.bias == "all", dialect)
        self.down = output_linear(inner, width, dialect.bias == "all", dialect)
        self.activation = ACTIVATIONS[dialect.activation]

    def forward(self, x_BLD: Tensor, scene: Scene = ALONE, memory: None = None) -> Tensor:
        """[B, L, D] to [B, L, D]; of the scene only the rows' adapters matter."""
        gate_BLF, up_BLF = scene.linear(self.up, x_BLD).chunk(2, dim=-1)
        return scene.linear(self.down, self.activation(gate_BLF) * up_BLF)
