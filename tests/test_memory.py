"""What a stack remembers: cached decoding equals reading the whole text, in any slots, lengths and chunks."""

from __future__ import annotations

import pytest
import torch
from stacks import NAMES, WIDTH, make, noise
from torch.testing import assert_close

from nomoat.core.errors import ConfigError
from nomoat.core.types import Ports, Remembers

CAUSAL_NAMES = [name for name in NAMES if name not in ("BERT", "VIT")]
CHUNKS = [(1,) * 9, (9,), (4, 1, 1, 3), (1, 8), (5, 4)]


def feed(stack, memory, x, chunks, slots=None, **more):
    """The outputs of all chunks, side by side."""
    pieces = x.split(chunks, dim=1)
    return torch.cat([stack(piece, memory=memory, slots=slots, **more).x_BLD for piece in pieces], 1)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("dialect", NAMES)
def test_cached_equals_uncached(dialect, chunks):
    stack, x = make(dialect), noise(2, 9, WIDTH)
    for kernel in ("fused", "tiled", "plain"):
        memory = stack.memory(2, 4)
        assert_close(feed(stack, memory, x, chunks, kernel=kernel), stack(x).x_BLD)
        assert memory.lengths == [9, 9]


@pytest.mark.parametrize("chunks", CHUNKS)
def test_a_window_holds_across_chunks(chunks):
    stack, x = make("QWEN3", window=3), noise(2, 9, WIDTH)
    assert_close(feed(stack, stack.memory(2, 9), x, chunks), stack(x).x_BLD)


def test_slots_of_any_order_and_length_in_one_batch():
    stack, x = make("GPT2"), noise(3, 9, WIDTH)
    whole, memory = stack(x).x_BLD, stack.memory(5, 4)
    stack(x[:1, :2], memory=memory, slots=[4])
    stack(x[1:2, :5], memory=memory, slots=[0])
    slots = torch.tensor([4, 0, 2])
    begun = torch.tensor([2, 5, 0])
    for step in range(3):
        tokens = torch.stack([x[row, begun[row] + step] for row in range(3)])[:, None]
        y = stack(tokens, memory=memory, slots=slots).x_BLD
        assert_close(y, torch.stack([whole[row, begun[row] + step] for row in range(3)])[:, None])
    assert memory.lengths == [8, 0, 3, 0, 5]


@pytest.mark.parametrize("dialect", CAUSAL_NAMES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_ragged_chunks(dialect, side):
    stack, x, memory = make(dialect), noise(3, 8, WIDTH), None
    whole, memory = stack(x).x_BLD, stack.memory(3, 2)
    done = [0, 0, 0]
    for counts in ((3, 1, 4), (2, 0, 1), (0, 0, 2), (1, 4, 1)):
        longest = max(counts)
        valid = torch.tensor([[column < count for column in range(longest)] for count in counts])
        valid = valid.flip(1) if side == "left" else valid
        piece = noise(3, longest, WIDTH, seed=7)
        for row, count in enumerate(counts):
            piece[row, valid[row]] = x[row, done[row] : done[row] + count]
        y = stack(piece, ports=Ports(valid_BL=valid), memory=memory).x_BLD
        assert y.isfinite().all()
        for row, count in enumerate(counts):
            assert_close(y[row, valid[row]], whole[row, done[row] : done[row] + count])
            done[row] += count
    assert memory.lengths == done


def test_a_prefix_read_in_one_chunk_is_seen_both_ways():
    stack, x, prefix = make(), noise(2, 8, WIDTH), torch.tensor([4, 2])
    whole = stack(x, ports=Ports(prefix_B=prefix)).x_BLD
    memory = stack.memory(2, 8)
    first = stack(x[:, :5], ports=Ports(prefix_B=prefix), memory=memory).x_BLD
    assert_close(torch.cat([first, feed(stack, memory, x[:, 5:], (1, 2))], 1), whole)


def test_a_fork_goes_its_own_way():
    stack, x, memory = make(), noise(2, 6, WIDTH), None
    memory = stack.memory(3, 6)
    stack(x[:1, :3], memory=memory, slots=[1])
    memory.fork(1, 2)
    assert memory.lengths == [0, 3, 3]
    branch = torch.cat([x[:1, :3], x[1:, 3:]], 1)
    y = feed(stack, memory, torch.stack([x[0, 3:], x[1, 3:]]), (1, 1, 1), slots=[1, 2])
    assert_close(y[:1], stack(x[:1]).x_BLD[:, 3:])
    assert_close(y[1:], stack(branch).x_BLD[:, 3:])


def test_a_spread_memory_has_copies_that_go_their_own_ways():
    stack, x = make(), noise(3, 6, WIDTH)
    memory = stack.memory(2, 6)
    stack(x[:2, :3], memory=memory, slots=[0, 1])
    spread = memory.spread([1, 0, 1])
    assert spread.lengths == [3, 3, 3]
    y = feed(stack, spread, x[:, 3:], (1, 1, 1), slots=[0, 1, 2])
    for row, source in enumerate((1, 0, 1)):
        assert_close(
            y[row : row + 1], stack(torch.cat([x[source : source + 1, :3], x[row : row + 1, 3:]], 1)).x_BLD[:, 3:]
        )
    assert memory.lengths == [3, 3]
    assert_close(feed(stack, memory, x[:1, 3:], (3,), slots=[0]), stack(x[:1]).x_BLD[:, 3:])


def test_rewind_reaches_any_length():
    stack, x, memory = make(), noise(1, 9, WIDTH), None
    memory = stack.memory(1, 3)
    feed(stack, memory, noise(1, 8, WIDTH, seed=4), (8,))
    assert memory.rewind(0, 20) == 8
    memory.free(0)
    assert memory.lengths == [0]
    feed(stack, memory, torch.cat([x[:, :5], noise(1, 3, WIDTH, seed=4)], 1), (3, 5))
    assert memory.rewind(0, 5) == 5 == memory.lengths[0]
    assert_close(feed(stack, memory, x[:, 5:], (1, 3)), stack(x).x_BLD[:, 5:])


def test_rewind_stops_where_all_layers_can():
    stack = make()

    class Stops:
        """A layer that reaches multiples of three only."""

        def rewind(self, slot, length):
            return length - length % 3

    memory = stack.memory(1, 3)
    feed(stack, memory, noise(1, 8, WIDTH), (8,))
    memory.layers = (memory.layers[0], Stops())
    assert memory.rewind(0, 7) == 6 == memory.lengths[0]


def test_bytes_and_growth():
    stack = make()
    memory = stack.memory(3, 10)
    assert isinstance(memory, Remembers)
    assert memory.bytes() == 2 * 2 * 3 * 2 * 10 * 4 * 8  # layers, keys and values, slots, groups, tokens, K, float64
    stack(noise(3, 10, WIDTH), memory=memory)
    assert memory.bytes() == 2 * 2 * 3 * 2 * 10 * 4 * 8
    memory.reserve(0, 11)
    assert memory.bytes() == 2 * 2 * 3 * 2 * 15 * 4 * 8


@pytest.mark.parametrize("dialect", ["OURS", "T5", "GPT2"])
def test_the_context_is_remembered(dialect):
    stack, x, context = make(dialect, context_width=6), noise(3, 5, WIDTH), noise(3, 4, 6, seed=8)
    valid = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()
    ports = Ports(context_BMD=context, context_valid_BM=valid)
    whole = stack(x, ports=ports).x_BLD
    assert_close(whole[2:], stack(x[2:]).x_BLD)
    for kernel in ("fused", "tiled", "plain"):
        memory = stack.memory(4, 5)
        stack.remember(context, valid, memory, slots=[3, 0, 1])
        memory.fork(0, 2)
        memory.free(0)
        assert memory.context_lengths == [0, 0, 2, 4]
        assert_close(feed(stack, memory, x, (2, 1, 2), slots=[3, 2, 1], kernel=kernel), whole)
    alone = stack.memory(1, 5)
    stack.remember(context[:1], None, alone)
    assert_close(feed(stack, alone, x[:1], (2, 3)), whole[:1])


def test_the_memory_takes_autocast_s_precision():
    stack = make().float()
    with torch.autocast("cpu", torch.bfloat16):
        low = stack.memory(1, 8)
        y = feed(stack, low, noise(1, 6, WIDTH).float(), (3, 1, 2))
    assert low.bytes() * 2 == stack.memory(1, 8).bytes()
    assert_close(y, stack(noise(1, 6, WIDTH).float()).x_BLD, rtol=0.1, atol=0.1)


def test_what_cannot_be_remembered_is_refused():
    full, stack = make("BERT", causal=False), make()
    with pytest.raises(ConfigError, match="no memory"):
        full(noise(1, 2, WIDTH), memory=full.memory(1, 4))
    with pytest.raises(ConfigError, match="slot"):
        stack(noise(2, 2, WIDTH), memory=stack.memory(2, 4), slots=[1, 1])
    with pytest.raises(ConfigError, match="documents"):
        stack(noise(1, 2, WIDTH), ports=Ports(documents_BL=torch.tensor([[0, 1]])), memory=stack.memory(1, 4))
    short = make("GPT2", positions_length=4)
    memory = short.memory(1, 4)
    short(noise(1, 4, WIDTH), memory=memory)
    with pytest.raises(ConfigError, match="position 5 of a stack with 4"):
        short(noise(1, 1, WIDTH), memory=memory)
