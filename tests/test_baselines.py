"""What anybody has for nothing: compressors measured as their file grows, with and without the training text."""

from __future__ import annotations

import gzip as gzip_module
import lzma
import random

import numpy as np
import pytest

from nomoat.data.shards import ShardReader, ShardWriter
from nomoat.data.tokenizer import ByteTokenizer
from nomoat.evaluate import baselines
from nomoat.evaluate.baselines import five_gram, gzip, xz
from nomoat.evaluate.bits import Excerpt


def words(count, seed):
    chance = random.Random(seed)
    known = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(400)]
    chance = random.Random(seed + 1)
    return " ".join(chance.choices(known, k=count)).encode()


TEXT = words(60_000, 0)
TRAINING, HELD_OUT = TEXT[:-40_000], TEXT[-40_000:]


def test_alone_is_what_the_command_line_tools_give():
    found = gzip(TRAINING, HELD_OUT), xz(TRAINING, HELD_OUT)
    theirs = len(gzip_module.compress(HELD_OUT, 9)), len(lzma.compress(HELD_OUT, preset=9 | lzma.PRESET_EXTREME))
    for ours, size in zip(found, theirs, strict=True):
        assert ours.alone == pytest.approx(8 * size / len(HELD_OUT), rel=0.02)
        assert ours.alone <= 8 * size / len(HELD_OUT)  # no headers are counted


def test_xz_remembers_all_of_the_training_text_and_gzip_its_end():
    far = HELD_OUT[:20_000]
    training = far + TRAINING[:200_000]
    assert xz(training, far).bits_per_byte < 0.05
    assert gzip(training, far).bits_per_byte > 1
    near = TRAINING[:200_000] + far
    assert gzip(near, far).bits_per_byte < 0.2
    assert xz(training, far, most_bytes=100_000).bits_per_byte > 1
    assert xz(training, far, most_bytes=100_000).training_bytes == 100_000


def test_one_pass_gives_the_same_as_two(monkeypatch):
    two = xz(TRAINING, HELD_OUT).bits_per_byte
    monkeypatch.setattr(baselines, "ONE_PASS_BYTES", 0)
    one = xz(TRAINING, HELD_OUT).bits_per_byte
    assert abs(one - two) * len(HELD_OUT) / 8 < 100  # bytes
    assert one != two or len(HELD_OUT) == 0


def test_without_training_text_nothing_breaks():
    for measured in (gzip(b"", HELD_OUT), xz(b"", HELD_OUT)):
        assert measured.bits_per_byte == pytest.approx(measured.alone, rel=0.01)
        assert measured.training_bytes == 0


def test_five_gram_beats_what_does_not_know_the_words():
    tokens = np.frombuffer(TEXT, np.uint8).astype(np.int64)
    parts = [np.append(part, 256) for part in np.array_split(tokens, 40)]

    def excerpt(chosen):
        ends = np.cumsum([len(parts[number]) for number in chosen])
        return Excerpt(np.concatenate([parts[number] for number in chosen]), ends, np.array(chosen))

    lengths = np.append(np.ones(256, dtype=np.int64), 0)
    found, figure = five_gram(excerpt(range(30)), excerpt(range(30, 40)), lengths, 256)
    assert found.name == "5-gram" and found.alone is None
    assert 1.0 < found.bits_per_byte < gzip(TRAINING, HELD_OUT).alone
    assert found.interval[0] < found.bits_per_byte < found.interval[1]
    assert figure.documents == 10 and figure.bytes == sum(len(part) - 1 for part in parts[30:])


def test_the_learning_curve_falls_with_the_text_and_is_read_on_all_of_it_where_it_is_short(tmp_path, monkeypatch):
    tokenizer = ByteTokenizer()
    for split, count in (("train", 40), ("heldout", 5), ("empty", 0)):
        writer = ShardWriter(tmp_path, split, tokenizer)
        for part in range(count):
            writer.add(tokenizer.encode(TEXT[2000 * part : 2000 * (part + 1)].decode()), {})
        writer.finish()
    training, held_out = ShardReader(tmp_path, "train"), ShardReader(tmp_path, "heldout")
    curve = baselines.learning_curve(training, held_out, tokenizer)
    sizes, bits = zip(*curve, strict=True)
    assert len(curve) == 3 and sizes[-1] == training.tokens and list(sizes) == sorted(sizes)
    assert 4 > bits[0] > bits[1] > bits[2] > 1
    monkeypatch.setattr(baselines, "CURVE_TOKENS", 8192)
    assert baselines.learning_curve(training, held_out, tokenizer)[-1][0] == 8192
    assert baselines.learning_curve(training, ShardReader(tmp_path, "empty"), tokenizer) == []


def test_figures_are_kept_with_the_data_and_made_again_for_other_data(tmp_path, monkeypatch):
    tokenizer = ByteTokenizer()
    for split, start in (("train", 0), ("heldout", 30_000)):
        writer = ShardWriter(tmp_path, split, tokenizer)
        for part in range(12):
            writer.add(tokenizer.encode(TEXT[start + 2000 * part : start + 2000 * (part + 1)].decode()), {})
        writer.finish()
    training, held_out = ShardReader(tmp_path, "train"), ShardReader(tmp_path, "heldout")
    found = baselines.baselines(training, Excerpt.of(held_out), tokenizer)
    assert [one.name for one in found] == ["gzip", "xz", "5-gram"]
    (kept,) = (tmp_path / "baselines").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(baselines, "xz", None)  # not called again
        again = baselines.baselines(training, Excerpt.of(held_out), tokenizer)
    assert [one.bits_per_byte for one in again] == [one.bits_per_byte for one in found]
    kept.write_text(kept.read_text(encoding="utf-8")[:50], encoding="utf-8")
    assert [one.how for one in baselines.baselines(training, Excerpt.of(held_out), tokenizer)] == [
        one.how for one in found
    ]
    baselines.baselines(training, Excerpt.of(held_out, most_tokens=5000), tokenizer)
    assert len(list((tmp_path / "baselines").iterdir())) == 2
