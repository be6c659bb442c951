"""A small UNet: the trunk that diffusion began with, kept as the baseline of the transformer.

    image_BCYX -> convolution -> [block -> skip, halve the sides] x levels -> layers of attention at the smallest
        -> what each place is told -> [double the sides, join the skip -> block] x levels -> norm -> convolution

Ronneberger et al. 2015, arXiv:1505.04597; Ho et al. 2020, arXiv:2006.11239; the condition shifts and scales after each
block's second norm and closes its output at first (Dhariwal and Nichol 2021, arXiv:2105.05233). The attention is a
layer of the shared backbone, with the same ports. Where there is a context, on the way up each place is shifted and
scaled by the words that it attends to (`Local`), as Park et al. 2019 (SPADE, arXiv:1903.07291) do by a map of labels:
with one vector for all places, captions of two things are bags of words for long (docs/experiments.md, 2026-12-01).
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
from nomoat.nn.dialect import OURS

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
        bounded, width = replace(OURS, bounded=True), self.width
        return Backbone(width, self.depth, self.heads, causal=False, position_axes=2, cond_width=width, dialect=bounded)


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

    def forward(self, x_BCYX: Tensor, cond: Tensor) -> Tensor:
        """[B, C, Y, X] to the other number of channels; `cond` after its SiLU, for all places [B, D] or for each of
        a coarser grid [B, y, x, D]."""
        told = self.cond(cond)
        if told.ndim == 2:
            told = told[..., None, None]
        else:
            told = F.interpolate(told.permute(0, 3, 1, 2), size=x_BCYX.shape[2:], mode="nearest")
        scale, shift = told.chunk(2, dim=1)
        y_BCYX = self.norm_2(self.conv_1(F.silu(self.norm_1(x_BCYX))))
        y_BCYX = self.conv_2(F.silu(torch.addcmul(shift, y_BCYX, 1 + scale)))
        return self.skip(x_BCYX) + y_BCYX


class Blocks(nn.Module):
    """Several blocks of one level."""

    def __init__(self, inputs: int, outputs: int, count: int, cond_width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(outputs if place else inputs, outputs, cond_width) for place in range(count))

    def forward(self, x_BCYX: Tensor, cond: Tensor) -> Tensor:
        """[B, C, Y, X] to the other number of channels."""
        for block in self.blocks:
            x_BCYX = block(x_BCYX, cond)
        return x_BCYX


class Local(nn.Module):
    """What each place of a picture is told: its own mean of the context.

    All words weigh the same at first, in all places: the mean of all, as of a vector for the whole picture. Whoever
    sees that it is the red one then attends to what stands beside "red".

    Args:
        width: D of the stream and of the context.
        heads: each has weights of its own, for its part of the context.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.GroupNorm(GROUPS, width)
        self.query, self.key = (nn.Linear(width, width, bias=False) for _ in range(2))
        nn.init.zeros_(self.query.weight)

    def forward(self, x_BDYX: Tensor, ports: Ports) -> Tensor:
        """[B, Y, X, D]."""
        assert ports.context_BMD is not None
        sides, words_BMD, valid_BM = x_BDYX.shape[2:], ports.context_BMD, ports.context_valid_BM
        x_BLD = self.norm(x_BDYX).flatten(2).transpose(1, 2)
        q_BLHK, k_BMHK, v_BMHK = (
            each.unflatten(-1, (self.heads, -1)) for each in (self.query(x_BLD), self.key(words_BMD), words_BMD)
        )
        scores_BHLM = torch.einsum("blhk,bmhk->bhlm", q_BLHK, k_BMHK) / q_BLHK.shape[-1] ** 0.5
        if valid_BM is not None:
            scores_BHLM = scores_BHLM.masked_fill(~valid_BM[:, None, None], -torch.inf)
        mean_BLHK = torch.einsum("bhlm,bmhk->blhk", scores_BHLM.softmax(-1), v_BMHK.to(scores_BHLM.dtype))
        return mean_BLHK.flatten(2).unflatten(1, sides)


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
        self.local = Local(cond, config.heads) if context else None
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
        cond = ports.cond_BD
        if self.local is not None and ports.context_BMD is not None:
            cond = cond[:, None, None] + self.local(x_BCYX, ports)
        cond = F.silu(cond)
        for blocks, skip_BCYX in zip(self.up, reversed(skips), strict=True):
            if x_BCYX.shape[2:] != skip_BCYX.shape[2:]:
                x_BCYX = F.interpolate(x_BCYX, size=skip_BCYX.shape[2:], mode="nearest")
            x_BCYX = blocks(torch.cat((x_BCYX, skip_BCYX), dim=1), cond)
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
        del self.copy.up, self.copy.norm, self.copy.last, self.copy.local
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
