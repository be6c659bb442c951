"""Pictures in one to eight steps: a shortcut model, whose long steps are taught by two half ones.

nomoat train shortcut-small
nomoat draw last "a small red circle" --steps 4 --guidance 2
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe
from nomoat.data.shapes import Shapes
from nomoat.families.diffusion import Diffusion
from nomoat.nn.objective import SHORTCUT

data = Shapes(size=32)
recipe = Recipe(
    about="Pictures of 32 pixels from captions in few steps: a shortcut model.",
    family=Diffusion(
        size=32,
        objective=SHORTCUT,
        vocab_size=data.words().vocab_size,
        caption_length=data.caption_length,
    ),
    data=data,
    budget=Budget.parse("20m"),
    batch_size=64,
    ema=0.998,
)
