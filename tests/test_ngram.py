"""Kneser-Ney: probabilities sum to one in every context, and equal those of the paper's formula written out plainly."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from markov import Markov

from nomoat.core.errors import ConfigError
from nomoat.evaluate.ngram import KneserNey, discounts

EOT = 3


class Plain:
    """The same model from dictionaries: chains of Counter, one a length."""

    def __init__(self, documents, vocab_size, order):
        self.vocab_size, self.order = vocab_size, order
        grams = [Counter() for _ in range(order + 1)]
        for document in documents:
            text = [EOT] * (order - 1) + document
            for end in range(order - 1, len(text)):
                for length in range(1, order + 1):
                    grams[length][tuple(text[end - length + 1 : end + 1])] += 1
        self.counts = [None] + [Counter(gram[1:] for gram in grams[n + 1]) for n in range(1, order)] + [grams[order]]
        self.discounts, self.totals, self.taken = [None], [None], [None]
        for n in range(1, order + 1):
            found = np.array(
                [self.counts[n].get((w,), 0) for w in range(vocab_size)] if n == 1 else list(self.counts[n].values())
            )
            steps = discounts(found)
            self.discounts.append(steps)
            totals, taken = defaultdict(float), defaultdict(float)
            for gram, count in self.counts[n].items():
                totals[gram[:-1]] += count
                taken[gram[:-1]] += steps[min(count, 3)]
            self.totals.append(totals)
            self.taken.append(taken)

    def probability(self, context, token):
        p = 1 / self.vocab_size
        for n in range(1, self.order + 1):
            before = tuple(context[len(context) - n + 1 :])
            total = self.totals[n].get(before, 0)
            if total:
                count = self.counts[n].get((*before, token), 0)
                p = (count - self.discounts[n][min(count, 3)]) / total + self.taken[n][before] / total * p
        return p


def stream(documents):
    return np.array([token for document in documents for token in document])


def chain_documents(count=40, length=60, seed=0):
    table = Markov.random(4, seed=seed, sharpness=2.0).table.numpy().astype(float)
    chance = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        text = [4, EOT]
        while len(text) < length and (len(text) < 3 or text[-1] != EOT):
            p = table[text[-2], text[-1]]
            text.append(int(chance.choice(4, p=p / p.sum())))
        documents.append([*(token for token in text[2:] if token != EOT), EOT])
    return documents


documents = st.lists(st.lists(st.integers(0, 2), max_size=12).map(lambda d: [*d, EOT]), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(documents, documents, st.integers(1, 5))
def test_the_same_as_the_formula_written_out(train, held_out, order):
    ours = KneserNey(stream(train), 4, EOT, order).probabilities(stream(held_out))
    plain = Plain(train, 4, order)
    expected = []
    for document in held_out:
        text = [EOT] * (order - 1) + document
        expected += [plain.probability(text[:end], text[end]) for end in range(order - 1, len(text))]
    assert ours == pytest.approx(expected, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(documents, st.lists(st.integers(0, 2), max_size=6), st.integers(1, 5))
def test_probabilities_sum_to_one_in_every_context(train, context, order):
    model = KneserNey(stream(train), 5, EOT, order)  # token 4 was never seen
    p = [model.probabilities(np.array([*context, token]))[-1] for token in range(5)]
    assert sum(p) == pytest.approx(1, abs=1e-6)
    assert min(p) > 0


@pytest.mark.parametrize("seen", [(1, 1, 2, 1), (2, 3, 1, 3), (6, 3, 4, 6)])  # counts of counts, by the formula 0
def test_a_discount_of_nothing_would_leave_unseen_tokens_impossible(seen):
    assert (discounts(np.repeat([1, 2, 3, 4], seen))[1:] > 0).all()


def test_longer_contexts_help_on_a_chain_and_none_does_better_than_the_truth():
    train, held_out = chain_documents(300, seed=0), chain_documents(60, seed=0)[::-1]
    bits = [KneserNey(stream(train), 4, EOT, n).bits(stream(held_out)).mean() for n in (1, 2, 3, 5)]
    assert bits[0] > bits[1] > bits[2]
    assert bits[3] < bits[2] + 0.05


def test_documents_begin_with_a_clean_context():
    train = stream([[0, 1, EOT], [2, 1, EOT]] * 5)
    model = KneserNey(train, 4, EOT)
    alone = model.probabilities(np.array([2, 1, EOT]))
    after = model.probabilities(np.array([0, 0, 1, EOT, 2, 1, EOT]))[4:]
    assert np.array_equal(alone, after)


def test_discounts_by_hand():
    counts = np.repeat([1, 2, 3, 4, 9], [10, 4, 2, 1, 7])
    share = 10 / 18
    expected = [0, 1 - 2 * share * 4 / 10, 2 - 3 * share * 2 / 4, 3 - 4 * share * 1 / 2]
    assert discounts(counts) == pytest.approx(expected)
    assert discounts(np.array([1, 1, 2])).tolist() == [0, 0.5, 1, 1.5]


def test_every_continuation_of_every_context_of_a_real_stream():
    text = torch.randint(0, 3, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    model = KneserNey(np.array([*text, EOT]), 4, EOT, 3)
    for context in itertools.product(range(3), repeat=2):
        p = [model.probabilities(np.array([*context, token]))[-1] for token in range(4)]
        assert math.fsum(p) == pytest.approx(1, abs=1e-6)


def test_no_text_is_refused():
    with pytest.raises(ConfigError):
        KneserNey(np.array([], dtype=np.uint16), 4, EOT)
