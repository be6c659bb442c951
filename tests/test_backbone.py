"""The backbone: its counts, its errors, its first weights; patches and the slow copy beside it."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import torch
from stacks import NAMES, WIDTH, make, named, noise
from torch.testing import assert_close

from nomoat.core.errors import ConfigError
from nomoat.core.types import Ports
from nomoat.nn.backbone import Backbone
from nomoat.nn.dialect import GPT2, OURS, QWEN3, Dialect
from nomoat.nn.ema import SlowCopy
from nomoat.nn.linear import linear
from nomoat.nn.patch import Patchify, Unpatchify, from_patches, to_patches

NN = Path(__file__).parents[1] / "src" / "nomoat" / "nn"


def test_gpt2_has_its_published_number_of_weights():
    backbone = Backbone(width=768, depth=12, heads=12, dialect=GPT2, positions_length=1024)
    assert backbone.parameters() + 50_257 * 768 == 124_439_808


@pytest.mark.parametrize("dialect", NAMES)
def test_counts_are_those_of_the_stack(dialect):
    stack = make(dialect, cond_width=4, context_width=6)
    assert stack.backbone.parameters() == sum(weight.numel() for weight in stack.parameters())


def test_flops_are_six_a_weight_and_twelve_a_seen_position():
    backbone = Backbone(width=64, depth=3, heads=4, dialect=GPT2, positions_length=128)
    weights = backbone.parameters() - 128 * 64
    assert backbone.flops_per_token(100) == 6 * weights + 12 * 3 * 64 * 100


def test_the_pattern_of_mixers_repeats():
    assert Backbone(depth=5, mixers=("mamba", "mamba", "attention")).pattern == (
        "mamba", "mamba", "attention", "mamba", "mamba",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"heads": 0}, "width, depth and heads are at least 1"),
        ({"kv_heads": 0}, "kv_heads, head_width and mlp_width are at least 1"),
        ({"width": 100, "heads": 12}, "width 100 cannot be split among 12 heads; nearest that can: 96"),
        ({"heads": 4, "kv_heads": 3}, "4 heads cannot share 3 key-value heads"),
        ({"mixers": ("atention",)}, "did you mean `attention`"),
        ({"window": 0}, "window of 0 tokens"),
        ({"depth": 0}, "at least 1"),
        ({"dialect": GPT2}, "learned positions need positions_length"),
        ({"width": 12, "heads": 4}, "cannot be turned in pairs"),
    ],
)
def test_what_cannot_work_is_refused_at_the_door(fields, words):
    with pytest.raises(ConfigError, match=words):
        Backbone(**fields).build()


def test_a_dialect_is_a_closed_set():
    with pytest.raises(ConfigError, match=r"dialect\.activation is 'gelu_tan'.*did you mean `gelu_tanh`"):
        Dialect(activation="gelu_tan")
    assert OURS != QWEN3 and hash(OURS) != hash(QWEN3)


def test_width_need_not_be_split_where_the_head_width_is_given():
    assert Backbone(width=100, heads=12, head_width=16).build()(torch.randn(1, 3, 100)).x_BLD.shape == (1, 3, 100)


@pytest.mark.parametrize("dialect", NAMES)
def test_the_first_output_is_of_moderate_size(dialect):
    torch.manual_seed(0)
    backbone = Backbone(width=64, depth=8, heads=4, dialect=named(dialect), positions_length=16)
    x = torch.randn(2, 16, 64)
    trace = backbone.build()(x, ports=Ports(want=tuple(range(8))))
    assert 0.5 < trace.x_BLD.std() < 1.5
    assert 0.9 < trace.layers[7].std() / trace.layers[0].std() < 2


@pytest.mark.parametrize("dialect", NAMES)
def test_every_weight_of_a_shaken_stack_has_a_gradient(dialect):
    stack = make(dialect, cond_width=4, context_width=6, positions_length=5).requires_grad_(True)
    ports = Ports(cond_BD=noise(2, 4), context_BMD=noise(2, 3, 6))
    stack(noise(2, 5, WIDTH), ports=ports).x_BLD.pow(3).sum().backward()
    idle = [name for name, weight in stack.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not idle


def test_input_norm_or_last_norm():
    assert isinstance(make("BERT").norm, torch.nn.Identity)
    assert isinstance(make("GPT2").input_norm, torch.nn.Identity)


def test_learned_positions_start_anew_with_each_document():
    stack = make("GPT2")
    seen = stack.positions(torch.zeros(1, 3, WIDTH).double(), torch.tensor([[0, 2, -1]]))
    assert_close(seen[0, :2], stack.positions.weight[[0, 2]])
    assert not seen[0, 2].any()


@pytest.mark.parametrize("rows", [(2, 32), (7,), (3, 5, 2)])
def test_a_bias_inside_the_product_is_a_bias(rows):
    layer = linear(16, 24, True, GPT2)
    layer.bias.data.normal_()
    x, grad = torch.randn(*rows, 16), torch.randn(*rows, 24)
    with torch.autocast("cpu", torch.bfloat16):
        ours = layer(x.requires_grad_())
        theirs = torch.nn.functional.linear(x, layer.weight, layer.bias)
    assert ours.dtype == torch.bfloat16
    assert_close(ours, theirs)
    wanted = (x, layer.weight, layer.bias)
    ours, theirs = (torch.autograd.grad(y, wanted, grad.to(y.dtype)) for y in (ours, theirs))
    assert_close(ours, theirs, rtol=0.02, atol=0.02)
    assert all(slope.dtype == torch.float32 for slope in ours)


def test_a_bias_inside_the_product_carries_a_tangent():
    layer = linear(16, 24, True, GPT2).bfloat16()
    x, x_t = torch.randn(3, 16).bfloat16(), torch.randn(3, 16).bfloat16()
    y, y_t = torch.func.jvp(layer, (x,), (x_t,))
    assert_close(y, torch.nn.functional.linear(x, layer.weight, layer.bias))
    assert_close(y_t, torch.nn.functional.linear(x_t, layer.weight))


@pytest.mark.parametrize("file", ["backbone.py", "attention.py"])
def test_one_branch_in_ten_lines(file):
    text = (NN / file).read_text()
    branches = sum(isinstance(node, ast.If | ast.IfExp | ast.Match) for node in ast.walk(ast.parse(text)))
    assert branches <= text.count("\n") / 10


def test_the_forward_pass_never_asks_for_the_dialect():
    for path in NN.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "forward":
                assert not any(isinstance(part, ast.Attribute) and part.attr == "dialect" for part in ast.walk(node))


def test_patches_and_back():
    image = noise(2, 3, 4, 6)
    assert torch.equal(from_patches(to_patches(image, 2), 2, 3, 2), image)
    patchify = Patchify(3, 2, 8).double()
    tokens, positions = patchify(image)
    as_convolution = torch.nn.functional.conv2d(
        image, patchify.embed.weight.view(8, 3, 2, 2), patchify.embed.bias, stride=2
    )
    assert_close(tokens, as_convolution.flatten(2).transpose(1, 2))
    assert positions.shape == (2, 6, 2) and positions[1].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    unpatchify = Unpatchify(8, 2, 3).double()
    assert not unpatchify(tokens, 2, 3).any() and unpatchify(tokens, 2, 3).shape == image.shape
    unpatchify.load_state_dict(
        {"output.weight": torch.linalg.pinv(patchify.embed.weight), "output.bias": torch.zeros(12)}
    )
    assert unpatchify(tokens, 2, 3).any()
    with pytest.raises(ConfigError, match="4 x 6 pixels cannot be cut into patches of 4"):
        to_patches(image, 4)


def test_a_stack_reads_patches_in_any_order():
    stack = make(depth=1, causal=False, position_axes=2, head_width=8)
    tokens, positions = Patchify(3, 2, WIDTH).double()(noise(2, 3, 4, 6))
    y = stack(tokens, positions).x_BLD
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert_close(stack(tokens[:, order], positions[:, order]).x_BLD, y[:, order])


def test_the_slow_copy_follows():
    live = {"a": torch.tensor([0.0, 2.0]), "b": torch.ones(2, dtype=torch.bfloat16)}
    slow = SlowCopy(live)
    live["a"].add_(1)
    live["b"].zero_()
    slow.update(0.75)
    assert_close(slow.tensors["a"], torch.tensor([0.25, 2.25]))
    assert_close(slow.tensors["b"], torch.tensor([0.75, 0.75]))
    with slow.swapped():
        assert_close(live["a"], slow.tensors["a"])
        assert live["b"].dtype == torch.bfloat16
    assert live["a"].tolist() == [1.0, 3.0] and not live["b"].any()
    other = SlowCopy(live)
    other.load(slow.tensors)
    other.copy_to_live()
    assert torch.equal(live["a"], slow.tensors["a"])
    with pytest.raises(KeyError):
        other.load({"a": live["a"]})


def test_slow_copy_tends_to_the_mean():
    live = {"a": torch.zeros(1)}
    slow = SlowCopy(live)
    for step in range(400):
        live["a"].fill_(math.sin(step))
        slow.update(0.99)
    assert abs(slow.tensors["a"].item()) < 0.02
