"""Attention's masks: who sees whom, as one boolean tensor, then as numbers added to the scores.

    causal | prefix | window | documents | padding | memory lengths -> seen [1 or B, L, M] -> mask [1 or B, 1, L, M]

All rules speak of a position's index among the valid ones of its row (`order`), so that padding moves nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nomoat.nn.linear import draw_
from nomoat.nn.scene import Scene


def trailing(valid_BL: Tensor) -> bool:
    """True where all padding stands at the ends of the rows: then a causal triangle hides it anyway."""
    return bool((valid_BL[:, 1:] <= valid_BL[:, :-1]).all())


def is_triangle(scene: Scene) -> bool:
    """True where no query sees a key after it, and both are counted from the same start."""
    return scene.causal and scene.prefix_B is None and not any(scene.lengths)


def is_needed(scene: Scene, window: int | None, length: int) -> bool:
    """True where someone may not see something that a triangle (for a causal stack) does not hide already."""
    if scene.documents_BL is not None or (window is not None and scene.reach > window):
        return True
    if is_triangle(scene):
        return scene.valid_BL is not None and not trailing(scene.valid_BL)
    if scene.valid_BL is not None:
        return True
    return scene.causal and (length > 1 or len(set(scene.lengths)) > 1)


def seen(scene: Scene, window: int | None) -> Tensor:
    """Boolean [1 or B, L, M]: True where the query in row L sees the key in column M."""
    assert scene.order_BL is not None
    remembers = scene.lengths_B is not None
    query = scene.order_BL.unsqueeze(2)
    key = scene.order_BL.unsqueeze(1)
    if scene.lengths_B is not None:
        key = torch.arange(scene.reach, device=query.device).view(1, 1, -1)
    seen_BLM = key <= query if scene.causal else torch.ones_like(key <= query)
    if scene.prefix_B is not None:
        seen_BLM = seen_BLM | (key < _prefix(scene))
    if window is not None:
        seen_BLM = seen_BLM & ((query - key).abs() < window)
    if scene.documents_BL is not None:
        seen_BLM = seen_BLM & (scene.documents_BL.unsqueeze(2) == scene.documents_BL.unsqueeze(1))
    if scene.valid_BL is not None and not remembers:
        itself = torch.eye(query.shape[1], dtype=torch.bool, device=query.device)  # else padding's softmax has no term
        seen_BLM = seen_BLM & scene.valid_BL.unsqueeze(1) | itself
    return seen_BLM


def _prefix(scene: Scene) -> Tensor:
    """Length [B, 1, 1] of the prefix, as far as it has been read."""
    assert scene.prefix_B is not None
    prefix_B = scene.prefix_B
    if scene.lengths_B is not None:
        prefix_B = torch.minimum(prefix_B, scene.lengths_B + torch.tensor(scene.counts, device=prefix_B.device))
    return prefix_B.view(-1, 1, 1)


def additive(seen_BLM: Tensor, dtype: torch.dtype) -> Tensor:
    """Zero where seen, minus infinity elsewhere, with an axis for the heads: [1 or B, 1, L, M]."""
    return torch.zeros(seen_BLM.shape, dtype=dtype, device=seen_BLM.device).masked_fill_(~seen_BLM, -math.inf)[:, None]


class RelativePositions(nn.Module):
    """A learned bias for each head and each bucket of distances, shared by all layers (Raffel et al. 2020, T5).

    Half of the buckets hold one distance each, the other half grow by equal factors up to `reach`.
    """

    def __init__(self, buckets: int, heads: int, reach: int, causal: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw_(torch.empty(buckets, heads), 0.02))
        self.reach, self.causal = reach, causal

    def forward(self, scene: Scene) -> Tensor:
        """The bias [1 or B, H, L, M] of the scene's queries and keys."""
        assert scene.order_BL is not None
        query, key = scene.order_BL, scene.order_BL
        if scene.lengths_B is not None:
            key = torch.arange(scene.reach, device=query.device)[None]
        return self.weight[self.bucket(key.unsqueeze(1) - query.unsqueeze(2))].permute(0, 3, 1, 2)

    def bucket(self, ahead: Tensor) -> Tensor:
        """The bucket of each distance; `ahead` is the key's index less the query's."""
        count = len(self.weight)
        if self.causal:
            first, distance = torch.zeros_like(ahead), (-ahead).clamp(min=0)
        else:
            count //= 2
            first, distance = (ahead > 0) * count, ahead.abs()
        exact = count // 2
        grown = torch.log(distance.clamp(min=1) / exact) / math.log(self.reach / exact) * (count - exact)
        far = (exact + grown.to(torch.long)).clamp(max=count - 1)
        return first + torch.where(distance < exact, distance, far)
