"""The longest verbatim run: the same as by brute force, in the right file and line, never across two documents."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nomoat.data.shards import ShardReader, ShardWriter
from nomoat.data.tokenizer import ByteTokenizer, CharTokenizer, train_bpe
from nomoat.evaluate import verbatim
from nomoat.evaluate.verbatim import longest_copies

POEM = (
    "The fog comes\non little cat feet.\n\nIt sits looking\nover harbor and city\non silent haunches\n"
    "and then moves on.\n"
)


def shards(folder, texts, tokenizer):
    writer = ShardWriter(folder, "train", tokenizer, shard_tokens=2000)
    for number, text in enumerate(texts):
        line = {"source": f"{number}.txt", "member": "", "offset": 0, "licence": "CC0-1.0" if number == 1 else None}
        writer.add(tokenizer.encode(text), line)
    writer.finish()
    return ShardReader(folder, "train")


def brute_force(sample, texts):
    """Length in bytes of the longest run that does not begin with 16 blanks, by trying all."""
    data = sample.encode()
    best = 0
    for text in texts:
        whole = text.encode()
        for start in range(len(data)):
            if data[start : start + 16].isspace():
                continue
            while start + best < len(data) and data[start : start + best + 1] in whole:
                best += 1
    return best


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("ab\n é", min_size=1, max_size=150), min_size=1, max_size=5),
    st.lists(st.text("ab\n é", max_size=60), min_size=1, max_size=3),
    st.data(),
)
def test_the_same_as_by_brute_force(tmp_path_factory, texts, samples, data):
    cut = data.draw(st.integers(0, len(texts[0])))
    samples = [*samples, "b" + texts[0][cut : cut + 30] + "a"]
    reader = shards(tmp_path_factory.mktemp("shards"), texts, ByteTokenizer())
    for sample, copy in zip(samples, longest_copies(samples, reader, ByteTokenizer()), strict=True):
        longest = brute_force(sample, texts)
        if copy is None:
            assert longest < verbatim.SHORTEST_BYTES
        else:
            assert copy.text in sample and copy.text in texts[copy.document]
            assert longest - 2 <= len(copy.text.encode()) <= longest  # half a character may stand at either end
            assert copy.characters == len(copy.text)


TOKENIZERS = {
    "byte": ByteTokenizer(),
    "char": CharTokenizer(POEM + "XYZ0123456789"),
    "bpe": train_bpe([POEM * 30], 300),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_file_line_and_licence(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(verbatim, "BLOCK_TOKENS", 500)
    texts = ["1234567890\n" * 90, POEM, "0987654321\n" * 200, "little cat feet.\n"]
    reader = shards(tmp_path, texts, TOKENIZERS[kind])
    seen = []
    sample = "XYlittle cat feet.\n\nIt sits looking\noveX"
    copies = longest_copies([sample, "XYZ" * 9, "Z"], reader, TOKENIZERS[kind], seen.append)
    (copy, none, short) = copies
    assert none is None and short is None
    assert copy.text == sample[2:-1]
    assert (copy.document, copy.where, copy.licence) == (1, "1.txt, line 2", "CC0-1.0")
    assert copy.share == pytest.approx(len(copy.text) / len(sample))
    assert copy.tokens == len(TOKENIZERS[kind].encode(copy.text))
    assert len(seen) > 1 and seen[-1]["done"] == seen[-1]["total"] == reader.tokens


def test_no_run_goes_across_two_documents(tmp_path):
    reader = shards(tmp_path, ["x" * 50 + "the first half of it", "and the second half" + "y" * 50], ByteTokenizer())
    (copy,) = longest_copies(["the first half of itand the second half"], reader, ByteTokenizer())
    assert copy.text == "the first half of it"


def test_long_runs_of_one_character_do_not_explode(tmp_path):
    reader = shards(tmp_path, ["-" * 30_000, "a" + "-" * 20_000 + "b"], ByteTokenizer())
    (copy, other) = longest_copies(["x" + "-" * 9_000 + "b", "x" + "-" * 9_000], reader, ByteTokenizer())
    assert (copy.document, copy.characters) == (1, 9_001)
    assert (other.document, other.characters) == (0, 9_000)


def test_indentation_does_not_count(tmp_path):
    reader = shards(tmp_path, [" " * 300 + "return value\n", "another_name = 12\n"], ByteTokenizer())
    samples = [" " * 90, " " * 90 + "return value", "x" + " " * 60 + "return", "    another_name = 12"]
    nothing, run, short, name = longest_copies(samples, reader, ByteTokenizer())
    assert nothing is None
    assert run.text == " " * 15 + "return value"
    assert short.text == " " * 15 + "return"
    assert name.text == "another_name = 12"


def test_an_empty_sample_and_no_samples(tmp_path):
    reader = shards(tmp_path, [POEM], ByteTokenizer())
    assert longest_copies([], reader, ByteTokenizer()) == []
    assert longest_copies([""], reader, ByteTokenizer()) == [None]


def test_hashes_tell_windows_apart():
    rolling = verbatim._Rolling(10)
    data = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8)
    prefix = rolling.prefix(data)
    for length in (1, 3, 16):
        hashes = rolling.windows(prefix, length)
        windows = [bytes(data[start : start + length]) for start in range(5000 - length + 1)]
        assert len(hashes) == len(windows)
        assert len(set(hashes.tolist())) == len(set(windows))
        assert (rolling.windows(prefix, length, np.array([7]))[0]) == hashes[7]
