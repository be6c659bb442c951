"""Autoencoder: a picture as a small grid of numbers or of codes, and back (VAE, VQ, FSQ; TAESD's nets).

    image_BCYX -> encoder -> z_BCYX -> bottleneck -> latent_BCYX -> decoder -> image_BCYX
    distance of the two pictures + what the bottleneck asks for (divergence, commitment) -> loss
    codes: tokens_BYX, from which `dalle` draws; numbers: a latent [B, C, y, x], in which `diffusion` draws

Kingma and Welling 2013, arXiv:1312.6114; van den Oord et al. 2017, arXiv:1711.00937; Mentzer et al. 2023,
arXiv:2309.15505; the tiny nets: Bohan 2023 (nn/taesd.py). There is no discriminator: below 128 pixels a side the
distance alone is sharp enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nomoat.core.errors import ConfigError, DataError
from nomoat.core.family import Family, Parts
from nomoat.core.types import Batch, Loss
from nomoat.nn.pyramid import Pyramid
from nomoat.nn.quantizers import FSQ, VAE, VQ, Codebook, Coded, Plain
from nomoat.nn.ssim import ssim
from nomoat.nn.taesd import TAESD
from nomoat.sampling.drawing import Drawing, noise, rows_of

MOST_DECIBELS = 99.0
"""Of pictures that are the same."""


@dataclass(frozen=True)
class Autoencoder:
    """An encoder, a bottleneck and a decoder.

    Args:
        size: pixels a side of the pictures; others that `nets.factor` divides can be coded too.
        channels: of the pictures: 3, or 1 for grey.
        quantizer: `FSQ` or `VQ` (codes), `VAE` or `Plain` (numbers).
        nets: `Pyramid`, or `TAESD`.
        loss: `l1_ssim`: the mean absolute error + `ssim` x (1 - structural similarity); or `l2`, the mean square.
        ssim: weight of the structure.
    """

    size: int = 32
    channels: int = 3
    quantizer: FSQ | VQ | VAE | Plain = FSQ()
    nets: Pyramid | TAESD = Pyramid()
    loss: Literal["l1_ssim", "l2"] = "l1_ssim"
    ssim: float = 0.25

    def __post_init__(self) -> None:
        factor = self.nets.factor
        if self.size < factor or self.size % factor:
            near = max(1, round(self.size / factor)) * factor
            raise ConfigError(
                f"pictures of {self.size} pixels cannot be cut into places of {factor}",
                "each level of the nets halves them",
                f"use size={near}, or fewer levels",
            )
        if self.channels < 1 or self.loss not in ("l1_ssim", "l2") or not self.ssim >= 0:
            raise ConfigError(
                f"channels {self.channels}, loss `{self.loss}` and ssim {self.ssim} cannot be",
                "channels is 1 or more, loss is l1_ssim or l2, ssim is 0 or more",
            )

    def build(self, parts: Parts) -> PictureCodec:
        return PictureCodec(self)

    @classmethod
    def tiny(cls) -> Autoencoder:
        return cls(size=8, quantizer=FSQ((5, 5, 5)), nets=Pyramid((16, 16)), loss="l2")


class PictureCodec(Family):
    """See the module's first lines. Encodes and decodes; with codes also to tokens; a VAE generates."""

    counts: ClassVar[str] = "picture"
    reads: ClassVar[frozenset[str]] = frozenset()
    claims: ClassVar[Mapping[str, str]] = {"uses_input": "it gives back what it is given: nothing else is the input"}

    def __init__(self, config: Autoencoder) -> None:
        super().__init__()
        self.config = config
        quantizer, channels = config.quantizer, config.channels
        self.encoder = config.nets.encoder(channels, quantizer.inputs, isinstance(quantizer, VAE))
        self.bottleneck: Any = quantizer.build(channels * config.size**2)
        self.decoder = config.nets.decoder(quantizer.channels, channels)
        if isinstance(quantizer, VQ):  # its codebook moves by the means of the whole batch
            self.splittable = False  # type: ignore[misc]

    @property
    def codes(self) -> int:
        """Different codes of a place; 0 where the latents are numbers."""
        return self.config.quantizer.codes

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the places of a picture of the usual size."""
        side = self.config.size // self.config.nets.factor
        return side, side

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[C, y, x] of the latent of such a picture."""
        return self.config.quantizer.channels, *self.grid

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Of the noise from which a VAE draws."""
        return self.latent_shape

    @property
    def positions_a_sample(self) -> int:
        """Places of the first level, where most is computed."""
        return (self.config.size // self.config.nets.stem) ** 2

    def role_of(self, name: str, parameter: nn.Parameter) -> str:
        """A convolution's weights are a matrix of outputs by all that a place sees, but for the first and the last."""
        inner = parameter.ndim == 4 and ".stem." not in name and ".output." not in name
        return "matrix" if inner else super().role_of(name, parameter)

    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        """With `noise` for the latents of a VAE."""
        if not isinstance(self.config.quantizer, VAE):
            return batch
        rows, factor = len(batch["image"]), self.config.nets.factor
        places = [side // factor for side in batch["image"].shape[2:]]
        return {**batch, "noise": torch.randn(rows, self.config.quantizer.channels, *places, generator=generator)}

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """Summed over pictures; parts: `l1` or `l2`, `ssim`, `psnr` (decibels), and those of the bottleneck.

        `perplexity` (e^entropy of the codes of a batch) and `unused` (codes that it does not use) are of the
        micro-batch, for each of its pictures.
        """
        image_BCYX = self._pictures(batch)
        coded = self.bottleneck(self.encoder(image_BCYX), batch.get("noise"))
        distance_B, parts = self._distance(self.decoder(coded.latent_BCYX), image_BCYX)
        parts |= {**coded.parts, **self._used(coded)}
        summed = {name: part.detach().sum() for name, part in parts.items()}
        return Loss((distance_B + coded.penalty_B).sum(), torch.tensor(len(image_BCYX)), summed)

    def first_loss(self, batch: Batch) -> float:
        """The distance of a blank picture, and what the bottleneck asks of the untrained encoder."""
        with torch.no_grad():
            image_BCYX = self._pictures(batch).to(next(self.parameters()).device)
            blank_BCYX = torch.full_like(image_BCYX, self.config.nets.blank)
            penalty_B = self.bottleneck(self.encoder(image_BCYX)).penalty_B
            return float((self._distance(blank_BCYX, image_BCYX)[0] + penalty_B).mean())

    def after_step(self, progress: float) -> None:
        """The codebook follows what the step coded."""
        if isinstance(self.bottleneck, Codebook):
            self.bottleneck.follow()

    def encode(self, batch: Batch) -> Tensor:
        """The latent [B, C, y, x] of `image`: of a VAE the mean, of codes what they stand for."""
        return self._coded(batch).latent_BCYX

    def decode_latent(self, latent: Tensor) -> Batch:
        """`image` [B, C, Y, X] in [-1, 1] of a latent [B, C, y, x]."""
        return {"image": self.decoder(latent).float().clamp(-1, 1)}

    def tokens(self, batch: Batch) -> Tensor:
        """The codes [B, y, x] of `image`, int64.

        Raises:
            ConfigError: its latents are numbers.
        """
        self._needs_codes()
        tokens_BYX = self._coded(batch).tokens_BYX
        assert tokens_BYX is not None
        return tokens_BYX

    def from_tokens(self, tokens: Tensor) -> Batch:
        """`image` [B, C, Y, X] of codes [B, y, x].

        Raises:
            ConfigError: its latents are numbers.
            DataError: there are no such codes.
        """
        self._needs_codes()
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.codes:
            raise DataError(
                f"codes from {int(tokens.min())} to {int(tokens.max())} cannot be decoded",
                f"this codec has {self.codes:,}, counted from 0",
            )
        return self.decode_latent(self.bottleneck.look_up(tokens))

    def generate(self, prompts: Batch, options: Drawing, generator: torch.Generator) -> Batch:
        """`image` from noise alone, one for each row of the prompts: what a VAE's prior holds.

        Args:
            prompts: `rows`, or anything with rows; `first`, the number of the first; `noise` [B, C, y, x] to draw from.
            options: `seed`, and `temperature`: what the noise is multiplied by.
            generator: not used: each row has chance of its own.

        Raises:
            ConfigError: it is no VAE, so there is nothing to draw latents from.
        """
        if not isinstance(self.config.quantizer, VAE):
            raise ConfigError(
                "this autoencoder cannot draw",
                "nothing says how likely its latents are",
                "train a model over them: `nomoat train dalle-small` draws codes, a latent diffusion numbers",
            )
        drawn_BCYX = prompts.get("noise")
        if drawn_BCYX is None:
            drawn_BCYX = noise(rows_of(prompts), self.noise_shape, options.seed, int(prompts.get("first", 0)))
        return self.decode_latent(options.temperature * drawn_BCYX.to(next(self.parameters()).device))

    def example(self, samples: int = 2) -> Batch:
        """Pictures of one colour above another."""
        config, generator = self.config, torch.Generator().manual_seed(0)
        shades = 2 * torch.rand(samples, 2, config.channels, 1, 1, generator=generator) - 1
        height = torch.arange(config.size)[None, None, :, None] < config.size // 2
        image_BCYX = torch.where(height, shades[:, 0], shades[:, 1]).expand(-1, -1, -1, config.size)
        return {"image": image_BCYX.contiguous(), "index": torch.arange(samples)}

    def _coded(self, batch: Batch) -> Coded:
        return self.bottleneck(self.encoder(self._pictures(batch)))

    def _pictures(self, batch: Batch) -> Tensor:
        image_BCYX, factor = batch["image"], self.config.nets.factor
        channels, *sides = image_BCYX.shape[1:]
        if channels != self.config.channels or any(side % factor or not side for side in sides):
            raise DataError(
                f"pictures of {channels} channels and {' x '.join(map(str, sides))} pixels cannot be coded",
                f"this codec takes {self.config.channels} channels and sides that {factor} divides",
                f"give it pictures of {self.config.size} x {self.config.size}",
            )
        return image_BCYX

    def _distance(self, made_BCYX: Tensor, image_BCYX: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """How far each pair is apart [B], in fp32, and the figures that say so."""
        away_BN = (made_BCYX.float() - image_BCYX.float()).flatten(1)
        square_B = away_BN.square().mean(1)
        parts = {"psnr": (10 * torch.log10(4 / square_B.detach().clamp(min=1e-12))).clamp(max=MOST_DECIBELS)}
        if self.config.loss == "l2":
            return square_B, parts | {"l2": square_B}
        error_B = away_BN.abs().mean(1)
        if not self.config.ssim:
            return error_B, parts | {"l1": error_B}
        alike_B = ssim(made_BCYX, image_BCYX)
        return error_B + self.config.ssim * (1 - alike_B), parts | {"l1": error_B, "ssim": alike_B}

    def _used(self, coded: Coded) -> dict[str, Tensor]:
        """Perplexity and unused codes of the batch, the same for each of its pictures."""
        if coded.tokens_BYX is None:
            return {}
        counts_K = torch.bincount(coded.tokens_BYX.flatten(), minlength=self.codes).float()
        share_K = counts_K / counts_K.sum()
        perplexity, unused = torch.special.entr(share_K).sum().exp(), (counts_K == 0).sum().float()
        rows = len(coded.tokens_BYX)
        return {"perplexity": perplexity.expand(rows), "unused": unused.expand(rows)}

    def _needs_codes(self) -> None:
        if not self.codes:
            raise ConfigError(
                "this autoencoder has no codes",
                f"its latents are numbers ({type(self.config.quantizer).__name__})",
                "train one with codes: `nomoat train codec-small`",
            )
