"""Bottlenecks by hand: levels and codes, moving averages, dead codes, divergence; and the similarity of pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nomoat.core.errors import ConfigError
from nomoat.nn.quantizers import FSQ, VAE, VQ, Plain, Seen
from nomoat.nn.ssim import ssim


def grid(*values):
    """z [1, C, 1, x] of some vectors."""
    return torch.tensor(values, dtype=torch.float32).T[None, :, None, :]


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 3), (4,), (7, 2, 6)])
def test_every_combination_of_levels_is_a_code_and_comes_back(levels):
    config = FSQ(levels)
    bottleneck = config.build(1)
    tokens_BYX = torch.arange(config.codes).view(1, 1, -1)
    latent_BCYX = bottleneck.look_up(tokens_BYX)
    assert config.codes == math.prod(levels)
    assert (latent_BCYX.amin((0, 2, 3)) == -1).all() and (latent_BCYX.amax((0, 2, 3)) == 1).all()
    assert len(latent_BCYX[0, :, 0].T.unique(dim=0)) == config.codes
    # What would have to come out of the encoder for that latent: tanh undone (its ends are far out).
    shift = torch.tensor(bottleneck.shifts)[:, None, None]
    z_BCYX = torch.atanh(latent_BCYX.double().clamp(-1 + 1e-9, 1 - 1e-9)).float() - shift
    coded = bottleneck(z_BCYX)
    assert torch.equal(coded.tokens_BYX, tokens_BYX)
    assert torch.equal(coded.latent_BCYX, latent_BCYX)


def test_one_thousand_codes_are_eight_by_five_by_five_by_five():
    assert FSQ((8, 5, 5, 5)).codes == FSQ().codes == 1000


def test_zero_is_the_middle_of_a_level():
    """As the paper shifts it: where levels are even, zero is the upper of the two in the middle."""
    bottleneck = FSQ((8, 5)).build(1)
    near_BCYX = bottleneck(grid([0.0, 0.0], [0.05, 0.05], [-0.05, -0.05]))
    assert near_BCYX.tokens_BYX.unique().tolist() == [4 + 8 * 2]


def test_the_gradient_passes_the_rounding():
    z_BCYX = grid([0.3, -0.7]).requires_grad_()
    bottleneck = FSQ((5, 5)).build(1)
    bottleneck(z_BCYX).latent_BCYX.sum().backward()
    expected = 1 - torch.tanh(z_BCYX.detach()).square()  # of tanh alone: levels are 2 / (L - 1) apart, over (L - 1) / 2
    torch.testing.assert_close(z_BCYX.grad, expected)


def test_latents_are_levels_whatever_comes_in():
    z_BCYX = 2 * torch.randn(9, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    coded = FSQ((4, 5)).build(1)(z_BCYX)
    assert coded.latent_BCYX[:, 0].unique().tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1])
    assert coded.tokens_BYX.unique().tolist() == list(range(20))
    assert (coded.penalty_B == 0).all()


@pytest.mark.parametrize("levels", [(), (1, 5), (5, 0)])
def test_levels_without_a_choice_are_refused(levels):
    with pytest.raises(ConfigError, match="hold no code"):
        FSQ(levels)


@pytest.mark.parametrize(
    "wrong", [lambda: VQ(codes=1), lambda: VQ(decay=1.0), lambda: VQ(channels=0), lambda: VAE(kl=-1), lambda: VAE(0),
              lambda: Plain(0), lambda: FSQ((2,) * 30)],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()


def test_the_divergence_is_that_of_the_formula():
    mean, deviation = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.1])
    z_BCYX = torch.cat((mean, 2 * deviation.log()))[None, :, None, None]
    coded = VAE(2, kl=0.6).build(numbers=12)(z_BCYX, torch.full((1, 2, 1, 1), 3.0))
    expected = sum(0.5 * (m * m + s * s - 1 - 2 * math.log(s)) for m, s in ((0.5, 2.0), (-1.0, 0.1)))
    assert coded.parts["kl"].item() == pytest.approx(expected, rel=1e-5)
    assert coded.penalty_B.item() == pytest.approx(0.6 / 12 * expected, rel=1e-5)
    torch.testing.assert_close(coded.latent_BCYX.flatten(), mean + 3 * deviation)
    torch.testing.assert_close(VAE(2).build(12)(z_BCYX).latent_BCYX.flatten(), mean)


def codebook(**changes):
    made = VQ(**{"codes": 3, "channels": 2, "decay": 0.75, "dead": 0.0, **changes}).build(1)
    made.codebook.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]]))
    made.uses.copy_(torch.tensor([1.0, 2.0, 4.0]))
    made.sums.copy_(made.codebook * made.uses[:, None])
    return made


def test_the_nearest_code_is_taken_and_the_gradient_passes_it():
    bottleneck = codebook(commitment=0.25)
    z_BCYX = grid([0.1, 0.2], [0.8, 0.1], [0.0, 3.0]).requires_grad_()
    coded = bottleneck(z_BCYX)
    assert coded.tokens_BYX.tolist() == [[[0, 1, 2]]]
    torch.testing.assert_close(coded.latent_BCYX, bottleneck.look_up(coded.tokens_BYX))
    away = (0.1**2 + 0.2**2 + 0.2**2 + 0.1**2 + 2.0**2) / 6
    assert coded.penalty_B.item() == pytest.approx(0.25 * away, rel=1e-5)
    (gradient,) = torch.autograd.grad(coded.latent_BCYX.sum(), z_BCYX)
    assert (gradient == 1).all()


def test_of_two_codes_that_are_as_near_the_first_is_taken():
    assert codebook()(grid([0.5, 0.0])).tokens_BYX.item() == 0


def test_the_codebook_follows_as_a_moving_average():
    """N <- 3/4 N + 1/4 n, m <- 3/4 m + 1/4 sum z, e = m / N."""
    bottleneck = codebook().train()
    bottleneck(grid([0.2, 0.0], [0.0, 0.4], [1.0, 1.0]).requires_grad_())
    bottleneck.follow()
    torch.testing.assert_close(bottleneck.uses, torch.tensor([1.25, 1.75, 3.0]))
    expected = torch.tensor([[0.05 / 1.25, 0.1 / 1.25], [(1.5 + 0.25) / 1.75, 0.25 / 1.75], [0.0, 5.0]])
    torch.testing.assert_close(bottleneck.codebook, expected)


def test_without_a_step_in_train_mode_nothing_moves():
    for bottleneck, gradient in ((codebook().eval(), True), (codebook().train(), False)):
        before = bottleneck.codebook.clone()
        with torch.set_grad_enabled(gradient):
            bottleneck(grid([0.2, 0.0]).requires_grad_(gradient))
        bottleneck.follow()
        assert torch.equal(bottleneck.codebook, before)


def test_a_dead_code_begins_anew_at_the_worst_coded_place():
    bottleneck = codebook(dead=0.5)
    bottleneck.uses.copy_(torch.tensor([4.0, 0.0, 4.0]))
    bottleneck.seen = Seen(
        torch.tensor([4.0, 0.0, 4.0]), torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 20.0]]),
        torch.tensor([[7.0, 7.0], [9.0, -9.0]]), torch.tensor([1.0, 3.0]),
    )  # fmt: skip
    bottleneck.follow()
    assert bottleneck.codebook[1].tolist() == [9.0, -9.0]
    assert bottleneck.uses[1] == pytest.approx(8 / 3)
    torch.testing.assert_close(bottleneck.codebook[[0, 2]], torch.tensor([[0.0, 0.0], [0.0, 5.0]]))


def test_restarts_fill_a_codebook_and_are_the_same_every_time():
    """Sixteen clusters and 32 codes that all begin near zero: after some steps every cluster has a code of its own."""
    centres = 3 * torch.randn(16, 4, generator=torch.Generator().manual_seed(1))

    def train():
        torch.manual_seed(0)
        bottleneck = VQ(codes=32, channels=4).build(1).train()
        for step in range(40):
            chance = torch.Generator().manual_seed(step)
            chosen = torch.randint(16, (8, 16), generator=chance)
            z_BCYX = centres[chosen] + 0.01 * torch.randn(8, 16, 4, generator=chance)
            bottleneck(z_BCYX.permute(0, 2, 1)[:, :, None].requires_grad_())
            bottleneck.follow()
        return bottleneck

    one, other = train(), train()
    assert torch.equal(one.codebook, other.codebook)
    assert torch.cdist(centres, one.codebook).amin(1).max() < 0.5


def test_long_batches_are_looked_up_in_pieces(monkeypatch):
    bottleneck = VQ(codes=8, channels=2).build(1).train()
    z_BCYX = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    whole = bottleneck(z_BCYX).tokens_BYX, bottleneck.seen
    monkeypatch.setattr("nomoat.nn.quantizers.PIECE_NUMBERS", 24)
    assert torch.equal(bottleneck(z_BCYX).tokens_BYX, whole[0])
    for one, other in zip(bottleneck.seen, whole[1], strict=True):
        torch.testing.assert_close(one, other)


def by_hand(a, b, span=2.0):
    """Wang et al. 2004 with loops."""
    bell = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    window = np.outer(bell, bell) / bell.sum() ** 2
    first, second = (0.01 * span) ** 2, (0.03 * span) ** 2
    found = []
    for row in range(a.shape[0] - 10):
        for column in range(a.shape[1] - 10):
            x, y = (each[row : row + 11, column : column + 11] for each in (a, b))
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            both = (window * (x - mx) * (y - my)).sum()
            above = (2 * mx * my + first) * (2 * both + second)
            found.append(above / ((mx**2 + my**2 + first) * (vx + vy + second)))
    return np.mean(found)


def test_the_similarity_is_that_of_the_paper():
    chance = np.random.default_rng(0)
    a, b = chance.uniform(-1, 1, (13, 14)), chance.uniform(-1, 1, (13, 14))
    both = torch.tensor(np.stack([a, 0.5 * a + 0.2 * b])), torch.tensor(np.stack([b, a]))
    found_B = ssim(*(each[:, None] for each in both))
    assert found_B.tolist() == pytest.approx([by_hand(a, b), by_hand(0.5 * a + 0.2 * b, a)], abs=1e-5)


@pytest.mark.parametrize("side", [1, 2, 8, 11, 12])
def test_a_picture_is_like_itself_however_small(side):
    image_BCYX = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_()
    alike_B = ssim(image_BCYX, image_BCYX.detach())
    torch.testing.assert_close(alike_B, torch.ones(2))
    alike_B.sum().backward()
    assert image_BCYX.grad.isfinite().all()
