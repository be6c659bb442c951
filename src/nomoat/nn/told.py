"""What a denoiser is told beside the noisy picture: captions, a class, an image embedding, a small picture, the times.

    caption [B, M] -> nn/caption.py -> context_BMD, pooled_BD      label [B] -> one row of a table
    embedding_BE -> unit length x sqrt(E) -> a vector and a few tokens of context
    small [B, C, y, x] -> noise added -> enlarged -> further channels, and a vector of how much noise
    numbers in [0, 1] -> sines and cosines -> two layers -> a vector;  all vectors are added up: cond_BD

Ramesh et al. 2022, arXiv:2204.06125, section 2.1 (the embedding by both ways); Ho et al. 2021, arXiv:2106.15282 (noise
on the small picture); Vaswani et al. 2017 (sines).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.types import Batch, Ports
from nomoat.nn.caption import Caption
from nomoat.nn.dialect import OURS
from nomoat.nn.linear import linear

FREQUENCIES = 32
FASTEST = 200.0
"""Radians from share 0 to share 1. Faster ones would rule a derivative in t (MeanFlow) and tell nothing more."""
TOKENS = 4
"""Of context that an embedding becomes: Ramesh et al. 2022."""


@dataclass(frozen=True)
class Condition:
    """All that a denoiser is told beside the noisy picture and the times; the same at every time.

    Args:
        ports: `cond_BD` without the times, `context_BMD`, `context_valid_BM`, and `residuals` of a control network.
        beside: further channels [B, C, Y, X] of the network's input.
    """

    ports: Ports = Ports()
    beside: Tensor | None = None

    def of(self, rows_N: Tensor) -> Condition:
        """That of some rows, in full precision."""
        names = ("cond_BD", "context_BMD", "context_valid_BM")
        told: dict[str, Any] = {
            name: _rows(each, rows_N) for name in names if (each := getattr(self.ports, name)) is not None
        }
        if self.ports.residuals is not None:
            told["residuals"] = [_rows(each, rows_N) for each in self.ports.residuals]
        return Condition(replace(self.ports, **told), None if self.beside is None else _rows(self.beside, rows_N))


def _rows(each: Tensor, rows_N: Tensor) -> Tensor:
    return each[rows_N].float() if each.is_floating_point() else each[rows_N]


class Shares(nn.Module):
    """A vector for some numbers in [0, 1].

    Args:
        count: of the numbers.
        width: D.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.frequencies = [FASTEST ** (place / (FREQUENCIES - 1)) for place in range(FREQUENCIES)]
        self.first = linear(2 * FREQUENCIES * count, width, True, OURS)
        self.last = linear(width, width, True, OURS)

    def forward(self, shares: Sequence[Tensor]) -> Tensor:
        """Numbers [B] to [B, D]."""
        frequencies = torch.tensor(self.frequencies, device=shares[0].device)
        angles_BF = torch.cat([share_B[:, None].float() * frequencies for share_B in shares], dim=1)
        waves_BF = math.sqrt(2) * torch.cat((angles_BF.sin(), angles_BF.cos()), dim=1)
        return self.last(F.silu(self.first(waves_BF)))


class Embedded(nn.Module):
    """An embedding [B, E] as a vector and as tokens; a row of zeros, or one that is hidden, is "nothing", learned.

    Args:
        embedding_width: E.
        width: D.
    """

    def __init__(self, embedding_width: int, width: int) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.randn(embedding_width))
        self.vector = linear(embedding_width, width, True, OURS)
        self.context = linear(embedding_width, TOKENS * width, True, OURS)

    def forward(self, embedding_BE: Tensor, given_B: Tensor) -> tuple[Tensor, Tensor]:
        """The vector [B, D] and the tokens [B, M, D]."""
        given_B1 = (given_B & (embedding_BE != 0).any(1))[:, None]
        scaled_BE = F.normalize(embedding_BE.float(), dim=1) * math.sqrt(embedding_BE.shape[1])
        told_BE = torch.where(given_B1, scaled_BE, self.nothing)
        return self.vector(told_BE), self.context(told_BE).unflatten(1, (TOKENS, -1))


class Told(nn.Module):
    """From a batch to a `Condition`. What is 0 here is not read.

    Args:
        width: D of the vector and of the context.
        captions: vocab_size, length, depth and heads of `Caption`.
        classes: number of labels.
        embedding_width: of an image embedding.
        enlarged: pixels a side of the large picture; the small one's further channels are enlarged to it.
        times: by which the small picture is smaller.
    """

    def __init__(
        self,
        width: int,
        captions: tuple[int, int, int, int] = (0, 0, 0, 0),
        classes: int = 0,
        embedding_width: int = 0,
        enlarged: int = 0,
        times: int = 0,
    ) -> None:
        super().__init__()
        vocab_size, length, depth, heads = captions
        self.classes, self.embedding_width, self.enlarged, self.times = classes, embedding_width, enlarged, times
        self.caption = Caption(vocab_size, length, width, depth, heads) if vocab_size else None
        self.class_embed = nn.Embedding(classes + 1, width) if classes else None
        self.embedding = Embedded(embedding_width, width) if embedding_width else None
        self.small = Shares(1, width) if times else None

    def forward(self, batch: Batch, rows: int, device: torch.device) -> Condition:
        """What the rows are told; where `given` [B] is False, as if captions, class and embedding were nothing.

        Args:
            batch: `caption` with `caption_mask`, `label` (negative: none), `embedding` (zeros: none), each where it is
                read and there; `small`, or `image` to make it from, with `small_noise` and `small_share`.
            rows: B.
            device: where the weights are.
        """
        given_B = batch.get("given", torch.ones(rows, dtype=torch.bool)).to(device)
        vectors, contexts, valids = list[Tensor](), list[Tensor](), list[Tensor]()
        if self.caption is not None:
            blank_BM = torch.zeros(rows, 1, dtype=torch.long)
            ids_BM, said_BM = (batch.get(name, blank_BM).to(device) for name in ("caption", "caption_mask"))
            shown = {"caption": ids_BM, "caption_mask": said_BM.bool() & given_B[:, None]}
            context_BMD, valid_BM, pooled_BD = self.caption(shown)
            vectors, contexts, valids = [pooled_BD], [context_BMD], [valid_BM]
        if self.class_embed is not None:
            label_B = batch.get("label", torch.full((rows,), -1)).to(device)
            vectors.append(self.class_embed(torch.where(given_B & (label_B >= 0), label_B, self.classes)))
        if self.embedding is not None:
            blank_BE = torch.zeros(rows, self.embedding_width)
            vector_BD, tokens_BMD = self.embedding(batch.get("embedding", blank_BE).to(device), given_B)
            vectors.append(vector_BD)
            contexts.append(tokens_BMD)
            valids.append(given_B.new_ones(tokens_BMD.shape[:2]))
        beside = None
        if self.small is not None:
            share_B, chance = batch["small_share"].to(device), batch["small_noise"].to(device)
            small = batch["small"] if "small" in batch else F.avg_pool2d(batch["image"], self.times)
            share_B111 = share_B[:, None, None, None]
            noised = (1 - share_B111) * small.to(device) + share_B111 * chance
            beside = F.interpolate(noised, size=(self.enlarged, self.enlarged), mode="bicubic")
            vectors.append(self.small((share_B,)))
        ports = Ports(
            cond_BD=torch.stack(vectors).sum(0) if vectors else None,
            context_BMD=torch.cat(contexts, 1) if contexts else None,
            context_valid_BM=torch.cat(valids, 1) if valids else None,
        )
        return Condition(ports, beside)
