"""The first GAN on the shapes world: pictures of noise in ten minutes on two cores.

nomoat train gan-small
nomoat train gan-small family.objective=minimax
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.data.shapes import Shapes
from nomoat.families.gan import GAN

recipe = Recipe(
    about="The GAN of 2014, two small convolutional nets, on the shapes world.",
    family=GAN(size=32, objective="nonsaturating"),
    data=Shapes(size=32),
    budget=Budget.parse("10m"),
    batch_size=64,
    # Radford et al. 2016, arXiv:1511.06434.
    optimizer=Optimizer("adamw", adam_learning_rate=2e-4, betas=(0.5, 0.999), weight_decay=0.0, clip=0.0, warmdown=0.3),
    precision="fp32",
    ema=0.999,
)
