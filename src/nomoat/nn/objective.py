"""What a denoiser is taught: which noise shares it sees, what it predicts, and what an error weighs.

    uniform numbers -> times -> t_B;  x_t = (1 - t) clean + t noise -> enter -> network -> output -> clean guess
    weight(t) |guess - clean|^2 -> loss

Flow matching, DDPM and EDM are settings of one objective: on the straight path all three are a distribution of times, a
prediction and a weight, because sigma = t / (1 - t) is the noise-to-signal ratio of each (sampling/solvers.py). So are
the few-step models, which also learn steps of their own length from t down to r.

FLOW      predicts the clean picture, errors in velocity: Li and He 2025, arXiv:2511.13720 (JiT), with their mean of the
          logit-normal times (Esser et al. 2024, arXiv:2403.03206): captions matter where there is much noise
DDPM      Ho et al. 2020, arXiv:2006.11239: predicts the noise, uniform times of a linear schedule
EDM       Karras et al. 2022, arXiv:2206.00364: predicts a mixture of unit variance, log-normal sigma (which is
          logit-normal t)
SHORTCUT  Frans et al. 2024, arXiv:2410.12557: two half steps teach a whole one
MEANFLOW  Geng et al. 2025, arXiv:2505.13447: the mean velocity of a step, by its derivative in t
CONSISTENCY  Song et al. 2023, arXiv:2303.01469: straight to t = 0; taught by families/consistency.py
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

import torch
from torch import Tensor

from nomoat.core.errors import ConfigError, nearest
from nomoat.sampling.solvers import KARRAS, UNIFORM, VP, Denoise, Grid, move, vp_share

FLOOR = 0.05
"""Least noise share (and least share of the picture, where the noise is predicted) that is divided by: JiT."""
FINEST = 128
"""Steps of a shortcut model's whole way at its finest: those are learned as plain slopes (r = t)."""
LEVELS = 7
"""Lengths of the steps that halves teach: 1, 1/2, ... 1/64."""


@dataclass(frozen=True)
class Objective:
    """One value of closed sets. The constants FLOW, DDPM, EDM, SHORTCUT, MEANFLOW and CONSISTENCY are the usual ones.

    Args:
        times: `logit_normal` noise shares, or DDPM's `vp`.
        mean, std: of the logit of t, which is the logarithm of the noise-to-signal ratio.
        predicts: `clean`, `noise`, `velocity` (noise - clean), or `edm`'s mixture of both.
        weight: the error is one of the `clean` picture, the `noise`, the `velocity`, or weighed as in `edm`.
        data_std: the network's input is scaled to unit variance for data of this standard deviation; 0: as it is.
        flow_map: how steps of its own length are learned: `none`, `shortcut`, `meanflow` or `consistency`.
        share: of the batch that learns them; the rest learns slopes (r = t).
        solver, grid: how pictures are drawn unless somebody says otherwise.
    """

    times: Literal["logit_normal", "vp"] = "logit_normal"
    mean: float = 0.8
    std: float = 1.0
    predicts: Literal["clean", "noise", "velocity", "edm"] = "clean"
    weight: Literal["clean", "noise", "velocity", "edm"] = "velocity"
    data_std: float = 0.0
    flow_map: Literal["none", "shortcut", "meanflow", "consistency"] = "none"
    share: float = 0.25
    solver: Literal["euler", "heun", "ddim", "dpm"] = "dpm"
    grid: Grid = UNIFORM

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for each in fields(self):
            known, value = get_args(hints[each.name]), getattr(self, each.name)
            if known and value not in known:
                raise ConfigError(
                    f"objective.{each.name} is {value!r}", f"it is one of {', '.join(known)}", nearest(value, known)
                )
        for wrong, what, fix in (
            (not self.std > 0 or self.data_std < 0, f"std {self.std} and data_std {self.data_std} cannot be", ""),
            (not 0 < self.share < 1, f"share {self.share} leaves slopes or steps unlearned", "it is between 0 and 1"),
            (
                "edm" in (self.predicts, self.weight) and not self.data_std,
                "EDM needs the data's standard deviation",
                "set objective.data_std=0.5",
            ),
            (
                self.flow_map != "none" and self.predicts not in ("clean", "velocity"),
                f"a few-step model cannot predict `{self.predicts}`",
                "use clean or velocity: the noise says nothing of where a long step ends",
            ),
        ):
            if wrong:
                raise ConfigError(what, fix=fix)

    def times_at(self, uniform_B: Tensor) -> Tensor:
        """The noise shares [B] below which these shares of all times lie."""
        if self.times == "vp":
            return vp_share(uniform_B)
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(uniform_B.double())).to(uniform_B)

    def enter(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network reads; t broadcasts to x."""
        return x / self._norm(t) if self.data_std else x

    def clean(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The clean picture that the network's output means."""
        if self.predicts == "clean":
            return output
        if self.predicts == "velocity":
            return x - t * output
        if self.predicts == "noise":
            # Where DDPM's times end, 0.7 % of the picture is left; beyond, it would be divided by nothing.
            return (x - t * output) / (1 - t).clamp(min=0.0065)
        norm = self._norm(t)
        return self.data_std**2 * (1 - t) / norm.square() * x + self.data_std * t / norm * output

    def weight_at(self, t_B: Tensor) -> Tensor:
        """What a squared error of the clean picture weighs."""
        if self.weight == "clean":
            return torch.ones_like(t_B)
        if self.weight == "velocity":
            return 1 / t_B.clamp(min=FLOOR).square()
        if self.weight == "noise":
            return ((1 - t_B) / t_B.clamp(min=1e-3)).square()
        return (self._norm(t_B) / (self.data_std * t_B.clamp(min=1e-3))).square()

    def _norm(self, t: Tensor) -> Tensor:
        """Standard deviation of x_t."""
        return (t.square() + (self.data_std * (1 - t)).square()).sqrt()


FLOW = Objective()
DDPM = Objective(times="vp", predicts="noise", weight="noise", data_std=1.0, solver="ddim", grid=VP)
EDM = Objective(mean=-1.2, std=1.2, predicts="edm", weight="edm", data_std=0.5, solver="heun", grid=KARRAS)
SHORTCUT = Objective(flow_map="shortcut", solver="euler")
MEANFLOW = Objective(flow_map="meanflow", solver="euler")
CONSISTENCY = Objective(flow_map="consistency", solver="euler")


def step_ends(objective: Objective, t_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Where steps that are learned begin and end: t_B (for a shortcut drawn anew) and r_B below it.

    Args:
        objective: says how they are learned.
        t_B: noise shares as they would be without.
        generator: of the chance.
    """
    rows = len(t_B)
    if objective.flow_map == "shortcut":  # lengths 1, 1/2, ... and starts at their multiples, all equally likely
        length_B = 0.5 ** torch.randint(LEVELS, (rows,), generator=generator).to(t_B)
        t_B = length_B * (1 + (torch.rand(rows, generator=generator) / length_B).floor())
        return t_B, t_B - length_B
    other_B = objective.times_at(torch.rand(rows, generator=generator).clamp(1e-6, 1 - 1e-6))
    return torch.maximum(t_B, other_B), torch.minimum(t_B, other_B)


def shortcut_target(denoise: Denoise, x: Tensor, t_B: Tensor, r_B: Tensor) -> Tensor:
    """The clean picture to which a step from t to r must point, so that it ends where its two halves do.

    The paper takes the halves from the slow copy; here they are the live model's, without a gradient.
    """
    middle_B = (t_B + r_B) / 2
    finest_B = t_B - middle_B <= 1 / FINEST
    t, middle, r = (_wide(each_B, x) for each_B in (t_B, middle_B, r_B))
    halfway = move(x, denoise(x, t_B, torch.where(finest_B, t_B, middle_B)), t, middle)
    end = move(halfway, denoise(halfway, middle_B, torch.where(finest_B, middle_B, r_B)), middle, r)
    return x - t / (t - r) * (x - end)


def meanflow_target(denoise: Denoise, x: Tensor, velocity: Tensor, t_B: Tensor, r_B: Tensor) -> Tensor:
    """The clean picture to which a step must point by the MeanFlow identity: u = v - (t - r) du/dt.

    Args:
        denoise: differentiable in forward mode.
        x: at t_B.
        velocity: noise - clean, of the path through x.
        t_B: where the step begins.
        r_B: where it ends.
    """

    def mean_velocity(x: Tensor, t_B: Tensor) -> Tensor:
        return (x - denoise(x, t_B, r_B)) / _wide(t_B, x)

    with torch.autocast(x.device.type, enabled=False):  # convolutions cannot do both, and a derivative has few digits
        slope: Tensor = torch.func.jvp(mean_velocity, (x, t_B), (velocity, torch.ones_like(t_B)))[1]
    return x - _wide(t_B, x) * (velocity - _wide(t_B - r_B, x) * slope)


def _wide(share_B: Tensor, x: Tensor) -> Tensor:
    return share_B.view(-1, *[1] * (x.ndim - 1))
