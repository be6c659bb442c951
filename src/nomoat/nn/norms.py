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

from nomoat.nn.derive import derivable, plainly_derived
from nomoat.nn.dialect import Dialect


def rms_norm(x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis; x and weight of one dtype."""
    if not torch.is_grad_enabled():
        return F.rms_norm(x, weight_D.shape, weight_D, epsilon)
    inputs = (x, weight_D, epsilon)
    return plain_rms_norm(*inputs) if plainly_derived(inputs) else _RootMeanSquare.apply(*inputs)


def plain_rms_norm(x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    """The same in ordinary operations, which can be derived in any way."""
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    return (precise * (precise.square().mean(-1, keepdim=True) + epsilon).rsqrt()).to(x.dtype) * weight_D


class _RootMeanSquare(torch.autograd.Function):
    """y = x r w with r = 1 / sqrt(mean(x^2) + epsilon).

    With its mean set to 0, layer norm's backward pass gives r (g w - mean(g w) - y' mean(g w y')), y' = x r: the
    gradient that is wanted, less r mean(g w), which is added again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        width, precise = x.shape[-1], torch.promote_types(x.dtype, torch.float32)
        power = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise).square_()
        inverse = power.div_(width).add_(epsilon).rsqrt_().to(x.dtype)
        ctx.save_for_backward(x, weight_D, inverse)
        ctx.epsilon = epsilon
        return (x * inverse).mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_D, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            return derivable(plain_rms_norm, (x, weight_D, ctx.epsilon), (grad,))
        width, grad = x.shape[-1], grad.contiguous()
        wanted = [True, ctx.needs_input_grad[1], False]
        grad_x, grad_weight_D, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, [width], torch.zeros_like(inverse), inverse, weight_D, None, wanted
        )
        row = torch.mv(grad.view(-1, width), weight_D).view(inverse.shape)
        return grad_x.add_(row * inverse, alpha=1 / width), grad_weight_D if wanted[1] else None, None


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, in x's dtype."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Any shape [..., width] to the same shape."""
        return rms_norm(x, self.weight.to(x.dtype), self.epsilon)


class BareRMSNorm(nn.Module):
    """x / rms(x) over the last axis, no parameters."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.width, self.epsilon = width, epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Any shape [..., width] to the same shape."""
        return rms_norm(x, x.new_ones(self.width), self.epsilon)


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
