"""Bottlenecks: what stands between an autoencoder's encoder and its decoder, as a closed set of values.

    z_BCYX -> Plain: as it is | VAE: mean + noise | FSQ: each number to one of L levels | VQ: the nearest of K vectors
           -> Coded(latent_BCYX, penalty_B, tokens_BYX)

Kingma and Welling 2013, arXiv:1312.6114 (VAE); van den Oord et al. 2017, arXiv:1711.00937 (VQ, with the moving average
of its appendix); Dhariwal et al. 2020, arXiv:2005.00341 (dead codes begin anew); Mentzer et al. 2023, arXiv:2309.15505
(FSQ).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nomoat.core.errors import ConfigError

PIECE_NUMBERS = 1 << 24
"""Distances to codes that are held at a time."""


def _at_least(least: int, **fields: int) -> None:
    for name, value in fields.items():
        if value < least:
            raise ConfigError(f"{name} {value} is too few", fix=f"use {least} or more")


@dataclass(frozen=True)
class Coded:
    """What came through a bottleneck.

    Args:
        latent_BCYX: for the decoder, with a gradient to the encoder.
        penalty_B: what each picture adds to its loss.
        tokens_BYX: the codes, int64; None where there are none.
        parts: further figures of each picture [B], for the log.
    """

    latent_BCYX: Tensor
    penalty_B: Tensor
    tokens_BYX: Tensor | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Plain:
    """Latents as they are.

    Args:
        channels: numbers a place.
    """

    channels: int = 4
    codes = 0

    def __post_init__(self) -> None:
        _at_least(1, channels=self.channels)

    @property
    def inputs(self) -> int:
        """Channels that the encoder gives."""
        return self.channels

    def build(self, numbers: int) -> PlainBottleneck:
        return PlainBottleneck()


@dataclass(frozen=True)
class VAE:
    """A mean and a deviation for each number, and noise between encoder and decoder.

    Args:
        channels: numbers a place.
        kl: weight of the divergence in nats, over the numbers of a picture: with the squared error as distance,
            2 sigma^2 makes the loss the evidence bound of pixels with the deviation sigma; with the absolute error it
            is the scale of a Laplace distribution. 1e-6 or so gives a codec whose latents are only kept in bounds.
    """

    channels: int = 4
    kl: float = 0.02
    codes = 0

    def __post_init__(self) -> None:
        _at_least(1, channels=self.channels)
        if not (math.isfinite(self.kl) and self.kl >= 0):
            raise ConfigError(f"kl {self.kl} is no weight", fix="use 0 or more, 0.02 to draw from noise")

    @property
    def inputs(self) -> int:
        """Channels that the encoder gives: mean and logarithm of the variance."""
        return 2 * self.channels

    def build(self, numbers: int) -> Variational:
        return Variational(self.kl / numbers)


@dataclass(frozen=True)
class FSQ:
    """Each number becomes one of a few levels: the codes are all combinations, and none has to be learned.

    Args:
        levels: L of each number; (8, 5, 5, 5) gives 1,000 codes. The paper advises 5 or more.
    """

    levels: tuple[int, ...] = (8, 5, 5, 5)

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 2:
            raise ConfigError(
                f"levels {tuple(self.levels)} hold no code",
                "a number with fewer than two levels says nothing",
                "use 2 or more for each, such as 8,5,5,5",
            )
        if self.codes > 1 << 24:
            raise ConfigError(f"levels {tuple(self.levels)} make {self.codes:,} codes", fix="use fewer numbers")

    @property
    def channels(self) -> int:
        """Numbers a place."""
        return len(self.levels)

    @property
    def inputs(self) -> int:
        """Channels that the encoder gives."""
        return len(self.levels)

    @property
    def codes(self) -> int:
        """Different codes."""
        return math.prod(self.levels)

    def build(self, numbers: int) -> FiniteScalar:
        return FiniteScalar(self.levels)


@dataclass(frozen=True)
class VQ:
    """The nearest vector of a codebook, each the moving average of what was coded by it.

    Args:
        codes: K, vectors in the codebook.
        channels: numbers of each.
        commitment: weight of the encoder's distance from its codes.
        decay: of the moving averages, a step.
        dead: share of the mean use below which a code begins anew, as the worst coded place of a picture.
    """

    codes: int = 512
    channels: int = 8
    commitment: float = 0.25
    decay: float = 0.99
    dead: float = 0.03

    def __post_init__(self) -> None:
        _at_least(2, codes=self.codes)
        _at_least(1, channels=self.channels)
        if not (0 <= self.decay < 1 and 0 <= self.dead < 1 and self.commitment >= 0):
            raise ConfigError(
                f"decay {self.decay}, dead {self.dead} and commitment {self.commitment} cannot be",
                "decay and dead lie in [0, 1), commitment is 0 or more",
            )

    @property
    def inputs(self) -> int:
        """Channels that the encoder gives."""
        return self.channels

    def build(self, numbers: int) -> Codebook:
        return Codebook(self)


Quantizer = FSQ | VQ | VAE | Plain
plain, vae, fsq, vq = Plain(), VAE(), FSQ(), VQ()
"""By one word: `family.quantizer=vq`."""


class PlainBottleneck(nn.Module):
    """Nothing is changed."""

    def forward(self, z_BCYX: Tensor, noise_BCYX: Tensor | None = None) -> Coded:
        """Without noise in any case."""
        return Coded(z_BCYX.float(), z_BCYX.new_zeros(len(z_BCYX), dtype=torch.float32))


class Variational(nn.Module):
    """Reparametrised noise, and the divergence from N(0, 1)."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, z_BCYX: Tensor, noise_BCYX: Tensor | None = None) -> Coded:
        """mean + deviation x noise; without noise the mean. KL = 1/2 sum(mean^2 + variance - 1 - ln variance)."""
        mean_BCYX, log_BCYX = z_BCYX.float().chunk(2, 1)
        log_BCYX = log_BCYX.clamp(-30, 20)
        kl_B = 0.5 * (mean_BCYX.square() + log_BCYX.exp() - 1 - log_BCYX).flatten(1).sum(1)
        moved_BCYX = mean_BCYX if noise_BCYX is None else torch.addcmul(mean_BCYX, (0.5 * log_BCYX).exp(), noise_BCYX)
        return Coded(moved_BCYX, self.weight * kl_B, parts={"kl": kl_B})


class FiniteScalar(nn.Module):
    """Level i of L stands for 2 i / (L - 1) - 1: latents lie in [-1, 1]."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = levels
        self.steps = [math.prod(levels[:number]) for number in range(len(levels))]
        # An even number of levels has none in the middle: zero is moved onto the upper of the two beside it. With two
        # levels there is no such shift, zero is where they meet.
        self.shifts = [math.atanh(1 / (level - 1)) if level % 2 == 0 and level > 2 else 0.0 for level in levels]

    def forward(self, z_BCYX: Tensor, noise_BCYX: Tensor | None = None) -> Coded:
        """(L - 1) / 2 (1 + tanh(z + shift)), rounded; the gradient passes as if it were not."""
        half_C11 = (self._column(self.levels, z_BCYX) - 1) / 2
        place_BCYX = half_C11 * (1 + torch.tanh(z_BCYX.float() + self._column(self.shifts, z_BCYX)))
        level_BCYX = place_BCYX.round()
        tokens_BYX = (level_BCYX.long() * self._column(self.steps, z_BCYX).long()).sum(1)
        straight_BCYX = level_BCYX + (place_BCYX - place_BCYX.detach())  # in this order it is the level to the bit
        return Coded(straight_BCYX / half_C11 - 1, z_BCYX.new_zeros(len(z_BCYX), dtype=torch.float32), tokens_BYX)

    def look_up(self, tokens_BYX: Tensor) -> Tensor:
        """The latents [B, C, y, x] of codes."""
        levels_C11 = self._column(self.levels, tokens_BYX)
        level_BCYX = (tokens_BYX[:, None] // self._column(self.steps, tokens_BYX).long()) % levels_C11.long()
        return level_BCYX / ((levels_C11 - 1) / 2) - 1

    def _column(self, values: list[int] | list[float] | tuple[int, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None, None]


class Seen(NamedTuple):
    """What a batch says of the codes: how often each was used, the sum of what was, and the worst coded places."""

    uses_K: Tensor
    sums_KC: Tensor
    worst_BC: Tensor
    distance_B: Tensor


class Codebook(nn.Module):
    """K vectors; `follow` moves them after a step, by what the last batch in train mode showed."""

    def __init__(self, config: VQ) -> None:
        super().__init__()
        self.config = config
        self.codebook = nn.Buffer((2 * torch.rand(config.codes, config.channels) - 1) / config.codes)
        self.uses = nn.Buffer(torch.zeros(config.codes))
        self.sums = nn.Buffer(torch.zeros(config.codes, config.channels))
        self.seen: Seen | None = None

    def forward(self, z_BCYX: Tensor, noise_BCYX: Tensor | None = None) -> Coded:
        """z + (code - z) without gradient; penalty: commitment x mean (z - code)^2."""
        z_BYXC = z_BCYX.float().permute(0, 2, 3, 1)
        tokens_BYX = self._nearest(z_BYXC.flatten(0, 2).detach()).view(z_BYXC.shape[:3])
        code_BYXC = self.codebook[tokens_BYX]
        away_BYXC, latent_BYXC = z_BYXC - code_BYXC, code_BYXC + (z_BYXC - z_BYXC.detach())
        if self.training and torch.is_grad_enabled():
            self.seen = self._look(z_BYXC.detach(), away_BYXC.detach(), tokens_BYX)
        penalty_B = self.config.commitment * away_BYXC.square().flatten(1).mean(1)
        return Coded(latent_BYXC.permute(0, 3, 1, 2), penalty_B, tokens_BYX)

    def look_up(self, tokens_BYX: Tensor) -> Tensor:
        """The latents [B, C, y, x] of codes."""
        return self.codebook[tokens_BYX].permute(0, 3, 1, 2)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the averages by 1 - decay towards the last batch; codes that are hardly used begin anew."""
        seen, self.seen = self.seen, None
        if seen is None:
            return
        self.uses.lerp_(seen.uses_K, 1 - self.config.decay)
        self.sums.lerp_(seen.sums_KC, 1 - self.config.decay)
        mean = self.uses.mean()
        order_B = seen.distance_B.argsort(descending=True, stable=True)
        worst_BC = seen.worst_BC[order_B][seen.distance_B[order_B] > 0]
        dead_N = (self.uses < self.config.dead * mean).nonzero()[:, 0][: len(worst_BC)]
        self.uses[dead_N], self.sums[dead_N] = mean, mean * worst_BC[: len(dead_N)]
        used_K1 = (self.uses > 0)[:, None]
        self.codebook.copy_(torch.where(used_K1, self.sums / self.uses[:, None].clamp(min=1e-12), self.codebook))

    def _nearest(self, z_NC: Tensor) -> Tensor:
        """The code [N] nearest to each vector; of equals the first."""
        pieces = z_NC.split(max(1, PIECE_NUMBERS // len(self.codebook)))
        lengths_K = self.codebook.square().sum(1)
        with torch.autocast(z_NC.device.type, enabled=False):
            found = [(lengths_K - 2 * piece_NC @ self.codebook.T).argmin(1) for piece_NC in pieces]
        return torch.cat(found)

    def _look(self, z_BYXC: Tensor, away_BYXC: Tensor, tokens_BYX: Tensor) -> Seen:
        # A product with ones and zeros adds in the same order every time, which index_add does not on every device.
        uses_K, sums_KC = torch.zeros_like(self.uses), torch.zeros_like(self.sums)
        with torch.autocast(z_BYXC.device.type, enabled=False):
            for z_NC, tokens_N in zip(
                z_BYXC.flatten(0, 2).split(max(1, PIECE_NUMBERS // len(uses_K))),
                tokens_BYX.flatten().split(max(1, PIECE_NUMBERS // len(uses_K))),
                strict=True,
            ):
                chosen_NK = nn.functional.one_hot(tokens_N, len(uses_K)).to(z_NC.dtype)
                uses_K += chosen_NK.sum(0)
                sums_KC += chosen_NK.T @ z_NC
        distance_BN = away_BYXC.square().sum(3).flatten(1)
        distance_B, place_B = distance_BN.max(1)
        worst_BC = z_BYXC.flatten(1, 2)[torch.arange(len(z_BYXC), device=place_B.device), place_B]
        return Seen(uses_K, sums_KC, worst_BC, distance_B)
