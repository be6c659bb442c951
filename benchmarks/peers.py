"""The peers that the benchmarks run beside us, rebuilt or installed, and what all benchmarks share.

`NanoGPT` is a small GPT-2 written here from the published description of nanoGPT's model (pre-norm blocks, learned
positions, GELU, tied output, fused attention, no biases in its CPU setting), with its documented optimizer settings.
It stands for the peer only after `benchmarks/shakespeare.py --faithful` has shown that it ends where nanoGPT's own
documentation says it does.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("NOMOAT_SHARED", ROOT.parent / "shared"))


class NanoBlock(nn.Module):
    """Attention and MLP, each behind a layer norm."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width, bias=bias)
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.projection = nn.Linear(width, width, bias=bias)
        self.norm_2 = nn.LayerNorm(width, bias=bias)
        self.up = nn.Linear(width, 4 * width, bias=bias)
        self.down = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x_BLD: Tensor) -> Tensor:
        batch, length, width = x_BLD.shape
        q, k, v = self.qkv(self.norm_1(x_BLD)).split(width, dim=2)
        q, k, v = (y.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BLD = x_BLD + self.projection(y.transpose(1, 2).contiguous().view(batch, length, width))
        return x_BLD + self.down(F.gelu(self.up(self.norm_2(x_BLD))))


class NanoGPT(nn.Module):
    """tokens_BL -> embedding + learned positions -> blocks -> layer norm -> tied output -> mean cross-entropy."""

    def __init__(self, vocab_size: int, context: int, depth: int, heads: int, width: int, bias: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(NanoBlock(width, heads, bias) for _ in range(depth))
        self.norm = nn.LayerNorm(width, bias=bias)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                small = name.endswith(("projection.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth) if small else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens_BL: Tensor, targets_BL: Tensor) -> Tensor:
        x_BLD = self.tokens(tokens_BL) + self.positions.weight[: tokens_BL.shape[1]]
        for block in self.blocks:
            x_BLD = block(x_BLD)
        logits_BLV = F.linear(self.norm(x_BLD), self.tokens.weight)
        return F.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten())


def nano_optimizer(model: nn.Module, learning_rate: float, fused: bool = False) -> torch.optim.AdamW:
    """AdamW as nanoGPT sets it: betas 0.9 and 0.99, weight decay 0.1 on everything with two axes."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99), fused=fused)


def cosine(step: int, steps: int, peak: float, floor: float, warmup: int) -> float:
    """Linear warm-up, then a half cosine down to the floor."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    share = min(1.0, (step - warmup) / (steps - warmup))
    return floor + 0.5 * (1 + math.cos(math.pi * share)) * (peak - floor)


def spread(values: list[float]) -> dict[str, float]:
    """Median and range of one figure over the rounds."""
    return {"median": median(values), "min": min(values), "max": max(values), "n": len(values)}


def record(name: str, figures: dict[str, Any], path: Path | None = None) -> Path:
    """Write figures with command, commit and machine to benchmarks/results/NAME.json, or `path`, and print them."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    result = {
        "command": " ".join(["python", *(Path(word).name if "/" in word else word for word in sys.argv)]),
        "commit": commit,
        "machine": {
            "processor": processor,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "allocator": os.environ.get("GLIBC_TUNABLES", "glibc default"),
        },
        "figures": figures,
    }
    path = path or ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return path


def shakespeare() -> tuple[Tensor, Tensor, str]:
    """tiny Shakespeare as character ids: the first nine tenths, the last tenth, the sorted symbols."""
    text = (SHARED / "data" / "tinyshakespeare" / "input.txt").read_text()
    symbols = "".join(sorted(set(text)))
    ids = torch.tensor([symbols.index(c) for c in text], dtype=torch.int64)
    cut = int(0.9 * len(ids))
    return ids[:cut], ids[cut:], symbols
