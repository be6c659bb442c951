"""A language model that is taught Countdown with four numbers by solutions alone, for half an hour on two cores.

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
    about="A GPT of 1.7 M parameters on Countdown with four numbers.",
    family=LM(
        vocab_size=data.vocab_size,
        context_length=data.context_length,
        backbone=Backbone(width=128, depth=8, heads=4),
    ),
    data=data,
    budget=Budget.parse("30m"),
    batch_size=128,
)
