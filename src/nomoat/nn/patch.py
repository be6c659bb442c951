"""Pictures in and out of the stack: square patches to tokens and back.

    image_BCYX -> patches of P x P -> linear -> x_BLD, positions [B, L, 2] (row, column) -> ... -> image_BCYX

Dosovitskiy et al. 2020, arXiv:2010.11929.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nomoat.core.errors import ConfigError


class Patchify(nn.Module):
    """Cut a picture into patches and embed each of them.

    Args:
        channels: C of the picture.
        patch: side of a patch, in pixels.
        width: D of the stack.
    """

    def __init__(self, channels: int, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch * patch, width)

    def forward(self, image_BCYX: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, L, D] and positions [B, L, 2], row by row. Raises ConfigError where the sides do not divide."""
        patches_BLF = to_patches(image_BCYX, self.patch)
        rows, columns = (side // self.patch for side in image_BCYX.shape[2:])
        grid = torch.cartesian_prod(
            torch.arange(rows, device=image_BCYX.device), torch.arange(columns, device=image_BCYX.device)
        )
        return self.embed(patches_BLF), grid.expand(len(image_BCYX), -1, -1)


class Unpatchify(nn.Module):
    """From the stack's output back to a picture; starts at zero.

    Args:
        width: D of the stack.
        patch: side of a patch, in pixels.
        channels: C of the picture.
    """

    def __init__(self, width: int, patch: int, channels: int) -> None:
        super().__init__()
        self.patch, self.channels = patch, channels
        self.output = nn.Linear(width, channels * patch * patch)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x_BLD: Tensor, rows: int, columns: int) -> Tensor:
        """The picture [B, C, rows P, columns P] of `rows` x `columns` tokens in reading order."""
        return from_patches(self.output(x_BLD), rows, columns, self.patch)


def to_patches(image_BCYX: Tensor, patch: int) -> Tensor:
    """Patches [B, L, C P P] in reading order; within a patch channel, row, column, as a convolution's weights are."""
    batch, channels, height, width = image_BCYX.shape
    if height % patch or width % patch:
        raise ConfigError(
            f"a picture of {height} x {width} pixels cannot be cut into patches of {patch}",
            fix=f"resize or crop it to multiples of {patch}",
        )
    cut = image_BCYX.view(batch, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)


def from_patches(patches_BLF: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """The picture [B, C, rows P, columns P]: the inverse of `to_patches`."""
    batch = len(patches_BLF)
    cut = patches_BLF.view(batch, rows, columns, -1, patch, patch)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, rows * patch, columns * patch)
