"""Cross-entropy of an output layer without ever holding all logits: value and gradients chunk by chunk.

    x_ND -> (chunk of rows) -> logits_CV -> log-softmax -> nats, and at once the gradients of x and of the table

The logits of a batch (rows x vocabulary) are often the largest tensor of a training step. Here each chunk's logits
live only until its share of both gradients is added up, so memory is chunk x vocabulary. The idea is that of
Wijmans et al. 2024, arXiv:2411.09009 ("cut your losses"), in plain matrix products.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits of one chunk: 4 Mi numbers are 16 MiB in fp32, which stays near the last-level cache of small machines.
CHUNK_NUMBERS = 1 << 22


def _capped(logits_CV: Tensor, soft_cap: float | None) -> Tensor:
    return logits_CV if soft_cap is None else soft_cap * torch.tanh(logits_CV / soft_cap)


def _rows(count: int, vocab_size: int) -> int:
    return max(1, min(count, CHUNK_NUMBERS // vocab_size))


class _SummedNats(torch.autograd.Function):
    """Sum over rows of weight x nats; the gradients are made in the forward pass, where the logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, table_VD: Tensor, targets_N: Tensor, weight_N: Tensor, soft_cap: float | None
    ) -> Tensor:
        dtype = (
            torch.get_autocast_dtype(x_ND.device.type) if torch.is_autocast_enabled(x_ND.device.type) else x_ND.dtype
        )
        x_low_ND, table_low_VD = x_ND.to(dtype), table_VD.to(dtype)
        grad_x_ND = torch.empty_like(x_low_ND)
        grad_table_VD: Tensor | None = None
        total = x_ND.new_zeros((), dtype=torch.float32)
        with torch.autocast(x_ND.device.type, enabled=False):
            for start in range(0, len(x_ND), _rows(len(x_ND), len(table_VD))):
                piece = slice(start, start + _rows(len(x_ND), len(table_VD)))
                logits_CV = _capped((x_low_ND[piece] @ table_low_VD.T).float(), soft_cap)
                logp_CV = F.log_softmax(logits_CV, dim=-1)
                aim_C1, weight_C1 = targets_N[piece, None], weight_N[piece, None].float()
                total = total - (logp_CV.gather(1, aim_C1) * weight_C1).sum()
                grad_CV = logp_CV.exp_()
                grad_CV.scatter_add_(1, aim_C1, grad_CV.new_full((1, 1), -1.0).expand_as(aim_C1))
                if soft_cap is not None:
                    grad_CV.mul_(1 - (logits_CV / soft_cap).square())
                low_CV = grad_CV.mul_(weight_C1).to(dtype)
                torch.mm(low_CV, table_low_VD, out=grad_x_ND[piece])
                share_VD = (low_CV.T @ x_low_ND[piece]).float()
                grad_table_VD = share_VD if grad_table_VD is None else grad_table_VD.add_(share_VD)
        ctx.save_for_backward(grad_x_ND, grad_table_VD)
        ctx.dtypes = x_ND.dtype, table_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_x_ND, grad_table_VD = ctx.saved_tensors
        x_type, table_type = ctx.dtypes
        return (grad_x_ND * grad).to(x_type), (grad_table_VD * grad).to(table_type), None, None, None


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
        return _SummedNats.apply(x_ND, table_VD, targets_N, weight_N, soft_cap)
    return -(log_probabilities(x_BLD, table_VD, targets_BL, soft_cap) * counted_BL).sum()


def log_probabilities(x_BLD: Tensor, table_VD: Tensor, targets_BL: Tensor, soft_cap: float | None = None) -> Tensor:
    """Log-probability [B, L] in nats of each target, chunk by chunk, with an ordinary gradient."""
    x_ND, targets_N = x_BLD.flatten(0, -2), targets_BL.flatten()
    pieces = []
    for start in range(0, len(x_ND), _rows(len(x_ND), len(table_VD))):
        piece = slice(start, start + _rows(len(x_ND), len(table_VD)))
        logits_CV = _capped(F.linear(x_ND[piece], table_VD).float(), soft_cap)
        pieces.append(-F.cross_entropy(logits_CV, targets_N[piece], reduction="none"))
    return torch.cat(pieces).view(targets_BL.shape)
