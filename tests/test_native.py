"""Native decoding equals the model's own; packed weights are what they claim to be; the portable kernels too."""

import copy
import ctypes
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from nomoat.core.errors import ConfigError
from nomoat.families.lm import LM
from nomoat.nn.backbone import Backbone
from nomoat.nn.dialect import GPT2, LLAMA, OURS, QWEN2, QWEN3
from nomoat.nn.packed import Packed, groups_of, pack_, tiles_of, untiled

pytest.importorskip("numba")
from nomoat.nn.native import Native, product, quickest, why_not

BACKBONES = {
    "ours": Backbone(width=64, depth=3, heads=4),
    "grouped heads, wider than width / heads": Backbone(
        width=96, depth=2, heads=6, kv_heads=2, head_width=32, dialect=LLAMA
    ),
    "layer norm, biases, learned positions, tanh gelu": Backbone(
        width=64, depth=2, heads=2, dialect=GPT2, positions_length=64
    ),
    "biases on qkv, a window": Backbone(width=64, depth=2, heads=4, kv_heads=1, dialect=QWEN2, window=5),
    "exact gelu, half of each head turned": Backbone(
        width=64, depth=2, heads=2, dialect=replace(GPT2, activation="gelu", positions="rope", rope_share=0.5)
    ),
    "relu squared, soft cap, untied, cut head norm": Backbone(
        width=64,
        depth=2,
        heads=4,
        dialect=replace(
            QWEN3, activation="relu2", gated=False, soft_cap=15.0, output="untied", output_scale="rsqrt_width"
        ),
    ),
    "relu, quick": Backbone(width=64, depth=1, heads=4, dialect=replace(OURS, activation="quick_gelu")),
}
KINDS = ("f32", "bf16", "q8", "q4")
# Products of bytes round their inputs to 8 bits, the reference does not: that is what these bounds are for.
BOUNDS = {"f32": 2e-6, "bf16": 3e-2, "q8": 5e-2, "q4": 5e-2}


def random_model(backbone, vocab_size=101, context_length=64):
    model = LM(vocab_size, context_length, backbone).build({}).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(0.05 * drawn if parameter.ndim > 1 else 1 + 0.1 * drawn)
    return model


def of_kind(model, kind):
    model = copy.deepcopy(model)
    if kind == "bf16":
        return model.bfloat16()
    return pack_(model, int(kind[1])) if kind[0] == "q" else model


def far(one, other):
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BACKBONES)
def test_native_decoding_equals_the_models_own(name, kind):
    model = of_kind(random_model(BACKBONES[name]), kind)
    plain = copy.deepcopy(model)
    if kind == "bf16":
        plain = plain.float()
    assert why_not(model) == ""
    native = Native(model)
    memories = [each.memory(4, 8) for each in (native, plain)]
    tokens = torch.randint(101, (3, 64), generator=torch.Generator().manual_seed(1))
    place = 0
    for length in (7, 1, 1, 4, 1, 3, 20, 1, 5):  # a prompt, steps, drafts, and what goes through PyTorch's stack
        here = tokens[:, place : place + length]
        found, wanted = (
            one.decode(here, memory, [3, 0, 1]) for one, memory in zip((native, plain), memories, strict=True)
        )
        place += length
        assert found.shape == wanted.shape and found.dtype == torch.float32
        assert far(found, wanted) < BOUNDS[kind], length
        assert memories[0].lengths == memories[1].lengths


def test_rows_do_not_depend_on_their_neighbours():
    model = random_model(BACKBONES["ours"])
    native = Native(model)
    tokens = torch.randint(101, (8, 12), generator=torch.Generator().manual_seed(2))
    together = native.memory(8, 16)
    apart = native.memory(8, 16)
    for place in range(12):
        here = tokens[:, place : place + 1]
        whole = native.decode(here, together, range(8))
        for row in range(8):
            alone = native.decode(here[row : row + 1], apart, [row])
            torch.testing.assert_close(alone[0], whole[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("rows", "length"), [(40, 1), (9, 5), (17, 1)])
def test_more_rows_than_a_step_has_are_decoded_in_parts_and_not_by_pytorch(monkeypatch, rows, length, last):
    model = random_model(BACKBONES["grouped heads, wider than width / heads"])
    plain, native = copy.deepcopy(model), Native(model)
    monkeypatch.setattr(model, "decode", None)
    slots = torch.randperm(rows, generator=torch.Generator().manual_seed(3)).tolist()
    tokens = torch.randint(101, (rows, 3 * length), generator=torch.Generator().manual_seed(4))
    memories = [each.memory(rows, 16) for each in (native, plain)]
    for here in tokens.split(length, 1):
        found, wanted = (
            one.decode(here, memory, slots, last) for one, memory in zip((native, plain), memories, strict=True)
        )
        assert found.shape == wanted.shape == (rows, 1 if last else length, 101)
        assert far(found, wanted) < BOUNDS["f32"]
    assert memories[0].lengths == memories[1].lengths


@pytest.mark.parametrize("tiles", [True, False])
def test_many_rows_of_halves_go_through_pytorch_where_the_processor_multiplies_tiles(monkeypatch, tiles):
    monkeypatch.setattr("nomoat.nn.native._has_tiles", lambda: tiles)
    model = random_model(BACKBONES["ours"])
    plain, native = copy.deepcopy(model), Native(model.bfloat16())
    asked, own = [], model.decode
    monkeypatch.setattr(model, "decode", lambda *given: asked.append(1) or own(*given))
    tokens = torch.randint(101, (64, 3), generator=torch.Generator().manual_seed(4))
    memories = [each.memory(64, 8) for each in (native, plain)]
    for place, rows in enumerate((64, 64, 40)):  # fewer are left at last
        here = tokens[:rows, place : place + 1]
        found, wanted = (
            one.decode(here, memory, range(rows)) for one, memory in zip((native, plain), memories, strict=True)
        )
        assert far(found, wanted) < BOUNDS["bf16"]
    assert len(asked) == 2 * tiles


def test_fork_rewind_and_growth_go_by_the_memory():
    model = random_model(BACKBONES["ours"])
    native = Native(model)
    tokens = torch.randint(101, (1, 40), generator=torch.Generator().manual_seed(3))
    memory, fresh = native.memory(2, 4), native.memory(1, 40)
    for place in range(30):  # grows beyond the first capacity
        native.decode(tokens[:, place : place + 1], memory, [0])
    memory.fork(0, 1)
    assert memory.rewind(1, 10) == 10
    for place in range(10):
        native.decode(tokens[:, place : place + 1], fresh, [0])
    for place in range(10, 20):
        one = native.decode(tokens[:, place : place + 1], memory, [1])
        other = native.decode(tokens[:, place : place + 1], fresh, [0])
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_many_threads_may_ask_at_once():
    model = random_model(BACKBONES["ours"])
    native = Native(model)
    wanted = native.decode(torch.tensor([[5]]), native.memory(1, 4), [0])
    wrong = []

    def ask():
        for _ in range(50):
            found = native.decode(torch.tensor([[5]]), native.memory(1, 4), [0])
            if not torch.allclose(found, wanted):
                wrong.append(found)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert not wrong


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 64, 150])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_with_packed_weights(bits, rows):
    generator = torch.Generator().manual_seed(4)
    weight_ND, x_RD = torch.randn(50, 96, generator=generator), torch.randn(rows, 96, generator=generator)
    matrix = Packed(50, 96, bits).fill(weight_ND)
    kept_ND = matrix.weight()
    assert far(kept_ND, weight_ND) < {8: 0.006, 4: 0.1}[bits]
    assert far(product(matrix, x_RD), x_RD @ kept_ND.T) < 0.02
    torch.testing.assert_close(matrix.rows(torch.tensor([[3, 49]]))[0], kept_ND[[3, 49]])
    assert np.array_equal(matrix.few_rows(np.array([3, 49])), kept_ND[[3, 49]].numpy())


@pytest.mark.parametrize("bits", [8, 4])
def test_tiles_hold_exactly_what_they_are_given(bits):
    generator = torch.Generator().manual_seed(5)
    low, high = {8: (-127, 128), 4: (-8, 8)}[bits]
    integers_ND = torch.randint(low, high, (33, 64), generator=generator).to(torch.int8)
    scales = torch.rand(33, 2, generator=generator).half()
    found = untiled(*tiles_of(integers_ND, scales, bits), bits, 33)
    wanted = integers_ND.float().unflatten(1, (2, 32)) * scales.float().unsqueeze(2)
    assert torch.equal(found, wanted.flatten(1))


def test_zeros_and_a_searched_scale():
    integers_ND, scales = groups_of(torch.zeros(2, 32), 4)
    assert not integers_ND.any() and not scales.any()
    weight_ND = torch.randn(64, 256, generator=torch.Generator().manual_seed(6))
    integers_ND, scales = groups_of(weight_ND, 4)
    kept = integers_ND.float().unflatten(1, (-1, 32)) * scales.float().unsqueeze(2)
    largest = weight_ND.unflatten(1, (-1, 32)).abs().amax(2, keepdim=True) / 7
    plain = (weight_ND.unflatten(1, (-1, 32)) / largest).round() * largest
    wanted = weight_ND.unflatten(1, (-1, 32))
    assert (kept - wanted).square().sum() < (plain - wanted).square().sum()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 4])
def test_the_portable_kernel_gives_the_same_integers(bits, rows):
    """On a processor without products of bytes: plain vector arithmetic, compared with the weights multiplied out."""
    from numba import njit

    from nomoat.nn.vectors import grouped

    kernel = grouped(rows, bits, False)

    @njit
    def run(w, s, x, xs, xc, out, groups, o_step):
        kernel(w, s, x, xs, xc, out, groups, o_step)

    generator = torch.Generator().manual_seed(7)
    matrix = Packed(16, 64, bits).fill(torch.randn(16, 64, generator=generator))
    x = torch.randint(-127, 128, (rows, 64), generator=generator, dtype=torch.int8)
    scales = torch.rand(rows, 2, generator=generator)
    corrections = x.view(rows, 2, 32).sum(2).to(torch.int32) * {8: 128, 4: 8}[bits]
    out = torch.zeros(rows, 16)
    tensors = matrix.tiles, matrix.scales, x, scales, corrections, out
    run(*(tensor.data_ptr() for tensor in tensors), 2, 64)
    given = x.float().unflatten(1, (2, 32)) * scales.unsqueeze(2)
    torch.testing.assert_close(out, given.flatten(1) @ matrix.weight().T, rtol=1e-4, atol=1e-4)


def test_a_packed_model_is_built_without_floats_loaded_and_not_trained():
    config = LM(101, 64, BACKBONES["ours"])
    model = pack_(random_model(BACKBONES["ours"]), 8)
    again = replace(config, bits=8).build({})
    again.load_state_dict(model.state_dict())
    tokens = torch.tensor([[1, 2, 3]])
    one, other = (each.decode(tokens, each.memory(1, 4), [0]) for each in (model, again.eval()))
    assert torch.equal(one, other)
    with pytest.raises(ConfigError, match="cannot be trained"):
        again.loss(again.example())
    with pytest.raises(ConfigError, match="bits"):
        replace(config, bits=5)
    with pytest.raises(ConfigError, match="groups of 32"):
        groups_of(torch.zeros(2, 33), 8)


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        (Backbone(width=64, depth=2, heads=8), "multiple of 16"),
        (Backbone(width=64, depth=2, heads=4, mixers=("attention", "mamba")), "no attention"),
        (Backbone(width=48, depth=2, heads=3), "multiple of 32"),
    ],
)
def test_what_cannot_be_done_is_said(backbone, words):
    assert words in why_not(LM(101, 64, backbone).build({}))


def test_the_exponential_is_precise():
    from numba import njit

    from nomoat.nn.vectors import exponentials

    @njit
    def run(x, top, vectors):
        return exponentials(x, top, vectors)

    x = np.linspace(-80, 5, 160).astype(np.float32)
    wanted = np.exp(x.astype(np.float64))
    total = run(x.ctypes.data_as(ctypes.c_void_p).value, np.float32(0.0), 10)
    assert np.abs(x / wanted - 1).max() < 1e-6
    assert total == pytest.approx(wanted.sum(), rel=1e-6)


def test_the_quickest_way_for_each_number_of_bits():
    tokens = torch.randint(101, (1, 8), generator=torch.Generator().manual_seed(8))
    plain = random_model(BACKBONES["ours"])
    wanted = plain.decode(tokens, plain.memory(1, 8), [0])
    for bits, bound in ((32, 1e-5), (16, 0.03), (8, 0.05), (4, 0.5), (None, 0.03)):
        native = quickest(random_model(BACKBONES["ours"]), bits)
        assert isinstance(native, Native)
        assert far(native.decode(tokens, native.memory(1, 8), [0]), wanted) < bound, bits
    mixed = random_model(Backbone(width=64, depth=2, heads=4, mixers=("attention", "mamba")))
    wanted = mixed.decode(tokens, mixed.memory(1, 8), [0])
    assert quickest(mixed) is mixed
    packed = quickest(mixed, 8)  # no native step, but packed products
    assert far(packed.decode(tokens, packed.memory(1, 8), [0]), wanted) < 0.2
    with pytest.raises(ConfigError, match="cannot be had"):
        quickest(replace(LM(101, 64, BACKBONES["ours"]), bits=4).build({}), 8)
    with pytest.raises(ConfigError, match="cannot be had"):
        quickest(plain, 5)
