"""Text that the student itself writes while it is taught, as data: a live source.

    lessons -> batch -> by chance of the step: as it is, or its prompts -> the live student writes -> tokens, mask

What a step reads depends on the seed, the step and the student's weights at that step alone: nothing is kept between
steps, so a resumed run is bit-equal to an uninterrupted one. Agarwal et al. 2024, arXiv:2306.13649 (GKD: lambda).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nomoat.core.types import Batch
from nomoat.data.lessons import Lessons
from nomoat.data.tokenizer import load
from nomoat.sampling.tokens import SamplingOptions
from nomoat.sampling.write import write


@dataclass(frozen=True)
class OnPolicy(Lessons):
    """Recipe data: lessons, of which the student answers a share itself.

    Args:
        path: the folder.
        context_length: as of any lessons.
        ids: as of any lessons.
        share: of the steps (GKD's lambda).
        max_tokens: of an answer.
    """

    share: float = 0.5
    max_tokens: int = 128

    def held_out(self, family: Any, batch_size: int, tokens: int) -> Iterator[Batch]:
        """As of any lessons, without `bytes`: a divergence is no cross-entropy that bits per byte could be made of."""
        for batch in super().held_out(family, batch_size, tokens):
            yield {name: value for name, value in batch.items() if name != "bytes"}

    def stream(
        self, family: Any, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """This worker's part of the batch of every step from `start` on; what the loop calls."""
        stops = load(f"{self.path}/tokenizer.json").stops
        batches = super().stream(family, batch_size, seed, start, rank, world)
        for step, batch in enumerate(batches, start):
            live = np.random.default_rng((seed, step)).random() < self.share
            yield self._written(family.product, batch, stops, seed * 1_000_003 + step * world + rank) if live else batch

    def _written(self, model: Any, batch: Batch, stops: tuple[int, ...], seed: int) -> Batch:
        """The batch with other answers to as many of its prompts as it has rows, one a row."""
        prompts = []
        for tokens_L, mask_L, document_L in zip(*(batch[n] for n in ("tokens", "mask", "document")), strict=True):
            first = int(mask_L.int().argmax())
            begins = int((document_L == document_L[first]).int().argmax())
            prompts.append(tokens_L[begins:first].tolist())
        rows = [list(prompt) for prompt in prompts]
        was, length = model.training, batch["tokens"].shape[1]
        most = min(self.max_tokens, length - max(map(len, prompts)))
        for one in write(model.eval(), prompts, SamplingOptions(1.0, max_tokens=max(1, most), seed=seed), stops):
            rows[one.row].append(one.token)
        model.train(was)
        tokens_BL, mask_BL = torch.full((len(rows), length), stops[0]), torch.zeros(len(rows), length, dtype=torch.bool)
        for row, (prompt, tokens) in enumerate(zip(prompts, rows, strict=True)):
            tokens = tokens[:length]
            tokens_BL[row, : len(tokens)], mask_BL[row, len(prompt) : len(tokens)] = torch.tensor(tokens), True
        positions_BL = torch.arange(length).expand(len(rows), length)
        document_BL = torch.arange(len(rows))[:, None].expand(len(rows), length)
        return {**batch, "tokens": tokens_BL, "mask": mask_BL, "positions": positions_BL, "document": document_BL}
