"""Attention: both kernels, every mask, rotary positions, the norms' own derivative."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from stacks import NAMES, WIDTH, make, named, noise
from torch.testing import assert_close

from nomoat.core.errors import ConfigError
from nomoat.core.types import Ports
from nomoat.nn import tiles
from nomoat.nn.attention import KERNELS, fastest_kernel
from nomoat.nn.backbone import Backbone
from nomoat.nn.dialect import RopeScaling
from nomoat.nn.norms import BareRMSNorm, RMSNorm
from nomoat.nn.rotary import Rotary, turn

CAUSAL = [True, False]


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("masked", ["open", "triangle", "mask"])
def test_both_kernels_give_the_softmax_of_the_definition(heads, masked):
    q, k, v = noise(2, 4, 5, 8, seed=1), noise(2, heads, 5, 8, seed=2), noise(2, heads, 5, 8, seed=3)
    hidden = torch.full((5, 5), -math.inf, dtype=torch.float64).triu(1)
    if masked == "mask":
        hidden = hidden + noise(2, 1, 5, 5, seed=4)
    scores = q @ k.repeat_interleave(4 // heads, 1).transpose(2, 3) * 0.3
    expected = (scores + (0 if masked == "open" else hidden)).softmax(-1) @ v.repeat_interleave(4 // heads, 1)
    as_mask = {"open": (None, False), "triangle": (None, True), "mask": (hidden, False)}
    assert_close(KERNELS["fused"](q, k, v, *as_mask[masked], 0.3), expected)
    assert_close(KERNELS["tiled"](q, k, v, *as_mask[masked], 0.3), expected)
    assert_close(KERNELS["plain"](q, k, v, None if masked == "open" else hidden, False, 0.3), expected)


@pytest.mark.parametrize("tile", [1, 4 * 2 * 3 * 11, 1 << 21])
@pytest.mark.parametrize("heads", [(1, 1), (2, 2), (6, 2)])
@pytest.mark.parametrize("masked", ["open", "triangle", "mask", "mask by row and head", "mask by row and key"])
def test_tiles_of_any_size_give_the_same(masked, heads, tile, monkeypatch):
    monkeypatch.setattr(tiles, "QUERIES", 4)
    monkeypatch.setattr(tiles, "TILE", tile)
    q, k, v = (noise(3, 11, count, 4, seed=count).transpose(1, 2) for count in (heads[0], heads[1], heads[1]))
    shapes = {"mask by row and head": (3, heads[0], 11, 11), "mask by row and key": (3, 1, 1, 11)}
    shape = shapes.get(masked, (1, 1, 11, 11))
    mask = noise(*shape, seed=9) if "mask" in masked else None
    hidden = torch.full((11, 11), -math.inf, dtype=torch.float64).triu(1) if masked == "triangle" else mask
    inputs = [each.requires_grad_() for each in (q, k, v, mask) if each is not None]
    tiled = KERNELS["tiled"](q, k, v, mask, masked == "triangle", 0.3)
    plain = KERNELS["plain"](q, k, v, hidden, False, 0.3)
    results = [(y, *torch.autograd.grad(y.pow(3).sum(), inputs)) for y in (tiled, plain)]
    assert_close(results[0], results[1])


def test_tiles_of_other_lengths_of_keys():
    q, k, v = noise(2, 2, 3, 4).requires_grad_(), noise(2, 2, 7, 4, seed=2), noise(2, 2, 7, 4, seed=3)
    ours, theirs = (KERNELS[name](q, k, v, None, False, 1.0) for name in ("tiled", "plain"))
    assert_close(ours, theirs)
    assert_close(torch.autograd.grad(ours.sum(), q), torch.autograd.grad(theirs.sum(), q))


def test_tiles_have_no_second_derivative():
    q = noise(1, 1, 3, 4).requires_grad_()
    y = KERNELS["tiled"](q, q, q, None, True, 1.0)
    slope = torch.autograd.grad(y.pow(3).sum(), q, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize("dialect", NAMES)
def test_kernels_agree_in_value_and_gradient(dialect, causal):
    stack = make(dialect, causal=causal).requires_grad_(True)
    x, weights = noise(2, 7, WIDTH), list(stack.parameters())
    results = {}
    for kernel in ("fused", "tiled", "plain"):
        y = stack(x, kernel=kernel).x_BLD
        results[kernel] = y, *torch.autograd.grad(y.square().sum(), weights)
    assert_close(results["fused"], results["plain"])
    assert_close(results["tiled"], results["plain"])


@pytest.mark.parametrize("dialect", ["OURS", "GPT2"])
def test_the_plain_kernel_has_a_second_derivative(dialect):
    stack = make(dialect, causal=False, depth=1)

    def slope(x):
        return torch.autograd.grad(stack(x, kernel="plain").x_BLD.tanh().sum(), x, create_graph=True)[0]

    x = noise(1, 3, WIDTH).requires_grad_()
    assert torch.autograd.gradcheck(slope, x)
    assert slope(x).square().sum().requires_grad


def test_the_plain_kernel_carries_a_tangent():
    stack, x, direction = make("OURS", causal=False), noise(1, 4, WIDTH), noise(1, 4, WIDTH, seed=2)
    _, tangent = torch.func.jvp(lambda x: stack(x, kernel="plain").x_BLD, (x,), (direction,))
    step = 1e-6
    change = stack(x + step * direction).x_BLD - stack(x - step * direction).x_BLD
    assert_close(tangent, change / (2 * step), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", ["fused", "tiled", "plain"])
@pytest.mark.parametrize("dialect", NAMES)
def test_a_causal_stack_does_not_look_ahead_and_a_full_one_does(dialect, kernel):
    for causal in CAUSAL:
        stack, x = make(dialect, causal=causal), noise(2, 6, WIDTH)
        other = x.clone()
        other[:, 4:] = noise(2, 2, WIDTH, seed=9)
        before, after = (stack(each, kernel=kernel).x_BLD for each in (x, other))
        assert torch.equal(before[:, :4], after[:, :4]) == causal
        assert not torch.isclose(before[:, 4:], after[:, 4:]).all()


@pytest.mark.parametrize("where", ["left", "right", "between"])
@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize("dialect", NAMES)
def test_padded_equals_unpadded(dialect, causal, where):
    stack, x = make(dialect, causal=causal, window=3), noise(2, 5, WIDTH)
    valid = torch.tensor(
        {"left": [0, 0, 1, 1, 1, 1, 1], "right": [1] * 5 + [0] * 2, "between": [1, 0, 1, 1, 0, 1, 1]}[where]
    )
    valid = torch.stack([valid.bool(), torch.tensor([True] * 5 + [False] * 2)])
    padded = noise(2, 7, WIDTH, seed=5)
    padded[valid] = x.flatten(0, 1)
    for kernel in ("fused", "tiled", "plain"):
        trace = stack(padded, ports=Ports(valid_BL=valid), kernel=kernel)
        assert_close(trace.x_BLD[valid].view_as(x), stack(x).x_BLD)
        assert trace.x_BLD.isfinite().all()


def test_padding_leaves_gradients_finite_even_in_an_empty_row():
    stack = make("GPT2").requires_grad_(True)
    valid = torch.tensor([[0, 0, 1], [0, 0, 0]]).bool()
    for kernel in ("fused", "tiled", "plain"):
        y = stack(noise(2, 3, WIDTH), ports=Ports(valid_BL=valid), kernel=kernel).x_BLD
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(y[valid].sum(), list(stack.parameters())))


@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize("dialect", NAMES)
def test_packed_equals_separate(dialect, causal):
    stack, first, second = make(dialect, causal=causal), noise(1, 3, WIDTH), noise(1, 5, WIDTH, seed=2)
    documents = torch.tensor([[7] * 3 + [2] * 5])
    separate = torch.cat([stack(first).x_BLD, stack(second).x_BLD], 1)
    for kernel in ("fused", "tiled", "plain"):
        packed = stack(torch.cat([first, second], 1), ports=Ports(documents_BL=documents), kernel=kernel).x_BLD
        assert_close(packed, separate)


def test_packed_and_padded_at_once():
    stack, first, second = make("GPT2"), noise(1, 3, WIDTH), noise(1, 2, WIDTH, seed=2)
    x = torch.cat([noise(1, 1, WIDTH, seed=3), first, second, noise(1, 2, WIDTH, seed=4)], 1)
    valid = torch.tensor([[False] + [True] * 5 + [False] * 2])
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    y = stack(x, ports=Ports(valid_BL=valid, documents_BL=documents)).x_BLD
    assert_close(y[:, 1:6], torch.cat([stack(first).x_BLD, stack(second).x_BLD], 1))


@pytest.mark.parametrize("causal", CAUSAL)
def test_a_window_hides_what_is_farther(causal):
    stack, x = make(depth=1, window=3, causal=causal), noise(1, 8, WIDTH)
    changed = x.clone()
    changed[:, 2] += 1
    moved = (stack(x).x_BLD - stack(changed).x_BLD).abs().amax(-1)[0] > 1e-9
    assert moved.tolist() == [not causal, not causal, True, True, True, False, False, False]


def test_a_window_as_wide_as_the_text_changes_nothing():
    stack, x = make(window=8), noise(1, 8, WIDTH)
    wide = make()
    assert torch.equal(stack(x).x_BLD, wide(x).x_BLD)


def test_the_prefix_is_seen_by_all_and_the_rest_is_causal():
    stack, x = make(depth=1), noise(2, 6, WIDTH)
    prefix = torch.tensor([3, 0])
    for kernel in ("fused", "tiled", "plain"):
        y = stack(x, ports=Ports(prefix_B=prefix), kernel=kernel).x_BLD
        for column in range(6):
            changed = x.clone()
            changed[:, column] += 1
            moved = (y - stack(changed, ports=Ports(prefix_B=prefix)).x_BLD).abs().amax(-1) > 1e-9
            assert moved[0].tolist() == [row >= column or column < 3 for row in range(6)]
            assert moved[1].tolist() == [row >= column for row in range(6)]


def test_rotary_turns_pairs_by_position_times_frequency():
    rotary = Rotary.of(named("LLAMA", rope_base=100.0), 4, 1)
    assert rotary.frequencies == (1.0, 0.1)
    turned = turn(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]), rotary.angles(torch.tensor([[5]]), torch.float32))
    for pair, frequency in ((0, 1.0), (1, 0.1)):
        before = complex(pair + 1, pair + 3)
        after = before * complex(math.cos(5 * frequency), math.sin(5 * frequency))
        assert_close(turned.flatten()[[pair, pair + 2]], torch.tensor([after.real, after.imag]))


def test_rotary_depends_on_differences_only_and_leaves_the_rest_of_the_head():
    stack, x = make(named("LLAMA", rope_share=0.5), head_width=8), noise(1, 5, WIDTH)
    places = torch.arange(5)[None]
    assert_close(stack(x, places).x_BLD, stack(x, places + 11).x_BLD)
    assert not torch.isclose(stack(x, places).x_BLD, stack(x, places * 2).x_BLD).all()
    angles = Rotary.of(named("LLAMA", rope_share=0.5), 8, 1).angles(places, torch.float64)
    heads = noise(1, 5, 2, 8)
    assert torch.equal(turn(heads, angles)[..., 4:], heads[..., 4:])


def test_rotary_on_two_axes():
    stack = make("LLAMA", position_axes=2, causal=False, head_width=8)
    x, grid = noise(1, 6, WIDTH), torch.cartesian_prod(torch.arange(2), torch.arange(3))[None]
    y = stack(x, grid).x_BLD
    assert_close(stack(x, grid + torch.tensor([4, 7])).x_BLD, y)
    for axis in (0, 1):
        stretched = grid.clone()
        stretched[..., axis] *= 3
        assert not torch.isclose(stack(x, stretched).x_BLD, y).all()
    few = torch.tensor([0, 2, 5])
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    assert_close(stack(x[:, order], grid[:, order]).x_BLD, y[:, order])
    assert stack(x[:, few], grid[:, few]).x_BLD.shape == (1, 3, WIDTH)
    with pytest.raises(ConfigError, match="positions on 2 axes must be passed"):
        stack(x)


@pytest.mark.parametrize("dialect", ["LLAMA", "GPT2"])
def test_a_negative_position_is_none(dialect):
    stack, x = make(dialect, causal=False), noise(1, 4, WIDTH)
    y = stack(x, torch.tensor([[-1, 0, 1, 2]])).x_BLD
    if dialect == "GPT2":
        stack.positions.weight[5] = 0
        assert_close(stack(x, torch.tensor([[5, 0, 1, 2]])).x_BLD, y)
    else:
        assert_close(stack(x, torch.tensor([[0, 0, 1, 2]])).x_BLD, y)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_rope_scaling_is_that_of_transformers(kind):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    words = {
        "linear": {"factor": 4.0},
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1},
    }[kind]
    scaling = {
        "linear": RopeScaling("linear", 4.0),
        "llama3": RopeScaling("llama3", 8.0, 64, 1.0, 4.0),
        "yarn": RopeScaling("yarn", 4.0, 64, 1.0, 32.0),
    }[kind]
    config = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=4, max_position_embeddings=256,
        rope_parameters={"rope_type": kind, "rope_theta": 10_000.0, **words},
    )  # fmt: skip
    frequencies, temperature = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    rotary = Rotary.of(named("LLAMA", rope_scaling=scaling), 32, 1)
    assert_close(torch.tensor(rotary.frequencies), frequencies.float())
    assert rotary.temperature == pytest.approx(temperature)


def test_heads_that_cannot_be_turned_in_pairs_are_refused():
    with pytest.raises(ConfigError, match="multiple of 4"):
        Rotary.of(named("LLAMA"), 6, 2)


@pytest.mark.parametrize("norm", [RMSNorm(6, 1e-3), BareRMSNorm(6, 1e-3)])
def test_rms_norm_and_its_derivatives(norm):
    norm = norm.double()
    weights = [weight.data.uniform_(0.5, 1.5) for weight in norm.parameters()]
    x = noise(2, 3, 6).requires_grad_()
    assert_close(norm(x), F.rms_norm(x, (6,), *weights, eps=1e-3))
    assert torch.autograd.gradcheck(norm, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(norm, x)
    for weight in norm.parameters():
        mine = torch.autograd.grad(norm(x).pow(3).sum(), weight)[0]
        theirs = torch.autograd.grad(F.rms_norm(x, (6,), weight, eps=1e-3).pow(3).sum(), weight)[0]
        assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_keeps_the_dtype(dtype):
    x = noise(4, 32).to(dtype).requires_grad_()
    norm = RMSNorm(32, 1e-6)
    y = norm(x)
    y.float().pow(3).sum().backward()
    exact = x.detach().double().requires_grad_()
    F.rms_norm(exact, (32,), eps=1e-6).pow(3).sum().backward()
    assert y.dtype == x.grad.dtype == dtype and norm.weight.grad.dtype == torch.float32
    close = 1e-5 if dtype == torch.float32 else 3e-2
    assert_close(x.grad.double(), exact.grad, rtol=close, atol=close)


def test_rotary_derivatives():
    angles = Rotary.of(named("LLAMA"), 4, 1).angles(torch.arange(3)[None], torch.float64)
    heads = noise(2, 3, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda heads: turn(heads, angles), heads, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda heads: turn(heads, angles), heads)


def test_the_kernel_is_measured():
    attention = Backbone(width=16, depth=1, heads=2).build().layers[0].mixer.body
    kernel, seconds = fastest_kernel(attention, 2, 8, torch.float32, repeats=2)
    assert kernel == min(seconds, key=seconds.get)
    assert set(seconds) == set(KERNELS) and all(0 < each < 60 for each in seconds.values())


@pytest.mark.parametrize("kernel", ["fused", "tiled", "plain"])
def test_autocast_stays_close(kernel):
    stack = make("QWEN3").float()
    x = noise(2, 8, WIDTH).float()
    with torch.autocast("cpu", torch.bfloat16):
        low = stack(x, ports=Ports(documents_BL=torch.tensor([[0] * 4 + [1] * 4, [0] * 8])), kernel=kernel).x_BLD
    full = stack(x, ports=Ports(documents_BL=torch.tensor([[0] * 4 + [1] * 4, [0] * 8])), kernel=kernel).x_BLD
    assert_close(low, full, rtol=0.1, atol=0.15)


def test_fused_weights_say_which_matrices_they_hold():
    stack = Backbone(width=32, depth=1, heads=4, kv_heads=2).build()
    blocks = {name: p.blocks for name, p in stack.named_parameters() if hasattr(p, "blocks")}
    assert blocks == {
        "layers.0.mixer.body.qkv.weight": (32, 16, 16),
        "layers.0.mlp.body.up.weight": (stack.backbone.inner, stack.backbone.inner),
    }
