"""A variational autoencoder of the shapes world that draws from noise: 32 x 32 pixels become 4 x 4 places of 8 numbers.

nomoat train vae-small
nomoat draw last --n 16
nomoat train vae-small family.quantizer.kl=1e-6 family.nets.widths=48,96

The second line of training makes a codec for latent diffusion: 8 x 8 places, kept in bounds and little more.
"""

from dataclasses import replace

from nomoat.data.shapes import Shapes
from nomoat.nn.pyramid import Pyramid
from nomoat.nn.quantizers import VAE
from nomoat.recipes.codec_small import recipe as plain

recipe = replace(
    plain,
    about="A variational autoencoder of 1 M parameters that draws shapes of 32 pixels from noise.",
    family=replace(plain.family, quantizer=VAE(channels=8, kl=0.02), nets=Pyramid((48, 96, 128)), loss="l2"),
    data=Shapes(size=32),
)
