"""The UNet baseline: any sides, zero at first, every port heard."""

from __future__ import annotations

import pytest
import torch

from nomoat.core.errors import ConfigError
from nomoat.core.types import Ports
from nomoat.nn.unet import UNet, UNetTrunk


def trunk(context=False, **fields):
    torch.manual_seed(0)
    return UNetTrunk(UNet(**{"widths": (8, 16), "heads": 2, **fields}), (3, 2), context)


def moved(module):
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    return module


@pytest.mark.parametrize("sides", [(8, 8), (7, 7), (5, 12), (1, 1), (2, 3)])
@pytest.mark.parametrize("widths", [(8,), (8, 16), (8, 16, 24)])
@pytest.mark.parametrize("blocks", [1, 2])
def test_what_goes_in_comes_out_at_any_sides(sides, widths, blocks):
    unet = trunk(widths=widths, blocks=blocks)
    x, ports = torch.randn(2, 3, *sides), Ports(cond_BD=torch.randn(2, widths[-1]))
    y = unet(x, ports)
    assert y.shape == (2, 2, *sides)
    assert not y.any()
    assert moved(unet)(x, ports).std() > 0.01


def test_condition_and_context_are_heard_by_their_own_rows():
    unet, x = moved(trunk(context=True)), torch.randn(2, 3, 8, 8)
    cond, context = torch.randn(2, 16), torch.randn(2, 3, 16)
    both = unet(x, Ports(cond_BD=cond, context_BMD=context))
    one = unet(x[1:], Ports(cond_BD=cond[1:], context_BMD=context[1:]))
    torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-5)
    for other in (Ports(cond_BD=cond + 1, context_BMD=context), Ports(cond_BD=cond, context_BMD=context + 1)):
        assert not torch.allclose(unet(x, other), both, atol=1e-4)


def test_it_can_be_derived_forwards():
    unet, cond, x = moved(trunk()), torch.randn(1, 16), torch.randn(1, 3, 4, 4)
    direction, step = torch.randn_like(x), 1e-3
    with torch.no_grad():
        _, slope = torch.func.jvp(lambda x: unet(x, Ports(cond_BD=cond)), (x,), (direction,))
        ends = [unet(x + sign * step * direction, Ports(cond_BD=cond)) for sign in (1, -1)]
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * step), rtol=0.02, atol=2e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: UNet(widths=()),
        lambda: UNet(widths=(12,)),
        lambda: UNet(blocks=0),
        lambda: UNet(heads=3),
        lambda: trunk()(torch.randn(1, 3, 8, 8), Ports(cond_BD=torch.randn(1, 16), residuals=[])),
    ],
)
def test_what_cannot_be_is_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_each_place_is_told_what_it_attends_to_and_at_first_the_mean_of_all():
    local = trunk(context=True, widths=(8,)).local
    x, words = torch.randn(2, 8, 3, 4), torch.randn(2, 5, 8)
    valid = torch.tensor([[True] * 5, [True, True, False, False, False]])
    ports = Ports(context_BMD=words, context_valid_BM=valid)
    told = local(x, ports)
    means = torch.stack([words[0].mean(0), words[1, :2].mean(0)])
    torch.testing.assert_close(told, means[:, None, None].expand(2, 3, 4, 8))
    told = moved(local)(x, ports)
    assert told.std((1, 2)).mean(1).min() > 1e-2
    hidden = torch.where(valid[..., None], words, 100.0)
    torch.testing.assert_close(local(x, Ports(context_BMD=hidden, context_valid_BM=valid)), told)
