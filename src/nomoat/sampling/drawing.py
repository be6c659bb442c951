"""How pictures are drawn: what may be asked of whatever generates them, and chance that is each picture's own.

    prompts + Drawing -> family.generate(prompts, drawing, generator) -> {"image": [B, C, Y, X]}

`prompts` is a batch with what the family reads: `caption` and `caption_mask`, `label`, `hint`, `small` (a picture to be
enlarged), `init` (one to begin with), `mask` [B, 1, Y, X] (True where it may be changed), `like` (one to be varied).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from nomoat.core.device import generator
from nomoat.core.errors import ConfigError
from nomoat.core.types import Batch

SOLVERS = ("euler", "heun", "ddim", "dpm")


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn.

    Args:
        steps: evaluations of the solver's grid; more are slower and mostly better.
        guidance: how much the prompt is exaggerated: 1 not at all, 0 it is ignored.
        solver: one of `SOLVERS`; None: what suits the model.
        temperature: of what is drawn token by token.
        top_k: codes among which one is drawn, the likeliest, 0: all; None: as the model has it.
        candidates: that are drawn for each picture, of which the one that fits its caption best is kept, by models with
            a CLIP beside them; None: as the model has it.
        strength: with `init`, the share of the way to noise that it is taken back: 1 forgets it.
        seed: same seed, same pictures; picture i has chance of its own, whatever stands beside it.
    """

    steps: int = 20
    guidance: float = 1.0
    solver: str | None = None
    temperature: float = 1.0
    top_k: int | None = None
    candidates: int | None = None
    strength: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        for name, holds, allowed in (
            ("steps", 1 <= self.steps <= 1000, "1 to 1,000"),
            ("guidance", isfinite(self.guidance) and self.guidance >= 0, "0 or more; 1 is none"),
            ("solver", self.solver is None or self.solver in SOLVERS, ", ".join(SOLVERS)),
            ("temperature", isfinite(self.temperature) and self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k is None or self.top_k >= 0, "1 or more; 0 is all"),
            ("candidates", self.candidates is None or 1 <= self.candidates <= 1000, "1 to 1,000"),
            ("strength", 0 < self.strength <= 1, "above 0, at most 1"),
        ):
            if not holds:
                raise ConfigError(f"{name} {getattr(self, name)!r} cannot be used", fix=f"allowed: {allowed}")


def noise(rows: int, shape: Sequence[int], seed: int, first: int = 0, name: str = "noise") -> Tensor:
    """Normal noise [rows, *shape], of each row (numbered from `first`) its own: what stands beside it is nothing to it.

    Args:
        rows: B.
        shape: of one picture.
        seed: of all.
        first: number of the first row.
        name: other names, other noise.
    """
    return torch.stack([torch.randn(*shape, generator=generator(seed, name, first + row)) for row in range(rows)])


def rows_of(prompts: Batch) -> int:
    """How many pictures are asked for: `rows`, or as many as the first tensor has."""
    sizes = [len(value) for value in prompts.values() if isinstance(value, Tensor) and value.ndim]
    return int(prompts.get("rows", sizes[0] if sizes else 1))
