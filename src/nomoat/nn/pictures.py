"""Small transformers for whole pictures: one paints a picture from a vector, the other looks at one and gives a vector.

    x_BF -> style_BD; grid_LD -> stack(style) -> patches -> 3 x 3 convolution -> image_BCYX
    image_BCYX -> patches and registers -> stack -> mean over the patches -> x_BF

Jiang et al. 2021, arXiv:2102.07074; the style's way into each layer: nn/condition.py; registers: Darcet et al. 2023,
arXiv:2309.16588.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from nomoat.core.types import Ports
from nomoat.nn.backbone import Backbone
from nomoat.nn.condition import CondPort
from nomoat.nn.patch import Patchify, Unpatchify

REGISTERS = 4
"""Tokens that are no patch (Darcet et al. 2023)."""
FEATURES = 16
"""Channels between the patches and the convolution that hides their edges."""


class Painter(nn.Module):
    """A learned grid of tokens, modulated by a style in every layer, becomes a picture of numbers without bounds.

    Args:
        backbone: its width, depth, heads and dialect count; it sees all patches, and rows and columns are its axes.
        shape: channels, pixels a side and pixels of a patch's side.
        inputs: numbers of the vector.
        style_width: of the style.
    """

    def __init__(self, backbone: Backbone, shape: tuple[int, int, int], inputs: int, style_width: int) -> None:
        super().__init__()
        channels, size, patch = shape
        backbone = replace(backbone, causal=False, position_axes=2, cond_width=style_width, context_width=0)
        self.side = size // patch
        self.style = nn.Sequential(nn.Linear(inputs, style_width), nn.SiLU(), nn.Linear(style_width, style_width))
        self.grid = nn.Parameter(torch.randn(self.side**2, backbone.width))
        self.stack = backbone.build()
        self.unpatchify = Unpatchify(backbone.width, patch, FEATURES)
        self.smooth = nn.Conv2d(FEATURES, channels, 3, padding=1)
        # Ports and outputs that start at zero would make one grey picture of every vector.
        ports = [port.linear for port in self.stack.modules() if isinstance(port, CondPort)]
        linears = [layer for layer in self.style if isinstance(layer, nn.Linear)]
        for layer in (*linears, *ports, self.unpatchify.output):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def forward(self, x_BF: Tensor) -> Tensor:
        """[B, F] to [B, C, Y, X]."""
        batch, places = len(x_BF), torch.arange(self.side, device=x_BF.device)
        positions = torch.cartesian_prod(places, places).expand(batch, -1, -1)
        x_BLD = self.stack(self.grid.expand(batch, -1, -1), positions, Ports(cond_BD=self.style(x_BF))).x_BLD
        return self.smooth(self.unpatchify(x_BLD, self.side, self.side))


class Viewer(nn.Module):
    """A picture to one vector.

    Args:
        backbone: its width, depth, heads and dialect count; it sees all patches, and rows and columns are its axes.
        channels: of the picture.
        patch: side of a patch, in pixels.
    """

    def __init__(self, backbone: Backbone, channels: int, patch: int) -> None:
        super().__init__()
        backbone = replace(backbone, causal=False, position_axes=2, cond_width=0, context_width=0)
        self.features = backbone.width
        self.patchify = Patchify(channels, patch, backbone.width)
        self.registers = nn.Parameter(torch.randn(REGISTERS, backbone.width))
        self.stack = backbone.build()

    def forward(self, image_BCYX: Tensor) -> Tensor:
        """[B, C, Y, X] to [B, F], with derivatives of any order."""
        x_BLD, positions = self.patchify(image_BCYX)
        registers_BLD = self.registers.to(x_BLD.dtype).expand(len(x_BLD), -1, -1)
        nowhere = positions.new_full((len(x_BLD), REGISTERS, 2), -1)
        whole_BLD, places = torch.cat((registers_BLD, x_BLD), 1), torch.cat((nowhere, positions), 1)
        return self.stack(whole_BLD, places, kernel="plain").x_BLD[:, REGISTERS:].mean(1)
