"""Small convolutional nets: a picture shrinks to one vector, or a vector grows to a picture.

    image_BCYX -> [convolution to half the side -> residual blocks] x stages -> flat -> x_BF
    x_BF -> linear -> [residual blocks -> transposed convolution to twice the side] x stages -> image_BCYX

No norm: what is computed of a picture depends on nothing beside it, and a second derivative stays cheap.
Radford et al. 2016, arXiv:1511.06434 (strides in place of pooling); He et al. 2016, arXiv:1512.03385 (residual blocks);
Zhang et al. 2019, arXiv:1901.09321 (blocks that start at zero need no norm).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.errors import ConfigError

SLOPE = 0.2
"""Of the leaky ReLU below zero (Radford et al. 2016)."""
GAIN = math.sqrt(2 / (1 + SLOPE**2))
"""Keeps the variance through a leaky ReLU (He et al. 2015, arXiv:1502.01852)."""


@dataclass(frozen=True)
class Conv:
    """A convolutional net; each stage halves the side, or doubles it.

    Args:
        widths: channels of the stages, from the one with the largest pictures on.
        blocks: residual blocks of two 3 x 3 convolutions in each stage.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    blocks: int = 0

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1 or self.blocks < 0:
            raise ConfigError(
                f"widths {self.widths} and blocks {self.blocks} make no net",
                fix="give each stage at least 1 channel, and 0 or more blocks",
            )

    def smallest(self, size: int) -> int:
        """The side of the smallest picture, in pixels.

        Raises:
            ConfigError: `size` cannot be halved as often as there are stages.
        """
        stages = len(self.widths)
        if size < 1 or size % 2**stages:
            raise ConfigError(
                f"a picture of {size} pixels a side cannot be halved {stages} times",
                fix=f"use a multiple of {2**stages}, or fewer stages",
            )
        return size >> stages

    def features(self, size: int) -> int:
        """F: numbers of the smallest picture, where the largest has `size` pixels a side."""
        return self.widths[-1] * self.smallest(size) ** 2


class Block(nn.Module):
    """x + two convolutions of it; the second starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.normal_(self.first.weight, std=GAIN / math.sqrt(9 * width))
        for zero in (self.first.bias, self.second.weight, self.second.bias):
            assert zero is not None
            nn.init.zeros_(zero)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        """[B, C, Y, X] to the same."""
        inner_BCYX = F.leaky_relu(self.first(F.leaky_relu(x_BCYX, SLOPE)), SLOPE)
        return x_BCYX + self.second(inner_BCYX)


class Shrink(nn.Module):
    """A picture to one vector.

    Args:
        config: stages.
        channels: of the picture.
        size: its side, in pixels.
    """

    def __init__(self, config: Conv, channels: int, size: int) -> None:
        super().__init__()
        self.features = config.features(size)
        self.smaller, self.blocks = nn.ModuleList(), nn.ModuleList()
        for width in config.widths:
            conv = nn.Conv2d(channels, width, 4, stride=2, padding=1)
            _start(conv, inputs=16 * channels)
            self.smaller.append(conv)
            self.blocks.append(nn.Sequential(*(Block(width) for _ in range(config.blocks))))
            channels = width

    def forward(self, image_BCYX: Tensor) -> Tensor:
        """[B, C, Y, X] to [B, F]."""
        x_BCYX = image_BCYX
        for smaller, blocks in zip(self.smaller, self.blocks, strict=True):
            x_BCYX = blocks(F.leaky_relu(smaller(x_BCYX), SLOPE))
        return x_BCYX.flatten(1)


class Grow(nn.Module):
    """A vector to a picture of numbers without bounds.

    Args:
        config: stages; the last of its widths belongs to the first and smallest picture.
        channels: of the picture.
        size: its side, in pixels.
        inputs: numbers of the vector.
    """

    def __init__(self, config: Conv, channels: int, size: int, inputs: int) -> None:
        super().__init__()
        self.shape = (config.widths[-1], config.smallest(size), config.smallest(size))
        self.enter = nn.Linear(inputs, config.features(size))
        _start(self.enter, inputs)
        self.blocks, self.larger = nn.ModuleList(), nn.ModuleList()
        widths = config.widths[::-1]
        for width, outputs in zip(widths, (*widths[1:], channels), strict=True):
            self.blocks.append(nn.Sequential(*(Block(width) for _ in range(config.blocks))))
            conv = nn.ConvTranspose2d(width, outputs, 4, stride=2, padding=1)
            _start(conv, inputs=4 * width)  # of the 16 weights of a pair of channels 4 meet in a pixel
            self.larger.append(conv)

    def forward(self, x_BF: Tensor) -> Tensor:
        """[B, F] to [B, C, Y, X]."""
        x_BCYX = self.enter(x_BF).unflatten(1, self.shape)
        for blocks, larger in zip(self.blocks, self.larger, strict=True):
            x_BCYX = larger(blocks(F.leaky_relu(x_BCYX, SLOPE)))
        return x_BCYX


def _start(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, inputs: int) -> None:
    """First weights that keep the variance, and no bias."""
    nn.init.normal_(layer.weight, std=GAIN / math.sqrt(inputs))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
