"""R3GAN on the shapes world, told what to draw by captions, in ten minutes on two cores.

nomoat train r3gan-small
nomoat train r3gan-small family.gamma=0.3 budget=30m
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.data.shapes import Shapes
from nomoat.families.gan import GAN
from nomoat.nn.augment import Augment

data = Shapes(size=32)
recipe = Recipe(
    about="R3GAN, two small convolutional nets, on the shapes world with its captions.",
    family=GAN(
        size=32,
        augment=Augment(translation=0.1),
        vocab_size=data.words().vocab_size,
        caption_length=data.caption_length,
    ),
    data=data,
    budget=Budget.parse("10m"),
    batch_size=64,
    optimizer=Optimizer("adamw", adam_learning_rate=5e-4, betas=(0.0, 0.99), weight_decay=0.0, clip=0.0, warmdown=0.3),
    precision="fp32",  # penalties on slopes want it
    ema=0.999,
)
