"""Pictures from captions by DDPM as it was first described: it predicts the noise; drawn by DDIM (2020).

nomoat train ddpm-small
nomoat draw last "a small red circle" --guidance 2
"""

from dataclasses import replace

from nomoat.nn.objective import DDPM
from nomoat.recipes.diffusion_small import recipe as plain

recipe = replace(
    plain,
    about="Pictures of 32 pixels from captions: DDPM, which predicts the noise, with the same transformer.",
    family=replace(plain.family, objective=DDPM),
)
