"""Cross-entropy of an output layer without ever holding all logits: value and gradients chunk by chunk.

    x_ND -> (chunk of rows) -> logits_CV -> log-softmax -> nats, and at once the gradients of x and of the table

The logits of a batch (rows x vocabulary) are often the largest tensor of a training step. Here each chunk's logits
live only until its share of both gradients is added up, so memory is chunk x vocabulary. The idea is that of
Wijmans et al. 2024, arXiv:2411.09009 ("cut your losses"), in plain matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits of one chunk, in the dtype of the product: 64 Mi numbers are 128 MiB in bf16. The table's gradient is added up
# once a chunk, which costs a pass over the whole table, so chunks must not be small.
CHUNK_NUMBERS = 1 << 26
# Logits that are turned into gradients at a time, in fp32: 4 MiB stay in the cache.
PIECE_NUMBERS = 1 << 20


def _capped(logits_CV: Tensor, soft_cap: float | None) -> Tensor:
    return logits_CV if soft_cap is None else soft_cap * torch.tanh(logits_CV / soft_cap)


def _slices(count: int, vocab_size: int, numbers: int) -> Iterator[slice]:
    """`count` rows in slices of about so many logits."""
    rows = max(1, min(count, numbers // vocab_size))
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def _to_gradient(logits_CV: Tensor, targets_C: Tensor, weight_C: Tensor, soft_cap: float | None, total: Tensor) -> None:
    """Write the gradient over the logits, piece by piece, and add their weighted nats to `total`."""
    for piece in _slices(len(logits_CV), logits_CV.shape[1], PIECE_NUMBERS):
        capped_PV = _capped(logits_CV[piece].float(), soft_cap)
        logp_PV = F.log_softmax(capped_PV, dim=-1)
        aim_P1, weight_P1 = targets_C[piece, None], weight_C[piece, None].float()
        total.sub_((logp_PV.gather(1, aim_P1) * weight_P1).sum())
        grad_PV = logp_PV.exp_()
        grad_PV.scatter_add_(1, aim_P1, grad_PV.new_full((1, 1), -1.0).expand_as(aim_P1))
        if soft_cap is not None:
            grad_PV.mul_(1 - (capped_PV / soft_cap).square())
        logits_CV[piece] = grad_PV.mul_(weight_P1)


class _SummedNats(torch.autograd.Function):
    """Sum over rows of weight x nats; the gradients are made in the forward pass, where the logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, table_VD: Tensor, targets_N: Tensor, weight_N: Tensor, soft_cap: float | None
    ) -> Tensor:
        device = x_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_ND.dtype
        x_low_ND, table_low_VD = x_ND.to(dtype), table_VD.to(dtype)
        grad_x_ND = torch.empty_like(x_low_ND)
        grad_table_VD: Tensor | None = None
        total = x_ND.new_zeros((), dtype=torch.float32)
        with torch.autocast(device, enabled=False):
            for chunk in _slices(len(x_ND), len(table_VD), CHUNK_NUMBERS):
                logits_CV = x_low_ND[chunk] @ table_low_VD.T
                _to_gradient(logits_CV, targets_N[chunk], weight_N[chunk], soft_cap, total)
                torch.mm(logits_CV, table_low_VD, out=grad_x_ND[chunk])
                if ctx.needs_input_grad[1]:  # a frozen table's would cost a third of all this
                    share_VD = logits_CV.T @ x_low_ND[chunk]
                    grad_table_VD = share_VD if grad_table_VD is None else grad_table_VD.float().add_(share_VD)
        if grad_table_VD is None and ctx.needs_input_grad[1]:  # nothing is counted
            grad_table_VD = torch.zeros_like(table_low_VD)
        ctx.save_for_backward(grad_x_ND, grad_table_VD)
        ctx.dtypes = x_ND.dtype, table_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x_ND, grad_table_VD = ctx.saved_tensors
        x_type, table_type = ctx.dtypes
        if not grad.is_cpu or grad != 1:  # a loss that is the end of the graph hands down 1: no pass over the table
            grad_x_ND = grad_x_ND * grad
            grad_table_VD = None if grad_table_VD is None else grad_table_VD * grad
        grad_table_VD = None if grad_table_VD is None else grad_table_VD.to(table_type)
        return grad_x_ND.to(x_type), grad_table_VD, None, None, None


def summed_nats(
    x_BLD: Tensor, table_VD: Tensor, targets_BL: Tensor, counted_BL: Tensor, soft_cap: float | None = None
) -> Tensor:
    """The summed cross-entropy, in nats, of `x @ table.T` against the targets where `counted`.

    Args:
        x_BLD: what the stack returns.
        table_VD: the output layer's weights; receives a gradient.
        targets_BL: int64 in [0, V).
        counted_BL: True (or a weight) where a target counts.
        soft_cap: logits become `soft_cap * tanh(logits / soft_cap)`; None leaves them.

    Returns:
        A scalar in fp32.
    """
    x_ND, targets_N, weight_N = x_BLD.flatten(0, -2), targets_BL.flatten(), counted_BL.flatten()
    if torch.is_grad_enabled() and (x_ND.requires_grad or table_VD.requires_grad):
        if not weight_N.all():  # of a conversation only the answers count: no logits of all else
            rows_C = weight_N.nonzero().squeeze(1)
            x_ND, targets_N, weight_N = x_ND.index_select(0, rows_C), targets_N[rows_C], weight_N[rows_C]
        return _SummedNats.apply(x_ND, table_VD, targets_N, weight_N, soft_cap)
    return -(log_probabilities(x_BLD, table_VD, targets_BL, soft_cap) * counted_BL).sum()


def log_probabilities(x_BLD: Tensor, table_VD: Tensor, targets_BL: Tensor, soft_cap: float | None = None) -> Tensor:
    """Log-probability [B, L] in nats of each target, chunk by chunk, with an ordinary gradient."""
    x_ND, targets_N = x_BLD.flatten(0, -2), targets_BL.flatten()
    pieces = [x_ND.new_zeros(0, dtype=torch.float32)]
    for piece in _slices(len(x_ND), len(table_VD), 4 * PIECE_NUMBERS):
        logits_CV = _capped(F.linear(x_ND[piece], table_VD).float(), soft_cap)
        pieces.append(-F.cross_entropy(logits_CV, targets_N[piece], reduction="none"))
    return torch.cat(pieces).view(targets_BL.shape)
