"""Latents: pictures as a codec's numbers, standardised; or the pixels themselves.

    image_BCYX -> codec.encode -> (x - mean) / std -> what is denoised -> x std + mean -> codec.decode_latent -> image

Mean and standard deviation of each channel are measured once, on the whole first batch of a run: it is the same in
every process and when a run is resumed, and the checkpoint holds what was measured. Rombach et al. 2022,
arXiv:2112.10752.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.errors import ConfigError
from nomoat.core.family import Frozen
from nomoat.core.types import Batch


class Latents(nn.Module):
    """What is denoised in place of pictures.

    Args:
        shape: of it: channels, rows and columns.
        factor: pixels a side of each; 0: there is no codec, pictures are denoised as they are.
        codec: the part that makes and reads latents; None: it is missing, and only batches with `latent` can be used.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shape: tuple[int, int, int], factor: int, codec: Frozen | None) -> None:
        super().__init__()
        self.shape, self.factor, self.codec = shape, factor, codec
        if factor:  # all 0: not measured yet
            self.register_buffer("mean", torch.zeros(shape[0], 1, 1))
            self.register_buffer("std", torch.zeros(shape[0], 1, 1))

    def clean(self, batch: Batch) -> Tensor:
        """What is denoised [B, C, Y, X], without noise."""
        if not self.factor:
            return batch["image"].float()
        return (self._raw(batch) - self.mean) / torch.where(self.std > 0, self.std, 1)

    @torch.no_grad()
    def measure(self, batch: Batch) -> None:
        """Mean and standard deviation, where they are not known yet."""
        if self.factor and not bool(self.std.any()):
            raw = self._raw(batch).to(self.std.device)
            self.mean.copy_(raw.mean((0, 2, 3))[:, None, None])
            self.std.copy_(raw.std((0, 2, 3))[:, None, None].clamp(min=1e-6))

    def pixels(self, x: Tensor) -> Tensor:
        """The picture [B, C, Y, X] that was denoised."""
        return self._known().to(x.device).decode_latent(x * self.std + self.mean)["image"].float() if self.factor else x

    def anew(self, mask: Tensor) -> Tensor:
        """From where pixels are drawn anew to where latents are: wherever any of their pixels is."""
        return F.max_pool2d(mask.float(), self.factor) > 0 if self.factor else mask.bool()

    def _raw(self, batch: Batch) -> Tensor:
        """As the codec makes them; those that the batch has already are taken."""
        if "latent" in batch:
            return batch["latent"].float()
        image = batch["image"]
        with torch.no_grad():
            latents = self._known().to(image.device).encode({"image": image}).float()
        if tuple(latents.shape[1:]) != self.shape:
            raise ConfigError(
                f"the codec's latents are {tuple(latents.shape[1:])}, not {self.shape}",
                "channels, height, width",
                f"set family.latent={latents.shape[1]},{image.shape[2] // latents.shape[2]}",
            )
        return latents

    def _known(self) -> Frozen:
        if self.codec is None:
            raise ConfigError(
                "this model draws latents, and there is no codec to make and read them",
                "it is a part of its own",
                "name its run in the recipe: parts={'codec': Ref('RUN')}",
            )
        return self.codec
