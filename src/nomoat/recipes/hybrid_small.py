"""A hybrid language model on Python's standard library: three Mamba-2 layers to one of attention.

nomoat train hybrid-small
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe
from nomoat.data.files import Files
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone

recipe = Recipe(
    about="A hybrid of Mamba-2 and attention, 4 M parameters, on Python's standard library.",
    family=LM(
        vocab_size=4096,
        context_length=512,
        backbone=Backbone(width=256, depth=4, heads=4, mixers=("mamba", "mamba", "mamba", "attention")),
    ),
    data=Files(vocab_size=4096, context_length=512),
    budget=Budget.parse("5m"),
    batch_size=8,
)
