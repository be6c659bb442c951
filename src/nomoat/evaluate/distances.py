"""How far sets of pictures are from real ones: distances between features, each beside its floor and its ceilings.

    x_ND (real, the reference), y_ND (another set) -> squared distances -> kernel distance, sliced Wasserstein, Fréchet
                                                   -> nearest neighbours -> precision, recall, density, coverage, twins

Kernel distance: the unbiased estimator of the squared maximum mean discrepancy (Gretton et al. 2012, JMLR 13, lemma 6),

    MMD^2 = sum_{i != j} k(x_i, x_j) / n(n - 1) + sum_{i != j} k(y_i, y_j) / m(m - 1) - 2 sum_{ij} k(x_i, y_j) / nm
    k(a, b) = exp(-|a - b|^2 / 2 s^2),  s = the median distance between two reference pictures

Its mean is 0 where both sets come from the same pictures, at any n; it can fall below (Jayasumana et al. 2024,
arXiv:2401.09603, on CLIP features; Bińkowski et al. 2018, arXiv:1801.01401). Intervals: 1,000 bootstraps, the same
draws of the reference for every set, pairs of a picture with itself left out. Near 0 they are rather too wide.

It hardly notices missing modes, so it never stands without recall (Kynkäänniemi et al. 2019, arXiv:1904.06991),
coverage (Naeem et al. 2020, arXiv:2002.09797) and the share of twins. Sliced Wasserstein (Bonneel et al. 2015) and
Fréchet (Heusel et al. 2017, arXiv:1706.08500) are biased upwards: read them beside their floor at the same n only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nomoat.core.device import generator
from nomoat.core.errors import DataError
from nomoat.evaluate.figure import NOTHING, Figure, jackknife, mean, wilson

RESAMPLES = 1000
MOST = 5000  # pictures whose distances to one another are held in memory: 100 MB a matrix
FEWEST = 10
NEIGHBOURS, NEIGHBOURS_DENSITY = 3, 5
DIRECTIONS = 128
GROUPS, GROUPS_FRECHET = 20, 10
TWIN = 0.05
"""Nearer than this share of the median distance between real pictures, two drawn ones are called twins."""
FRECHET_PICTURES = 5000
"""Below, the Fréchet distance is mostly bias: at 300 pictures it was 272 for real against real."""


@dataclass(frozen=True)
class Distance:
    """One set of pictures beside the reference.

    Args:
        name: of the set.
        kernel: the unbiased kernel distance, times 1,000.
        above: the same less that of the floor, times 1,000, with the interval of the difference.
        sliced: sliced Wasserstein distance, times 1,000, in median distances between reference pictures.
        precision: share of the set that lies within the reference's manifold: does each picture look real?
        recall: share of the reference that lies within the set's manifold: is everything there that is real?
        density, coverage: the same two questions, less easily misled by single odd pictures.
        twins: share of the set that has another one all but equal to it in the set.
        frechet: Fréchet distance; nothing below 5,000 pictures.
    """

    name: str
    kernel: Figure
    above: Figure
    sliced: Figure
    precision: Figure
    recall: Figure
    density: Figure
    coverage: Figure
    twins: Figure
    frechet: Figure = NOTHING


@dataclass(frozen=True)
class Distances:
    """Several sets beside one reference, all cut to the same number of pictures.

    Args:
        features: name of what was measured with.
        about: what that is.
        hash: SHA-256 of its weights.
        count: pictures of each set and of the reference.
        floor: name of the set that is real.
        bandwidth: s, the median distance between two reference pictures.
        rows: one a set, in the order given.
    """

    features: str
    about: str
    hash: str
    count: int
    floor: str
    bandwidth: float
    rows: tuple[Distance, ...]

    def row(self, name: str) -> Distance:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)


def compare(
    reference_ND: Tensor,
    sets: Mapping[str, Tensor],
    floor: str,
    named: tuple[str, str, str] = ("features", "", ""),
    seed: int = 0,
) -> Distances:
    """Measure sets of pictures against real ones; all are cut to the size of the smallest, at random.

    Args:
        reference_ND: features of real pictures.
        sets: name -> features [M, D].
        floor: the name of the set that is real too: other pictures than the reference.
        named: name, description and hash of the network.
        seed: of what is drawn.

    Raises:
        DataError: too few pictures, or a reference of which all look the same.
    """
    sizes = {"the reference": len(reference_ND), **{name: len(x_ND) for name, x_ND in sets.items()}}
    short = min(sizes, key=lambda name: sizes[name])
    if sizes[short] < FEWEST:
        why = f"distances need {FEWEST} in each set at least, and say little below some hundreds"
        raise DataError(f"{short}: {sizes[short]} pictures are too few to compare", why, "draw or hold out more")
    middle_D = reference_ND.mean(0)  # near 0, squares of distances lose fewer digits

    def cut(name: str, x_ND: Tensor, most: int) -> Tensor:
        order_N = torch.randperm(len(x_ND), generator=generator(seed, "distances", name))[:most]
        return x_ND[order_N.sort().values] - middle_D

    count = min(sizes[short], MOST)
    few = {name: cut(name, x_ND, count) for name, x_ND in sets.items()}
    reference = _Reference(cut("the reference", reference_ND, count), seed)
    kernels = {name: reference.kernel(x_ND, name) for name, x_ND in few.items()}
    frechet = dict.fromkeys(sets, NOTHING)
    if sizes[short] >= FRECHET_PICTURES:
        most = sizes[short]
        whole_ND = cut("the reference", reference_ND, most)
        frechet = {name: frechet_distance(whole_ND, cut(name, x_ND, most)) for name, x_ND in sets.items()}
    rows = []
    for name, x_ND in few.items():
        above = _figure(kernels[name] - kernels[floor])
        near = reference.neighbours(x_ND)
        sliced = sliced_wasserstein(reference.x_ND, x_ND, seed).times(1000 / reference.bandwidth)
        rows.append(Distance(name, _figure(kernels[name]), above, sliced, **near, frechet=frechet[name]))
    return Distances(*named, count, floor, reference.bandwidth, tuple(rows))


def squared(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    """Squared distances [N, M]."""
    squares_NM = x_ND.square().sum(1)[:, None] + y_MD.square().sum(1) - 2 * x_ND @ y_MD.T
    return squares_NM.clamp_min_(0)


class _Reference:
    """The real pictures, with what every set is measured by: their distances, neighbourhoods and bootstrap draws."""

    def __init__(self, x_ND: Tensor, seed: int) -> None:
        self.x_ND, self.seed = x_ND, seed
        count = len(x_ND)
        self.squared_NN = squared(x_ND, x_ND).fill_diagonal_(0)
        middle = count + (count * count - count + 1) // 2  # the zeros of the diagonal come first
        self.bandwidth = float(self.squared_NN.flatten().kthvalue(middle).values.sqrt())
        if not self.bandwidth > 0:
            raise DataError(
                "all real pictures look the same", "their features do not differ", "check the held-out part"
            )
        self.radius_N = _radius(self.squared_NN, NEIGHBOURS)
        self.density_radius_N = _radius(self.squared_NN, NEIGHBOURS_DENSITY)
        self.drawn_RN = _draws(len(x_ND), seed, "reference")
        self.within_R = _within(self._kernel(self.squared_NN), self.drawn_RN)

    def _kernel(self, squared_NM: Tensor) -> Tensor:
        return torch.exp(squared_NM / (-2 * self.bandwidth**2))

    def kernel(self, y_MD: Tensor, name: str) -> np.ndarray:
        """The kernel distance times 1,000 [1 + draws]: first as it is, then of what the bootstrap drew."""
        drawn_RM = _draws(len(y_MD), self.seed, name)
        within_R = _within(self._kernel(squared(y_MD, y_MD)), drawn_RM)
        between_NM = self._kernel(squared(self.x_ND, y_MD))
        between_R = ((self.drawn_RN @ between_NM).double() * drawn_RM).sum(1) / (len(self.x_ND) * len(y_MD))
        return (1000 * (self.within_R + within_R - 2 * between_R)).numpy()

    def neighbours(self, y_MD: Tensor) -> dict[str, Figure]:
        """Precision, recall, density, coverage and twins."""
        between_NM, within_MM = squared(self.x_ND, y_MD), squared(y_MD, y_MD)
        radius_M = _radius(within_MM, NEIGHBOURS)
        precise_M = (between_NM <= self.radius_N[:, None]).any(0)
        recalled_N = (between_NM <= radius_M).any(1)
        inside_NM = between_NM <= self.density_radius_N[:, None]
        twin_M = _radius(within_MM, 1) <= (TWIN * self.bandwidth) ** 2
        return {
            "precision": wilson(int(precise_M.sum()), len(precise_M)),
            "recall": wilson(int(recalled_N.sum()), len(recalled_N)),
            "density": mean(inside_NM.sum(0).double().numpy() / NEIGHBOURS_DENSITY, self.seed),
            "coverage": wilson(int(inside_NM.any(1).sum()), len(inside_NM)),
            "twins": wilson(int(twin_M.sum()), len(twin_M)),
        }


def kernel_distance(x_ND: Tensor, y_MD: Tensor, seed: int = 0) -> Figure:
    """The unbiased kernel distance of two sets (not times 1,000), with its interval; see the module's first lines."""
    return _figure(_Reference(x_ND - x_ND.mean(0), seed).kernel(y_MD - x_ND.mean(0), "set")).times(1e-3)


def sliced_wasserstein(x_ND: Tensor, y_ND: Tensor, seed: int = 0) -> Figure:
    """The sliced 2-Wasserstein distance of two sets of equal size, along 128 directions; interval by a jackknife."""
    direction_DP = torch.randn(x_ND.shape[1], DIRECTIONS, generator=generator(seed, "directions"))
    direction_DP /= direction_DP.norm(dim=0)
    sides = [(x_ND @ direction_DP).T.sort(1) for x_ND in (x_ND, y_ND)]
    groups = min(GROUPS, len(x_ND))

    def without(group: int | None) -> float:
        kept = [
            side.values
            if group is None
            else side.values[side.indices % groups != group].view(DIRECTIONS, -1)  # equally many are left in each row
            for side in sides
        ]
        return math.sqrt(float((kept[0] - kept[1]).square().mean()))

    return jackknife(without, groups)


def frechet_distance(x_ND: Tensor, y_MD: Tensor) -> Figure:
    """The Fréchet distance of the normal distributions with the sets' means and covariances; interval by a jackknife.

    |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), the root's trace from the eigenvalues of L^T C_y L, C_x = L L^T.
    """

    def moments(z_ND: Tensor, group: int | None) -> tuple[Tensor, Tensor]:
        kept_ND = z_ND if group is None else z_ND[torch.arange(len(z_ND)) % GROUPS_FRECHET != group]
        return kept_ND.mean(0).double(), torch.cov(kept_ND.T.double())

    def without(group: int | None) -> float:
        (mean_x_D, cov_x_DD), (mean_y_D, cov_y_DD) = moments(x_ND, group), moments(y_MD, group)
        ridge = 1e-10 * float(cov_x_DD.trace()) + 1e-20  # features that never move
        lower_DD = torch.linalg.cholesky(cov_x_DD + ridge * torch.eye(len(cov_x_DD), dtype=torch.float64))
        root = torch.linalg.eigvalsh(lower_DD.T @ cov_y_DD @ lower_DD).clamp_min(0).sqrt().sum()
        return float((mean_x_D - mean_y_D).square().sum() + cov_x_DD.trace() + cov_y_DD.trace() - 2 * root)

    return jackknife(without, GROUPS_FRECHET)


def _draws(count: int, seed: int, name: str) -> Tensor:
    """How often the bootstrap takes each picture [1 + draws, count]; the first row takes each once."""
    chance = np.random.default_rng(generator(seed, "bootstrap", name).initial_seed())
    drawn_RN = chance.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return torch.cat([torch.ones(1, count), torch.from_numpy(drawn_RN).float()])


def _within(kernel_NN: Tensor, drawn_RN: Tensor) -> Tensor:
    """Mean of k over pairs of different pictures [1 + draws], each pair as often as it was drawn."""
    twice_R = drawn_RN.double().square() @ kernel_NN.diagonal().double()  # a picture with itself
    whole_R = ((drawn_RN @ kernel_NN).double() * drawn_RN).sum(1)
    return (whole_R - twice_R) / (drawn_RN.shape[1] ** 2 - drawn_RN.double().square().sum(1))


def _radius(squared_NN: Tensor, neighbour: int) -> Tensor:
    """Squared distance of each picture to its n-th neighbour in its own set [N]."""
    others_NN = squared_NN.clone().fill_diagonal_(math.inf)
    return others_NN.kthvalue(min(neighbour, len(others_NN) - 1), dim=1).values


def _figure(values_R: np.ndarray) -> Figure:
    """The first of the values, and what 95 % of the others lie between."""
    low, high = np.percentile(values_R[1:], [2.5, 97.5])
    return Figure(float(values_R[0]), float(low), float(high))
