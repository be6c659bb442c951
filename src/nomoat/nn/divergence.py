"""Divergences of a student's next token from a teacher's: forward, reverse and generalised Jensen-Shannon.

    teacher logp_NV, or its k likeliest with ids_NK -> [k classes, the rest as one more] -> divergence_N in nats
    student logits_NV -----------------------------/

The rest: all tokens outside the teacher's k likeliest are one class, whose probability is what is left of one. Nothing
is renormalised, so that the divergence of the k + 1 classes is never above the full one (data processing), and equals
it where k = V.

Hinton et al. 2015, arXiv:1503.02531; Agarwal et al. 2024, arXiv:2306.13649 (GKD); Boizard et al. 2024,
arXiv:2402.12030 (ULD).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST = -30.0
"""Log-probability below which a class counts as this: half a precision's zero has no logarithm."""


def classes(student_NV: Tensor, ids_NK: Tensor, teacher_NK: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probabilities of both over the teacher's k tokens and the rest: two of [N, K + 1].

    Args:
        student_NV: log-probabilities.
        ids_NK: the teacher's tokens; a repeated one must be merged before, an unused place has `teacher_NK` = -inf.
        teacher_NK: its log-probabilities.
    """
    used_NK = teacher_NK > LEAST
    own_NK = student_NV.gather(1, ids_NK).masked_fill(~used_NK, LEAST)
    return tuple(  # type: ignore[return-value]
        torch.cat([logp_NK, _rest(logp_NK)], 1) for logp_NK in (own_NK, teacher_NK.clamp(min=LEAST))
    )


def _rest(logp_NK: Tensor) -> Tensor:
    """The logarithm [N, 1] of what is left of one."""
    held_N1 = logp_NK.float().exp().sum(1, keepdim=True)
    return torch.log1p(-held_N1.clamp(max=1 - 1e-6))


def divergence(student_NV: Tensor, teacher_NV: Tensor, beta: float) -> Tensor:
    """The divergence [N] in nats between log-probabilities over the same classes.

    Args:
        student_NV: log-probabilities.
        teacher_NV: log-probabilities.
        beta: 0: forward, KL(teacher || student); 1: reverse, KL(student || teacher); between: generalised
            Jensen-Shannon, beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student.
    """
    if beta in (0.0, 1.0):
        source, aim = (teacher_NV, student_NV) if beta == 0.0 else (student_NV, teacher_NV)
        return _kl(source, aim)
    mixed_NV = torch.logaddexp(teacher_NV + math.log(beta), student_NV + math.log1p(-beta))
    return beta * _kl(teacher_NV, mixed_NV) + (1 - beta) * _kl(student_NV, mixed_NV)


def _kl(source_NV: Tensor, aim_NV: Tensor) -> Tensor:
    return (source_NV.exp() * (source_NV - aim_NV)).sum(-1)


def sorted_distance(student_NV: Tensor, teacher_NK: Tensor) -> Tensor:
    """ULD [N]: the L1 distance between both's probabilities, each sorted by itself, so that no token need be the same.

    Args:
        student_NV: log-probabilities over its own vocabulary.
        teacher_NK: the teacher's k likeliest over its own; what either has beyond the k-th is compared as one sum.
    """
    teacher_NK = teacher_NK.clamp(min=LEAST).exp().sort(descending=True).values
    count = min(student_NV.shape[1], teacher_NK.shape[1])
    own_NK, teacher_NK = student_NV.topk(count).values.exp(), teacher_NK[:, :count]
    rest_N = (own_NK.sum(1) - teacher_NK.sum(1)).abs()
    return (own_NK - teacher_NK).abs().sum(1) + rest_N
