"""The oddest lines of many documents at the price of little more than their bits per byte.

    bits_N of the stream (windows without overlap) -> excess of every line -> candidates
        -> each candidate again, with a full window before its end -> excess -> the oddest

In windows without overlap the first tokens of a window are dear for want of context. A line that is odd only for that
is found out when it is read again; one that is odd is among the candidates, for context makes nothing dearer by much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nomoat.core.types import Scores
from nomoat.data.tokenizer import Tokenizer
from nomoat.evaluate.bits import Excerpt, Watch, token_bits
from nomoat.evaluate.surprise import Bits, Line, Usual, character_bits, cut_lines, top

Place = Callable[[int, int], str]
"""(number of a document in its split, line ends before) -> where that is."""

CANDIDATES = 10
"""Candidates for each line wanted."""


def oddest_lines(
    model: Scores,
    tokenizer: Tokenizer,
    excerpt: Excerpt,
    bits_N: NDArray[Any],
    place: Place,
    count: int = 10,
    watch: Watch | None = None,
) -> list[Line]:
    """The lines of the excerpt with the greatest excess.

    Args:
        model: scores tokens.
        tokenizer: the model's.
        excerpt: the documents.
        bits_N: bits of each of their tokens, from `bits.stream_bits`.
        place: says where a line stands.
        count: how many.
        watch: told the progress of the second reading in tokens.
    """
    documents = [_Document(tokenizer, excerpt, number) for number in range(len(excerpt.ends_D))]
    lines = [line for document in documents for line in document.lines(bits_N)]
    usual = Usual.of([line.text for line in lines], np.array([line.bits for line in lines]))
    candidates = top([replace(line, excess=usual.excess(line.text, line.bits)) for line in lines], CANDIDATES * count)
    reach: int = model.config.context_length  # type: ignore[attr-defined]
    owners = [documents[int(line.file)] for line in candidates]
    sequences = [owner.before(line.number, reach) for owner, line in zip(owners, candidates, strict=True)]
    again = token_bits(model, sequences, watch=watch)
    found = []
    for owner, line, bits in zip(owners, candidates, again, strict=True):
        bits_C = owner.of_line(line.number, bits)
        cost, where = float(bits_C.sum()), place(owner.number, line.number - 1)
        excess = usual.excess(line.text, cost)
        found.append(replace(line, where=where, bits=cost, bits_C=bits_C[: len(line.text)], excess=excess))
    return top(found, count)


class _Document:
    """A document of the excerpt: its tokens, its bytes and where its lines lie in both."""

    def __init__(self, tokenizer: Tokenizer, excerpt: Excerpt, index: int) -> None:
        self.index, self.number = index, int(excerpt.numbers_D[index])
        self.start = int(excerpt.ends_D[index - 1]) if index else 0
        self.eot = tokenizer.eot
        self.ids_N = excerpt.document(index)[:-1]
        self.lengths_N = tokenizer.lengths[self.ids_N]
        self.data = tokenizer.decode_bytes(self.ids_N)
        self.byte_ends_N = self.lengths_N.cumsum()
        self.line_ends = np.append(np.flatnonzero(np.frombuffer(self.data, np.uint8) == ord("\n")) + 1, len(self.data))

    def lines(self, bits_N: NDArray[Any]) -> Iterator[Line]:
        """Every line with its bits from those of all tokens of the excerpt; its excess is not known yet."""
        text = self.data.decode("utf-8", "replace")
        bits_C = character_bits(bits_N[self.start : self.start + len(self.ids_N)], self.lengths_N, text)
        for number, line, bits, own_C in cut_lines(text, bits_C):
            yield Line(str(self.index), number, "", line, bits, 0.0, own_C)

    def before(self, number: int, reach: int) -> NDArray[Any]:
        """A line's tokens with as many before them as a model can use: all of a window, half a window at least."""
        first, last = self._tokens(number)
        begin = max(0, min(last - reach, first - reach // 2))
        return np.concatenate([[self.eot], self.ids_N])[begin : last + 1]

    def of_line(self, number: int, bits_N: NDArray[Any]) -> Bits:
        """Bits of each character of a line, its line end too, from those of the tokens that `before` gave."""
        first, last = self._tokens(number)
        begin, end = self._bytes(number)
        lengths_N = self.lengths_N[first:last]
        bits_M = np.repeat(bits_N[len(bits_N) - (last - first) :] / np.maximum(1, lengths_N), lengths_N).astype(
            np.float64
        )
        skip = begin - int(self.byte_ends_N[first] - self.lengths_N[first])
        bytes_M = np.frombuffer(self.data[begin:end], np.uint8)
        return np.add.reduceat(bits_M[skip : skip + end - begin], np.flatnonzero(bytes_M & 0xC0 != 0x80))

    def _bytes(self, number: int) -> tuple[int, int]:
        return (int(self.line_ends[number - 2]) if number > 1 else 0), int(self.line_ends[number - 1])

    def _tokens(self, number: int) -> tuple[int, int]:
        """First token of a line and the one behind its last; a token may reach into its neighbours."""
        begin, end = self._bytes(number)
        first, last = np.searchsorted(self.byte_ends_N, [begin, end - 1], side="right")
        return int(first), int(last) + 1
