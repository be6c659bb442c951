"""A codec whose 512 codes are learned (VQ), for the shapes world: 32 x 32 pixels become 8 x 8 codes and come back.

nomoat train vq-small
nomoat train vq-small family.quantizer.codes=1024

The codes follow what is coded as moving averages; those that are hardly used begin anew.
"""

from dataclasses import replace

from nomoat.nn.quantizers import VQ
from nomoat.recipes.codec_small import recipe as plain

recipe = replace(
    plain,
    about="A codec of 0.5 M parameters: shapes of 32 pixels as 8 x 8 of 512 learned codes (VQ).",
    family=replace(plain.family, quantizer=VQ(codes=512, channels=8)),
    ema=None,
)
