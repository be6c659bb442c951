"""Shards: what was written is read, by any window over any shard border; what is damaged is named."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from nomoat.core.errors import DataError
from nomoat.data.shards import ShardReader, ShardWriter
from nomoat.data.tokenizer import ByteTokenizer, CharTokenizer

TOKENIZER = ByteTokenizer()


def write(folder, sizes, split="train", shard_tokens=10**9, tokenizer=TOKENIZER):
    chance = np.random.default_rng(len(sizes))
    writer = ShardWriter(folder, split, tokenizer, shard_tokens)
    documents = [chance.integers(0, tokenizer.eot, size) for size in sizes]
    for number, document in enumerate(documents):
        writer.add(document, {"id": f"{number:032x}", "source": f"file {number}", "bytes": len(document)})
    files = writer.finish()
    everything = np.concatenate([np.append(document, tokenizer.eot) for document in documents] or [[]])
    return everything, files


@pytest.mark.parametrize("shard_tokens", [10**9, 50, 1])
def test_windows_over_shard_borders_and_round_the_ring(tmp_path, shard_tokens):
    everything, _ = write(tmp_path, [30, 0, 7, 1, 64, 12, 25], shard_tokens=shard_tokens)
    reader = ShardReader(tmp_path)
    assert (len(reader.shards) > 1) == (shard_tokens < 100)
    assert (reader.tokens, reader.documents) == (len(everything), 7)
    ring = np.concatenate([everything, everything])
    for length in (1, 5, 40, len(everything)):
        starts = np.arange(len(everything))
        rows = reader.windows(starts, length)
        assert rows.dtype == np.uint16
        assert (rows == np.stack([ring[start : start + length] for start in starts])).all()
        assert (reader.window(3, length) == ring[3 : 3 + length]).all()
    places = np.random.default_rng(0).integers(0, 2 * len(everything), 300)
    assert (reader.gather(places) == ring[places]).all()
    assert reader.windows([], 5).shape == (0, 5)
    with pytest.raises(DataError, match="longer than the text"):
        reader.window(0, len(everything) + 1)


def test_documents_and_their_ledger_lines(tmp_path):
    sizes = [30, 0, 7, 1, 64]
    write(tmp_path, sizes, shard_tokens=35)
    reader = ShardReader(tmp_path)
    owner = np.repeat(np.arange(5), np.array(sizes) + 1)
    assert (reader.document_of(np.arange(reader.tokens)) == owner).all()
    for document in range(5):
        first, end = reader.span(document)
        assert end - first == sizes[document] + 1
        assert reader.window(first, end - first)[-1] == TOKENIZER.eot
        line = reader.line(document)
        assert (line["source"], line["bytes"], line["licence"]) == (f"file {document}", sizes[document], None)
    assert reader.ledger().column("source").to_pylist() == [f"file {document}" for document in range(5)]
    with pytest.raises(DataError, match="no document 5"):
        reader.line(5)


def test_ledger_lines_beyond_one_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr("nomoat.data.shards.ROW_GROUP", 3)
    write(tmp_path, [2] * 10)
    reader = ShardReader(tmp_path)
    assert [reader.line(document)["source"] for document in range(10)] == [f"file {document}" for document in range(10)]


def test_finish_names_sizes_and_hashes(tmp_path):
    _, files = write(tmp_path, [30, 7, 64], shard_tokens=35)
    assert sorted(file.name for file in files) == sorted(path.name for path in tmp_path.iterdir())
    for file in files:
        content = (tmp_path / file.name).read_bytes()
        assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_same_documents_give_the_same_files(tmp_path):
    assert write(tmp_path / "a", [30, 7])[1] == write(tmp_path / "b", [30, 7])[1]


def test_wide_ids(tmp_path):
    tokenizer = CharTokenizer(map(chr, range(0x4E00, 0x4E00 + 20_000)))
    wide = CharTokenizer([*tokenizer.symbols, *map(chr, range(0x20000, 0x20000 + 50_000))])
    assert tokenizer.dtype == np.uint16 and wide.dtype == np.uint32
    everything, _ = write(tmp_path, [30, 7], tokenizer=wide)
    reader = ShardReader(tmp_path)
    assert reader.dtype == np.uint32
    assert (reader.window(0, reader.tokens) == everything).all()


def test_an_empty_split_opens(tmp_path):
    write(tmp_path, [], split="heldout")
    reader = ShardReader(tmp_path, "heldout")
    assert (reader.tokens, reader.documents) == (0, 0)


@pytest.mark.parametrize("kind", ["bin", "idx", "meta.parquet"])
@pytest.mark.parametrize("damage", ["truncate", "append", "remove", "empty", "half"])
def test_damage_is_noticed_at_opening(tmp_path, kind, damage):
    write(tmp_path, [30, 7, 64])
    path = tmp_path / f"train-00000.{kind}"
    content = path.read_bytes()
    changed = {
        "truncate": content[:-2],
        "append": content + b"\0\0",
        "empty": b"",
        "half": content[: len(content) // 2],
    }
    path.unlink() if damage == "remove" else path.write_bytes(changed[damage])
    with pytest.raises(DataError, match=r"train-00000|no complete"):
        ShardReader(tmp_path)


def test_a_torn_index_and_a_torn_end_are_noticed(tmp_path):
    write(tmp_path, [30, 7, 64])
    index = tmp_path / "train-00000.idx"
    content = index.read_bytes()
    index.write_bytes(content[:8] + bytes(8) + content[16:])
    with pytest.raises(DataError, match="do not rise"):
        ShardReader(tmp_path)
    index.write_bytes(content)
    tokens = tmp_path / "train-00000.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2] + b"\0\0")
    with pytest.raises(DataError, match="document end"):
        ShardReader(tmp_path)


def test_a_missing_shard_and_mixed_tokenizers_are_noticed(tmp_path):
    write(tmp_path, [30, 7, 64], shard_tokens=20)
    for path in tmp_path.glob("train-00001*"):
        path.unlink()
    with pytest.raises(DataError, match="no complete"):
        ShardReader(tmp_path)
    write(tmp_path / "mixed", [30, 7], shard_tokens=20)
    write(tmp_path / "other", [30, 7], shard_tokens=20, tokenizer=CharTokenizer("abc"))
    for path in (tmp_path / "other").glob("train-00001*"):
        path.replace(tmp_path / "mixed" / path.name)
    with pytest.raises(DataError, match="different tokenizers"):
        ShardReader(tmp_path / "mixed")
    with pytest.raises(DataError, match="no complete"):
        ShardReader(tmp_path / "nowhere")


def test_an_unfinished_writer_leaves_nothing_that_opens(tmp_path):
    writer = ShardWriter(tmp_path, "train", TOKENIZER)
    writer.add(np.arange(5), {})
    writer.bin.flush()
    with pytest.raises(DataError):
        ShardReader(tmp_path)
    writer.finish()
