"""A CLIP of the shapes world, for retrieval, zero-shot classification, re-ranking and DALL-E 2's chain.

nomoat train clip-small
nomoat train clip-small family.objective=infonce
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe
from nomoat.data.shapes import Shapes
from nomoat.families.clip import CLIP, PICTURES
from nomoat.nn.backbone import Backbone

DATA = Shapes(size=32)

recipe = Recipe(
    about="CLIP (SigLIP's loss) on the shapes world at 32 pixels.",
    family=CLIP(
        vocab_size=DATA.words().vocab_size,
        size=32,
        patch=4,
        vision=Backbone(width=128, depth=4, heads=4, dialect=PICTURES, causal=False, position_axes=2),
        caption_length=DATA.caption_length,
        caption_width=128,
        width=128,
    ),
    data=DATA,
    budget=Budget.parse("10m"),
    batch_size=256,
    ema=0.998,
)
