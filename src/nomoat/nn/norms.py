"""Norms: layer norm, RMS norm with and without weights, per-dialect.

    x_*D -> x / rms(x) * weight_D

PyTorch's layer norm is one kernel in both directions on every device; its RMS norm is one only on some, and its
backward pass on a CPU is a chain of eight. `_RootMeanSquare` borrows the layer norm's backward kernel instead.
Zhang and Sennrich 2019, arXiv:1910.07467.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.nn.dialect import Dialect


class _RootMeanSquare(torch.autograd.Function):
    """y = x r w with r = 1 / sqrt(mean(x^2) + epsilon).

    With its mean set to 0, layer norm's backward pass gives r (g w - mean(g w) - y' mean(g w y')), y' = x r: the
    gradient that is wanted, less r mean(g w), which is added again.
    """

    @staticmethod
    def forward(x: Tensor, weight_D: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        width = x.shape[-1]
        precise = torch.promote_types(x.dtype, torch.float32)
        power = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise).square_()
        inverse = power.div_(width).add_(epsilon).rsqrt_()
        return (x * inverse.to(x.dtype)).mul_(weight_D), inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], inputs[1], output[1])
        ctx.save_for_forward(inputs[0], inputs[1], output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.epsilon = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight_D, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: ordinary operations, from the inputs on
            inverse = (x.to(inverse.dtype).square().mean(-1, keepdim=True) + ctx.epsilon).rsqrt().to(x.dtype)
            direct, unit = grad * weight_D, x * inverse
            grad_x = inverse * (direct - unit * (direct * unit).mean(-1, keepdim=True))
            return grad_x, (grad * unit).flatten(0, -2).sum(0), None
        width = x.shape[-1]
        grad = grad.contiguous()
        scale = inverse.to(x.dtype)
        grad_x, grad_weight_D, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, [width], torch.zeros_like(scale), scale, weight_D, None, [True, True, False]
        )
        row = torch.mv(grad.view(-1, width), weight_D).view(scale.shape)
        return grad_x.addcmul_(row, scale, value=1 / width), grad_weight_D, None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, weight_t: Tensor | None, _: Any) -> tuple[Tensor, None]:
        x, weight_D, inverse = ctx.saved_tensors
        inverse = inverse.to(x.dtype)
        unit = x * inverse
        change = torch.zeros_like(x)
        if x_t is not None:
            change = weight_D * inverse * (x_t - unit * (unit * x_t).mean(-1, keepdim=True))
        if weight_t is not None:
            change = change + unit * weight_t
        return change, None


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, in x's dtype."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Any shape [..., width] to the same shape."""
        return _RootMeanSquare.apply(x, self.weight.to(x.dtype), self.epsilon)[0]


class BareRMSNorm(nn.Module):
    """x / rms(x) over the last axis, no parameters."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.width, self.epsilon = width, epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Any shape [..., width] to the same shape."""
        return _RootMeanSquare.apply(x, x.new_ones(self.width), self.epsilon)[0]


class LayerNorm(nn.Module):
    """(x - mean(x)) / std(x) * weight + bias over the last axis, in x's dtype."""

    def __init__(self, width: int, epsilon: float, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Any shape [..., width] to the same shape."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


def make_norm(dialect: Dialect, width: int) -> nn.Module:
    """The dialect's norm over `width` numbers."""
    if dialect.norm == "layer":
        return LayerNorm(width, dialect.epsilon, dialect.bias == "all")
    return (RMSNorm if dialect.norm == "rms" else BareRMSNorm)(width, dialect.epsilon)


def make_head_norm(dialect: Dialect, head_width: int) -> nn.Module:
    """The dialect's norm of each head's queries or keys."""
    if dialect.qk_norm == "none":
        return nn.Identity()
    return (BareRMSNorm if dialect.norm == "rms_bare" else RMSNorm)(head_width, dialect.epsilon)
