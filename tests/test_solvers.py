"""Solvers against denoisers that are known exactly: a point, a Gaussian, a mixture of Gaussians."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from nomoat.core.errors import ConfigError
from nomoat.sampling import drawing
from nomoat.sampling.solvers import (
    GRIDS,
    KARRAS,
    SHIFTED,
    SOLVERS,
    UNIFORM,
    VP,
    Grid,
    consistency,
    guided,
    keeping,
    slerp,
    unchanged,
    vp_share,
)

MEAN, STD = 0.6, 0.5


def gaussian(x, t_B, r_B):
    """The clean picture's mean where pictures are normal with MEAN and STD."""
    t = t_B[:, None]
    variance = ((1 - t) * STD) ** 2 + t**2
    return MEAN + (1 - t) * STD**2 / variance * (x - (1 - t) * MEAN)


def mixture(x, t_B, r_B):
    """The same for two narrow Gaussians at -1 and 1."""
    t, spread = t_B[:, None], 0.2
    variance = ((1 - t) * spread) ** 2 + t**2
    centres = torch.tensor([-1.0, 1.0], dtype=x.dtype)
    shares = torch.softmax(-((x[..., None] - (1 - t[..., None]) * centres) ** 2) / (2 * variance[..., None]), -1)
    means = centres + ((1 - t) * spread**2 / variance)[..., None] * (x[..., None] - (1 - t[..., None]) * centres)
    return (shares * means).sum(-1)


def noise(rows=64, columns=4):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def error(solver, steps, start=0.9, end=0.1):
    """Against the exact path, on which a normal distribution's quantiles stay what they are."""
    x = noise()
    times = [start + (end - start) * step / steps for step in range(steps + 1)]
    begin, aim = ((1 - t) * MEAN + math.hypot((1 - t) * STD, t) * x for t in (start, end))
    return (SOLVERS[solver](gaussian, begin, times) - aim).abs().max().item()


def test_the_names_are_those_that_may_be_asked_for():
    assert tuple(SOLVERS) == drawing.SOLVERS


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_single_picture_is_reached_exactly(solver, steps, grid):
    picture = noise(1)
    times = Grid(grid).times(steps)
    x = SOLVERS[solver](lambda x, t_B, r_B: picture.expand_as(x), noise(), times)
    torch.testing.assert_close(x, picture.expand_as(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpm", 2)])
def test_the_error_falls_with_the_order_of_the_solver(solver, order):
    assert math.log(error(solver, 32) / error(solver, 128), 4) == pytest.approx(order, abs=0.1)
    # The ends, where the logarithm of the ratio has no bound, cost DPM-Solver++ a logarithm more.
    assert math.log(error(solver, 32, 1, 0) / error(solver, 128, 1, 0), 4) > order - 0.45
    assert error(solver, 20, 1, 0) <= error("euler", 20, 1, 0) * 1.001


@pytest.mark.parametrize("grid", [UNIFORM, SHIFTED])
def test_all_agree_in_the_limit(grid):
    x = noise()
    found = {name: solver(mixture, x, grid.times(1000)) for name, solver in SOLVERS.items()}
    apart = (found["heun"].abs() - 1).abs().mean()
    assert apart < 0.3, "the pictures lie near -1 and 1"
    for name, y in found.items():
        assert (y - found["heun"]).abs().mean() < (2e-3 if name in ("euler", "ddim") else 5e-4), name


def test_velocity_form_and_closed_form_are_one_step():
    x = noise()
    for steps in (1, 5):
        times = VP.times(steps)
        torch.testing.assert_close(SOLVERS["euler"](mixture, x, times), SOLVERS["ddim"](mixture, x, times))


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_is_the_guess_at_full_noise(solver):
    x = noise()
    torch.testing.assert_close(SOLVERS[solver](mixture, x, [1.0, 0.0]), mixture(x, torch.ones(64), None))


def test_solvers_tell_where_their_steps_end():
    asked = []

    def denoise(x, t_B, r_B):
        asked.append((t_B[0].item(), r_B[0].item()))
        return x

    for name, ends in {"euler": True, "ddim": True, "heun": False, "dpm": False}.items():
        asked.clear()
        SOLVERS[name](denoise, noise(2), UNIFORM.times(2))
        assert all((t > r) == ends for t, r in asked), name
        assert len(asked) == (3 if name == "heun" else 2)


@pytest.mark.parametrize("grid", [UNIFORM, SHIFTED, KARRAS, VP])
def test_grids_fall_to_zero(grid):
    for steps in (1, 2, 30):
        times = grid.times(steps)
        assert len(times) == steps + 1
        assert times[-1] == 0
        assert 0.98 < times[0] <= 1
        assert all(a > b for a, b in pairwise(times))
        assert grid.times(steps, 0.5) == pytest.approx([t / 2 for t in times])
    assert UNIFORM.times(4) == [1, 0.75, 0.5, 0.25, 0]


def test_karras_is_the_papers_grid():
    sigmas = [t / (1 - t) for t in KARRAS.times(3)]
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    assert sigmas == pytest.approx([80, middle, 0.002, 0])


def test_vp_is_the_limit_of_ddpms_betas():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha2 = (1 - betas).cumprod(0)
    sigma = ((1 - alpha2) / alpha2).sqrt()
    found = vp_share(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    torch.testing.assert_close(found[50:], (sigma / (1 + sigma))[50:], rtol=3e-2, atol=0)


@pytest.mark.parametrize(
    "make",
    [lambda: Grid("linear"), lambda: Grid(shift=0), lambda: Grid(sigma_min=2, sigma_max=1), lambda: UNIFORM.times(0)],
)
def test_grids_that_cannot_be_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_guidance_is_linear_and_one_is_nothing():
    def told(x, t_B, r_B):
        half = len(x) // 2
        return torch.cat((x[:half] + 1, x[half:]))

    x, t_B = noise(3), torch.ones(3)
    for scale in (0, 1, 2.5):
        torch.testing.assert_close(guided(told, scale)(x, t_B, t_B), x + scale)


def test_what_is_kept_follows_its_own_path():
    mask = torch.tensor([True, True, False, False])
    known, start = noise(2), torch.ones(2, 4, dtype=torch.float64)
    for solver in SOLVERS.values():
        seen = []

        def denoise(x, t_B, r_B, seen=seen):
            seen.append((x, t_B[0].item()))
            return x

        y = solver(denoise, start, UNIFORM.times(4), keeping(mask, known, start))
        torch.testing.assert_close(y[:, 2:], known[:, 2:])
        for x, t in seen:  # Heun also looks ahead, where nothing has been put back yet
            on_path = torch.allclose(x[:, 2:], (1 - t) * known[:, 2:] + t * start[:, 2:])
            assert on_path or solver is SOLVERS["heun"]


def test_consistency_steps_go_to_the_end_and_back():
    fresh = [torch.full((2, 4), float(number)).double() for number in range(2)]
    asked = []

    def denoise(x, t_B, r_B):
        asked.append((t_B[0].item(), r_B[0].item(), x.clone()))
        return x + 1

    y = consistency(denoise, torch.zeros(2, 4).double(), [1.0, 0.5, 0.0], unchanged, fresh.__getitem__)
    assert [(t, r) for t, r, _ in asked] == [(1, 0), (0.5, 0)]
    torch.testing.assert_close(asked[1][2], torch.full((2, 4), 0.5).double())
    torch.testing.assert_close(y, torch.full((2, 4), 1.5).double())


def test_slerp_keeps_the_length():
    a, b = noise(2, 1000), torch.randn(2, 1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    torch.testing.assert_close(slerp(a, b, torch.tensor([0.0, 1.0])), torch.stack((a[0], b[1])))
    middle = slerp(a, b, 0.5)
    assert middle.norm(dim=1) == pytest.approx(((a.norm(dim=1) + b.norm(dim=1)) / 2), rel=0.01)
    assert ((a + b) / 2).norm(dim=1).max() < 0.8 * middle.norm(dim=1).min()
