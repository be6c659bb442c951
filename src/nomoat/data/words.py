"""Captions as words: one id a word, number or sign, for texts of few different ones; unknown words are named.

    "A red square." -> a, red, square, . -> ids [words]

Its tokenizer.json is a WordLevel model that `tokenizers` opens too, but for unknown words: there the rest is read, here
nothing is. Decoding gives words with one space between.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nomoat.core.errors import DataError, nearest
from nomoat.data.tokenizer import EOT, Tokenizer

WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")
SPLIT: dict[str, Any] = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": WORD.pattern}, "behavior": "Removed", "invert": True},
    ],
}
LOWER: dict[str, Any] = {"type": "Lowercase"}


class WordTokenizer(Tokenizer):
    """One id a word.

    Args:
        words: every word that may occur, in small letters; kept sorted and without repeats.
    """

    kind = "words"

    def __init__(self, words: Iterable[str]) -> None:
        self.words = sorted(set(words))
        super().__init__([word.encode() for word in self.words])
        self.ids = {word: number for number, word in enumerate(self.words)}

    @classmethod
    def of(cls, captions: Iterable[str], most: int = 8192, fewest: int = 1) -> WordTokenizer:
        """The words of some captions.

        Args:
            captions: read once.
            most: words at most, the most used first.
            fewest: times that a word must occur.
        """
        counts = Counter(word for caption in captions for word in split(caption))
        ranked = sorted((-count, word) for word, count in counts.items() if count >= fewest)
        return cls(word for _, word in ranked[:most])

    def unknown(self, text: str) -> list[str]:
        """The words of a text that it does not know, each once."""
        return list(dict.fromkeys(word for word in split(text) if word not in self.ids))

    def encode(self, text: str) -> NDArray[Any]:
        """The ids [words]. Raises DataError with all unknown words."""
        if missing := self.unknown(text):
            near = [said for word in missing if (said := nearest(word, self.words))]
            raise DataError(
                f"unknown words: {', '.join(missing)}",
                f"the model was taught captions of {len(self.words):,} words",
                "; ".join(near) or f"it knows for example: {', '.join(self.words[:12])}",
            )
        return np.array([self.ids[word] for word in split(text)], dtype=self.dtype)

    def decode(self, ids: Any) -> str:
        """The words with one space between; the document end is nothing."""
        return " ".join(self.words[number] for number in np.asarray(ids).tolist() if number != self.eot)

    def known(self, text: str) -> NDArray[Any]:
        """The ids [words] of the words that it knows; the others are left out."""
        return np.array([self.ids[word] for word in split(text) if word in self.ids], dtype=self.dtype)

    def _pipeline(self) -> dict[str, Any]:
        return {"normalizer": LOWER, "pre_tokenizer": SPLIT, "post_processor": None, "decoder": None}

    def _model(self) -> dict[str, Any]:
        vocabulary = {word: number for number, word in enumerate((*self.words, EOT))}
        return {"type": "WordLevel", "vocab": vocabulary, "unk_token": EOT, "merges": []}


def split(text: str) -> list[str]:
    """The words and signs of a text, in small letters."""
    return WORD.findall(text.lower())


def padded(rows: Sequence[NDArray[Any]], length: int, padding: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Ids [B, M] and where they stand [B, M]; of longer rows the beginning is kept."""
    ids_BM = np.full((len(rows), length), padding, dtype=np.int64)
    there_BM = np.zeros((len(rows), length), dtype=bool)
    for number, row in enumerate(rows):
        kept = row[:length]
        ids_BM[number, : len(kept)], there_BM[number, : len(kept)] = kept, True
    return ids_BM, there_BM
