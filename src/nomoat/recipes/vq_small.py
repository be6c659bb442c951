"""A codec whose 512 codes are learned (VQ), for the shapes world: 32 x 32 pixels become 8 x 8 codes and come back.

nomoat train vq-small
nomoat train vq-small family.quantizer.codes=1024

The codes follow what is coded as moving averages; those that are hardly used begin anew.
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.data.shapes import Shapes
from nomoat.families.autoencoder import Autoencoder
from nomoat.nn.quantizers import VQ

recipe = Recipe(
    about="A codec of 0.5 M parameters: shapes of 32 pixels as 8 x 8 of 512 learned codes (VQ).",
    family=Autoencoder(size=32, quantizer=VQ(codes=512, channels=8)),
    data=Shapes(size=32, objects=3),
    budget=Budget.parse("5m"),
    batch_size=64,
    precision="fp32",
    optimizer=Optimizer(weight_decay=0.0),
)
