"""Linear layers with the first weights of their dialect, and a bias that costs next to nothing.

    x_BLD -> x W^T + b -> y_BLE

Where output projections start at zero: std 1 / sqrt(inputs) elsewhere, so that every activation has unit variance.
Else GPT-2's: std 0.02 at width 768, by the root of the width elsewhere, and output projections divided by
sqrt(2 depth) (the stack does that). Radford et al. 2019.

In bf16 on a CPU PyTorch first writes the bias to every row of the result and then adds the product, and sums the
bias's gradient row by row: together a tenth of the layer's time. oneDNN adds it inside the product (PyTorch's own
compiler calls it so), and a sum in two stages reads wider.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from nomoat.core.device import has_bf16
from nomoat.nn.derive import forward_mode
from nomoat.nn.dialect import Dialect
from nomoat.nn.scene import working_dtype

INSIDE = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if has_bf16(torch.device("cpu")) else None
"""oneDNN's product with the bias inside; None where this build of PyTorch, or this processor, has none."""


class _LinearInside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_ED: Tensor, bias_E: Tensor) -> Tensor:
        assert INSIDE is not None
        ctx.save_for_backward(x, weight_ED)
        return INSIDE(x, weight_ED, bias_E, "none", [], "")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight_ED = ctx.saved_tensors
        rows_NE = grad.reshape(-1, grad.shape[-1])
        stages = math.gcd(len(rows_NE), 64)
        bias_E = rows_NE.unflatten(0, (stages, -1)).sum(0).sum(0, dtype=torch.float32).to(grad.dtype)
        return (rows_NE @ weight_ED).view(x.shape), rows_NE.T @ x.reshape(-1, x.shape[-1]), bias_E


class BiasedLinear(nn.Linear):
    """x W^T + b."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        dtype = working_dtype(x)
        here = INSIDE is not None and dtype == torch.bfloat16 and x.is_cpu and not torch.compiler.is_compiling()
        if not here or forward_mode((x, self.weight, self.bias)):
            return super().forward(x)
        return _LinearInside.apply(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class Cast:
    """A frozen tensor in the type that products are computed in: cast once, and again only when it has changed."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._made: Tensor | None = None

    def of(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor in that type; itself, where it is of that type already."""
        if tensor.dtype == dtype:
            return tensor
        key = tensor.data_ptr(), tensor._version, tensor.device, dtype
        if self._made is None or self._key != key:
            self._key, self._made = key, tensor.detach().to(dtype)
        return self._made


def first_std(inputs: int, dialect: Dialect) -> float:
    """The standard deviation of a fresh weight with that many inputs."""
    return (1.0 if dialect.zero_init else 0.02 * math.sqrt(768)) / math.sqrt(inputs)


def draw_(weight: Tensor, std: float) -> Tensor:
    """Fill with normal numbers. Nothing to fill on the meta device, where torch would first import 800 modules."""
    return weight if weight.is_meta else nn.init.normal_(weight, std=std)


def linear(inputs: int, outputs: int, bias: bool, dialect: Dialect) -> nn.Linear:
    """A linear layer with normal weights and zero bias."""
    layer = (BiasedLinear if bias else nn.Linear)(inputs, outputs, bias=bias)
    draw_(layer.weight, first_std(inputs, dialect))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def fused_linear(inputs: int, outputs: tuple[int, ...], bias: bool, dialect: Dialect) -> nn.Linear:
    """Several layers of the same input as one; Muon reads from `weight.blocks` that they are matrices of their own."""
    layer = linear(inputs, sum(outputs), bias, dialect)
    for holder in (layer, layer.weight):  # a packed layer has no such weight
        setattr(holder, "blocks", outputs)  # noqa: B010  a plain assignment is unknown to the type checker
    return layer


def output_linear(inputs: int, outputs: int, bias: bool, dialect: Dialect) -> nn.Linear:
    """The last layer of a part: all zeros where the dialect has zero-initialised projections."""
    layer = linear(inputs, outputs, bias, dialect)
    if dialect.zero_init:
        nn.init.zeros_(layer.weight)
    return layer
