"""A toy that draws: noise, coloured by its caption, over whatever picture it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from nomoat.core.family import Family
from nomoat.core.types import Batch, Loss
from nomoat.sampling.drawing import Drawing, noise


@dataclass(frozen=True)
class Toy:
    """What it reads, by names."""

    reads: tuple[str, ...] = ("caption", "init", "mask")
    size: int = 8
    channels: int = 3
    vocab_size: int = 20
    caption_length: int = 6
    drop: float = 0.1
    upscale: int = 1

    def build(self, parts):
        return ToyModel(self)

    @classmethod
    def tiny(cls):
        return cls()


class ToyModel(Family):
    counts: ClassVar[str] = "picture"

    def __init__(self, config: Toy) -> None:
        super().__init__()
        self.config = config
        self.colour = nn.Embedding(config.vocab_size, 3)
        self.reads = frozenset(config.reads)
        self.noise_shape = (config.channels, config.size, config.size)
        self.asked: list[Batch] = []

    def generate(self, prompts: Batch, options: Drawing, generator: torch.Generator) -> Batch:
        self.asked.append(prompts)
        rows, first = prompts["rows"], prompts["first"]
        x = prompts["noise"] if "noise" in prompts else noise(rows, self.noise_shape, options.seed, first)
        x = 0.1 * options.strength * x
        if "caption" in prompts:
            said = prompts["caption_mask"][..., None] * self.colour(prompts["caption"])
            x = x + 0.1 * options.guidance * said.sum(1)[:, : self.config.channels, None, None]
        if "init" in prompts:
            x = x + prompts["init"]
        if "mask" in prompts:
            x = torch.where(prompts["mask"], x, prompts["init"])
        for name in ("hint", "like"):
            if name in prompts:
                x = x + prompts[name][:, :1]
        if "blend" in prompts:
            x = torch.lerp(prompts["like"], prompts["towards"], prompts["blend"][:, None, None, None])
        if "small" in prompts:
            x = prompts["small"].repeat_interleave(self.config.upscale, 2).repeat_interleave(self.config.upscale, 3)
        return {"image": x}

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        return Loss(self.colour.weight.square().sum(), torch.tensor(1))
