"""Low-rank adapters: what they compute and how they learn, against the same products written out densely."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import test_every_family as contract
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from nomoat.families.diffusion import Diffusion
from nomoat.families.lm import LM
from nomoat.nn import dialect as dialects
from nomoat.nn.backbone import Backbone
from nomoat.nn.cross_entropy import summed_nats
from nomoat.nn.lora import Adapted, AdaptedConv, LoRA, adapted_layers, gathered, merged
from nomoat.nn.packed import PackedLinear, pack_
from nomoat.nn.unet import UNet

USUAL = LoRA(4)
MIXERS = ("attention", "mamba", ("attention", "mamba"))


def model(mixers="attention", dialect=dialects.OURS, bits=16, seed=0, **more):
    """A tiny language model, all of whose parts show in its output."""
    config = LM(
        33, 12, Backbone(width=32, depth=2, heads=2, mixers=mixers, dialect=dialect, positions_length=12, **more)
    )
    torch.manual_seed(seed)
    family = stirred(config.build({}), seed)
    if bits < 16:
        family = pack_(family, bits)
        family.config = replace(config, bits=bits)
    return family


def stirred(family, seed=1):
    """Every number that learns, moved a little: B is zero at the start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in family.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return family


def mean(family, batch=None):
    loss = family.loss(family.example(4) if batch is None else batch)
    return loss.total / loss.count


def gradients(family, batches=None):
    family.zero_grad()
    losses = [family.loss(batch) for batch in batches or [family.example(4)]]
    (sum(loss.total for loss in losses) / sum(loss.count for loss in losses)).backward()
    return {name: p.grad.clone() for name, p in family.named_parameters() if p.grad is not None}


def near(found, wanted, tolerance=1e-5):
    assert ((found - wanted).norm() / wanted.norm()).item() <= tolerance


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("mixers", MIXERS)
def test_at_the_start_it_is_its_base(mixers, bits, dora):
    family = model(mixers, bits=bits)
    batch = family.example(4)
    # Packed layers round x to bytes unless they are adapted.
    before = (family if bits == 16 else dequantised(family)).score(batch)
    LoRA(4, dora=dora).apply(family)
    assert_close(family.score(batch), before, rtol=0, atol=0 if bits == 16 and not dora else 1e-5)


def dequantised(family):
    """The float model that a packed one stands for."""
    plain = copy.deepcopy(family)
    LoRA(1).apply(plain)
    return merged(plain)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("blocks", [(12,), (8, 4, 4), (8, 8)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_gradient_is_that_of_the_same_product_written_densely(blocks, bias, dora):
    torch.manual_seed(0)
    base = nn.Linear(10, sum(blocks), bias=bias)
    base.blocks = blocks
    layer = stirred(Adapted(base.requires_grad_(False), LoRA(3, 5.0, dora=dora)))
    x = torch.randn(2, 7, 10, requires_grad=True)
    aim = torch.randn(2, 7, sum(blocks))
    found = torch.autograd.grad((layer(x) * aim).sum(), [x, *(p for p in layer.parameters() if p.requires_grad)])

    a, b = layer.a.detach().requires_grad_(), layer.b.detach().requires_grad_()
    rows = zip(a.split(3), b.split(blocks), strict=True)
    weight = base.weight + 5 / 3 * torch.cat([part_b @ part_a for part_a, part_b in rows])
    learned = [a, b]
    if dora:
        m = layer.magnitude.detach().requires_grad_()
        weight = m[:, None] * weight / weight.norm(dim=1, keepdim=True).detach()
        learned.append(m)
    wanted = torch.autograd.grad((F.linear(x, weight, base.bias) * aim).sum(), [x, *learned])
    for one, other in zip(found, wanted, strict=True):
        near(one, other)
    near(layer.whole(), weight)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_packed_base_learns_as_its_dequantised_weights_do(bits, dora):
    family = model(bits=bits)
    plain = dequantised(family)
    lora = LoRA(4, dora=dora)
    lora.apply(family)
    lora.apply(plain)
    stirred(family), plain.take(family.kept())
    assert plain.config.bits == 16 and not plain.kept().keys() ^ family.kept().keys()
    near(mean(family), mean(plain))
    found, wanted = gradients(family), gradients(plain)
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        near(found[name], grad)


@pytest.mark.parametrize("targets", [("qkv",), ("down",), ("out", "up")])
def test_a_gradient_goes_through_packed_layers_that_are_not_adapted(targets):
    family = model(bits=8)
    plain = dequantised(family)
    for each in (family, plain):
        LoRA(2, targets=targets).apply(each)
    stirred(family), plain.take(family.kept())
    wanted = gradients(plain)
    assert len(wanted) == 4 * len(targets)
    for name, grad in gradients(family).items():
        near(grad, wanted[name])


@pytest.mark.parametrize("dialect", [dialects.OURS, dialects.GPT2, dialects.QWEN2])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("mixers", MIXERS)
def test_merged_it_says_the_same(mixers, bits, dora, dialect):
    family = stirred(LoRA(4, dora=dora).apply(model(mixers, dialect, bits)))
    batch = family.example(4)
    before = family.score(batch)
    plain = merged(family.eval())
    assert plain.config.bits == 16 and not plain.shared and not adapted_layers(plain)
    assert not any(isinstance(module, PackedLinear) for module in plain.modules())
    near(plain.score(batch), before)
    assert plain.state_dict().keys() == replace(plain.config).build({}).state_dict().keys()
    assert merged(plain) is plain


@pytest.mark.parametrize("dora", [False, True])
def test_a_unets_convolutions_are_adapted_too(dora):
    torch.manual_seed(0)
    base = stirred(Diffusion(8, 3, trunk=UNet((16, 32)), vocab_size=11, caption_length=5).build({}))
    batch = base.draw(base.example(4), torch.Generator().manual_seed(0))
    before, family = mean(base, batch), LoRA(4, dora=dora).apply(copy.deepcopy(base))
    near(mean(family, batch), before)
    convolutions = {name for name, each in adapted_layers(family).items() if isinstance(each, AdaptedConv)}
    assert len(convolutions) == 8 and {name.rsplit(".", 1)[1] for name in convolutions} == {"conv_1", "conv_2"}
    family = stirred(family)
    mean(family, batch).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in family.parameters() if p.requires_grad)
    learned = mean(family, batch)
    assert abs(learned.item() - before.item()) > 1e-3
    plain = merged(family.eval())
    near(mean(plain, batch), learned)
    assert plain.state_dict().keys() == base.state_dict().keys() and not adapted_layers(plain)
    assert all(each.shape == base.state_dict()[name].shape for name, each in plain.state_dict().items())


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("mixers", MIXERS)
def test_it_keeps_what_every_family_promises(mixers, bits, dora):
    for promise in (
        contract.test_the_gradient_does_not_depend_on_the_split,
        contract.test_no_token_sees_what_comes_after_it,
        contract.test_decoding_with_memory_equals_reading_at_once,
        contract.test_the_same_seed_gives_the_same_draw_and_loss,
    ):
        promise(stirred(LoRA(4, dora=dora).apply(model(mixers, bits=bits))))


@pytest.mark.parametrize("mixers", MIXERS)
def test_all_that_learns_gets_a_gradient_and_nothing_else(mixers):
    family = stirred(LoRA(4, dora=True).apply(model(mixers)))
    found = gradients(family)
    assert found.keys() == {name for name, p in family.named_parameters() if p.requires_grad}
    assert found.keys() == family.kept().keys()
    assert all(grad.isfinite().all() and grad.abs().sum() > 0 for grad in found.values())


def test_parts_that_lie_in_one_matrix_learn_apart():
    family = LoRA(4, targets=("qkv",)).apply(model(kv_heads=1))
    layer = family.stack.layers[0].mixer.body.qkv
    assert layer.blocks == (32, 16, 16)
    assert (tuple(layer.a.shape), tuple(layer.b.shape)) == ((12, 32), (64, 4))
    assert (layer.a.blocks, layer.b.blocks) == ((4, 4, 4), (32, 16, 16))  # matrices of their own to Muon
    assert merged(stirred(family)).stack.layers[0].mixer.body.qkv.blocks == (32, 16, 16)


def test_a_frozen_table_gets_no_gradient_and_the_same_nats():
    torch.manual_seed(0)
    x, table = torch.randn(2, 9, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    targets, counted = torch.randint(30, (2, 9)), torch.rand(2, 9) < 0.6
    whole = summed_nats(x, table, targets, counted)
    wanted, _ = torch.autograd.grad(whole, [x, table])
    found = summed_nats(x, table.detach(), targets, counted)
    assert_close(found, whole)
    assert_close(torch.autograd.grad(found, x)[0], wanted)
    nothing = summed_nats(x, table, targets, torch.zeros(2, 9, dtype=torch.bool))
    assert [float(grad.abs().sum()) for grad in torch.autograd.grad(nothing, [x, table])] == [0.0, 0.0]


def test_in_bf16_it_is_near_and_a_frozen_matrix_is_cast_once():
    family = stirred(LoRA(4).apply(model()))
    exact = mean(family).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert mean(family).item() == pytest.approx(exact, rel=0.02)
        layer = family.stack.layers[0].mlp.body.down
        cast = layer._cast.of(layer.weight, torch.bfloat16)
        assert mean(family).item() == pytest.approx(exact, rel=0.02)
        assert layer._cast.of(layer.weight, torch.bfloat16) is cast
        family.load_state_dict({name: 2 * tensor for name, tensor in family.state_dict().items()})
        assert torch.equal(layer._cast.of(layer.weight, torch.bfloat16), layer.weight.bfloat16())


def test_it_can_be_derived_twice_and_forwards():
    layer = stirred(Adapted(nn.Linear(6, 5).requires_grad_(False), LoRA(2))).double()
    x = torch.randn(3, 6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))
    tangent = torch.randn_like(x)
    _, pushed = torch.func.jvp(layer, (x.detach(),), (tangent,))
    assert_close(pushed, tangent @ layer.whole().double().T)


@given(st.integers(1, 6), st.lists(st.integers(6, 12), min_size=1, max_size=4), st.booleans())
def test_any_parts_and_rank(rank, blocks, dora):
    base = nn.Linear(9, sum(blocks))
    base.blocks = tuple(blocks)
    layer = stirred(Adapted(base.requires_grad_(False), LoRA(rank, 3.0, dora=dora)))
    x = torch.randn(4, 9)
    assert_close(layer(x), F.linear(x, layer.whole(), layer.bias), rtol=1e-4, atol=1e-5)
    a, b = layer.thin()
    assert len(a) == rank * len(blocks) and b.shape == (sum(blocks), len(a))
    assert_close(gathered(b, layer.blocks) / layer.scale, layer.b.detach())
