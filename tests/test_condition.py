"""The ports: each is the identity at the start, changes nothing where left out, and does something once trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from stacks import NAMES, WIDTH, make, named, noise, shaken
from torch.testing import assert_close

from nomoat.core.errors import ConfigError
from nomoat.core.types import Ports
from nomoat.families.diffusion import Diffusion
from nomoat.nn.backbone import Backbone
from nomoat.nn.unet import UNet

PORTS = {
    "cond": ({"cond_width": 6}, Ports(cond_BD=noise(2, 6))),
    "context": ({"context_width": 6}, Ports(context_BMD=noise(2, 3, 6))),
    "residuals": ({}, Ports(residuals=[torch.zeros(2, 5, WIDTH).double()] * 2)),
}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("dialect", NAMES)
def test_a_pretrained_trunk_gains_a_port_and_computes_what_it_did(dialect, port, causal):
    trunk, x = make(dialect, causal=causal), noise(2, 5, WIDTH)
    fields, ports = PORTS[port]
    sizes = {"width": WIDTH, "depth": 2, "heads": 4, "kv_heads": 2, "positions_length": 64}
    grown = Backbone(**sizes, dialect=named(dialect), causal=causal, **fields).build().double().requires_grad_(False)
    missing, unexpected = grown.load_state_dict(trunk.state_dict(), strict=False)
    assert bool(missing) == bool(fields) and not unexpected
    y = trunk(x).x_BLD
    assert_close(grown(x, ports=ports).x_BLD, y)
    assert torch.equal(grown(x).x_BLD, y)


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("dialect", NAMES)
def test_a_trained_port_is_heard_and_may_be_left_out(dialect, port):
    fields, ports = PORTS[port]
    stack, x = make(dialect, **fields), noise(2, 5, WIDTH)
    if port == "residuals":
        ports = Ports(residuals=[noise(2, 5, WIDTH, seed=3)] * 2)
    heard, alone = stack(x, ports=ports).x_BLD, stack(x).x_BLD
    assert not torch.isclose(heard, alone).all()
    weights = {
        name: weight for name, weight in stack.state_dict().items() if "cond" not in name and "cross" not in name
    }
    bare = make(dialect)
    bare.load_state_dict(weights)
    assert_close(bare(x).x_BLD, alone)


@pytest.mark.parametrize("dialect", ["OURS", "SPEEDRUN"])
def test_zero_initialised_projections_make_the_stack_the_identity_before_its_norm(dialect):
    stack = Backbone(width=WIDTH, depth=3, heads=2, dialect=named(dialect)).build()
    x = noise(2, 5, WIDTH).float()
    trace = stack(x, ports=Ports(want=(2,)))
    assert torch.equal(trace.layers[2], x)


def test_padding_of_the_context_is_not_heard():
    stack, x, context = make(context_width=6), noise(2, 5, WIDTH), noise(2, 4, 6)
    valid = torch.tensor([[1, 0, 1, 0]] * 2).bool()
    for kernel in ("fused", "tiled", "plain"):
        y = stack(x, ports=Ports(context_BMD=context, context_valid_BM=valid), kernel=kernel).x_BLD
        assert_close(y, stack(x, ports=Ports(context_BMD=context[:, [0, 2]])).x_BLD)


def test_cond_belongs_to_its_row():
    stack, x, cond = make(cond_width=6), noise(2, 5, WIDTH), noise(2, 6)
    both = stack(x, ports=Ports(cond_BD=cond)).x_BLD
    assert_close(both[1:], stack(x[1:], ports=Ports(cond_BD=cond[1:])).x_BLD)


def test_residuals_are_added_after_their_layer_and_want_gives_it():
    stack, x = make(), noise(2, 5, WIDTH)
    plain = stack(x, ports=Ports(want=(0, 1)))
    assert sorted(plain.layers) == [0, 1]
    assert_close(stack.norm(plain.layers[1]), plain.x_BLD)
    extra = noise(2, 5, WIDTH, seed=4)
    trace = stack(x, ports=Ports(residuals=[torch.zeros_like(x), extra], want=(0, 1)))
    assert_close(trace.layers[0], plain.layers[0])
    assert_close(trace.layers[1], plain.layers[1] + extra)


@pytest.mark.parametrize(
    ("ports", "words"),
    [
        (Ports(cond_BD=noise(1, 6)), "no condition port"),
        (Ports(context_BMD=noise(1, 3, 6)), "no context port"),
        (Ports(adapter_B=torch.zeros(1)), "no low-rank adapters"),
        (Ports(residuals=[noise(1, 2, WIDTH)]), "1 residuals for 2 layers"),
    ],
)
def test_a_port_that_the_stack_lacks_is_refused(ports, words):
    with pytest.raises(ConfigError, match=words):
        make()(noise(1, 2, WIDTH), ports=ports)


def test_layer_scale_multiplies_each_part():
    first, second = (make(named("VIT", layer_scale=scale), causal=False) for scale in (None, 1.0))
    for part in [part for layer in second.layers for part in (layer.mixer, layer.mlp)]:
        part.factor.weight.fill_(1)
    second.load_state_dict(first.state_dict(), strict=False)
    x = noise(1, 4, WIDTH)
    assert_close(first(x).x_BLD, second(x).x_BLD)
    shaken(second)
    assert not torch.isclose(first(x).x_BLD, second(x).x_BLD).all()


def test_bounded_parts_add_little_as_it_is_and_much_as_one():
    bounded = replace(named("OURS"), bounded=True, zero_init=False, residual_scalars=False)
    stack = Backbone(width=WIDTH, depth=1, heads=2, dialect=bounded).build()
    x = noise(2, 5, WIDTH).float()
    for factor, least, most in ((1e-4, 0.0, 1e-3), (1e6, 0.3, 2.001)):  # two parts, each of a root mean square of 1
        with torch.no_grad():
            for name, weight in stack.named_parameters():
                if name.endswith(("body.out.weight", "body.down.weight")):
                    weight.copy_(factor * noise(*weight.shape).float())
        change = stack(x, ports=Ports(want=(0,))).layers[0] - x
        size = change.square().mean(-1).sqrt()
        assert least <= size.min() and size.max() <= most


@pytest.mark.parametrize("trunk", [UNet(widths=(8, 16), heads=2), Backbone(16, 1, 2, causal=False)])
def test_what_scales_and_gates_is_not_moved_by_muon(trunk):
    model = Diffusion(size=8, patch=4, trunk=trunk, vocab_size=5).build({})
    roles = {name: model.role_of(name, weight) for name, weight in model.named_parameters() if ".cond." in name}
    assert set(roles.values()) == {"head"}
