"""Pictures in one to eight steps: MeanFlow, which learns the mean velocity of a step by its derivative.

nomoat train meanflow-small
nomoat draw last "a small red circle" --steps 4 --guidance 2
"""

from dataclasses import replace

from nomoat.nn.objective import MEANFLOW
from nomoat.recipes.diffusion_small import recipe as plain

recipe = replace(
    plain,
    about="Pictures of 32 pixels from captions in few steps: MeanFlow.",
    family=replace(plain.family, objective=MEANFLOW),
)
