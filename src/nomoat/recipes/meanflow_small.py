"""Pictures in one to eight steps: MeanFlow, which learns the mean velocity of a step by its derivative.

nomoat train meanflow-small
nomoat draw last "a small red circle" --steps 4 --guidance 2
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe
from nomoat.data.shapes import Shapes
from nomoat.families.diffusion import Diffusion
from nomoat.nn.objective import MEANFLOW

data = Shapes(size=32)
recipe = Recipe(
    about="Pictures of 32 pixels from captions in few steps: MeanFlow.",
    family=Diffusion(
        size=32,
        objective=MEANFLOW,
        vocab_size=data.words().vocab_size,
        caption_length=data.caption_length,
    ),
    data=data,
    budget=Budget.parse("20m"),
    batch_size=64,
    ema=0.998,
)
