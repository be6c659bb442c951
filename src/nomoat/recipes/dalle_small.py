"""DALL-E on the shapes world: a caption in, a picture of 32 pixels out, drawn code by code.

nomoat train codec-small
nomoat train dalle-small
nomoat draw last "a red square left of a blue circle" --n 4 --guidance 3
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe, Ref
from nomoat.data.shapes import Shapes
from nomoat.families.dalle import DALLE
from nomoat.nn.backbone import Backbone

data = Shapes(size=32)
recipe = Recipe(
    about="DALL-E of 3 M parameters: captions of the shapes world and 8 x 8 codes as one sequence.",
    family=DALLE(
        vocab_size=data.words().vocab_size,
        caption_length=data.caption_length,
        backbone=Backbone(width=192, depth=6, heads=6, position_axes=2),
    ),
    data=data,
    parts={"codec": Ref("codec-small")},  # with "ranker": Ref("clip-small"), draw takes --candidates
    budget=Budget.parse("20m"),
    batch_size=32,
)
