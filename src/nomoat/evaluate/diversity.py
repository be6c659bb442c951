"""How varied a text is beside a real one: what collapses first when models learn from what models wrote.

    documents of ids, real documents -> both cut to the same number of tokens -> n-grams by number -> Diversity

Every figure depends on how much text it is taken from, so a text and the real one are always cut to equal sizes.

Type-token ratio over blocks of equal length: Covington and McFall 2010. Distinct n-grams: Li et al. 2016,
arXiv:1510.03055. Self-similarity in the manner of self-BLEU: Zhu et al. 2018, arXiv:1802.01886. What thins out when
models train on their own text: Guo et al. 2023, arXiv:2311.09807; the tails go first: Shumailov et al. 2024.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nomoat.core.errors import DataError

Ids = NDArray[Any]

MOST_TOKENS = 200_000
"""Tokens that are looked at, unless said otherwise: a second's work."""
BLOCK_TOKENS = 256
RARE = 0.1
"""The rarest types that together make up so much of the real text are its tail."""
GRAM = 4
"""Length of the n-grams by which documents resemble each other."""


@dataclass(frozen=True)
class Diversity:
    """How varied a text is.

    Args:
        tokens: that were looked at.
        type_token: different tokens in a block of 256, per token; mean over the blocks.
        distinct_1, distinct_2, distinct_3: different n-grams, per n-gram.
        hapax: share of the different pairs of tokens that occur once.
        shared: self-similarity: share of the 4-grams that another document has too.
        compressed: bytes of the ids after zlib, per byte.
        tail: share of the tokens that are rare in the real text, or not in it at all.
        entropy: of single tokens, in bits.
        length_distance: largest gap between the distribution functions of the documents' lengths (Kolmogorov-Smirnov).
    """

    tokens: int
    type_token: float
    distinct_1: float
    distinct_2: float
    distinct_3: float
    hapax: float
    shared: float
    compressed: float
    tail: float
    entropy: float
    length_distance: float

    def against(self, real: Diversity) -> dict[str, float]:
        """Each figure divided by the real text's; the distance of lengths as it is."""
        own, its = asdict(self), asdict(real)
        return {
            one.name: own[one.name] if one.name == "length_distance" else own[one.name] / max(its[one.name], 1e-12)
            for one in fields(self)
            if one.name != "tokens"
        }


def compare(documents: Sequence[Ids], real: Sequence[Ids], most: int = MOST_TOKENS) -> tuple[Diversity, Diversity]:
    """The diversity of some documents, and of as many tokens of real ones.

    Args:
        documents: ids of each document, without its end.
        real: the same of real ones.
        most: tokens of each to look at; fewer where either has fewer.

    Raises:
        DataError: one of them has no tokens.
    """
    size = min(most, sum(map(len, documents)), sum(map(len, real)))
    if not size:
        raise DataError("there is no text to compare", "one of the two has no tokens", "give documents of both")
    ours, theirs = cut(documents, size), cut(real, size)
    return diversity(ours, theirs), diversity(theirs, theirs)


def diversity(documents: Sequence[Ids], real: Sequence[Ids]) -> Diversity:
    """The figures of some documents, `real` being what their tail and their lengths are held against."""
    gram = _grams(documents, max(3, GRAM))
    ids_N, count_T, count_P = gram[0][0], np.bincount(gram[0][0]), np.bincount(gram[1][0])
    raw = _concatenated(documents).astype("<u4").tobytes()
    blocks = [ids_N[start : start + BLOCK_TOKENS] for start in range(0, len(ids_N), BLOCK_TOKENS)]
    whole = [block for block in blocks if len(block) == BLOCK_TOKENS] or blocks
    share_T = count_T / len(ids_N)
    distinct = [_unlike(labels_G) for labels_G, _ in gram[:3]]
    return Diversity(
        tokens=len(ids_N),
        type_token=float(np.mean([_unlike(block) for block in whole])),
        distinct_1=distinct[0],
        distinct_2=distinct[1],
        distinct_3=distinct[2],
        hapax=float((count_P == 1).sum() / max(1, (count_P > 0).sum())),
        shared=_shared(*gram[GRAM - 1]),
        compressed=len(zlib.compress(raw, 6)) / len(raw),
        tail=_tail(_concatenated(documents), _concatenated(real)),
        entropy=float(-(share_T * np.log2(share_T)).sum()),
        length_distance=_gap([*map(len, documents)], [*map(len, real)]),
    )


def cut(documents: Sequence[Ids], tokens: int) -> list[Ids]:
    """The first documents with `tokens` tokens in all; the last of them is cut."""
    kept: list[Ids] = []
    for document in documents:
        if tokens <= 0:
            break
        kept += [document[:tokens]] if len(document) else []
        tokens -= len(document)
    return kept


def _concatenated(documents: Sequence[Ids]) -> NDArray[np.int64]:
    return np.concatenate([np.asarray(document, dtype=np.int64) for document in documents])


def _grams(documents: Sequence[Ids], most: int) -> list[tuple[Ids, Ids]]:
    """Of n = 1 to `most`: a number for each n-gram [G], the same for equal ones, and the document it stands in [G].

    A pair of numbers is numbered anew at each length, which is exact where a hash would not be.
    """
    ids_N = np.unique(_concatenated(documents), return_inverse=True)[1]
    place_N = np.repeat(np.arange(len(documents)), [*map(len, documents)])
    found, label_G = [(ids_N, place_N)], ids_N
    for length in range(2, most + 1):
        pair_G = label_G[:-1] * (int(ids_N.max()) + 1) + ids_N[length - 1 :]
        label_G = np.unique(pair_G, return_inverse=True)[1]
        inside_G = place_N[: len(label_G)] == place_N[length - 1 :]
        found.append((label_G[inside_G], place_N[: len(label_G)][inside_G]))
    return found


def _unlike(labels_G: Ids) -> float:
    return len(np.unique(labels_G)) / max(1, len(labels_G))


def _shared(labels_G: Ids, places_G: Ids) -> float:
    """Share of the n-grams that occur in more than one document."""
    if not len(labels_G):
        return 0.0
    pair_2P = np.unique(np.stack([labels_G, places_G]), axis=1)
    documents_L = np.bincount(pair_2P[0], minlength=int(labels_G.max()) + 1)
    return float((documents_L[labels_G] > 1).mean())


def _tail(ids_N: Ids, real_N: Ids) -> float:
    """Share of the tokens that are of the real text's rarest types, or of none of its types."""
    count_V = np.bincount(real_N, minlength=int(ids_N.max()) + 1)
    order_V = np.argsort(count_V, kind="stable")
    rare_V = np.zeros(len(count_V), dtype=bool)
    rare_V[order_V[count_V[order_V].cumsum() <= RARE * len(real_N)]] = True
    return float(rare_V[ids_N].mean())


def _gap(lengths: Sequence[int], real: Sequence[int]) -> float:
    """The largest gap between two distribution functions."""
    ours, theirs = np.sort(lengths), np.sort(real)
    at = np.union1d(ours, theirs)
    return float(
        np.abs(
            np.searchsorted(ours, at, side="right") / len(ours)
            - np.searchsorted(theirs, at, side="right") / len(theirs)
        ).max()
    )
