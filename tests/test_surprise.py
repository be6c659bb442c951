"""Surprise: bits are conserved from tokens to lines, odd lines come out on top, and nothing on the page can run."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from markov import Limits, Markov

from nomoat.data.tokenizer import ByteTokenizer, CharTokenizer, train_bpe
from nomoat.evaluate.surprise import Surprise, Usual, character_bits, cut_lines, surprise, top

CODE = "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n" * 12
ODD = "xq!7Zk@vvp#0\n"


class Frequencies:
    """Scores each token by how often it occurs in a text, so that rare ones are surprising."""

    def __init__(self, tokenizer, text, context_length=32):
        self.config = Limits(context_length, tokenizer.vocab_size)
        counts_V = np.bincount(tokenizer.encode(text), minlength=tokenizer.vocab_size) + 0.01
        self.logp_V = torch.tensor(np.log(counts_V / counts_V.sum()))

    def score(self, batch):
        assert batch["tokens"].shape[1] <= self.config.context_length + 1
        return self.logp_V[batch["tokens"][:, 1:]] * batch["mask"][:, 1:]


TEXT = CODE + "    " + ODD + CODE + "naïve = '你好'\n"
TOKENIZERS = {"byte": ByteTokenizer(), "char": CharTokenizer(TEXT), "bpe": train_bpe([CODE], 300)}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_bits_are_conserved_and_the_odd_line_is_found(kind):
    tokenizer = TOKENIZERS[kind]
    model = Frequencies(tokenizer, CODE + "naïve = '你好'\n" * 12)
    found = surprise(model, tokenizer, {"a.py": TEXT, "b.py": CODE, "empty": ""})
    expected = -float(model.logp_V[tokenizer.encode(TEXT).astype(int)].sum()) / math.log(2)
    assert found.bits["a.py"].sum() == pytest.approx(expected, rel=1e-5)
    assert len(found.bits["a.py"]) == len(TEXT) and len(found.bits["empty"]) == 0
    assert sum(line.bits for line in found.lines) == pytest.approx(sum(bits.sum() for bits in found.bits.values()))
    best = found.top(3)
    assert best[0].where == f"a.py, line {CODE.count(chr(10)) + 1}"
    assert best[0].text.strip() == ODD.strip()
    assert len(found.lines) == TEXT.count("\n") + CODE.count("\n")


def test_every_token_sees_at_least_half_a_window():
    model, tokenizer = Markov.random(257, context_length=8, sharpness=3.0), ByteTokenizer()
    text = "abcabcacbbca" * 9
    found = surprise(model, tokenizer, {"x": text})
    before = [257, 256, *text.encode()]
    expected = [-math.log2(model.table[a, b, c]) for a, b, c in zip(before, before[1:], before[2:], strict=False)]
    assert found.bits["x"] == pytest.approx(expected, abs=1e-4)


def test_bits_fall_on_the_bytes_of_a_token_and_characters_gather_them():
    # "aé你": one token of three bytes (a and é), one token a byte for the rest
    bits = character_bits(np.array([6.0, 1.0, 2.0, 3.0]), np.array([3, 1, 1, 1]), "aé你")
    assert bits.tolist() == [2.0, 4.0, 6.0]


@given(st.text("ab \n\té", max_size=40))
def test_lines_are_the_text(text):
    bits = np.arange(len(text), dtype=float)
    lines = list(cut_lines(text, bits))
    joined = "\n".join(line for _, line, _, _ in lines)
    assert joined == text.removesuffix("\n") or (text.endswith("\n") and joined + "\n" == text)
    assert sum(total for *_, total, _ in lines) == bits.sum()
    assert [number for number, *_ in lines] == list(range(1, len(lines) + 1))


def test_excess_does_not_favour_long_lines_or_short_ones():
    chance = np.random.default_rng(0)
    lengths = np.repeat([4, 20, 80, 180], 500)
    texts = ["x" * (n - 1) for n in lengths]
    bits = np.array([chance.exponential(1.5, n).sum() for n in lengths])
    usual = Usual.of(texts, bits)
    found = np.array([usual.excess(text, cost) for text, cost in zip(texts, bits, strict=True)])
    spreads = [found[lengths == n].std() for n in (4, 20, 80, 180)]
    assert max(spreads) / min(spreads) < 1.3
    assert np.abs([found[lengths == n].mean() for n in (4, 20, 80, 180)]).max() < 0.2
    blank = Usual.of(["", "  "], np.array([3.0, 9.0]))
    assert blank.excess("  ", 9.0) == 0
    assert Usual.of(["a", "a"], np.array([3.0, 3.0])).excess("a", 3.0) == 0


def test_the_top_takes_one_line_of_a_passage_and_one_of_equal_lines():
    text = "\n".join(["word"] * 50)
    bits = np.ones(len(text))
    for number, cost in ((10, 30), (11, 40), (12, 35), (30, 25), (44, 20)):
        bits[5 * number : 5 * number + 4] = cost
    changed = list(text)
    for number in (10, 11, 12, 30, 44):
        changed[5 * number] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[number]
    found = Surprise({"f": "".join(changed)}, {"f": bits})
    assert [line.number for line in found.top(3)] == [12, 31, 45]
    # Where there is room, the other lines of the passage come too: a short file has its typo beside the odd line.
    assert [line.number for line in found.top(10)][:5] == [12, 13, 11, 31, 45]
    assert f"the {len(found.top(10))} oddest:" in found.as_text(10)
    same = Surprise({"f": text}, {"f": bits})
    assert [line.number for line in same.top(10)] == [12]
    assert top([], 3) == []


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.text = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "style", "onload", "onerror")]

    def handle_data(self, data):
        self.text.append(data)


def test_nothing_on_the_page_can_run():
    name = '<img src=x onerror="alert(1)">.py'
    text = "x = \"</pre></style><script>alert(1)</script>\" & '<b>'\n\x1b[31m\x00\n"
    found = Surprise({name: text}, {name: np.linspace(0, 15, len(text))})
    page = found.as_html()
    reader = Tags()
    reader.feed(page)
    assert "script" not in reader.tags and "img" not in reader.tags
    assert all(link.startswith("#") for link in reader.links)
    assert "<script" not in page and "http" not in page and "\x1b" not in page and "\x00" not in page
    shown = "".join(reader.text)
    assert text.split("\n")[0] in shown and name in shown


def test_what_people_and_programs_read():
    text = CODE + "    \tq\x1b[31m!! " + "return a " * 20 + ODD + CODE
    tokenizer = ByteTokenizer()
    found = surprise(Frequencies(tokenizer, CODE), tokenizer, {"a.py": text})
    printed = found.as_text(3)
    assert "bits per byte" in printed and "a.py, line" in printed and "^" in printed
    assert "\x1b" not in printed and max(map(len, printed.splitlines())) <= 110
    data = json.loads(json.dumps(found.as_json(3)))
    assert len(data["files"][0]["lines"]) == len(found.lines)
    assert data["top"][0]["line"] == found.top(1)[0].number
    assert data["bits_per_byte"] == pytest.approx(found.bits_per_byte, abs=1e-4)
