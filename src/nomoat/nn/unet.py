"""A small UNet: the trunk that diffusion began with, kept as the baseline of the transformer.

    image_BCYX -> convolution -> [block -> skip, halve the sides] x levels -> one layer of attention at the smallest
        -> [double the sides, join the skip -> block] x levels -> norm -> convolution -> image_BCYX

Ronneberger et al. 2015, arXiv:1505.04597; Ho et al. 2020, arXiv:2006.11239; the condition shifts and scales after each
block's second norm and closes its output at first (Dhariwal and Nichol 2021, arXiv:2105.05233). The attention is a
layer of the shared backbone, with the same ports.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.errors import ConfigError
from nomoat.core.types import Ports
from nomoat.nn.backbone import Backbone
from nomoat.nn.derive import forward_mode

GROUPS = 8


@dataclass(frozen=True)
class UNet:
    """A UNet by its widths; stands where a Backbone may.

    Args:
        widths: channels at each level, from the full size down; multiples of 8.
        blocks: residual blocks a level, on each way.
        depth: layers of attention at the smallest level.
        heads: of the attention.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    blocks: int = 1
    depth: int = 1
    heads: int = 4

    def __post_init__(self) -> None:
        if not self.widths or any(width < 1 or width % GROUPS for width in self.widths):
            raise ConfigError(f"widths {self.widths} cannot be normed in groups", fix=f"use multiples of {GROUPS}")
        if self.blocks < 1:
            raise ConfigError(f"{self.blocks} blocks a level compute nothing", fix="use at least 1")
        self.attention  # noqa: B018  says what is wrong with it

    @property
    def width(self) -> int:
        """Numbers of the condition vector and of the context."""
        return self.widths[-1]

    @property
    def attention(self) -> Backbone:
        """The layers at the smallest level."""
        return Backbone(self.width, self.depth, self.heads, causal=False, position_axes=2, cond_width=self.width)


class Block(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))) (1 + scale) + shift)); the last convolution starts at zero."""

    def __init__(self, inputs: int, outputs: int, cond_width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(GROUPS, inputs), nn.GroupNorm(GROUPS, outputs)
        self.conv_1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv_2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.cond = nn.Linear(cond_width, 2 * outputs)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        for weight in (self.conv_2.weight, self.conv_2.bias, self.cond.weight, self.cond.bias):
            assert weight is not None
            nn.init.zeros_(weight)

    def forward(self, x_BCYX: Tensor, cond_BD: Tensor) -> Tensor:
        """[B, C, Y, X] to the other number of channels; `cond_BD` after its SiLU."""
        scale_BC11, shift_BC11 = self.cond(cond_BD)[..., None, None].chunk(2, dim=1)
        y_BCYX = self.norm_2(self.conv_1(F.silu(self.norm_1(x_BCYX))))
        y_BCYX = self.conv_2(F.silu(torch.addcmul(shift_BC11, y_BCYX, 1 + scale_BC11)))
        return self.skip(x_BCYX) + y_BCYX


class Blocks(nn.Module):
    """Several blocks of one level."""

    def __init__(self, inputs: int, outputs: int, count: int, cond_width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(outputs if place else inputs, outputs, cond_width) for place in range(count))

    def forward(self, x_BCYX: Tensor, cond_BD: Tensor) -> Tensor:
        """[B, C, Y, X] to the other number of channels."""
        for block in self.blocks:
            x_BCYX = block(x_BCYX, cond_BD)
        return x_BCYX


class UNetTrunk(nn.Module):
    """See the module's first lines. Its output is zero at first; any sides, also odd ones.

    Args:
        config: the widths.
        channels: of the picture that comes in, and of the one that goes out.
        context: whether there is a sequence to attend to.
    """

    def __init__(self, config: UNet, channels: tuple[int, int], context: bool = False) -> None:
        super().__init__()
        widths, cond = config.widths, config.width
        self.first = nn.Conv2d(channels[0], widths[0], 3, padding=1)
        self.down = nn.ModuleList(Blocks(width, width, config.blocks, cond) for width in widths)
        self.halve = nn.ModuleList(nn.Conv2d(*pair, 3, stride=2, padding=1) for pair in pairwise(widths))
        self.stack = replace(config.attention, context_width=cond if context else 0).build()
        below = reversed((*widths[1:], widths[-1]))
        joined = zip(below, reversed(widths), strict=True)
        self.up = nn.ModuleList(Blocks(deep + width, width, config.blocks, cond) for deep, width in joined)
        self.norm, self.last = nn.GroupNorm(GROUPS, widths[0]), nn.Conv2d(widths[0], channels[1], 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, image_BCYX: Tensor, ports: Ports) -> Tensor:
        """[B, C, Y, X] to the other number of channels."""
        if ports.want:
            raise ConfigError("a UNet gives no layers", fix="use a Backbone as the trunk")
        assert ports.cond_BD is not None
        *skips, x_BCYX = found = self.encode(image_BCYX, ports)
        if ports.residuals is not None:
            if len(ports.residuals) != len(found):
                what = f"{len(ports.residuals)} residuals for {len(skips)} levels and the smallest once more"
                raise ConfigError(what, fix=f"pass {len(found)}")
            *skips, x_BCYX = map(torch.add, found, ports.residuals)
        cond_BD = F.silu(ports.cond_BD)
        for blocks, skip_BCYX in zip(self.up, reversed(skips), strict=True):
            if x_BCYX.shape[2:] != skip_BCYX.shape[2:]:
                x_BCYX = F.interpolate(x_BCYX, size=skip_BCYX.shape[2:], mode="nearest")
            x_BCYX = blocks(torch.cat((x_BCYX, skip_BCYX), dim=1), cond_BD)
        return self.last(F.silu(self.norm(x_BCYX)))

    def encode(self, image_BCYX: Tensor, ports: Ports, told: Tensor | None = None) -> list[Tensor]:
        """Each level of the way down, and the smallest once more after its attention; `told` is added at its start."""
        assert ports.cond_BD is not None
        cond_BD, found = F.silu(ports.cond_BD), list[Tensor]()
        # The group norm's forward derivative cannot read channels that lie last, as convolutions like them.
        layout = torch.contiguous_format if forward_mode((image_BCYX,)) else torch.channels_last
        x_BCYX = self.first(image_BCYX.contiguous(memory_format=layout))
        x_BCYX = x_BCYX if told is None else x_BCYX + told
        for level, blocks in enumerate(self.down):
            found.append(blocks(x_BCYX, cond_BD))
            x_BCYX = self.halve[level](found[-1]) if level < len(self.halve) else found[-1]
        return [*found, self._attend(x_BCYX, ports)]

    def follower(self, hint_channels: int, times: int, layers: int) -> UNetFollower:
        """See nn/trunk.py."""
        if layers:
            raise ConfigError(f"{layers} layers cannot be copied of a UNet", "its way down is copied", "set layers=0")
        return UNetFollower(self, hint_channels, times)

    def _attend(self, x_BCYX: Tensor, ports: Ports) -> Tensor:
        """One picture's smallest level as tokens through the stack, added to what it was."""
        rows, columns = x_BCYX.shape[2:]
        device = x_BCYX.device
        grid = torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device))
        kernel = "plain" if forward_mode((x_BCYX,)) else None
        x_BLD = x_BCYX.flatten(2).transpose(1, 2)
        ports = replace(ports, residuals=None)
        y_BLD = self.stack(x_BLD, grid.expand(len(x_BCYX), -1, -1), ports, kernel=kernel).x_BLD
        return x_BCYX + y_BLD.transpose(1, 2).unflatten(2, (rows, columns))


class UNetFollower(nn.Module):
    """A copy of a UNet's way down: a convolution of the control picture is added at its start, and a 1 x 1 convolution
    each, zero at first, leads to what is added to the skips and to the smallest level (Zhang et al. 2023,
    arXiv:2302.05543, section 3.2).

    Args:
        trunk: that is led.
        hint_channels: H.
        times: by which the control picture is larger.
    """

    def __init__(self, trunk: UNetTrunk, hint_channels: int, times: int) -> None:
        super().__init__()
        self.copy, self.times = deepcopy(trunk).requires_grad_(), times
        del self.copy.up, self.copy.norm, self.copy.last
        self.hints = nn.Conv2d(hint_channels * times**2, trunk.first.out_channels, 3, padding=1)
        widths = [conv.out_channels for conv in (trunk.first, *trunk.halve)]
        self.outputs = nn.ModuleList(nn.Conv2d(width, width, 1) for width in (*widths, widths[-1]))
        for parameter in self.outputs.parameters():
            nn.init.zeros_(parameter)

    def read(self, hint_BHYX: Tensor) -> Tensor:
        """[B, C, Y, X] of the first level."""
        told: Tensor = self.hints(F.pixel_unshuffle(hint_BHYX, self.times))
        return told

    def forward(self, trunk: UNetTrunk, image_BCYX: Tensor, told: Tensor, ports: Ports) -> list[Tensor]:
        """One a level, and one more for the smallest."""
        found = self.copy.encode(image_BCYX, ports, told)
        return [output(each) for output, each in zip(self.outputs, found, strict=True)]
