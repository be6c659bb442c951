"""A transformer between pictures: patches in, the stack, patches out.

    image_BCYX -> (3x3 convolution) -> patches -> x_BLD -> stack(ports) -> patches -> (3x3 convolution) -> image_BCYX

Peebles and Xie 2022, arXiv:2212.09748 (DiT). nn/unet.py is the other trunk; both are called as `trunk(image, ports)`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from torch import Tensor, nn

from nomoat.core.types import Ports, Trace
from nomoat.nn.backbone import Backbone
from nomoat.nn.derive import forward_mode
from nomoat.nn.patch import Patchify, Unpatchify


class Trunk(Protocol):
    """What stands between the noisy picture and the network's output."""

    def __call__(self, image_BCYX: Tensor, ports: Ports) -> Tensor: ...


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
