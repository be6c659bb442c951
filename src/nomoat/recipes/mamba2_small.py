"""A Mamba-2 (state-space) language model on Python's standard library: no attention at all.

nomoat train mamba2-small
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe
from nomoat.data.files import Files
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone
from nomoat.nn.dialect import MAMBA2

recipe = Recipe(
    about="A Mamba-2 of 3 M parameters on Python's standard library.",
    family=LM(
        vocab_size=4096,
        context_length=512,
        backbone=Backbone(width=256, depth=5, heads=4, mixers="mamba", dialect=MAMBA2),
    ),
    data=Files(vocab_size=4096, context_length=512),
    budget=Budget.parse("5m"),
    batch_size=8,
)
