"""A GAN of two transformers on the shapes world with its captions, in ten minutes on two cores.

nomoat train transgan-small
nomoat train transgan-small family.generator.depth=6 budget=1h
"""

from dataclasses import replace

from nomoat.nn.backbone import Backbone
from nomoat.recipes.r3gan_small import recipe as plain

net = Backbone(width=96, depth=3, heads=4)
recipe = replace(
    plain,
    about="R3GAN with transformers for generator and discriminator, on the shapes world.",
    family=replace(plain.family, generator=net, discriminator=net),
)
