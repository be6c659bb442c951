"""The text stream: nothing lost, nothing mixed, any step at any world size, every held-out token once."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nomoat.core.errors import ConfigError, DataError
from nomoat.data.packing import plan, stored_plan
from nomoat.data.rows import PackedRows, StreamRows, Windows
from nomoat.data.shards import ShardReader, ShardWriter
from nomoat.data.text import Text
from nomoat.data.tokenizer import ByteTokenizer, CharTokenizer

TOKENIZER = ByteTokenizer()
KEYS = {"tokens", "mask", "document", "positions", "index"}


def dataset(folder, sizes, held_out=(20, 3, 11), seed=0, shard_tokens=10**9, tokenizer=TOKENIZER):
    chance = np.random.default_rng(seed)
    for split, lengths in (("train", sizes), ("heldout", held_out)):
        writer = ShardWriter(folder, split, tokenizer, shard_tokens)
        for size in lengths:
            writer.add(chance.integers(0, tokenizer.eot, size), {})
        writer.finish()
    tokenizer.save(folder / "tokenizer.json")
    return folder


def learned(rows):
    """Document, position and token of every target, and whether its input is the document end."""
    inputs, targets = rows.tokens_BL[:, :-1], rows.tokens_BL[:, 1:]
    counted = rows.mask_BL[:, 1:]
    return rows.document_BL[:, :-1][counted], rows.positions_BL[:, :-1][counted], inputs[counted], targets[counted]


def check_inputs_keep_to_their_document(rows, reader):
    """Every learned slot's input stretch, back to where its document begins in the row, stands so in the shards."""
    for row in range(len(rows.tokens_BL)):
        for slot in np.flatnonzero(rows.mask_BL[row]):
            document, back = rows.document_BL[row, slot - 1], rows.positions_BL[row, slot - 1]
            seen = rows.tokens_BL[row, slot - 1 - back : slot + 1]
            assert (rows.document_BL[row, slot - 1 - back : slot] == document).all()
            before = slot - 2 - back
            assert before < 0 or rows.document_BL[row, before] != document
            first, end = reader.span(document % reader.documents)
            text = np.concatenate([[reader.eot], reader.window(first, end - first)])
            views = np.lib.stride_tricks.sliding_window_view(text, len(seen))
            assert (views == seen).all(axis=1).any()


@pytest.mark.parametrize("length", [1, 4, 16, 63])
@pytest.mark.parametrize("shard_tokens", [10**9, 40])
def test_stream_windows_learn_every_token_and_cross_no_document(tmp_path, length, shard_tokens):
    dataset(tmp_path, [10, 0, 40, 3, 25, 7], shard_tokens=shard_tokens)
    reader = ShardReader(tmp_path)
    source = StreamRows(reader, length)
    everything = reader.window(0, reader.tokens)
    for phase in (0, length // 2, length - 1):
        rows = source.rows(np.arange(source.size), np.full(source.size, phase))
        assert not rows.mask_BL[:, 0].any() and rows.mask_BL[:, 1:].all()
        targets = rows.tokens_BL[:, 1:].reshape(-1)
        assert (np.roll(everything, -phase - 1) == targets[: len(everything)]).all()
        assert len(targets) - len(everything) < length
        check_inputs_keep_to_their_document(rows, reader)


sizes_of_documents = st.lists(st.integers(0, 200), min_size=1, max_size=80)


@given(sizes_of_documents, st.integers(1, 96))
@settings(deadline=None, max_examples=150)
def test_a_plan_uses_every_token_once(sizes, length):
    ends = np.cumsum(np.array(sizes) + 1)
    made = plan(ends, length)
    places = np.concatenate([np.arange(t, t + n) for t, n in zip(made.target, made.targets, strict=True)])
    assert sorted(places.tolist()) == list(range(int(ends[-1])))
    owner = np.searchsorted(ends, made.target, side="right")
    assert (owner == np.searchsorted(ends, made.target + made.targets - 1, side="right")).all()
    starts = np.concatenate([[0], ends[:-1]])
    for row in range(made.rows):
        runs = np.arange(made.firsts[row], made.firsts[row + 1])
        assert len(runs) and (made.targets[runs] + made.context[runs]).sum() <= length + 1
        assert made.context[runs[0]] == 1
        assert len(set(owner[runs].tolist())) == len(runs)  # no document twice: a later piece would show an earlier one
        for run in runs[1:]:
            assert made.context[run] == (made.target[run] != starts[owner[run]])
        for run in runs[:-1]:  # only a row's last run may stop inside a document
            assert made.target[run] + made.targets[run] == ends[owner[run]]


@pytest.mark.parametrize("length", [32, 64, 256, 1024])
@pytest.mark.parametrize("kind", ["logarithmic", "three fifths", "equal to the row", "tiny", "long"])
def test_packing_pads_less_than_a_fiftieth(length, kind):
    chance = np.random.default_rng(length)
    sizes = {
        "logarithmic": np.exp(chance.normal(np.log(length / 2), 1.5, 4000)).astype(int) + 1,
        "three fifths": np.full(1000, length * 3 // 5),
        "equal to the row": np.full(500, length),
        "tiny": chance.integers(1, 6, 30_000),
        "long": chance.integers(length * 2, length * 30, 300),
    }[kind]
    made = plan(np.cumsum(sizes), length)
    used = (made.targets + made.context).sum()
    assert used / (made.rows * (length + 1)) > 0.98
    if length >= 64:  # in shorter rows the repeated token before a piece alone takes more
        assert sizes.sum() / (made.rows * length) > 0.98
    if kind == "logarithmic":
        whole = (sizes <= length).sum()
        pieces = len(made.target) - (sizes[sizes > length] // length + (sizes[sizes > length] % length > 0)).sum()
        assert pieces == whole  # nothing had to be split


def test_packed_rows_learn_every_token_and_cross_no_document(tmp_path):
    for number, (sizes, length) in enumerate(
        [([10, 0, 40, 3, 25, 7, 17, 100], 24), ([14] * 30, 25), ([3, 5, 8], 16), ([60], 7), ([2] * 40, 31)]
    ):
        dataset(tmp_path / str(number), sizes, shard_tokens=60)
        reader = ShardReader(tmp_path / str(number))
        source = PackedRows(reader, length, plan(reader.ends, length))
        rows = source.rows(np.arange(source.size)[::-1])
        document, _, inputs, targets = learned(rows)
        assert rows.mask_BL.sum() == reader.tokens and not rows.mask_BL[:, 0].any()
        for one in range(reader.documents):
            first, end = reader.span(one)
            text = np.concatenate([[reader.eot], reader.window(first, end - first)])
            mine = sorted(zip(inputs[document == one].tolist(), targets[document == one].tolist(), strict=True))
            assert mine == sorted(zip(text[:-1].tolist(), text[1:].tolist(), strict=True))
        check_inputs_keep_to_their_document(rows, reader)
        padding = rows.document_BL == -1
        assert not rows.mask_BL[padding].any() and (rows.tokens_BL[padding] == reader.eot).all()
        single = [source.rows([row]) for row in range(source.size)]
        assert all((one.tokens_BL == rows.tokens_BL[-1 - row]).all() for row, one in enumerate(single))


def test_a_plan_is_stored_and_made_again_when_torn(tmp_path):
    ends = np.cumsum(np.random.default_rng(0).integers(1, 300, 200))
    made = stored_plan(tmp_path, "train", ends, 64)
    (path,) = (tmp_path / "plans").iterdir()
    for change in (None, b"", path.read_bytes()[:100], path.read_bytes()[:-8]):
        if change is not None:
            path.write_bytes(change)
        again = stored_plan(tmp_path, "train", ends, 64)
        for name in ("firsts", "target", "targets", "context"):
            assert (getattr(again, name) == getattr(made, name)).all()
    stored_plan(tmp_path, "train", ends[:-1], 64)
    assert len(list((tmp_path / "plans").iterdir())) == 2


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_any_step_at_any_world_size_reads_the_same(tmp_path, packing):
    dataset(tmp_path, [100, 40, 3, 25, 300, 7] * 5)
    text = Text(str(tmp_path), context_length=16, packing=packing)
    whole = list(islice(text.stream(None, 6, seed=3), 900))
    assert set(whole[0]) == KEYS
    for name in ("tokens", "document", "positions", "index"):
        assert whole[0][name].dtype == torch.int64
    assert whole[0]["mask"].dtype == torch.bool and whole[0]["tokens"].shape == (6, 17)
    assert torch.cat([batch["index"] for batch in whole]).tolist() == list(range(900 * 6))
    for start in (0, 1, 437, 899):
        for name, value in next(text.stream(None, 6, seed=3, start=start)).items():
            assert torch.equal(value, whole[start][name])
        for world in (1, 2, 3):
            shares = [next(text.stream(None, 6, 3, start, rank, world)) for rank in range(world)]
            for rank, share in enumerate(shares):
                for name, value in share.items():
                    assert torch.equal(value, whole[start][name][rank::world])
    opened = text.open()
    again = opened.batch(np.arange(437 * 6, 438 * 6), seed=3)
    assert all(torch.equal(again[name], whole[437][name]) for name in KEYS)
    assert not torch.equal(next(opened.batches(6, seed=4))["tokens"], whole[0]["tokens"])


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_an_epoch_learns_every_token_and_the_next_one_in_another_order(tmp_path, packing):
    dataset(tmp_path, [100, 40, 3, 25, 300, 7] * 3)
    opened = Text(str(tmp_path), context_length=16, packing=packing).open()
    epochs = [opened.batch(np.arange(opened.epoch_samples) + turn * opened.epoch_samples, seed=0) for turn in range(2)]
    everything = np.bincount(opened.readers[0].window(0, opened.tokens), minlength=TOKENIZER.vocab_size)
    for epoch in epochs:
        seen = torch.bincount(epoch["tokens"][epoch["mask"]], minlength=TOKENIZER.vocab_size).numpy()
        assert (seen >= everything).all() and (seen - everything).sum() < 16
    assert not torch.equal(epochs[0]["tokens"], epochs[1]["tokens"])


def test_a_mixture_keeps_its_shares_and_each_source_its_epochs(tmp_path):
    paths = (str(dataset(tmp_path / "a", [300] * 4)), str(dataset(tmp_path / "b", [50] * 2, seed=1)))
    text = Text(paths, context_length=10, weights=(0.75, 0.25))
    opened = text.open()
    batch = opened.batch(np.arange(400), seed=5)
    alone = [Text(path, context_length=10).open() for path in paths]
    windows = [
        {tuple(row) for phase in range(10) for row in one.sources[0].rows(np.arange(one.sizes[0]), [phase]).tokens_BL}
        for one in alone
    ]
    found = [[tuple(row) in known for row in batch["tokens"].numpy()] for known in windows]
    assert sum(found[0]) == 300 and sum(found[1]) == 100
    assert batch["index"].tolist() == list(range(400))
    by_size = Text(paths, context_length=10).open()
    assert by_size.epoch_samples == sum(by_size.sizes)
    assert len(opened.held_out_windows()) == 8  # twice 37 tokens, one behind the other


@pytest.mark.parametrize("length", [1, 4, 5, 36, 37, 38, 500])
def test_held_out_windows_score_every_token_once(tmp_path, length):
    opened = Text(str(dataset(tmp_path, [600], held_out=(20, 3, 11))), context_length=8).open()
    windows = opened.held_out_windows(length)
    batches = list(windows.batches(3))
    tokens, mask = (torch.cat([batch[name] for batch in batches]) for name in ("tokens", "mask"))
    document = torch.cat([batch["document"] for batch in batches])
    reader = ShardReader(tmp_path, "heldout")
    assert tokens.shape == (len(windows), length + 1) and not mask[:, 0].any()
    assert tokens[mask].tolist() == reader.window(0, reader.tokens).tolist()
    inputs = tokens[:, :-1][mask[:, 1:]].tolist()
    assert inputs == [TOKENIZER.eot, *reader.window(0, reader.tokens).tolist()[:-1]]
    assert document[:, :-1][mask[:, 1:]].tolist() == reader.document_of(np.arange(reader.tokens)).tolist()
    assert (windows.bytes, windows.documents) == (34, 3)
    rows = windows.rows(np.arange(len(windows)))
    check_inputs_keep_to_their_document(rows, reader)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(len(windows)))


def test_bytes_are_those_of_the_text():
    tokenizer = CharTokenizer("aé你")
    ids = np.append(tokenizer.encode("aé你"), tokenizer.eot)
    assert Windows(ids, tokenizer.eot, 2, tokenizer.lengths).bytes == len("aé你".encode())


def test_a_context_longer_than_the_text_names_the_longest(tmp_path):
    dataset(tmp_path, [20, 8])
    for packing in ("stream", "documents"):
        Text(str(tmp_path), context_length=29, packing=packing).open()
        with pytest.raises(ConfigError, match="longest context that works is 29"):
            Text(str(tmp_path), context_length=30, packing=packing).open()
    with pytest.raises(ConfigError):
        Text(str(tmp_path), context_length=0).open()


def test_what_cannot_be_opened_says_why(tmp_path):
    dataset(tmp_path / "a", [50])
    dataset(tmp_path / "b", [50], tokenizer=CharTokenizer("abc"))
    with pytest.raises(ConfigError, match="did you mean `documents`"):
        Text(str(tmp_path / "a"), 8, packing="document").open()
    with pytest.raises(DataError, match="no dataset"):
        Text(str(tmp_path), 8).open()
    with pytest.raises(DataError, match="another tokenizer"):
        Text((str(tmp_path / "a"), str(tmp_path / "b")), 8).open()
    with pytest.raises(ConfigError, match="`char`"):
        Text(str(tmp_path / "a"), 8, tokenizer="char").open()
    CharTokenizer("abcd").save(tmp_path / "b" / "tokenizer.json")
    with pytest.raises(DataError, match="another tokenizer"):
        Text(str(tmp_path / "b"), 8).open()
    family = type("Small", (), {"config": type("Config", (), {"vocab_size": 100})})
    with pytest.raises(ConfigError, match="vocab_size=257"):
        Text(str(tmp_path / "a"), 8).stream(family, 4, 0)
    dataset(tmp_path / "c", [50], held_out=())
    with pytest.raises(DataError, match="no held-out part"):
        Text(str(tmp_path / "c"), 8).open().held_out_windows()
