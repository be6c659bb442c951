"""Small convolutional nets between a picture and a grid of latents: each level has half the pixels a side.

    image_BCYX -> S x S patches -> conv -> blocks, conv with stride 2 -> ... -> [trunk] -> 1 x 1 conv -> z_BCYX
    latent_BCYX -> conv -> [trunk] -> blocks -> twice as large, conv -> ... -> blocks -> conv -> patches -> image_BCYX

A block is x + conv(SiLU(conv(SiLU(norm(x))))), and the second convolution starts at zero.
He et al. 2016, arXiv:1603.05027; Wu and He 2018, arXiv:1803.08494 (group norm); Odena et al. 2016 (enlarge by nearest
neighbour, then convolve: no chequerboard).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.errors import ConfigError
from nomoat.nn.backbone import Backbone

GROUP = 8
"""Channels that are normalised together at least."""


@dataclass(frozen=True)
class Pyramid:
    """A convolutional encoder and its mirror image.

    Args:
        widths: channels of each level, from the most pixels to the fewest.
        blocks: residual blocks a level.
        stem: pixels a side that the first level takes as one place.
        trunk: a stack over the places of the last level, in both nets; None: none.
    """

    widths: tuple[int, ...] = (48, 96)
    blocks: int = 1
    stem: int = 2
    trunk: Backbone | None = None

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < GROUP or any(width % GROUP for width in self.widths):
            raise ConfigError(f"widths {tuple(self.widths)} cannot be", fix=f"use multiples of {GROUP}")
        if self.stem < 1 or self.blocks < 0:
            raise ConfigError(
                f"a stem of {self.stem} pixels and {self.blocks} blocks cannot be", fix="stem=1, blocks=1"
            )
        trunk = self.trunk
        if trunk is not None and (trunk.width, trunk.position_axes, trunk.causal) != (self.widths[-1], 2, False):
            raise ConfigError(
                f"the trunk has width {trunk.width}, {trunk.position_axes} axes, causal={trunk.causal}",
                "it works on the last level's places and sees all of them",
                f"use Backbone(width={self.widths[-1]}, position_axes=2, causal=False, ...)",
            )

    @property
    def factor(self) -> int:
        """Pixels a side of a place of the last level."""
        return self.stem * 2 ** (len(self.widths) - 1)

    @property
    def blank(self) -> float:
        """What every pixel is before anything is learned."""
        return 0.0

    def encoder(self, channels: int, outputs: int, silent: bool) -> Encoder:
        """From pictures with `channels` to `outputs` numbers a place; `silent`: all zero at first."""
        return Encoder(self, channels, outputs, silent)

    def decoder(self, inputs: int, channels: int) -> Decoder:
        """From `inputs` numbers a place to pictures with `channels`, all zero at first."""
        return Decoder(self, inputs, channels)


class Block(nn.Module):
    """A residual block; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(width // GROUP, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        _silence(self.second)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        """[B, C, y, x] to the same."""
        return x_BCYX + self.second(F.silu(self.first(F.silu(self.norm(x_BCYX)))))


class Trunk(nn.Module):
    """A transformer over the places of a level, or nothing."""

    def __init__(self, backbone: Backbone | None) -> None:
        super().__init__()
        self.stack = None if backbone is None else backbone.build()

    def forward(self, x_BCYX: Tensor) -> Tensor:
        """[B, C, y, x] to the same."""
        if self.stack is None:
            return x_BCYX
        rows, columns = (torch.arange(side, device=x_BCYX.device) for side in x_BCYX.shape[2:])
        positions = torch.cartesian_prod(rows, columns).expand(len(x_BCYX), -1, -1)
        x_BLC = self.stack(x_BCYX.flatten(2).mT, positions).x_BLD
        return x_BLC.mT.unflatten(2, x_BCYX.shape[2:])


class Encoder(nn.Module):
    """From a picture to numbers for each place."""

    def __init__(self, config: Pyramid, channels: int, outputs: int, silent: bool) -> None:
        super().__init__()
        self.patch = config.stem
        self.stem = nn.Conv2d(channels * config.stem**2, config.widths[0], 3, padding=1)
        layers: list[nn.Module] = []
        for level, width in enumerate(config.widths):
            if level:
                layers.append(nn.Conv2d(config.widths[level - 1], width, 3, stride=2, padding=1))
            layers += [Block(width) for _ in range(config.blocks)]
        self.levels, self.trunk = nn.Sequential(*layers), Trunk(config.trunk)
        self.norm = nn.GroupNorm(config.widths[-1] // GROUP, config.widths[-1])
        self.output = nn.Conv2d(config.widths[-1], outputs, 1)
        if silent:
            _silence(self.output)

    def forward(self, image_BCYX: Tensor) -> Tensor:
        """[B, C, Y, X] to [B, outputs, y, x]."""
        x_BCYX = self.stem(F.pixel_unshuffle(image_BCYX, self.patch))
        return self.output(F.silu(self.norm(self.trunk(self.levels(x_BCYX)))))


class Decoder(nn.Module):
    """From numbers for each place to a picture."""

    def __init__(self, config: Pyramid, inputs: int, channels: int) -> None:
        super().__init__()
        self.patch = config.stem
        self.stem, self.trunk = nn.Conv2d(inputs, config.widths[-1], 3, padding=1), Trunk(config.trunk)
        layers: list[nn.Module] = []
        for level, width in reversed(list(enumerate(config.widths))):
            layers += [Block(width) for _ in range(config.blocks)]
            if level:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, config.widths[level - 1], 3, padding=1)]
        self.levels = nn.Sequential(*layers)
        self.norm = nn.GroupNorm(config.widths[0] // GROUP, config.widths[0])
        self.output = nn.Conv2d(config.widths[0], channels * config.stem**2, 3, padding=1)
        _silence(self.output)

    def forward(self, latent_BCYX: Tensor) -> Tensor:
        """[B, inputs, y, x] to [B, C, Y, X]."""
        x_BCYX = self.levels(self.trunk(self.stem(latent_BCYX)))
        return F.pixel_shuffle(self.output(F.silu(self.norm(x_BCYX))), self.patch)


def _silence(layer: nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
