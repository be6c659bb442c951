"""Interpolated modified Kneser-Ney: the n-gram model to beat, over the same tokens, in sorted NumPy tables.

    tokens_N -> ids of the n-grams ending at each position, n = 1..5 -> adjusted counts -> discounts -> p(w | context)

    p_n(w | c) = max(a(c w) - D(a(c w)), 0) / sum_v a(c v)  +  g(c) p_{n-1}(w | c without its first token)

a is the count at the highest order and, below it, the number of different tokens seen before the n-gram; g(c) is what
the discounts D took away; below the unigrams stands 1 / V. An n-gram is found as (id of its first n - 1 tokens) x V +
(its last token), in a sorted table, whose places are the ids of the next order: probabilities are exact, none hashed.

Kneser and Ney 1995; Chen and Goodman 1999, section 3 (three discounts, from the counts of counts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nomoat.core.errors import ConfigError

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class _Order:
    """The n-grams of one length.

    Args:
        keys_G: (id of the context) x V + token, rising; the place of a key is the n-gram's id.
        share_G: the n-gram's discounted part of its context's counts.
        rest_C: what is left to the shorter context, of each context by id.
    """

    keys_G: Ids
    share_G: NDArray[np.float32]
    rest_C: NDArray[np.float32]

    def find(self, keys_N: Ids) -> Ids:
        """The ids [N] of n-grams, -1 where one was never seen."""
        place_N = np.searchsorted(self.keys_G, keys_N)
        place_N[place_N == len(self.keys_G)] = 0
        return np.where(self.keys_G[place_N] == keys_N, place_N, -1)


class KneserNey:
    """An n-gram model of a stream of documents, each closed by its end token.

    Every document begins with a clean context (document ends only), and its end is predicted too.

    Args:
        tokens_N: the training stream, at least one token. About 200 bytes of memory a token.
        vocab_size: number of different ids, V.
        eot: the document end.
        order: longest n-gram.
    """

    def __init__(self, tokens_N: NDArray[Any], vocab_size: int, eot: int, order: int = 5) -> None:
        if len(tokens_N) == 0:
            raise ConfigError("an n-gram model of no text predicts nothing", fix="give it training tokens")
        self.vocab_size, self.eot, self.order = vocab_size, eot, order
        tokens_P, counted_P = self._padded(tokens_N)
        self.levels: list[_Order] = []
        keys_G, ids_P, contexts = np.arange(vocab_size, dtype=np.int64), tokens_P, 1
        for _ in range(2, order + 1):
            longer = _unique(self._keys(ids_P, tokens_P))
            seen_G = np.bincount(longer.ids_P[counted_P], minlength=len(longer.keys_G)) > 0
            # Each longer n-gram that was seen is one more token before its last n - 1.
            adjusted_G = np.bincount(ids_P[longer.first_G[seen_G]], minlength=len(keys_G))
            self.levels.append(_discounted(keys_G, adjusted_G, contexts, vocab_size))
            contexts, keys_G, ids_P = len(keys_G), longer.keys_G, longer.ids_P
        counts_G = np.bincount(ids_P[counted_P], minlength=len(keys_G))
        self.levels.append(_discounted(keys_G, counts_G, contexts, vocab_size))

    def probabilities(self, tokens_N: NDArray[Any]) -> NDArray[np.float64]:
        """Probability [N] of each token of a stream of documents, given those before it in its document."""
        tokens_P, counted_P = self._padded(tokens_N)
        p_P = np.full(len(tokens_P), 1 / self.vocab_size)
        context_P = np.zeros(len(tokens_P), dtype=np.int64)  # the one empty context of the unigrams
        for level in self.levels:
            ids_P = level.find(np.where(context_P >= 0, context_P * self.vocab_size + tokens_P, -1))
            rest_P = np.where(context_P >= 0, level.rest_C[context_P], 1.0)
            p_P = np.where(ids_P >= 0, level.share_G[ids_P], 0.0) + rest_P * p_P
            context_P = np.concatenate([[-1], ids_P[:-1]])
        return p_P[counted_P]

    def bits(self, tokens_N: NDArray[Any]) -> NDArray[np.float64]:
        """Bits [N] of each token of a stream of documents."""
        return -np.log2(self.probabilities(tokens_N))

    def _padded(self, tokens_N: NDArray[Any]) -> tuple[Ids, NDArray[np.bool_]]:
        """The stream with a full context of document ends before each document, and which tokens are the text's."""
        first_D = np.flatnonzero(np.asarray(tokens_N[:-1]) == self.eot) + 1
        before = np.concatenate([np.zeros(self.order - 1, np.int64), np.repeat(first_D, max(0, self.order - 2))])
        tokens_P = np.insert(np.asarray(tokens_N, dtype=np.int64), before, self.eot)
        counted_P = np.insert(np.ones(len(tokens_N), dtype=bool), before, False)
        return tokens_P, counted_P

    def _keys(self, ids_P: Ids, tokens_P: Ids) -> Ids:
        """Keys of the n-grams one token longer; the first position's context is any, for it is padding."""
        context_P = np.concatenate([ids_P[:1], ids_P[:-1]])
        return context_P * self.vocab_size + tokens_P


@dataclass(frozen=True)
class _Unique:
    """Different keys, rising; the place of each position's key among them; a position of each key."""

    keys_G: Ids
    ids_P: Ids
    first_G: Ids


def _unique(keys_P: Ids) -> _Unique:
    order_P = np.argsort(keys_P)
    sorted_P = keys_P[order_P]
    new_P = np.concatenate([[True], sorted_P[1:] != sorted_P[:-1]])
    ids_P = np.empty(len(keys_P), dtype=np.int64)
    ids_P[order_P] = np.cumsum(new_P) - 1
    return _Unique(sorted_P[new_P], ids_P, order_P[new_P])


def _discounted(keys_G: Ids, counts_G: Ids, contexts: int, vocab_size: int) -> _Order:
    """Take the discount off every n-gram's count, and give it to the shorter context."""
    context_G = keys_G // vocab_size
    discount_G = discounts(counts_G)[np.minimum(counts_G, 3)]
    total_C = np.bincount(context_G, counts_G, minlength=contexts)
    taken_C = np.bincount(context_G, discount_G, minlength=contexts)
    unseen_C = total_C == 0  # such a context stands in padding only
    total_C[unseen_C] = taken_C[unseen_C] = 1
    share_G = (counts_G - discount_G) / total_C[context_G]
    return _Order(keys_G, share_G.astype(np.float32), (taken_C / total_C).astype(np.float32))


def discounts(counts_G: Ids) -> NDArray[np.float64]:
    """The discounts [0, D1, D2, D3+] of Chen and Goodman, equation 26; 0.5, 1, 1.5 where the counts do not tell."""
    n = np.bincount(np.minimum(counts_G, 5), minlength=6)[:5].astype(np.float64)
    if not n[1:].all():
        return np.array([0.0, 0.5, 1.0, 1.5])
    share = n[1] / (n[1] + 2 * n[2])
    found = [k - (k + 1) * share * n[k + 1] / n[k] for k in (1, 2, 3)]
    # With a discount of nothing, what was not seen would be impossible.
    if not all(0 < discount <= k for k, discount in enumerate(found, 1)):
        return np.array([0.0, 0.5, 1.0, 1.5])
    return np.array([0.0, *found])
