"""Pictures from captions by EDM's preconditioning, times and weights; drawn by Heun's method (2022).

nomoat train edm-small
nomoat draw last "a small red circle" --guidance 2
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe
from nomoat.data.shapes import Shapes
from nomoat.families.diffusion import Diffusion
from nomoat.nn.objective import EDM

data = Shapes(size=32)
recipe = Recipe(
    about="Pictures of 32 pixels from captions: EDM, which predicts a mixture, with the same transformer.",
    family=Diffusion(
        size=32,
        objective=EDM,
        vocab_size=data.words().vocab_size,
        caption_length=data.caption_length,
    ),
    data=data,
    budget=Budget.parse("20m"),
    batch_size=64,
    ema=0.998,
)
