"""Textual inversion: of a whole model one word's vector is learned, so that the word comes to mean a subject.

    word ids -> the frozen table, but for one row, which learns -> captions as ever -> loss of the model

Gal et al. 2022, arXiv:2208.01618.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.errors import ConfigError
from nomoat.core.family import Family
from nomoat.nn.caption import Caption
from nomoat.nn.lora import put


@dataclass(frozen=True)
class Inversion:
    """What is trained instead of the weights: `Recipe(..., start=Ref(base), adapt=Inversion.of(words, "wug", "cat"))`.

    The word must be one of the model's; best one that its captions hardly used.

    Args:
        word: for people.
        row: its id.
        begins: id of the word whose vector it begins with; None: its own.
    """

    word: str
    row: int
    begins: int | None = None

    @classmethod
    def of(cls, words: Any, word: str, begins: str | None = None) -> Inversion:
        """By the words themselves.

        Args:
            words: the model's tokenizer, of one id a word.
            word: that is to be learned.
            begins: a word that means something like it.

        Raises:
            DataError: a word that the model does not know.
        """
        rows = [int(words.encode(each)[0]) for each in (word, begins) if each is not None]
        return cls(word, *rows)

    def apply(self, family: Family) -> Family:
        """Freeze the model, and put a vector that learns in the place of the word's; returns it, changed.

        Raises:
            ConfigError: a model that reads no captions, or has no such row; one that is adapted already.
        """
        product = family.starts
        towers = {name: module for name, module in product.named_modules() if isinstance(module, Caption)}
        if not towers:
            raise ConfigError(f"{type(product).__name__} reads no captions", "there is no word to teach it")
        product.requires_grad_(False)
        for name, tower in towers.items():
            if not isinstance(tower.embed, nn.Embedding):
                raise ConfigError(f"`{name}` is adapted already", "one adapter on another is not kept apart")
            most = tower.embed.num_embeddings
            if not all(0 <= row < most for row in (self.row, self.begins or 0)):
                raise ConfigError(f"there is no row {self.row} (or {self.begins})", f"the model has {most} words")
            inverted = Inverted(tower.embed, self.row, self.row if self.begins is None else self.begins)
            put(product, f"{name}.embed", inverted)
        for each in (family, product):
            state = each.state_dict(keep_vars=True)
            each.shared = frozenset(name for name, tensor in state.items() if not tensor.requires_grad)
        return family

    @staticmethod
    @torch.no_grad()
    def merged(family: Family) -> Family:
        """The model with the learned vectors in their tables; the model given is changed."""
        for name, module in list(family.named_modules()):
            if isinstance(module, Inverted):
                weight = module.weight.clone()
                weight[module.row] = module.learned
                put(family, name, nn.Embedding.from_pretrained(weight))
        family.shared = frozenset()
        return family


class Inverted(nn.Module):
    """A frozen table of words with one row that learns.

    Args:
        table: of words.
        row: that learns.
        begins: the row that it begins as.
    """

    def __init__(self, table: nn.Embedding, row: int, begins: int) -> None:
        super().__init__()
        self.weight, self.row = table.weight, row
        self.learned = nn.Parameter(table.weight[begins].detach().clone())

    def forward(self, ids_BM: Tensor) -> Tensor:
        """[B, M] to [B, M, D]."""
        x_BMD = F.embedding(ids_BM, self.weight)
        return torch.where((ids_BM == self.row)[..., None], self.learned.to(x_BMD.dtype), x_BMD)
