"""Tiny Shakespeare by characters, at nanoGPT's documented CPU size: 0.8 M parameters, 1.54 M tokens, context 64.

    nomoat train shakespeare data.path=input.txt

Expected: 1.6 nats a character or less on the last tenth (nanoGPT documents 1.88); see LADDER.md.
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe
from nomoat.data.files import Files
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone

recipe = Recipe(
    about="Tiny Shakespeare by characters, nanoGPT's CPU setting.",
    family=LM(vocab_size=66, context_length=64, backbone=Backbone(width=128, depth=4, heads=4, mlp_width=336)),
    data=Files("input.txt", tokenizer="char", context_length=64),
    budget=Budget.parse("2000steps"),
    batch_size=12,
)
