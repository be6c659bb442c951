"""Bits per byte: each token once, exact on a chain with known probabilities; the interval covers the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from markov import Markov

from nomoat.core.errors import DataError
from nomoat.data.shards import ShardReader, ShardWriter
from nomoat.data.tokenizer import ByteTokenizer, CharTokenizer, train_bpe
from nomoat.evaluate.bits import Excerpt, interval, measure, stream_bits, summarise, token_bits


def excerpt_of(documents):
    """Documents of ids without ends, back to back."""
    parts = [np.array(document) for document in documents]
    sizes = np.array([len(part) for part in parts])
    return Excerpt(np.concatenate(parts), sizes.cumsum(), np.arange(len(parts)))


class Uniform:
    """Every token has probability 1 / V."""

    def __init__(self, vocab_size, context_length=32):
        self.config = type(Markov.random(2).config)(context_length, vocab_size)

    def score(self, batch):
        return torch.full(batch["tokens"][:, 1:].shape, -math.log(self.config.vocab_size)) * batch["mask"][:, 1:]


def chain_bits(model, sequence):
    """Bits of each token but the first, with everything before it in view."""
    before = [model.config.vocab_size, *sequence]
    return [-math.log2(model.table[a, b, c]) for a, b, c in zip(before, sequence, sequence[1:], strict=False)]


def test_documents_are_kept_apart_and_each_token_counts_once():
    model = Markov.random(4, context_length=5)
    documents = [[0, 1, 2, 1, 0, 2, 2, 3], [1, 3], [3], [2, 0, 0, 1, 3]]
    excerpt = excerpt_of(documents)
    bits = stream_bits(model, excerpt, np.ones(4, dtype=np.int64), eot=3)
    assert len(bits) == len(excerpt.tokens_N)
    wide = stream_bits(Markov(model.table, 100), excerpt, np.ones(4, dtype=np.int64), eot=3)
    expected = np.concatenate([chain_bits(model, [3, *document]) for document in documents])
    assert wide == pytest.approx(expected, abs=1e-4)
    # windows of five: only the first token of a window has lost the one before last
    assert np.flatnonzero(np.abs(bits - expected) > 1e-4).tolist() == [5, 15]


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 16, 17, 40])
@pytest.mark.parametrize("context_length", [2, 3, 8])
def test_half_overlap_gives_every_token_its_context(length, context_length):
    model = Markov.random(5, context_length=context_length)
    sequences = [torch.randint(5, (n,), generator=torch.Generator().manual_seed(n)).numpy() for n in (length, 3, 1)]
    found = token_bits(model, sequences)
    for sequence, bits in zip(sequences, found, strict=True):
        expected = chain_bits(model, sequence.tolist())
        assert len(bits) == len(expected) == len(sequence) - 1
        if context_length > 3:
            assert bits == pytest.approx(expected, abs=1e-4)
        else:
            assert np.isfinite(bits).all() and (bits > 0).all()


def test_a_uniform_model_needs_the_log_of_the_vocabulary():
    excerpt = excerpt_of([[1] * 9 + [0]] * 20)
    found = measure(Uniform(16), excerpt, np.array([0, 2] + [1] * 14), eot=0)
    assert found.value == pytest.approx(20 * 10 * 4 / (20 * 9 * 2))
    assert found.perplexity == pytest.approx(16, rel=1e-4)
    assert (found.tokens, found.bytes, found.documents, found.resampled) == (200, 360, 20, "documents")
    assert found.low == pytest.approx(found.value) and found.high == pytest.approx(found.value)
    assert "bits per byte" in found.as_text()


def test_few_documents_are_resampled_in_blocks():
    bits = np.random.default_rng(0).exponential(size=5000)
    excerpt = excerpt_of([[1] * 2499 + [0]] * 2)
    found = summarise(bits, excerpt, np.array([0, 1]))
    assert found.resampled == "blocks"
    assert found.low < found.value < found.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    chance = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        wholes = chance.integers(1, 100, 60).astype(float)
        parts = wholes * chance.gamma(4, 0.5, 60)  # mean 2
        low, high = interval(parts, wholes, seed=trial, resamples=300)
        covered += low <= 2 <= high
    assert 170 <= covered <= 199
    low, high = interval(np.ones(50_000), np.ones(50_000))
    assert (low, high) == (1.0, 1.0)


TEXTS = ["Größe 你好 and more of the same words\n" * 3, "short", "and more words of the same\n" * 5]


def shards(folder, tokenizer, texts=TEXTS, split="heldout"):
    writer = ShardWriter(folder, split, tokenizer)
    for number, text in enumerate(texts):
        writer.add(tokenizer.encode(text), {"source": f"{number}.txt", "member": "", "offset": 0})
    writer.finish()
    return ShardReader(folder, split)


@pytest.mark.parametrize(
    "tokenizer", [ByteTokenizer(), CharTokenizer("".join(TEXTS)), train_bpe(TEXTS, 300)], ids=["byte", "char", "bpe"]
)
def test_bytes_are_the_texts_whatever_the_tokens(tmp_path, tokenizer):
    excerpt = Excerpt.of(shards(tmp_path, tokenizer))
    found = measure(Uniform(tokenizer.vocab_size), excerpt, tokenizer.lengths, tokenizer.eot)
    assert found.bytes == sum(len(text.encode()) for text in TEXTS)
    tokens = sum(len(tokenizer.encode(text)) + 1 for text in TEXTS)
    assert found.value == pytest.approx(tokens * math.log2(tokenizer.vocab_size) / found.bytes)


def test_a_sample_of_documents_is_whole_documents_and_the_same_every_time(tmp_path):
    reader = shards(tmp_path, ByteTokenizer(), ["a" * 10, "b" * 20, "c" * 30, "d" * 40])
    sample = Excerpt.of(reader, most_tokens=45)
    assert 45 <= len(sample.tokens_N) < 45 + 41
    for place, number in enumerate(sample.numbers_D):
        assert bytes(sample.document(place)[:-1].astype(np.uint8)) == bytes([97 + number]) * (10 * (number + 1))
    assert np.array_equal(sample.tokens_N, Excerpt.of(reader, most_tokens=45).tokens_N)
    assert len(Excerpt.of(reader, most_tokens=1000).ends_D) == 4


def test_an_empty_part_is_an_error(tmp_path):
    with pytest.raises(DataError, match="empty"):
        Excerpt.of(shards(tmp_path, ByteTokenizer(), []))
