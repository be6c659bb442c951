"""Pictures from captions by EDM's preconditioning, times and weights; drawn by Heun's method (2022).

nomoat train edm-small
nomoat draw last "a small red circle" --guidance 2
"""

from dataclasses import replace

from nomoat.nn.objective import EDM
from nomoat.recipes.diffusion_small import recipe as plain

recipe = replace(
    plain,
    about="Pictures of 32 pixels from captions: EDM, which predicts a mixture, with the same transformer.",
    family=replace(plain.family, objective=EDM),
)
