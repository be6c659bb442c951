"""DALL-E 2's decoder on the shapes world: from the CLIP embedding of a picture to the picture.

nomoat train clip-small
nomoat train decoder-small
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe, Ref
from nomoat.data.embedded import Embedded
from nomoat.data.shapes import Shapes
from nomoat.families.diffusion import Diffusion
from nomoat.nn.unet import UNet

DATA = Shapes(size=32)

recipe = Recipe(
    about="DALL-E 2's decoder on the shapes world: CLIP embeddings to pictures of 32 pixels.",
    family=Diffusion(size=32, trunk=UNet(), embedding_width=128, caption_length=DATA.caption_length),
    data=Embedded(DATA, Ref("clip-small")),
    budget=Budget.parse("20m"),
    batch_size=64,
    ema=0.999,
)
