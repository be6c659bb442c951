"""A codec with 1,000 codes for the shapes world: 32 x 32 pixels become 8 x 8 codes and come back.

nomoat train codec-small
nomoat train codec-small family.quantizer.levels=8,8,8 budget=10m

It is what `dalle-small` draws with. Convolutions are faster in fp32 on a CPU.
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Optimizer, Recipe
from nomoat.data.shapes import Shapes
from nomoat.families.autoencoder import Autoencoder
from nomoat.nn.quantizers import FSQ

recipe = Recipe(
    about="A codec of 0.5 M parameters: shapes of 32 pixels as 8 x 8 of 1,000 codes (FSQ).",
    family=Autoencoder(size=32, quantizer=FSQ((8, 5, 5, 5))),
    data=Shapes(size=32, objects=3),
    budget=Budget.parse("5m"),
    batch_size=64,
    precision="fp32",
    ema=0.99,
    optimizer=Optimizer(weight_decay=0.0),
)
