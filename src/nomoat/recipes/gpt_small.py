"""A GPT that learns Python's standard library in five minutes on two cores.

nomoat train gpt-small
nomoat train gpt-small family.backbone.depth=6 budget=10m
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe
from nomoat.data.files import Files
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone

recipe = Recipe(
    about="A GPT of 3 M parameters on Python's standard library.",
    family=LM(vocab_size=4096, context_length=256, backbone=Backbone(width=256, depth=4, heads=4)),
    data=Files(vocab_size=4096, context_length=256),
    budget=Budget.parse("5m"),
    batch_size=16,
)
