"""Pictures from captions by DDPM as it was first described: it predicts the noise; drawn by DDIM (2020).

nomoat train ddpm-small
nomoat draw last "a small red circle" --guidance 2
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe
from nomoat.data.shapes import Shapes
from nomoat.families.diffusion import Diffusion
from nomoat.nn.objective import DDPM

data = Shapes(size=32)
recipe = Recipe(
    about="Pictures of 32 pixels from captions: DDPM, which predicts the noise, with the same transformer.",
    family=Diffusion(
        size=32,
        objective=DDPM,
        vocab_size=data.words().vocab_size,
        caption_length=data.caption_length,
    ),
    data=data,
    budget=Budget.parse("20m"),
    batch_size=64,
    ema=0.998,
)
