"""Tokenizers: exact ids, lossless round trips, one file that others read, training that repeats itself."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from nomoat.core.errors import ConfigError, DataError
from nomoat.data.sample import CHUNK, bounded_sample, chunks
from nomoat.data.tokenizer import EOT, SPELLING, BpeTokenizer, ByteTokenizer, CharTokenizer, gpt2, load, train_bpe

SHARED = Path(os.environ.get("NOMOAT_SHARED", Path(__file__).parents[2] / "shared"))
SENTENCE = "the cat's dog ran 123 times; naïve Ångström — 你好 world\n\n\tdef f(x): return x**2  # 'quoted'"


def some_texts(count=60, seed=0):
    chance, words = random.Random(seed), SENTENCE.split(" ")
    return [" ".join(chance.choices(words, k=200)) for _ in range(count)]


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([*some_texts(), Path(tokenizers.__file__).read_text(), Path(json.__file__).read_text()], 700)


ODD = [
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\x00",
    "\x1c",
    "\x85",
    "\xa0",
    "\u200b",
    "\u2028",
    "\u3000",
    "\ufeff",
    "'s",
    "'LL",
]
ODD += ["a", "Z", "9", "٣", "Ⅷ", "é", "e\u0301", "你", "🏳️\u200d🌈", "𐵊", EOT, "<|", "|>", "''", "_", "-", "def "]
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
odd_text = any_text | st.lists(st.sampled_from(ODD), max_size=60).map("".join)


@given(odd_text)
@settings(max_examples=400, deadline=None)
def test_ids_equal_those_of_tokenizers_and_come_back(bpe, text):
    ids = bpe.encode(text)
    assert bpe.fast
    assert ids.dtype == np.uint16
    assert ids.tolist() == bpe.reference.encode(text, add_special_tokens=False).ids
    assert bpe.decode(ids) == text
    assert bpe.decode_bytes(ids) == text.encode()
    assert bpe.eot not in ids
    assert int(bpe.lengths[ids].sum()) == len(text.encode())


@given(odd_text)
@settings(max_examples=100, deadline=None)
def test_bytes_come_back(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert bytes(ids.tolist()) == text.encode()
    assert tokenizer.decode(ids) == text
    characters = CharTokenizer(text or "a")
    assert characters.decode(characters.encode(text)) == text


@pytest.mark.parametrize("make", ["bpe", "byte", "char"])
def test_the_file_is_read_by_us_and_by_tokenizers(make, bpe, tmp_path):
    text = "the cat's dog,  ran\n\n 123"
    tokenizer = {"bpe": bpe, "byte": ByteTokenizer(), "char": CharTokenizer(text)}[make]
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    again = load(path)
    assert type(again) is type(tokenizer)
    assert again.hash == tokenizer.hash
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    foreign = tokenizers.Tokenizer.from_file(str(path))
    assert foreign.encode(text).ids == tokenizer.encode(text).tolist()
    assert foreign.decode(tokenizer.encode(text).tolist()) == text
    assert foreign.token_to_id(EOT) == tokenizer.eot == tokenizer.vocab_size - 1
    assert foreign.get_vocab_size() == tokenizer.vocab_size


def test_transformers_reads_the_file(bpe, tmp_path):
    transformers = pytest.importorskip("transformers")
    bpe.save(tmp_path / "tokenizer.json")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token=EOT)
    text = "the cat's dog — 你好\n\n  x**2"
    assert theirs.encode(text) == bpe.encode(text).tolist()
    assert theirs.decode(bpe.encode(text).tolist(), clean_up_tokenization_spaces=False) == text
    assert theirs.eos_token_id == bpe.eot


def test_the_document_end_spelled_in_a_text_stays_text(bpe):
    for tokenizer in (bpe, ByteTokenizer(), CharTokenizer(EOT)):
        ids = tokenizer.encode(f"{EOT}{EOT}")
        assert tokenizer.eot not in ids
        assert tokenizer.decode(ids) == EOT * 2
        assert tokenizer.decode([*ids.tolist(), tokenizer.eot]) == EOT * 2
        assert tokenizer.token_bytes(tokenizer.eot) == b""


def test_training_repeats_itself_in_another_process_and_order(bpe, tmp_path):
    texts = some_texts(20)
    first = train_bpe(texts, 400)
    assert first.hash == train_bpe(list(reversed(texts)), 400).hash
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    program = (
        "import json, sys; from nomoat.data.tokenizer import train_bpe;"
        "print(train_bpe(json.load(open(sys.argv[1])), 400).to_json(), end='')"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, str(tmp_path / "texts.json")]
    assert subprocess.run(command, env=environment, capture_output=True, check=True).stdout.decode() == first.to_json()
    assert first.hash != train_bpe(some_texts(20, seed=5), 400).hash
    assert first.hash != train_bpe(texts, 300).hash


def test_a_small_text_gives_a_smaller_vocabulary():
    tokenizer = train_bpe(["aab"], 5000)
    assert 257 <= tokenizer.vocab_size < 262
    assert tokenizer.decode(tokenizer.encode("aab zz")) == "aab zz"
    assert train_bpe([], 300).vocab_size == 257
    with pytest.raises(ConfigError, match="257"):
        train_bpe(["a"], 256)


def test_merges_in_another_order_than_their_ids_are_encoded_slowly_but_rightly():
    letters = list(SPELLING.values())
    swapped = BpeTokenizer([*letters, "aa", "aaa", "ab"], [("a", "b"), ("a", "a"), ("aa", "a")])
    assert not swapped.fast
    assert swapped.encode("aaab").tolist() == swapped.reference.encode("aaab").ids
    assert swapped.decode(swapped.encode("aaab")) == "aaab"


def test_an_unknown_symbol_is_named():
    with pytest.raises(DataError, match="'z'"):
        CharTokenizer("abc").encode("abz")
    with pytest.raises(ConfigError):
        CharTokenizer("")


def test_lone_surrogates_become_the_replacement_character(bpe):
    for tokenizer in (bpe, ByteTokenizer()):
        assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_batches_by_threads_equal_single_texts(bpe):
    texts = some_texts(10)
    for threads in (1, 3):
        for one, text in zip(bpe.encode_batch(texts, threads), texts, strict=True):
            assert one.tolist() == bpe.encode(text).tolist()


def test_long_runs_do_not_hang(bpe):
    for text in ("a" * 200_000, " " * 200_000 + "x", "你好" * 50_000, "\n" * 200_000):
        assert bpe.decode(bpe.encode(text)) == text


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(DataError, match="no tokenizer file"):
        load(path)
    split = {"type": "Whitespace"}
    path.write_text(json.dumps({"model": {"vocab": {"a": 0}, "merges": []}, "pre_tokenizer": split}))
    with pytest.raises(DataError, match="pattern"):
        load(path)


def test_the_sample_is_bounded_and_does_not_know_the_order():
    texts = [str(number) * 9000 + "\n" for number in range(40)]
    sample = bounded_sample(iter(texts), 100_000)
    assert 60_000 < sum(len(chunk) for chunk in sample) <= 100_000
    assert sample == bounded_sample(reversed(texts), 100_000)
    assert bounded_sample(["short"], 3) == ["short"]
    text = "".join(f"line {number}\n" for number in range(20_000))
    assert "".join(chunks(text)) == text
    assert all(chunk.endswith("\n") and len(chunk) <= CHUNK for chunk in chunks(text))


def test_gpt2_has_its_published_ids():
    folder = SHARED / "weights" / "tokenizers"
    if not folder.is_dir():
        pytest.skip(f"needs GPT-2's vocabulary in {folder}")
    tokenizer = gpt2(folder / "gpt2-encoder.json", folder / "gpt2-vocab.bpe")
    assert tokenizer.fast
    assert (tokenizer.vocab_size, tokenizer.eot) == (50257, 50256)
    known = {
        "Hello world": [15496, 995],
        " the": [262],
        "Hello, I'm a language model,": [15496, 11, 314, 1101, 257, 3303, 2746, 11],
        "\n\n": [628],
        "tokenization": [30001, 1634],
    }
    for text, ids in known.items():
        assert tokenizer.encode(text).tolist() == ids
