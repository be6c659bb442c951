"""Is a text new? The nearest of those seen so far by ROUGE-L, found without comparing it with all of them.

    text -> words, hashed -> each word with its number ("the" 1, "the" 2) -> who else has it -> common words of each
         -> those that have enough of them -> longest common subsequence, 64 words at a time -> ROUGE-L

A common subsequence is no longer than the words in common, so whoever has too few of them cannot be near: nothing is
missed. MinHash, which the filter was first meant to use, misses pairs of short texts (docs/decisions/0017).

Lin 2004 (ROUGE-L); Wang et al. 2022, arXiv:2212.10560 (instructions no nearer than 0.7 to any other); Hyyro 2004 (the
subsequence by bits).
"""

from __future__ import annotations

from array import array
from collections import Counter

import numpy as np

from nomoat.data.near import word_hashes


class Novelty:
    """Texts seen so far.

    Args:
        nearest: ROUGE-L (F1 over words) above which a text is not new; 1: only the very same words are not new.
    """

    def __init__(self, nearest: float = 0.7) -> None:
        self.limit = nearest
        self._numbers: dict[tuple[int, int], int] = {}
        self._who: list[array[int]] = []  # of each numbered word, the texts that have it
        self._words: list[tuple[int, ...]] = []
        self._lengths = np.zeros(1024, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._words)

    def nearest(self, text: str) -> tuple[int, float] | None:
        """The text seen before that is too near, by its number, and how near; None: this one is new.

        Of several the nearest, and of equals the first.
        """
        words = tuple(word_hashes(text).tolist())
        known = [number for key in _counted(words) if (number := self._numbers.get(key)) is not None]
        if not known:
            return None
        sharing = np.concatenate([np.frombuffer(self._who[number], dtype=np.int32) for number in known])
        common_N = np.bincount(sharing, minlength=len(self))
        both_N = self._lengths[: len(self)] + len(words)
        limit = min(self.limit, 1 - 1e-9)
        best: tuple[int, float] | None = None
        masks = _masks(words)
        for other in np.flatnonzero(2 * common_N > limit * both_N).tolist():
            score = 2 * _subsequence(masks, len(words), self._words[other]) / float(both_N[other])
            if score > max(limit, best[1] if best else 0.0):
                best = (other, score)
        return best

    def add(self, text: str) -> int:
        """Remember a text; returns its number."""
        words, number = tuple(word_hashes(text).tolist()), len(self._words)
        for key in _counted(words):
            place = self._numbers.setdefault(key, len(self._who))
            if place == len(self._who):
                self._who.append(array("i"))
            self._who[place].append(number)
        if number == len(self._lengths):
            self._lengths = np.concatenate([self._lengths, np.zeros_like(self._lengths)])
        self._lengths[number] = len(words)
        self._words.append(words)
        return number


def _counted(words: tuple[int, ...]) -> list[tuple[int, int]]:
    """Each word with how often it has come by then, so that sets of them intersect as bags do."""
    seen: Counter[int] = Counter()
    found = []
    for word in words:
        seen[word] += 1
        found.append((word, seen[word]))
    return found


def _masks(words: tuple[int, ...]) -> dict[int, int]:
    """Of each word the places where it stands, as bits."""
    masks: dict[int, int] = {}
    for place, word in enumerate(words):
        masks[word] = masks.get(word, 0) | 1 << place
    return masks


def _subsequence(masks: dict[int, int], length: int, words: tuple[int, ...]) -> int:
    """Length of the longest common subsequence of a text, given by its masks, and words."""
    all_bits = (1 << length) - 1
    row = all_bits
    for word in words:
        hit = row & masks.get(word, 0)
        row = ((row + hit) | (row - hit)) & all_bits
    return length - row.bit_count()
