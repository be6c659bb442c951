"""Solvers: from noise to a picture in a few steps, by a function that guesses the clean picture.

    x = noise -> for each step from t to r: denoise(x, t_B, r_B) -> clean -> x at r -> ... -> x at noise share 0

The path is straight: x_t = (1 - t) clean + t noise, with the noise share t falling from 1 to 0 (Lipman et al. 2023,
arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003). Papers in other notations are mapped by the noise-to-signal ratio
sigma = t / (1 - t), which is the same for x times any number:

    variance exploding   x_ve = x_t / (1 - t)                        Karras et al. 2022, arXiv:2206.00364 (EDM)
    variance preserving  x_vp = x_t / sqrt((1 - t)^2 + t^2)          Ho et al. 2020, arXiv:2006.11239 (DDPM)

A solver is a pure function of `denoise`, the noise and the times. `r_B` is where the step ends, for models that know
(few-step models); Heun and DPM-Solver++ build their step from slopes at one time and pass r = t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from nomoat.core.errors import ConfigError, nearest

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, t_B, r_B) -> the clean picture, of x's shape."""
After = Callable[[Tensor, float], Tensor]
"""(x, r) -> x: what is done to the picture when a step has come to the noise share r."""
Solver = Callable[[Denoise, Tensor, Sequence[float], After], Tensor]

GRIDS = ("uniform", "shifted", "karras", "vp")


@dataclass(frozen=True)
class Grid:
    """At which noise shares a solver looks.

    Args:
        kind: `uniform`; `shifted` (more steps near the noise: Esser et al. 2024, arXiv:2403.03206); `karras` (equal
            steps of sigma^(1 / 7): Karras et al. 2022); `vp` (equal steps of DDPM's time: Ho et al. 2020).
        shift: of `shifted`; 1 is uniform.
        sigma_min, sigma_max: of `karras`: the smallest noise-to-signal ratio before 0, and the first.
    """

    kind: Literal["uniform", "shifted", "karras", "vp"] = "uniform"
    shift: float = 3.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if self.kind not in GRIDS:
            raise ConfigError(
                f"there is no grid `{self.kind}`", f"there is {', '.join(GRIDS)}", nearest(self.kind, GRIDS)
            )
        if not (self.shift > 0 and 0 < self.sigma_min < self.sigma_max):
            raise ConfigError(
                f"a grid of shift {self.shift}, sigma {self.sigma_min} to {self.sigma_max} cannot be",
                fix="all are above 0, and sigma_min is below sigma_max",
            )

    def times(self, steps: int, start: float = 1.0) -> list[float]:
        """Noise shares, falling: `steps` + 1 of them, the last 0.

        Args:
            steps: of the solver.
            start: all are multiplied by it, so that the way begins at about this share (a picture that is changed).
        """
        if steps < 1:
            raise ConfigError(f"{steps} steps lead nowhere", fix="use at least 1")
        if self.kind == "karras":
            first, last = self.sigma_max ** (1 / 7), self.sigma_min ** (1 / 7)
            sigmas = [(first + step / max(steps - 1, 1) * (last - first)) ** 7 for step in range(steps)]
            return [start * sigma / (1 + sigma) for sigma in sigmas] + [0.0]
        shares = [1 - step / steps for step in range(steps + 1)]
        if self.kind == "shifted":
            shares = [self.shift * share / (1 + (self.shift - 1) * share) for share in shares]
        elif self.kind == "vp":
            shares = [float(vp_share(torch.tensor(share, dtype=torch.float64))) for share in shares]
        return [start * share for share in shares]


UNIFORM, SHIFTED, KARRAS, VP = (Grid(kind) for kind in ("uniform", "shifted", "karras", "vp"))


def vp_share(time: Tensor) -> Tensor:
    """The noise share at each of DDPM's times in [0, 1]: its betas rise from 1e-4 to 0.02 over 1,000 steps.

    In the limit of many steps (Song et al. 2021, arXiv:2011.13456, appendix C) alpha^2 = exp(-(0.1 u + 9.95 u^2)).
    """
    sigma = torch.expm1(0.1 * time + 9.95 * time.square()).sqrt()
    return sigma / (1 + sigma)


def unchanged(x: Tensor, share: float) -> Tensor:
    """x."""
    return x


def _at(denoise: Denoise, x: Tensor, t: float, r: float) -> Tensor:
    return denoise(x, x.new_full((len(x),), t), x.new_full((len(x),), r))


def move(x: Tensor, clean: Tensor, t: Tensor | float, r: Tensor | float) -> Tensor:
    """From noise share t to r along the straight line through x that ends at `clean`."""
    return clean + (r / t) * (x - clean)


def euler(denoise: Denoise, x: Tensor, times: Sequence[float], after: After = unchanged) -> Tensor:
    """First order: x + (r - t) v with the velocity v = (x - clean) / t; of a few-step model its own step."""
    for t, r in pairwise(times):
        velocity = (x - _at(denoise, x, t, r)) / t
        x = after(x + (r - t) * velocity, r)
    return x


def ddim(denoise: Denoise, x: Tensor, times: Sequence[float], after: After = unchanged) -> Tensor:
    """Denoising diffusion implicit models (Song et al. 2021, arXiv:2010.02502, eq. 12 with eta = 0), in VP notation.

    x_vp' = alpha' clean + sigma' noise. On a straight path it is Euler's step.
    """
    for t, r in pairwise(times):
        clean, norm, next_norm = _at(denoise, x, t, r), math.hypot(1 - t, t), math.hypot(1 - r, r)
        noise = (x / norm - (1 - t) / norm * clean) / (t / norm)
        x = after(((1 - r) / next_norm * clean + r / next_norm * noise) * next_norm, r)
    return x


def heun(denoise: Denoise, x: Tensor, times: Sequence[float], after: After = unchanged) -> Tensor:
    """Second order: the mean of the slopes at both ends of a step (Karras et al. 2022, algorithm 1).

    Each step but the last evaluates twice. The paper integrates x_ve over sigma, this x_t over t.
    """
    for t, r in pairwise(times):
        velocity = (x - _at(denoise, x, t, t)) / t
        ahead = x + (r - t) * velocity
        if r > 0:
            velocity = (velocity + (ahead - _at(denoise, ahead, r, r)) / r) / 2
            ahead = x + (r - t) * velocity
        x = after(ahead, r)
    return x


def dpm(denoise: Denoise, x: Tensor, times: Sequence[float], after: After = unchanged) -> Tensor:
    """DPM-Solver++ 2M (Lu et al. 2022, arXiv:2211.01095, algorithm 2): second order, one evaluation a step.

    With h the growth of log(alpha / sigma) in a step, x' = sigma' / sigma x - alpha' (e^-h - 1) D; D is the clean
    picture, carried on from the last two by half a step. alpha = 1 - t and sigma = t here: the formula holds for any
    pair. The steps from t = 1 and to 0, where h is infinite, are of first order.
    """
    before, before_growth = None, math.inf
    for t, r in pairwise(times):
        clean = _at(denoise, x, t, t)
        growth = math.log((1 - r) * t / ((1 - t) * r)) if r > 0 and t < 1 else math.inf
        ahead = clean
        if before is not None and math.isfinite(growth + before_growth):
            ahead = clean + growth / (2 * before_growth) * (clean - before)
        x = after(move(x, ahead, t, r), r)
        before, before_growth = clean, growth
    return x


def consistency(
    denoise: Denoise, x: Tensor, times: Sequence[float], after: After, fresh: Callable[[int], Tensor]
) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, arXiv:2303.01469, algorithm 1).

    Each step goes all the way to a clean picture, and back to the next noise share with noise of its own.

    Args:
        denoise: as for every solver; it is asked for r = 0.
        x: as for every solver.
        times: as for every solver.
        after: as for every solver.
        fresh: number of the step -> noise of x's shape.
    """
    for number, (t, r) in enumerate(pairwise(times)):
        x = _at(denoise, x, t, 0.0)
        x = after((1 - r) * x + r * fresh(number) if r > 0 else x, r)
    return x


SOLVERS: dict[str, Solver] = {"euler": euler, "heun": heun, "ddim": ddim, "dpm": dpm}
"""By the names of `sampling.drawing.SOLVERS`."""


def guided(denoise: Denoise, scale: float) -> Denoise:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598): away from what is drawn without a prompt.

    Args:
        denoise: reads twice as many rows as it is given here, of which the second half is told nothing.
        scale: 1: as told; 0: as if nothing were told.
    """

    def both(x: Tensor, t_B: Tensor, r_B: Tensor) -> Tensor:
        told, untold = denoise(*(torch.cat((each, each)) for each in (x, t_B, r_B))).chunk(2)
        return untold + scale * (told - untold)

    return both


def keeping(mask: Tensor, known: Tensor, noise: Tensor) -> After:
    """Inpainting: after each step what is to be kept is put back, on its own straight path to `noise`.

    Lugmayr et al. 2022, arXiv:2201.09865 (RePaint), without its repeated steps.

    Args:
        mask: True where the picture may be changed; broadcasts to `known`.
        known: the given picture.
        noise: where its path begins.
    """

    def after(x: Tensor, share: float) -> Tensor:
        return torch.where(mask, x, (1 - share) * known + share * noise)

    return after


def slerp(first: Tensor, last: Tensor, share: float | Tensor) -> Tensor:
    """Between two noises along the arc, so that what lies between is as long, and as likely, as they (Shoemake 1985).

    Args:
        first: noise, each row a picture (or a vector); one row for all shares, or one each.
        last: of the same shape.
        share: 0 is `first`, 1 is `last`; one for all rows, or [B].
    """
    a_BN, b_BN = first.flatten(1), last.flatten(1)
    cosine_B1 = torch.nn.functional.cosine_similarity(a_BN, b_BN, dim=1)[:, None].clamp(-1, 1)
    angle_B1 = cosine_B1.arccos()
    arc_B1, share_B1 = angle_B1.sin(), torch.as_tensor(share).to(a_BN).reshape(-1, 1)
    along_B1 = arc_B1 > 1e-4  # else they are one, or opposite
    of_a_B1 = torch.where(along_B1, ((1 - share_B1) * angle_B1).sin() / arc_B1, 1 - share_B1)
    of_b_B1 = torch.where(along_B1, (share_B1 * angle_B1).sin() / arc_B1, share_B1)
    return (of_a_B1 * a_BN + of_b_B1 * b_BN).unflatten(1, first.shape[1:])
