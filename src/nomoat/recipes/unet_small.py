"""The baseline of diffusion-small: a UNet in place of the transformer, all else as it is.

nomoat train unet-small
nomoat draw last "a small red circle" --guidance 2
"""

from dataclasses import replace

from nomoat.nn.unet import UNet
from nomoat.recipes.diffusion_small import recipe as plain

recipe = replace(
    plain,
    about="Pictures of 32 pixels from captions: flow matching with a UNet, the transformer's baseline.",
    family=replace(plain.family, trunk=UNet()),
)
