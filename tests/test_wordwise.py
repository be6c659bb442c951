"""Encoding by looking words up gives the ids of the tokenizer, whatever the text."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nomoat.data import wordwise
from nomoat.data.tokenizer import HARD_CASES, train_bpe
from nomoat.data.wordwise import UNKNOWN, Wordwise, class_of

TEXT = (
    "It's we're they'll I've I'd 'twas 'really' rock'n'roll don't \"'s\" ''s '' 's\n\n  indented   more \t tab\r\n"
    "def f(x):\n    return x**2 + 0x1F  # naïve — “quoted” … 你好 世界 한국어 \U0001f600\U0001f468‍\U0001f469 end \n"
) * 20
TOKENIZER = train_bpe([TEXT], 700)


def same(texts, encoder=None):
    got = (encoder or Wordwise(TOKENIZER)).encode_batch(texts)
    assert len(got) == len(texts)
    for text, ids in zip(texts, got, strict=True):
        assert np.array_equal(ids, TOKENIZER.encode(text)), repr(text[:200])
        assert ids.dtype == TOKENIZER.dtype


def test_hard_cases_alone_and_together():
    cases = [
        *HARD_CASES,
        TEXT,
        "",
        " ",
        "\n",
        "'",
        "a",
        "  ",
        " '",
        "'s",
        "'re",
        "'r",
        " 's",
        "a'",
        "\x1c \x85 \xa0",
        "½Ⅳ٣",
    ]
    for case in cases:
        same([case])
    same(cases * 3)
    encoder = Wordwise(TOKENIZER)
    same(cases, encoder)
    same(cases[::-1], encoder)


@settings(max_examples=150)
@given(
    st.lists(st.text(alphabet=st.sampled_from("ab'strevlmdS1 \n\t.!é’你\u2003\x1d\u0301🙂"), max_size=40), max_size=6)
)
def test_any_mixture_of_classes(texts):
    same(texts)


@given(st.lists(st.text(max_size=60), max_size=4))
def test_any_text(texts):
    same(texts)


def test_lone_surrogates_and_code_points_not_yet_assigned():
    unassigned = next(chr(point) for point in range(0x2FE0, 0x3000) if class_of(point) == UNKNOWN)
    same(["half \ud83d pair's", f"a{unassigned}b's 1", "plain"])


@pytest.mark.parametrize("stride", [97, pytest.param(1, marks=pytest.mark.slow)])
def test_every_code_point_is_of_the_class_that_tiktoken_says(stride):
    points = [point for point in range(0, 0x110000, stride) if class_of(point) != UNKNOWN]
    points += range(0x3400)
    signs = [chr(point) for point in points if class_of(point) != UNKNOWN]
    same(["".join(f"a{sign}1{sign} {sign}b  {sign}{sign}!" for sign in signs)])


def test_long_words_large_batches_and_a_full_table(monkeypatch):
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefgh", k=chance.randint(1, 12))) for _ in range(30_000)]
    monkeypatch.setattr(wordwise, "SLOT_BITS", 8)
    monkeypatch.setattr(wordwise, "MOST_WORDS", 5_000)
    encoder = Wordwise(TOKENIZER)
    texts = [" ".join(words[start : start + 1000]) for start in range(0, 30_000, 1000)]
    same(texts, encoder)
    same([*texts, "x" * 5000, "ab" * 70_000 + "'s", " " * 3000 + "y", "=" * 300 + "'re"], encoder)


def test_threads_share_the_words():
    chance = random.Random(2)
    words = ["".join(chance.choices("abcdefgh", k=chance.randint(1, 6))) for _ in range(60_000)]
    batches = [[" ".join(chance.choices(words, k=400)) for _ in range(20)] for _ in range(24)]
    encoder = Wordwise(TOKENIZER)
    with ThreadPoolExecutor(4) as pool:
        for batch, got in zip(batches, pool.map(encoder.encode_batch, batches), strict=True):
            assert all(np.array_equal(ids, TOKENIZER.encode(text)) for text, ids in zip(batch, got, strict=True))


def test_words_that_a_linear_hash_confuses():
    word, other = "a", "b"
    for _ in range(12):  # Thue-Morse words collide under every polynomial hash modulo 2^64
        word, other = word + other, other + word
    same([word, other, word + " " + other])
