"""Small pictures with a class, made in no time: what the tests of the picture judge look at."""

from __future__ import annotations

import torch
from torch import Tensor

CLASSES = ("bar", "post", "disc", "ring")


def drawings(count: int, seed: int = 0, size: int = 16, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Pictures [N, C, size, size] of four kinds, each with a colour, place and size of its own; and their kinds [N]."""
    chance = torch.Generator().manual_seed(seed)
    kind_N = torch.randint(0, len(CLASSES), (count,), generator=chance)
    colour_NC = torch.rand(count, channels, generator=chance) * 1.6 - 0.6
    row_N, column_N = torch.rand(2, count, generator=chance) * size / 3 + size / 3
    reach_N = torch.rand(count, generator=chance) * size / 8 + size / 6
    grid_Y = torch.arange(size).float()
    down_NYX = (grid_Y[None, :, None] - row_N[:, None, None]).expand(-1, size, size)
    across_NYX = (grid_Y[None, None, :] - column_N[:, None, None]).expand(-1, size, size)
    far_NYX = (down_NYX.square() + across_NYX.square()).sqrt()
    reach = reach_N[:, None, None]
    thin = 1.5
    inside = torch.stack(
        [
            (down_NYX.abs() < thin) & (across_NYX.abs() < reach),
            (across_NYX.abs() < thin) & (down_NYX.abs() < reach),
            far_NYX < reach,
            (far_NYX < reach) & (far_NYX > reach - thin),
        ]
    )[kind_N, torch.arange(count)]
    ink_NCYX = colour_NC[:, :, None, None].expand(-1, -1, size, size)
    return torch.where(inside[:, None], ink_NCYX, torch.full((), -1.0)), kind_N
