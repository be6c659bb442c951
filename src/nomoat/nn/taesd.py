"""The tiny autoencoders for diffusion models, layer by layer as their files number them.

    image_BCYX in [-1, 1] -> [0, 1] -> conv -> block -> (conv with stride 2 -> blocks) x 3 -> conv -> latent_BCYX
    latent_BCYX -> 3 tanh(x / 3) -> conv -> ReLU -> (blocks -> twice as large -> conv) x 3 -> block -> conv -> [-1, 1]

A block is ReLU(conv(ReLU(conv(ReLU(conv(x))))) + x), all of 3 x 3; with `pooled`, x is first added to
1 x 1(ReLU(group norm(1 x 1(x)))), four times as wide within, of four groups.
Bohan 2023 to 2025, TAESD ("Tiny AutoEncoder for Stable Diffusion"), as its README describes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nomoat.core.errors import ConfigError

POOLED, GROUPS = 4, 4
"""Times as wide within, and groups of the norm."""


@dataclass(frozen=True)
class TAESD:
    """Sizes of such a pair of nets.

    Args:
        width: channels of every layer.
        down: blocks at each size, from the most pixels to the fewest.
        up: the same of the decoder, from the fewest to the most.
        pooled: blocks at the smallest size look at the whole picture, by a group norm.
    """

    width: int = 64
    down: tuple[int, ...] = (1, 3, 3, 3)
    up: tuple[int, ...] = (3, 3, 3, 1)
    pooled: bool = False

    def __post_init__(self) -> None:
        if self.width < 1 or not self.down or len(self.down) != len(self.up) or min(*self.down, *self.up) < 0:
            raise ConfigError(
                f"{self.down} blocks down and {self.up} up, {self.width} wide, are no pair of nets",
                "the decoder has as many sizes as the encoder",
            )

    @property
    def factor(self) -> int:
        """Pixels a side of a place."""
        return 2 ** (len(self.down) - 1)

    @property
    def stem(self) -> int:
        """Pixels a side of a place of the first level."""
        return 1

    @property
    def blank(self) -> float:
        """What every pixel is before anything is learned: black."""
        return -1.0

    def encoder(self, channels: int, outputs: int, silent: bool) -> TinyEncoder:
        """From pictures with `channels` to `outputs` numbers a place; `silent`: all zero at first."""
        layers: list[nn.Module] = [_conv(channels, self.width)]
        for size, blocks in enumerate(self.down):
            if size:
                layers.append(_conv(self.width, self.width, stride=2, bias=False))
            pooled = self.pooled and size == len(self.down) - 1
            layers += [TinyBlock(self.width, pooled) for _ in range(blocks)]
        return TinyEncoder(*layers, _conv(self.width, outputs, silent=silent))

    def decoder(self, inputs: int, channels: int) -> TinyDecoder:
        """From `inputs` numbers a place to pictures with `channels`."""
        layers: list[nn.Module] = [Bounded(), _conv(inputs, self.width), nn.ReLU()]
        for size, blocks in enumerate(self.up):
            if size:
                layers += [nn.Upsample(scale_factor=2), _conv(self.width, self.width, bias=False)]
            layers += [TinyBlock(self.width, self.pooled and not size) for _ in range(blocks)]
        return TinyDecoder(*layers, _conv(self.width, channels, silent=True))


class Bounded(nn.Module):
    """3 tanh(x / 3)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return 3 * torch.tanh(x / 3)


class TinyBlock(nn.Module):
    """Three convolutions around which the input passes."""

    def __init__(self, width: int, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))
        within = POOLED * width
        self.pool = (
            nn.Sequential(
                nn.Conv2d(width, within, 1, bias=False),
                nn.GroupNorm(GROUPS, within),
                nn.ReLU(),
                nn.Conv2d(within, width, 1, bias=False),
            )
            if pooled
            else None
        )

    def forward(self, x_BCYX: Tensor) -> Tensor:
        """[B, C, y, x] to the same."""
        x_BCYX = x_BCYX if self.pool is None else x_BCYX + self.pool(x_BCYX)
        return torch.relu(self.conv(x_BCYX) + x_BCYX)


class TinyEncoder(nn.Sequential):
    """Reads pictures in [-1, 1] as if they were in [0, 1]."""

    def forward(self, image_BCYX: Tensor) -> Tensor:
        """[B, C, Y, X] to [B, outputs, y, x]."""
        return super().forward((image_BCYX + 1) / 2)


class TinyDecoder(nn.Sequential):
    """Gives pictures in [-1, 1] that were made in [0, 1]."""

    def forward(self, latent_BCYX: Tensor) -> Tensor:
        """[B, inputs, y, x] to [B, C, Y, X]."""
        return super().forward(latent_BCYX) * 2 - 1


def _conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True, silent: bool = False) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)
    if silent:
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layer
