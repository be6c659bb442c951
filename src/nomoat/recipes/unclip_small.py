"""DALL-E 2's prior on the shapes world: from a caption to the CLIP embedding of its picture.

nomoat train clip-small
nomoat train unclip-small
nomoat train decoder-small
nomoat compose unclip-small decoder-small
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe, Ref
from nomoat.data.shapes import Shapes
from nomoat.families.unclip import Prior
from nomoat.nn.backbone import Backbone

DATA = Shapes(size=32)

recipe = Recipe(
    about="DALL-E 2's prior on the shapes world: captions to CLIP embeddings.",
    family=Prior(
        embedding_width=128,
        vocab_size=DATA.words().vocab_size,
        caption_length=DATA.caption_length,
        stack=Backbone(width=192, depth=4, heads=6, causal=False),
    ),
    data=DATA,
    budget=Budget.parse("10m"),
    batch_size=256,
    ema=0.998,
    parts={"clip": Ref("clip-small")},
)
