"""Small families and data for the tests of the loop: a table of next tokens, a pair of players, noise, a trap."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from nomoat.core.budget import Budget
from nomoat.core.family import Family
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.core.types import Loss


def seeded(*names):
    digest = hashlib.sha256(repr(names).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


@dataclass(frozen=True)
class Chain:
    """Tokens of a noisy cycle: each is the one before plus 1 or 2. Some rows are padded, so that counts differ.

    Args:
        vocab_size: V.
        length: L.
        noise: all tokens independent of each other, where True.
        moved: what `changed` answers.
    """

    vocab_size: int = 11
    length: int = 8
    noise: bool = False
    moved: tuple[str, ...] = ()

    def rows(self, seed, indices):
        found = [row(self, seed, index) for index in indices]
        return {
            "tokens": torch.stack([tokens for tokens, _ in found]),
            "mask": torch.stack([mask for _, mask in found]),
            "index": torch.tensor(list(indices)),
        }

    def stream(self, family, batch_size, seed, start=0, rank=0, world=1):
        step = start
        while True:
            yield self.rows(seed, range(step * batch_size + rank, (step + 1) * batch_size, world))
            step += 1

    def held_out(self, family, batch_size, tokens):
        for number in range(2):
            batch = self.rows("held out", range(number * batch_size, (number + 1) * batch_size))
            yield {**batch, "bytes": batch["mask"].sum(1)}

    def changed(self):
        return list(self.moved)


@cache
def row(chain, seed, index):
    generator = seeded("row", seed, index)
    first = torch.randint(chain.vocab_size, (1,), generator=generator)
    steps = torch.randint(1, 3, (chain.length,), generator=generator)
    tokens = torch.cat([first, first + steps.cumsum(0)]) % chain.vocab_size
    if chain.noise:
        tokens = torch.randint(chain.vocab_size, (chain.length + 1,), generator=generator)
    mask = torch.ones(chain.length + 1, dtype=torch.bool)
    mask[0] = False
    mask[chain.length + 1 - index % 4 :] = False
    return tokens, mask


@dataclass(frozen=True)
class TableConfig:
    """`kind`: table (one player), pair (two players), noisy (draws noise), coupled (cannot be split), broken (NaN)."""

    kind: str = "table"
    vocab_size: int = 11
    width: int = 16
    fails_at: float = 2.0

    def build(self, parts):
        return KINDS[self.kind](self)

    @classmethod
    def tiny(cls):
        return cls()


class Table(Family):
    """Embed, two hidden matrices, an output layer; predicts the next token from the last one."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        width = config.width
        self.embed = nn.Embedding(config.vocab_size, width)
        self.hidden = nn.Linear(width, 2 * width)
        self.back = nn.Linear(2 * width, width, bias=False)
        self.output = nn.Linear(width, config.vocab_size, bias=False)
        self.register_buffer("seen", torch.zeros(()))

    def logits(self, tokens_BL):
        x_BLD = self.embed(tokens_BL)
        return self.output(x_BLD + self.back(F.silu(self.hidden(x_BLD))))

    def nats(self, batch):
        logits_BLV = self.logits(batch["tokens"][:, :-1])
        return F.cross_entropy(logits_BLV.transpose(1, 2).float(), batch["tokens"][:, 1:], reduction="none")

    def loss(self, batch, player="model", progress=0.0):
        counted_BL = batch["mask"][:, 1:]
        nats_BL = self.nats(batch)
        hits = (nats_BL.detach() < 0.7) & counted_BL
        return Loss((nats_BL * counted_BL).sum(), counted_BL.sum(), {"hits": hits.sum()})

    def first_loss(self, batch):
        return math.log(self.config.vocab_size)

    def after_step(self, progress):
        self.seen += 1

    def example(self, samples=2):
        return Chain().rows(0, range(samples))


class Noisy(Table):
    """Adds noise that was drawn for the whole batch to the input."""

    def draw(self, batch, generator):
        rows, slots = batch["tokens"].shape
        return {**batch, "noise": torch.randn(rows, slots - 1, self.config.width, generator=generator)}

    def loss(self, batch, player="model", progress=0.0):
        counted_BL = batch["mask"][:, 1:]
        logits_BLV = self.output(self.embed(batch["tokens"][:, :-1]) + 0.1 * batch["noise"])
        nats_BL = F.cross_entropy(logits_BLV.transpose(1, 2), batch["tokens"][:, 1:], reduction="none")
        return Loss((nats_BL * counted_BL).sum(), counted_BL.sum())


class Pair(Family):
    """Two players that pull at each other: the judge's matrix and the maker's matrix, and who was moved when."""

    players: ClassVar[tuple[str, ...]] = ("judge", "maker")

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.judge = nn.Linear(config.width, config.width, bias=False)
        self.maker = nn.Linear(config.width, config.width, bias=False)
        self.calls = []

    def parameters_of(self, player):
        return ((f"{player}.{name}", p) for name, p in getattr(self, player).named_parameters())

    def draw(self, batch, generator):
        return {**batch, "z": torch.randn(len(batch["tokens"]), self.config.width, generator=generator)}

    def loss(self, batch, player="judge", progress=0.0):
        self.calls.append((player, self.judge.weight.detach().clone(), self.maker.weight.detach().clone()))
        made = self.maker(batch["z"] if player == "maker" else batch["z"].detach())
        score = torch.tanh(self.judge(made)).sum()
        count = torch.tensor(len(batch["z"]))
        return Loss(score if player == "judge" else -score, count)


class Coupled(Table):
    """Its loss is no sum over samples."""

    splittable: ClassVar[bool] = False

    def __init__(self, config):
        super().__init__(config)
        self.sizes = []

    def loss(self, batch, player="model", progress=0.0):
        self.sizes.append(len(batch["tokens"]))
        x_BD = self.embed(batch["tokens"]).mean(1)
        scores_BB = x_BD @ x_BD.T
        total = F.cross_entropy(scores_BB, torch.arange(len(x_BD)), reduction="sum")
        return Loss(total, torch.tensor(len(x_BD)))


class Broken(Table):
    """Its loss is no number from `fails_at` of the run on."""

    def loss(self, batch, player="model", progress=0.0):
        good = super().loss(batch, player, progress)
        return replace(good, total=good.total * math.nan) if progress >= self.config.fails_at else good


KINDS = {"table": Table, "noisy": Noisy, "pair": Pair, "coupled": Coupled, "broken": Broken}


def recipe(kind="table", budget="12steps", **changes):
    """A recipe that takes milliseconds."""
    family = changes.pop("family", TableConfig(kind))
    defaults = {
        "data": Chain(),
        "batch_size": 8,
        "optimizer": Optimizer(learning_rate=0.02, adam_learning_rate=0.01),
        "precision": "fp32",
        "keep_every_seconds": 1e9,
    }
    return Recipe(about="a toy", family=family, budget=Budget.parse(budget), **{**defaults, **changes})
