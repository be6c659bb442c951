"""A GAN of two transformers on the shapes world with its captions, in ten minutes on two cores.

nomoat train transgan-small
nomoat train transgan-small family.generator.depth=6 budget=1h
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.data.shapes import Shapes
from nomoat.families.gan import GAN
from nomoat.nn.augment import Augment
from nomoat.nn.backbone import Backbone

data = Shapes(size=32)
recipe = Recipe(
    about="R3GAN with transformers for generator and discriminator, on the shapes world.",
    family=GAN(
        size=32,
        generator=Backbone(width=96, depth=3, heads=4),
        discriminator=Backbone(width=96, depth=3, heads=4),
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
