"""Mamba-2: the chunked core against the recurrence, and the mixer's masks, memory and parity, mostly in fp64."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nomoat.core.errors import ConfigError
from nomoat.core.types import Ports
from nomoat.nn import short_conv as conv_module
from nomoat.nn import ssd_tiles
from nomoat.nn.backbone import Backbone, Stack
from nomoat.nn.dialect import MAMBA2, OURS, MambaConfig
from nomoat.nn.mamba_memory import KEPT, MambaMemory
from nomoat.nn.short_conv import plain_conv, short_conv
from nomoat.nn.ssd import ssd, ssd_scan

D = torch.float64
CORES = {"tiles": ssd, "plain": partial(ssd, tiled=False)}


def inputs(batch=2, length=9, heads=4, head_width=3, groups=2, state_width=5, dtype=D, seed=0) -> list[Tensor]:
    """x, dt, a, b, c as leaves that want gradients."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=dtype)  # noqa: E731
    return [
        each.requires_grad_()
        for each in (
            normal(batch, length, heads, head_width),
            F.softplus(normal(batch, length, heads) - 1),
            -torch.rand(heads, generator=g, dtype=dtype) * 3 - 0.1,
            normal(batch, length, groups, state_width),
            normal(batch, length, groups, state_width),
        )
    ]


def stack(causal=True, groups=1, mixers="mamba", depth=2, dialect=MAMBA2, chunk=4) -> Stack:
    """A small stack in fp64 whose weights are all random: norms, skips and biases too."""
    torch.manual_seed(0)
    config = MambaConfig(state_width=5, head_width=4, groups=groups, chunk=chunk)
    built = Backbone(width=8, depth=depth, heads=2, mixers=mixers, dialect=dialect, causal=causal, mamba=config).build()
    for weight in built.parameters():
        weight.data += torch.randn_like(weight) * 0.3
    return built.double().eval()


def rows(batch, length, seed=1) -> Tensor:
    return torch.randn(batch, length, 8, generator=torch.Generator().manual_seed(seed), dtype=D)


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles even on a few positions."""
    monkeypatch.setattr(ssd_tiles, "TILE", 80)
    monkeypatch.setattr(conv_module, "TILE", 48)


# The core


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("length", [1, 5, 64, 65, 150])
@pytest.mark.parametrize("documents", [False, True])
def test_chunks_equal_the_recurrence(core, length, documents, small_tiles):
    moving = [*inputs(length=length), torch.randn(2, 4, 3, 5, dtype=D, requires_grad=True)]
    starts = torch.rand(2, length, generator=torch.Generator().manual_seed(3)) < 0.15 if documents else None
    results = []
    for each in (CORES[core], ssd_scan):
        y, state = each(*moving[:5], starts, moving[5])
        target = (y * torch.linspace(-1, 1, y.numel(), dtype=D).view_as(y)).sum() + (state**2).sum()
        results.append([y, state, *torch.autograd.grad(target, moving)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@given(
    length=st.integers(1, 40),
    chunk=st.integers(1, 20),
    tile=st.sampled_from([1, 100, 1 << 18]),
    starts=st.lists(st.integers(0, 39), max_size=6),
    seed=st.integers(0, 99),
)
def test_any_length_chunk_and_documents(length, chunk, tile, starts, seed):
    before, ssd_tiles.TILE = ssd_tiles.TILE, tile
    moving = inputs(length=length, seed=seed)
    starts_BL = torch.zeros(2, length, dtype=torch.bool)
    starts_BL[0, [at for at in starts if at < length]] = True
    for found, expected in zip(ssd(*moving, starts_BL, chunk=chunk), ssd_scan(*moving, starts_BL), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    ssd_tiles.TILE = before


def test_gradients_of_every_order_and_mode(small_tiles):
    moving = [*inputs(1, 5, 2, 2, 1, 2), torch.randn(1, 2, 2, 2, dtype=D, requires_grad=True)]
    starts = torch.tensor([[False, False, True, False, False]])

    def core(x, dt, a, b, c, state):
        return ssd(x, dt, a, b, c, starts, state, chunk=2)

    assert torch.autograd.gradcheck(core, moving)
    assert torch.autograd.gradcheck(core, moving, check_forward_ad=True, check_backward_ad=False)
    assert torch.autograd.gradgradcheck(core, moving)


def test_strong_decays_stay_finite_and_right():
    x, dt, _, b, c = inputs(length=130, dtype=torch.float32)
    a = torch.tensor([-1e-4, -1.0, -30.0, -1e4], requires_grad=True)
    found, expected = (core(x, dt * 20, a, b, c) for core in (ssd, ssd_scan))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-3, atol=1e-3)
    for grad in torch.autograd.grad(found[0].sum(), [x, dt, a, b, c]):
        assert grad.isfinite().all()


def test_steps_of_no_length_move_nothing():
    x, dt, a, b, c = inputs(length=20)
    state = torch.randn(2, 4, 3, 5, dtype=D)
    quiet = torch.cat([dt[:, :7], torch.zeros_like(dt[:, 7:12]), dt[:, 12:]], dim=1)
    kept = [*range(7), *range(12, 20)]
    y, last = ssd(x, quiet, a, b, c, None, state, chunk=4)
    expected, last_expected = ssd(x[:, kept], quiet[:, kept], a, b[:, kept], c[:, kept], None, state, chunk=4)
    torch.testing.assert_close(y[:, kept], expected)
    torch.testing.assert_close(last, last_expected)
    _, same = ssd(x, dt * 0, a, b, c, None, state, chunk=4)
    torch.testing.assert_close(same, state)


def test_bf16_is_near_fp32():
    torch.manual_seed(1)  # the gradient of a is a sum that nearly cancels; at some seeds rounding alone moves it by 2 %
    moving = inputs(length=130, head_width=16, state_width=16, dtype=torch.float32)
    halves = [each.detach().bfloat16().requires_grad_() if i in (0, 3, 4) else each for i, each in enumerate(moving)]
    rounded = [half.detach().float().requires_grad_() for half in halves]
    y, half = ssd(*rounded)[0], ssd(*halves)[0]
    assert half.dtype == torch.bfloat16
    assert (half.float() - y).norm() < 0.01 * y.norm()
    weight = torch.randn_like(y)
    grads = torch.autograd.grad((y * weight).sum(), rounded)
    half_grads = torch.autograd.grad((half.float() * weight).sum(), halves)
    for name, grad, half_grad in zip(["x", "dt", "a", "b", "c"], grads, half_grads, strict=True):
        assert (half_grad.float() - grad).norm() < 0.02 * grad.norm(), name


# The short convolution


@pytest.mark.parametrize("length", [1, 3, 50])
def test_convolution_is_pytorchs(length, small_tiles):
    x, weight, bias = torch.randn(2, length, 6, dtype=D), torch.randn(6, 4, dtype=D), torch.randn(6, dtype=D)
    padded = F.conv1d(x.transpose(1, 2), weight.unsqueeze(1), bias, padding=3, groups=6)[..., :length]
    torch.testing.assert_close(short_conv(x, weight, bias), F.silu(padded).transpose(1, 2))
    centred = F.conv1d(x.transpose(1, 2), weight[:, :3].unsqueeze(1), bias, padding=1, groups=6)
    torch.testing.assert_close(short_conv(x, weight[:, :3], bias, None, 1), F.silu(centred).transpose(1, 2))


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("documents", [None, [[0, 0, 1, 1, 1, 1, 2], [5, 5, 5, 5, 5, -1, -1]]])
def test_convolution_derives_and_keeps_to_documents(ahead, documents, small_tiles):
    documents_BL = None if documents is None else torch.tensor(documents)
    moving = [torch.randn(*shape, dtype=D, requires_grad=True) for shape in ((2, 7, 3), (3, 4), (3,))]
    rest = (documents_BL, ahead)
    torch.testing.assert_close(short_conv(*moving, *rest), plain_conv(*moving, *rest))
    assert torch.autograd.gradcheck(short_conv, (*moving, *rest), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(short_conv, (*moving, *rest))
    if documents_BL is not None:
        x = moving[0].detach()
        whole = short_conv(x, *moving[1:], *rest)
        torch.testing.assert_close(whole[:1, 2:6], short_conv(x[:1, 2:6], *moving[1:], None, ahead))


# Masks


BOTH = pytest.mark.parametrize("causal", [True, False], ids=["causal", "both-ways"])


@BOTH
@pytest.mark.parametrize("groups", [1, 2])
def test_packed_documents_equal_separate_ones(causal, groups):
    built, x = stack(causal, groups), rows(2, 19)
    documents = torch.tensor([[7] * 3 + [2] * 1 + [9] * 15, [1] * 8 + [0] * 9 + [3] * 2])
    packed = built(x, ports=Ports(documents_BL=documents)).x_BLD
    for row, column in ((0, slice(0, 3)), (0, slice(3, 4)), (0, slice(4, 19)), (1, slice(0, 8)), (1, slice(8, 17))):
        alone = built(x[row : row + 1, column]).x_BLD
        torch.testing.assert_close(packed[row : row + 1, column], alone, rtol=1e-9, atol=1e-9)


@BOTH
@pytest.mark.parametrize("place", ["left", "right", "anywhere"])
@pytest.mark.parametrize("documents", [False, True])
def test_padding_moves_nothing(causal, place, documents):
    built, x, lengths = stack(causal), rows(3, 15), (15, 9, 4)
    valid = torch.zeros(3, 15, dtype=torch.bool)
    for row, count in enumerate(lengths):
        where = {
            "left": range(15 - count, 15),
            "right": range(count),
            "anywhere": torch.randperm(15)[:count].sort().values,
        }
        valid[row, list(where[place])] = True
    ids = torch.zeros(3, 15, dtype=torch.long)
    for row in range(3):
        ids[row, valid[row]] = (torch.arange(lengths[row]) >= 2).long() * 5
    ports = Ports(valid_BL=valid, documents_BL=ids if documents else None)
    moved = x.clone().requires_grad_()
    padded = built(moved, ports=ports).x_BLD
    for row in range(3):
        kept = x[row : row + 1, valid[row]]
        alone = built(kept, ports=Ports(documents_BL=ids[row : row + 1, valid[row]] if documents else None)).x_BLD
        torch.testing.assert_close(padded[row : row + 1, valid[row]], alone, rtol=1e-9, atol=1e-9)
    padded[valid].sum().backward()
    assert (moved.grad[~valid] == 0).all() and (moved.grad[valid] != 0).any()


def seen(built: Stack, x: Tensor, at: int, ports: Ports = Ports()) -> list[bool]:
    """Which positions move the output at one position of the first row."""
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(built(x, ports=ports).x_BLD[0, at].sum(), x)
    return (grad[0].abs().sum(-1) > 0).tolist()


def test_who_sees_whom():
    x = rows(1, 9)
    documents = Ports(documents_BL=torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2]]))
    assert seen(stack(True), x, 5) == [True] * 6 + [False] * 3
    assert seen(stack(True), x, 5, documents) == [False] * 3 + [True] * 3 + [False] * 3
    assert seen(stack(True), x, 5, Ports(prefix_B=torch.tensor([8]))) == [True] * 6 + [False] * 3
    assert seen(stack(False), x, 5) == [True] * 9
    assert seen(stack(False), x, 5, documents) == [False] * 3 + [True] * 4 + [False] * 2


def test_both_directions_see_far_and_themselves():
    mixer = stack(False, depth=1).layers[0].mixer.body
    built, x = stack(False, depth=1), rows(1, 40)
    assert seen(built, x, 0) == seen(built, x, 20) == seen(built, x, 39) == [True] * 40
    assert mixer.conv_weight.shape[2] == 7  # centred: three on each side


# Memory


def read_in_pieces(built: Stack, x: Tensor, sizes: list[int]) -> Tensor:
    """The outputs when the rows come piece by piece."""
    memory, found, at = built.memory(len(x), x.shape[1]), [], 0
    for size in sizes:
        found.append(built(x[:, at : at + size], memory=memory).x_BLD)
        at += size
    assert at == x.shape[1] and memory.lengths == [at] * len(x)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("mixers", ["mamba", ("mamba", "attention")])
@pytest.mark.parametrize("sizes", [[1] * 12, [12], [5, 1, 1, 3, 2], [2, 10]])
@torch.no_grad()
def test_cached_equals_uncached(mixers, sizes):
    built, x = stack(mixers=mixers, groups=2, dialect=MAMBA2 if mixers == "mamba" else OURS), rows(2, 12)
    torch.testing.assert_close(read_in_pieces(built, x, sizes), built(x).x_BLD, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_slots_of_different_lengths_and_ragged_chunks():
    built, x = stack(), rows(3, 16)
    whole = built(x).x_BLD
    memory, held, slots = built.memory(5, 16), [0, 0, 0], [4, 0, 2]
    for counts in ([3, 7, 1], [5, 1, 1], [1, 1, 1], [0, 4, 2], [4, 0, 6]):
        length = max(counts)
        fed, valid = rows(3, length, seed=9), torch.zeros(3, length, dtype=torch.bool)
        for row, count in enumerate(counts):
            where = torch.randperm(length)[:count].sort().values
            valid[row, where] = True
            fed[row, where] = x[row, held[row] : held[row] + count]
        out = built(fed, ports=Ports(valid_BL=valid), memory=memory, slots=slots).x_BLD
        for row, count in enumerate(counts):
            expected = whole[row, held[row] : held[row] + count]
            torch.testing.assert_close(out[row, valid[row]], expected, rtol=1e-9, atol=1e-9)
            held[row] += count
    assert memory.lengths == [held[1], 0, held[2], 0, held[0]]


@torch.no_grad()
def test_fork_goes_on_by_itself():
    built, x = stack(), rows(1, 8)
    memory = built.memory(2, 8)
    built(x[:, :5], memory=memory)
    memory.fork(0, 1)
    other = rows(1, 3, seed=5)
    built(other, memory=memory, slots=[1])
    out = built(x[:, 5:], memory=memory).x_BLD
    torch.testing.assert_close(out, built(x).x_BLD[:, 5:])
    assert memory.rewind(1, 6) == 5
    torch.testing.assert_close(built(x[:, 5:], memory=memory, slots=[1]).x_BLD, out)


@pytest.mark.parametrize("mixers", ["mamba", ("attention", "mamba")])
@torch.no_grad()
def test_rewind_reaches_snapshots_and_feeding_again_gives_the_same(mixers):
    built, x = stack(mixers=mixers, dialect=MAMBA2 if mixers == "mamba" else OURS), rows(1, 14)
    memory = built.memory(1, 14)
    for size in (4, 4, 1, 1):
        built(x[:, memory.lengths[0] : memory.lengths[0] + size], memory=memory)
    assert memory.rewind(0, 12) == 10  # nothing to undo: no snapshot is needed
    memory.snapshot([0])
    built(rows(1, 2, seed=3), memory=memory)  # a draft that is refused but for its first token
    assert memory.rewind(0, 11) == 10
    built(rows(1, 1, seed=3), memory=memory)
    assert memory.rewind(0, 9) == 8
    assert memory.rewind(0, 7) == 4
    out = built(x[:, 4:], memory=memory).x_BLD
    torch.testing.assert_close(out, built(x).x_BLD[:, 4:], rtol=1e-9, atol=1e-9)
    assert memory.rewind(0, 3) == 0
    torch.testing.assert_close(built(x, memory=memory).x_BLD, built(x).x_BLD, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_memory_is_of_constant_size_and_free_forgets():
    built, x = stack(depth=1), rows(1, 60)
    memory = built.memory(1, 8)
    empty = memory.bytes()
    layer = memory.layers[0]
    assert empty == layer.states_SHKN.nbytes + layer.tails_SWC.nbytes
    for at in range(60):
        built(x[:, at : at + 1], memory=memory)
    assert memory.bytes() == empty
    for at in range(0, 60, 3):
        built(x[:, at : at + 3], memory=memory)
    assert memory.bytes() == empty * (1 + KEPT)
    ends = [each.length for each in layer.snapshots[0]]
    assert ends[-2:] == [117, 120] and max(after - before for before, after in pairwise([0, *ends])) <= 63
    memory.free(0)
    assert memory.bytes() == empty
    torch.testing.assert_close(built(x, memory=memory).x_BLD, built(x).x_BLD, rtol=1e-9, atol=1e-9)


def test_drafts_do_not_drive_out_the_prompts_snapshots():
    memory = MambaMemory(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1))
    for length in (*range(128, 897, 128), 999, *range(1000, 1400, 4)):
        memory.snapshot([0], [length])
    ends = [each.length for each in memory.snapshots[0]]
    assert len(ends) == KEPT and ends[-2:] == [1392, 1396]
    assert max(after - before for before, after in pairwise([0, *ends])) <= 384


# The mixer as a whole


@BOTH
def test_autocast_trains(causal):
    torch.manual_seed(0)
    built = Backbone(width=32, depth=2, heads=2, mixers="mamba", dialect=MAMBA2, causal=causal).build()
    x = torch.randn(2, 70, 32)
    exact = built(x).x_BLD
    with torch.autocast("cpu", torch.bfloat16):
        out = built(x).x_BLD
    out.float().square().mean().backward()
    assert (out.float() - exact).norm() < 0.03 * exact.norm()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in built.parameters())


@BOTH
def test_zero_init_starts_as_the_identity(causal):
    built = Backbone(width=16, depth=1, heads=2, mixers="mamba", dialect=OURS, causal=causal, mamba=SMALL).build()
    assert (built.layers[0].mixer.body.out.weight == 0).all()


SMALL = MambaConfig(state_width=8, head_width=8, chunk=16)


def test_fresh_steps_and_rates_are_the_papers():
    mixer = (
        Backbone(width=512, depth=1, heads=4, mixers="mamba", dialect=MAMBA2, mamba=SMALL).build().layers[0].mixer.body
    )
    steps, rates = F.softplus(mixer.dt_bias), mixer.a_log.exp()
    assert 0.0009 < steps.min() < 0.003 and 0.03 < steps.max() < 0.11
    assert 0.99 < rates.min() < 2 and 14 < rates.max() < 16.1
    assert mixer.conv_weight.ndim == 3  # no matrix to the optimizer


def test_sizes_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="nearest inner width that can: 192"):
        Backbone(width=100, depth=1, heads=2, mixers="mamba").build()
    with pytest.raises(ConfigError, match="groups divides heads"):
        Backbone(width=96, depth=1, heads=2, mixers="mamba", mamba=MambaConfig(groups=2)).build()


def test_work_a_token():
    backbone = Backbone(width=384, depth=3, heads=6, mixers="mamba", dialect=MAMBA2)
    core = 2 * 64 * 64 + 12 * (2 * 64 * 64 + 4 * 64 * 64)  # forward: c b^T; within; into and out of the state
    assert backbone.flops_per_token(4096) == 6 * backbone.parameters() + 3 * 3 * core


@pytest.mark.parametrize("groups", [1, 2])
def test_parity_with_transformers(groups):
    transformers = pytest.importorskip("transformers")
    config = transformers.Mamba2Config(
        num_heads=8, head_dim=8, vocab_size=50, hidden_size=32, state_size=16, num_hidden_layers=3, n_groups=groups,
        chunk_size=16,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.Mamba2Model(config).eval()
    for weight in theirs.parameters():
        weight.data += torch.randn_like(weight) * 0.1
    sizes = MambaConfig(state_width=16, head_width=8, groups=groups, chunk=32)
    ours = Backbone(width=32, depth=3, heads=4, mixers="mamba", dialect=MAMBA2, mamba=sizes).build().eval()
    names = {"in_proj": "in_proj", "conv_weight": "conv1d.weight", "conv_bias": "conv1d.bias", "dt_bias": "dt_bias",
             "a_log": "A_log", "skip": "D", "norm": "norm", "out": "out_proj"}  # fmt: skip
    table = {"norm.weight": "norm_f.weight"}
    for layer in range(3):
        table[f"layers.{layer}.mixer.norm.weight"] = f"layers.{layer}.norm.weight"
        for own, other in names.items():
            end = ".weight" if own in ("in_proj", "norm", "out") else ""
            table[f"layers.{layer}.mixer.body.{own}{end}"] = f"layers.{layer}.mixer.{other}{end}"
    weights = theirs.state_dict()
    ours.load_state_dict({own: weights.pop(other) for own, other in table.items()})
    assert list(weights) == ["embeddings.weight"]
    tokens = torch.randint(0, 50, (2, 37))
    with torch.no_grad():
        expected = theirs(tokens).last_hidden_state
        found = ours(theirs.embeddings(tokens)).x_BLD
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
