"""Small stacks whose every weight matters, in double precision: what the tests of `nn` are made on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from nomoat.nn import dialect as dialects
from nomoat.nn.backbone import Backbone, Stack

NAMES = ("OURS", "GPT2", "LLAMA", "QWEN2", "QWEN3", "BERT", "T5", "VIT", "CLIP_TEXT", "SPEEDRUN")
WIDTH = 16


def named(name: str, **changes: Any) -> dialects.Dialect:
    """The constant of that name, with changes."""
    return replace(getattr(dialects, name), **changes)


def shaken(stack: Stack, seed: int = 0) -> Stack:
    """Move every weight at random, so that nothing is zero or one; double precision, no gradients."""
    generator = torch.Generator().manual_seed(seed)
    for weight in stack.parameters():
        weight.data += 0.3 * torch.randn(weight.shape, generator=generator)
    return stack.double().requires_grad_(False)


def make(dialect: str | dialects.Dialect = "OURS", **fields: Any) -> Stack:
    """Two layers, width 16, four heads of which two share keys and values, 64 positions."""
    sizes: dict[str, Any] = {"width": WIDTH, "depth": 2, "heads": 4, "kv_heads": 2, "positions_length": 64}
    value = named(dialect) if isinstance(dialect, str) else dialect
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return shaken(Backbone(**{**sizes, "dialect": value, **fields}).build())


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    """Normal numbers, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
