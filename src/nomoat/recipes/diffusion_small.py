"""Pictures from captions by flow matching, on the shapes world, in minutes on two cores.

nomoat train diffusion-small
nomoat draw last "a small red circle" --guidance 2
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe
from nomoat.data.shapes import Shapes
from nomoat.families.diffusion import Diffusion
from nomoat.nn.unet import UNet

data = Shapes(size=32)
recipe = Recipe(
    about="Pictures of 32 pixels from captions: a UNet that guesses the clean picture (flow matching).",
    family=Diffusion(
        size=32, trunk=UNet(depth=3), vocab_size=data.words().vocab_size, caption_length=data.caption_length
    ),
    data=data,
    budget=Budget.parse("20m"),
    batch_size=32,
    ema=0.998,
)
