"""The chunked cross-entropy equals the plain one, in value and in both gradients, however it is cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nomoat.nn import cross_entropy
from nomoat.nn.cross_entropy import log_probabilities, summed_nats


def problem(dtype=torch.float64, rows=(3, 7), width=5, vocab=11):
    torch.manual_seed(0)
    x_BLD = torch.randn(*rows, width, dtype=dtype, requires_grad=True)
    table_VD = torch.randn(vocab, width, dtype=dtype, requires_grad=True)
    return x_BLD, table_VD, torch.randint(vocab, rows), torch.rand(rows) < 0.7


def plain(x_BLD, table_VD, targets_BL, counted_BL, soft_cap):
    logits_BLV = F.linear(x_BLD, table_VD)
    if soft_cap is not None:
        logits_BLV = soft_cap * torch.tanh(logits_BLV / soft_cap)
    nats_BL = F.cross_entropy(logits_BLV.transpose(1, 2), targets_BL, reduction="none")
    return (nats_BL * counted_BL).sum()


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("chunk, piece", [(1, 1), (30, 11), (64, 64), (10**6, 22)])
def test_it_equals_the_plain_form_however_it_is_cut(monkeypatch, soft_cap, chunk, piece):
    monkeypatch.setattr(cross_entropy, "CHUNK_NUMBERS", chunk)
    monkeypatch.setattr(cross_entropy, "PIECE_NUMBERS", piece)
    x_BLD, table_VD, targets_BL, counted_BL = problem(torch.float32)
    ours = 3 * summed_nats(x_BLD, table_VD, targets_BL, counted_BL, soft_cap)
    theirs = 3 * plain(x_BLD, table_VD, targets_BL, counted_BL, soft_cap)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, (x_BLD, table_VD)), torch.autograd.grad(theirs, (x_BLD, table_VD)), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_under_autocast_it_is_near_fp32():
    x_BLD, table_VD, targets_BL, counted_BL = problem(torch.float32, rows=(4, 50), width=32, vocab=97)
    exact = torch.autograd.grad(summed_nats(x_BLD, table_VD, targets_BL, counted_BL), (x_BLD, table_VD))
    with torch.autocast("cpu", torch.bfloat16):
        loss = summed_nats(x_BLD, table_VD, targets_BL, counted_BL)
    for low, grad in zip(torch.autograd.grad(loss, (x_BLD, table_VD)), exact, strict=True):
        assert low.dtype == torch.float32
        assert (low - grad).norm() < 0.02 * grad.norm()


def test_without_gradients_it_is_the_sum_of_the_log_probabilities():
    x_BLD, table_VD, targets_BL, counted_BL = problem()
    with torch.no_grad():
        nats = summed_nats(x_BLD, table_VD, targets_BL, counted_BL)
        logp_BL = log_probabilities(x_BLD, table_VD, targets_BL)
    torch.testing.assert_close(nats, -(logp_BL * counted_BL).sum())
    torch.testing.assert_close(nats.float(), plain(x_BLD, table_VD, targets_BL, counted_BL, None).detach().float())
