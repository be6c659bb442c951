"""From 32 to 64 pixels: a picture twice as large, drawn on a small one that noise was added to.

nomoat train upsampler-small
nomoat draw last --upscale 2 --init small.png
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe
from nomoat.data.shapes import Shapes
from nomoat.families.diffusion import Diffusion
from nomoat.nn.unet import UNet

data = Shapes(size=64)
recipe = Recipe(
    about="Pictures of 32 pixels made 64: flow matching beside the small picture, with noise added to it.",
    family=Diffusion(
        size=64,
        trunk=UNet((16, 32, 64, 128)),
        vocab_size=data.words().vocab_size,
        caption_length=data.caption_length,
        upscale=2,
    ),
    data=data,
    budget=Budget.parse("20m"),
    batch_size=32,
    ema=0.998,
)
