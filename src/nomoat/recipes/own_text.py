"""A language model for a folder of one's own: the sizes that the planner chooses among.

    nomoat make MY_FOLDER --budget 30m
    nomoat train own-text data.path=MY_FOLDER

One dial, the width, sets the rest: heads of 64, one layer for every 64 of width, and matrices whose learning rate does
not depend on it (Muon).
"""

from __future__ import annotations

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.data.files import Files
from nomoat.data.text import Text
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone
from nomoat.nn.dialect import OURS


def sized(width: int, batch_size: int, data: Text | Files, vocab_size: int, budget: Budget) -> Recipe:
    """The recipe of one size.

    Args:
        width: a multiple of 64.
        batch_size: sequences a step.
        data: gives the context length.
        vocab_size: of its tokenizer.
        budget: what may be spent.
    """
    backbone = Backbone(width=width, depth=max(2, width // 64), heads=width // 64, dialect=OURS)
    return Recipe(
        about="A language model of one's own folder.",
        family=LM(vocab_size=vocab_size, context_length=data.context_length, backbone=backbone),
        data=data,
        budget=budget,
        batch_size=batch_size,
        optimizer=Optimizer(warmdown=0.6),
    )


recipe = sized(256, 16, Files(vocab_size=4096), 4096, Budget.parse("5m"))
