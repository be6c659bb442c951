"""ControlNet on the shapes world: a diffusion model that is frozen learns to keep to a mask.

nomoat train diffusion-small
nomoat train control-small
nomoat train control-small data.hint=edges
"""

from nomoat.core.budget import Budget
from nomoat.core.recipe import Recipe, Ref
from nomoat.data.shapes import Shapes
from nomoat.families.control import Control

recipe = Recipe(
    about="ControlNet over diffusion-small: pictures of 32 pixels that keep to a mask.",
    family=Control(hint_channels=1),
    data=Shapes(size=32, hint="mask"),
    budget=Budget.parse("10m"),
    batch_size=64,
    ema=0.999,
    parts={"base": Ref("diffusion-small")},
)
