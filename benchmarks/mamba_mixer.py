"""Mamba-2 against attention on long sequences, forward and backward: one process, cases taken in turn.

    python benchmarks/mamba_mixer.py [--length 4096] [--rounds 12] [--threads 2]

"core" is the mixer alone, 6 heads of 64 at batch 1: `nomoat.nn.ssd.ssd` (state 64, gradients of x, dt, a, b and c)
beside PyTorch's fused causal attention (gradients of q, k and v) and beside the chunked scan that transformers falls
back to. "block" is a whole layer of width 384, norm and projections and sum included, no MLP: attention of 6 heads
beside Mamba of 12 heads (its default, expand 2) and of 6 (expand 1). Every figure is a ratio of two seconds of the same
round: how many times as fast as attention we are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from peers import record, spread
from torch import Tensor

from nomoat.nn.backbone import Backbone
from nomoat.nn.dialect import MAMBA2, OURS, MambaConfig
from nomoat.nn.ssd import ssd

HEADS, HEAD_WIDTH, STATE_WIDTH = 6, 64, 64

Case = Callable[[], object]


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [each.detach().requires_grad_() for each in tensors]


def attention_core(length: int, dtype: torch.dtype) -> Case:
    q, k, v, grad = torch.randn(4, 1, HEADS, length, HEAD_WIDTH, dtype=dtype)
    moving = leaves(q, k, v)
    return lambda: torch.autograd.grad(F.scaled_dot_product_attention(*moving, is_causal=True), moving, grad)


def mamba_inputs(length: int, dtype: torch.dtype) -> list[Tensor]:
    """x, dt, a, b, c as a fresh layer makes them."""
    x_BLHK = torch.randn(1, length, HEADS, HEAD_WIDTH, dtype=dtype)
    dt_BLH = torch.empty(1, length, HEADS).uniform_(-6.9, -2.3).exp()
    b_BLGN, c_BLGN = torch.randn(2, 1, length, 1, STATE_WIDTH, dtype=dtype)
    return leaves(x_BLHK, dt_BLH, -torch.linspace(1, 16, HEADS), b_BLGN, c_BLGN)


def mamba_core(length: int, dtype: torch.dtype) -> Case:
    moving = mamba_inputs(length, dtype)
    grad_BLHK = torch.randn_like(moving[0])
    return lambda: torch.autograd.grad(ssd(*moving)[0], moving, grad_BLHK)


def transformers_core(length: int, chunk: int) -> Case:
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    moving = mamba_inputs(length, torch.float32)
    grad_BLHK = torch.randn_like(moving[0])
    scan = getattr(mamba2_chunk_scan, "__wrapped__", mamba2_chunk_scan)
    return lambda: torch.autograd.grad(scan(*moving, chunk_size=chunk), moving, grad_BLHK)


def block(backbone: Backbone, length: int, bf16: bool) -> Case:
    stack = backbone.build()
    x_BLD = torch.randn(1, length, backbone.width, requires_grad=True)
    grad_BLD, moving = torch.randn(1, length, backbone.width), [x_BLD, *stack.parameters()]

    def step() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y_BLD = stack(x_BLD).x_BLD
        return torch.autograd.grad(y_BLD, moving, grad_BLD.to(y_BLD.dtype))

    return step


def cases(length: int) -> dict[str, dict[str, Case]]:
    """Groups of cases; the first of each group is attention."""
    width = HEADS * HEAD_WIDTH
    attention = Backbone(width=width, depth=1, heads=HEADS, dialect=replace(OURS, mlp="none"))
    mamba = replace(attention, mixers="mamba", dialect=MAMBA2)
    small = replace(mamba, mamba=MambaConfig(expand=1))
    core = {"attention": attention_core(length, torch.float32), "mamba": mamba_core(length, torch.float32)}
    try:
        core |= {f"transformers_chunk_{chunk}": transformers_core(length, chunk) for chunk in (64, 256)}
    except ImportError:
        print("transformers is not installed: its scan is left out")
    groups = {
        "core_fp32": core,
        "core_bf16": {
            "attention": attention_core(length, torch.bfloat16),
            "mamba": mamba_core(length, torch.bfloat16),
        },
    }
    for name, bf16 in (("fp32", False), ("bf16", True)):
        layers = {"attention": attention, "mamba": mamba, "mamba_expand_1": small}
        groups[f"block_{name}"] = {case: block(each, length, bf16) for case, each in layers.items()}
    return groups


def seconds(case: Case) -> float:
    start = time.perf_counter()
    case()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    figures: dict[str, object] = {"length": chosen.length, "rounds": chosen.rounds}
    for name, group in cases(chosen.length).items():
        spent: dict[str, list[float]] = {case: [] for case in group}
        for turn in range(chosen.rounds + 1):
            for case, run in group.items():
                taken = seconds(run)
                if turn:  # the first round warms up
                    spent[case].append(taken)
        figures[name] = {
            "seconds": {case: spread(values) for case, values in spent.items()},
            "times_as_fast_as_attention": {
                case: spread([a / b for a, b in zip(spent["attention"], values, strict=True)])
                for case, values in spent.items()
                if case != "attention"
            },
        }
    record("mamba_mixer" if chosen.length == 4096 else f"mamba_mixer_{chosen.length}", figures)


if __name__ == "__main__":
    main()
