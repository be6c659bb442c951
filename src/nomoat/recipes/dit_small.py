"""diffusion-small with a transformer in place of the UNet, all else as it is.

nomoat train dit-small
nomoat draw last "a small red circle" --guidance 2
"""

from dataclasses import replace

from nomoat.families.diffusion import Diffusion
from nomoat.recipes.diffusion_small import recipe as plain

recipe = replace(
    plain,
    about="Pictures of 32 pixels from captions: flow matching with a transformer.",
    family=replace(plain.family, trunk=Diffusion().trunk),
)
