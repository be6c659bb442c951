"""Training tokens per second beside nanoGPT, litgpt and transformers: one process, cases taken in turn.

    python benchmarks/throughput.py [small|large] [--rounds 10] [--compile]

Every case trains the same tokens with the same threads, allocator and precision: forward, backward, clipping, AdamW.
"same" is our backbone as the very network that nanoGPT is (learned positions, layer norm, exact GELU, no biases).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from peers import NanoGPT, nano_optimizer, record, spread

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone
from nomoat.nn.dialect import GPT2, OURS
from nomoat.train.mover import Mover, Settings

SIZES = {
    "small": SimpleNamespace(depth=6, heads=6, width=384, context=256, batch=16, vocab=65),
    "large": SimpleNamespace(depth=12, heads=12, width=768, context=512, batch=2, vocab=50304),
}


def tokens_of(size: SimpleNamespace) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(size.vocab, (size.batch, size.context + 1), generator=generator)


def peer_step(model: torch.nn.Module, loss_of: Callable, size: SimpleNamespace, bf16: bool, fused: bool) -> Callable:
    """One training step of a peer: its own forward, our tokens, clipping at 1, AdamW as nanoGPT sets it."""
    optimizer = nano_optimizer(model, 1e-3, fused=fused)
    tokens_BL = tokens_of(size)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(tokens_BL[:, :-1], tokens_BL[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def nano(size: SimpleNamespace, bf16: bool, compiled: bool) -> Callable:
    model = NanoGPT(size.vocab, size.context, size.depth, size.heads, size.width)
    return peer_step(model, torch.compile(model) if compiled else model, size, bf16, fused=True)


def litgpt(size: SimpleNamespace, bf16: bool, compiled: bool) -> Callable:
    from litgpt import GPT, Config

    config = Config(
        n_layer=size.depth, n_head=size.heads, n_embd=size.width, block_size=size.context, vocab_size=size.vocab,
        padded_vocab_size=size.vocab, bias=False, norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP",
        parallel_residual=False, rotary_percentage=1.0, lm_head_bias=False,
    )  # fmt: skip
    model = GPT(config)
    model.lm_head.weight = model.transformer.wte.weight
    call = torch.compile(model) if compiled else model

    def loss_of(tokens_BL: torch.Tensor, targets_BL: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(call(tokens_BL).flatten(0, 1), targets_BL.flatten())

    return peer_step(model, loss_of, size, bf16, fused=True)


def transformers(size: SimpleNamespace, bf16: bool) -> Callable:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=size.vocab, n_positions=size.context, n_embd=size.width, n_layer=size.depth, n_head=size.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)

    def loss_of(tokens_BL: torch.Tensor, targets_BL: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(tokens_BL).logits.flatten(0, 1), targets_BL.flatten())

    return peer_step(model, loss_of, size, bf16, fused=False)


def ours(size: SimpleNamespace, same: bool, compiled: bool, kernel: str, kind: str = "adamw") -> Callable:
    """One step of our mover: `same` is nanoGPT's network, else our default dialect."""
    dialect = replace(GPT2, activation="gelu", bias="none") if same else OURS
    backbone = Backbone(
        size.width, size.depth, size.heads, dialect=dialect, positions_length=size.context if same else 0
    )
    family = LM(size.vocab, size.context, backbone).build({})
    family.stack.kernel = kernel
    optimizer = Optimizer(kind=kind, adam_learning_rate=1e-3)
    recipe = Recipe(
        "speed", family.config, None, Budget.parse("9steps"), size.batch, optimizer=optimizer, compile=compiled
    )
    mover = Mover(family, "model", recipe, Settings(torch.device("cpu"), "bf16", size.batch, torch.bfloat16))
    tokens_BL = tokens_of(size)
    batch = {"tokens": tokens_BL, "mask": torch.ones_like(tokens_BL, dtype=torch.bool)}
    return lambda: mover.move(batch, 0.5)


def linear_rate(seconds: float = 0.2) -> float:
    """FLOP/s of a 1,024 x 768 x 3,072 linear layer in bf16, forward."""
    x, w = torch.randn(1024, 768, dtype=torch.bfloat16), torch.randn(3072, 768, dtype=torch.bfloat16)
    count, start = 0, time.perf_counter()
    with torch.inference_mode():
        while time.perf_counter() - start < seconds:
            F.linear(x, w)
            count += 1
    return count * 2 * 1024 * 768 * 3072 / (time.perf_counter() - start)


def flops_per_token(size: SimpleNamespace) -> float:
    """6 N + 12 x depth x width x context, N with the output layer (nanoGPT's network, tied)."""
    weights = 12 * size.depth * size.width**2 + size.vocab * size.width
    return 6 * weights + 12 * size.depth * size.width * size.context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", nargs="?", default="small", choices=SIZES)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="also the compiled cases of every side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", help="only these, separated by commas")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    size = SIZES[chosen.size]
    makers: dict[str, Callable[[], Callable]] = {
        "ours_same_tiled": lambda: ours(size, True, False, "tiled"),
        "ours_same_fused": lambda: ours(size, True, False, "fused"),
        "ours_default": lambda: ours(size, False, False, "tiled"),
        "ours_default_muon": lambda: ours(size, False, False, "tiled", "muon"),
        "nano_bf16": lambda: nano(size, True, False),
        "litgpt_bf16": lambda: litgpt(size, True, False),
        "gpt2_transformers_fp32": lambda: transformers(size, False),
        "gpt2_transformers_bf16": lambda: transformers(size, True),
    }
    if chosen.compile:
        makers |= {
            "ours_same_compiled": lambda: ours(size, True, True, "fused"),
            "nano_bf16_compiled": lambda: nano(size, True, True),
            "litgpt_bf16_compiled": lambda: litgpt(size, True, True),
        }
    names = chosen.cases.split(",") if chosen.cases else list(makers)
    cases = {name: makers[name]() for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    rates: list[float] = []
    for step in cases.values():
        step()
        step()
    for _ in range(chosen.rounds):
        rates.append(linear_rate())
        for name, step in cases.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    tokens = size.batch * size.context
    mine = [name for name in cases if name.startswith("ours_same")]
    theirs = [name for name in cases if name.startswith(("nano", "litgpt"))]
    best, rival = (min(names, key=lambda name: spread(seconds[name])["median"]) for names in (mine, theirs))
    pairs = list(zip(seconds[best], seconds[rival], strict=True))
    figures = {
        "tokens_per_second": {name: spread([tokens / s for s in values]) for name, values in seconds.items()},
        "same_network_best": best,
        "fastest_peer": rival,
        "ratio_same_to_fastest_peer": spread([theirs / ours for ours, theirs in pairs]),
        "bf16_linear_gflops": spread([rate / 1e9 for rate in rates]),
        "share_of_bf16_linear": spread(
            [flops_per_token(size) * tokens / s / rate for s, rate in zip(seconds[best], rates, strict=True)]
        ),
    }
    if "ours_default" in cases and "gpt2_transformers_fp32" in cases:
        pairs = list(zip(seconds["ours_default"], seconds["gpt2_transformers_fp32"], strict=True))
        figures["ratio_default_to_transformers_fp32"] = spread([theirs / ours for ours, theirs in pairs])
    record(f"throughput_{chosen.size}{'_compiled' if chosen.compile else ''}", figures)


if __name__ == "__main__":
    main()
