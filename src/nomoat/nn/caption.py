"""Captions for pictures: words in, a sequence to attend to and one vector out.

    caption [B, M] -> embed -> + each word's neighbours -> full stack -> context_BMD, valid_BM
                                                                     -> mean over the words -> pooled_BD

A word's neighbours come by a convolution of three words, so that "red circle" is a thing from the first step on.
Attention alone takes captions for bags of words for long: what is seen together often is enough to be right mostly.

A row without a word gives what was learned for "nothing": that is what classifier-free guidance subtracts
(Ho and Salimans 2022, arXiv:2207.12598).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nomoat.core.errors import ConfigError
from nomoat.core.types import Batch, Ports
from nomoat.nn.backbone import Backbone


class Caption(nn.Module):
    """A small tower over captions.

    Args:
        vocab_size: different words, the padding among them.
        length: M, most words of a caption.
        width: D.
        depth: layers of the stack; 0: the words alone, and their places.
        heads: of the stack.
    """

    def __init__(self, vocab_size: int, length: int, width: int, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.length = length
        self.embed = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(length, width)
        self.nothing = nn.Parameter(torch.zeros(width))
        self.stack = Backbone(width=width, depth=depth, heads=heads, causal=False).build() if depth else None
        self.beside = nn.Conv1d(width, width, 3, padding=1, bias=False) if depth else None
        for table in (self.embed, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        nn.init.normal_(self.nothing, std=0.02)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Context [B, M, D], where it is valid [B, M] (at least at the first place), and pooled [B, D].

        Args:
            batch: `caption` [B, M] and `caption_mask` [B, M].

        Raises:
            ConfigError: captions that are longer than the tower's.
        """
        said_BM = batch["caption_mask"]
        if (length := said_BM.shape[1]) > self.length:
            raise ConfigError(
                f"captions of {length} words", f"this model reads {self.length} at most", "cut them there"
            )
        x_BMD = self.embed(batch["caption"]) + self.positions.weight[: said_BM.shape[1]]
        silent_B = ~said_BM.any(1)
        first_BM = torch.zeros_like(said_BM)
        first_BM[:, 0] = silent_B
        x_BMD = torch.where(first_BM[..., None], self.nothing.to(x_BMD.dtype), x_BMD)
        valid_BM = said_BM | first_BM
        if self.stack is not None and self.beside is not None:
            said_BDM = (x_BMD * valid_BM[..., None].to(x_BMD.dtype)).transpose(1, 2)
            x_BMD = x_BMD + self.beside(said_BDM).transpose(1, 2)
            x_BMD = self.stack(x_BMD, None, Ports(valid_BL=valid_BM)).x_BLD
        weight_BM1 = valid_BM[..., None].to(x_BMD.dtype)
        return x_BMD, valid_BM, (x_BMD * weight_BM1).sum(1) / weight_BM1.sum(1)


def dropped(batch: Batch, share: float, generator: torch.Generator) -> Batch:
    """The batch with about `share` of its captions taken away; for `draw`."""
    if not share or "caption_mask" not in batch:
        return batch
    kept_B = torch.rand(len(batch["caption_mask"]), generator=generator) >= share
    return {**batch, "caption_mask": batch["caption_mask"] & kept_B[:, None].to(batch["caption_mask"].device)}
