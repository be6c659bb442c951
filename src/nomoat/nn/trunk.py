"""A transformer between pictures: patches in, the stack, patches out.

    image_BCYX -> (3x3 convolution) -> patches -> x_BLD -> stack(ports) -> patches -> (3x3 convolution) -> image_BCYX

Peebles and Xie 2022, arXiv:2212.09748 (DiT). nn/unet.py is the other trunk; both are called as `trunk(image, ports)`,
and both have a follower, the copy of their first half that reads a control picture (families/control.py).
Chen et al. 2024, arXiv:2401.05252 (PixArt-delta, section 4: a transformer's).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from nomoat.core.errors import ConfigError
from nomoat.core.types import Ports, Trace
from nomoat.nn.backbone import Backbone
from nomoat.nn.condition import NoPort
from nomoat.nn.derive import forward_mode
from nomoat.nn.patch import Patchify, Unpatchify


class Trunk(Protocol):
    """What stands between the noisy picture and the network's output."""

    def __call__(self, image_BCYX: Tensor, ports: Ports) -> Tensor: ...

    def follower(self, hint_channels: int, times: int, layers: int) -> Follower:
        """A copy of its first half; see `Follower`.

        Args:
            hint_channels: H of the control pictures.
            times: by which they are larger than what the trunk reads.
            layers: that are copied; 0: the first half.

        Raises:
            ConfigError: that many layers cannot be copied.
        """


class Follower(Protocol):
    """Part of a trunk that learns to follow control pictures, while the trunk itself is frozen."""

    def read(self, hint_BHYX: Tensor) -> Tensor:
        """What a control picture tells, whatever the time."""

    def __call__(self, trunk: Trunk, image_BCYX: Tensor, told: Tensor, ports: Ports) -> list[Tensor]:
        """`Ports.residuals` for the trunk; all zero at first."""


class Patched(nn.Module):
    """See the module's first lines. Its output is zero at first.

    Args:
        backbone: the stack; its condition and context ports are set here, and it sees in both directions.
        patch: side of a patch, in pixels.
        channels: of the picture that comes in, and of the one that goes out.
        context: whether there is a sequence to attend to.
        stem: channels of the convolutions at both ends; 0: none.
    """

    def __init__(
        self, backbone: Backbone, patch: int, channels: tuple[int, int], context: bool = False, stem: int = 0
    ) -> None:
        super().__init__()
        width = backbone.width
        backbone = replace(
            backbone, causal=False, position_axes=2, cond_width=width, context_width=width if context else 0
        )
        enters, leaves = (stem, stem) if stem else channels
        self.stem = nn.Sequential(nn.Conv2d(channels[0], stem, 3, padding=1), nn.SiLU()) if stem else nn.Identity()
        self.patchify = Patchify(enters, patch, width)
        self.stack = backbone.build()
        self.unpatchify = Unpatchify(width, patch, leaves)
        self.head: nn.Module = nn.Identity()
        if stem:  # of the two last layers one is zero, or nothing would move
            self.head = last = nn.Conv2d(stem, channels[1], 3, padding=1, bias=False)
            nn.init.zeros_(last.weight)
            nn.init.normal_(self.unpatchify.output.weight, std=width**-0.5)

    def tokens(self, image_BCYX: Tensor) -> tuple[Tensor, Tensor]:
        """What the stack is given: tokens [B, L, D] and positions [B, L, 2]."""
        return self.patchify(self.stem(image_BCYX))

    def trace(self, image_BCYX: Tensor, ports: Ports) -> Trace:
        """What the stack makes of a picture, with the layers that `ports.want` names."""
        x_BLD, positions = self.tokens(image_BCYX)
        kernel = "plain" if forward_mode((image_BCYX,)) else None  # the fused kernels have no forward derivative
        return self.stack(x_BLD, positions, ports, kernel=kernel)

    def forward(self, image_BCYX: Tensor, ports: Ports) -> Tensor:
        """[B, C, Y, X] to the other number of channels."""
        rows, columns = (side // self.patchify.patch for side in image_BCYX.shape[2:])
        return self.head(self.unpatchify(self.trace(image_BCYX, ports).x_BLD, rows, columns))

    def follower(self, hint_channels: int, times: int, layers: int) -> PatchedFollower:
        """See `Trunk.follower`."""
        return PatchedFollower(self, hint_channels, times, layers or (len(self.stack.layers) + 1) // 2)


class PatchedFollower(nn.Module):
    """A copy of a stack's first layers: patches of the control picture are added to its tokens, and a linear layer
    each, zero at first, leads to what is added after those layers of the stack itself.

    Args:
        trunk: that is led.
        hint_channels: H.
        times: by which the control picture is larger.
        depth: layers that are copied.
    """

    def __init__(self, trunk: Patched, hint_channels: int, times: int, depth: int) -> None:
        super().__init__()
        stack = trunk.stack
        if depth > len(stack.layers):
            raise ConfigError(f"{depth} layers cannot be copied of {len(stack.layers)}", fix="0 copies the first half")
        self.rest, width = len(stack.layers) - depth, stack.backbone.width
        self.copy = replace(stack.backbone, depth=depth).build()
        self.copy.norm, self.copy.norm_cond = nn.Identity(), NoPort()
        begun = dict(stack.named_parameters())
        with torch.no_grad():
            for name, parameter in self.copy.named_parameters():
                parameter.copy_(begun[name])
        self.hints = Patchify(hint_channels, trunk.patchify.patch * times, width)
        self.outputs = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for parameter in self.outputs.parameters():
            nn.init.zeros_(parameter)

    def read(self, hint_BHYX: Tensor) -> Tensor:
        """Its tokens [B, L, D]."""
        hint_BLD: Tensor = self.hints(hint_BHYX)[0]
        return hint_BLD

    def forward(self, trunk: Patched, image_BCYX: Tensor, told: Tensor, ports: Ports) -> list[Tensor]:
        """One [B, L, D] a copied layer, and zeros for the others."""
        x_BLD, positions = trunk.tokens(image_BCYX)
        trace = self.copy(x_BLD + told, positions, replace(ports, want=tuple(range(len(self.outputs)))))
        added = [output(trace.layers[number]) for number, output in enumerate(self.outputs)]
        return added + [torch.zeros_like(added[0][:1, :1])] * self.rest
