"""ROUGE-L: how much of a reference an answer holds in the same order, as the F-measure of their common subsequence.

    answer, reference -> words -> longest common subsequence -> precision, recall -> F; of several references the best

Lin 2004 ("ROUGE: A Package for Automatic Evaluation of Summaries"), with beta = 1 as the package rouge-score has it;
Hyyro 2004 (the subsequence's length by whole words of bits).
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def words(text: str) -> list[str]:
    """The runs of letters and digits, in lower case."""
    return re.findall(r"[^\W_]+", text.lower())


def common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(first)) - 1
    free = every
    for word in second:
        met = free & places.get(word, 0)
        free = ((free + met) | (free - met)) & every
    return len(first) - free.bit_count()


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """From 0 to 1: the best F-measure over the references.

    >>> round(rouge_l("the cat sat down", ["the cat sat on the mat"]), 3)
    0.6
    """
    said = words(answer)
    best = 0.0
    for reference in map(words, references):
        if both := common(said, reference):
            best = max(best, 2 * both / (len(said) + len(reference)))
    return best
