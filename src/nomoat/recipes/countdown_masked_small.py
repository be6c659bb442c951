"""A masked diffusion model that is taught Countdown with four numbers by solutions alone, for half an hour.

nomoat train countdown-masked-small
nomoat train countdown-masked-small family.focus=0 budget=2h
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe
from nomoat.data.countdown import CountdownProblems
from nomoat.families.masked import Masked
from nomoat.nn.backbone import Backbone

data = CountdownProblems(sizes=(4,))
recipe = Recipe(
    about="A masked diffusion model of 1.7 M parameters on Countdown with four numbers.",
    family=Masked(
        vocab_size=data.vocab_size,
        context_length=data.context_length,
        backbone=Backbone(width=128, depth=8, heads=4, causal=False),
        focus=1.0,
    ),
    data=data,
    budget=Budget.parse("30m"),
    batch_size=128,
)
