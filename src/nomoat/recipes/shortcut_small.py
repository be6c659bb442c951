"""Pictures in one to eight steps: a shortcut model, whose long steps are taught by two half ones.

nomoat train shortcut-small
nomoat draw last "a small red circle" --steps 4 --guidance 2
"""

from dataclasses import replace

from nomoat.nn.objective import SHORTCUT
from nomoat.recipes.diffusion_small import recipe as plain

recipe = replace(
    plain,
    about="Pictures of 32 pixels from captions in few steps: a shortcut model.",
    family=replace(plain.family, objective=SHORTCUT),
)
