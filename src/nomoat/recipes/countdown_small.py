"""A language model that solves Countdown with four numbers, taught by solutions alone, in half an hour on two cores.

nomoat train countdown-small
nomoat generate last "96 25 7 4 > 54 |" --temperature 0
nomoat train countdown-small data.sizes=4,5,6 family.context_length=39 budget=2h
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe
from nomoat.data.countdown import CountdownProblems
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone

data = CountdownProblems(sizes=(4,))
recipe = Recipe(
    about="A GPT of 5 M parameters that solves Countdown with four numbers, token by token.",
    family=LM(
        vocab_size=data.vocab_size,
        context_length=data.context_length,
        backbone=Backbone(width=256, depth=6, heads=8),
    ),
    data=data,
    budget=Budget.parse("30m"),
    batch_size=256,
)
