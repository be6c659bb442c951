"""Where a text was copied from: the longest run of it that stands, word for word, in the training text.

    shards -> documents as bytes [N] -> hashes of 16-byte windows -> those of the samples -> longer ones -> the longest

The training text is read once, block by block, against all samples: a rolling hash (bytes times powers of an odd
number, modulo 2^64) finds every window that a sample has too; of those only the ones that also agree at a greater
length are kept, until none is left. Equal windows have equal hashes, and a hit is compared byte by byte: the result is
exact. It is found in bytes, so it does not depend on how either text was cut into tokens. A run that begins with 16
blanks does not count: indentation is nobody's. A match is textual; it says nothing about what the model learned from.

Karp and Rabin 1987 (rolling hash); Carlini et al. 2023, arXiv:2202.07646 (verbatim memorisation).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nomoat.data.document import place
from nomoat.data.shards import ShardReader
from nomoat.data.tokenizer import Tokenizer
from nomoat.evaluate.bits import Watch

Bytes = NDArray[np.uint8]
Hashes = NDArray[np.uint64]

SHORTEST_BYTES = 16
BLOCK_TOKENS = 1_000_000
BASE = 0x9E3779B97F4A7C15  # odd, so that its powers can be divided out again
BETWEEN = b"\xff"  # stands in no UTF-8 text: no run goes from one document to the next
BLANKS = np.frombuffer(b" \t\n\r\v\f", np.uint8)
FILTER_BITS = 20


@dataclass(frozen=True)
class Copy:
    """The longest run of a sample that stands in the training text.

    Args:
        text: the run.
        characters: its length; runs under 16 bytes, and such as begin with 16 blanks, are not looked for.
        tokens: its length in the tokenizer's tokens.
        share: its share of the sample's characters.
        document: number of the training document in which it stands first.
        where: that document's file and the line in which the run begins.
        licence: the licence of that document, None where unknown.
    """

    text: str
    characters: int
    tokens: int
    share: float
    document: int
    where: str
    licence: str | None


@dataclass
class _Sample:
    """A text that is looked for, and the longest run found so far: its length and place in the training text."""

    data: bytes
    prefix_N: Hashes
    length: int = SHORTEST_BYTES - 1
    document: int = -1
    start: int = 0


def longest_copies(
    samples: Sequence[str], reader: ShardReader, tokenizer: Tokenizer, watch: Watch | None = None
) -> list[Copy | None]:
    """For each sample its longest run in the shards; None where it has none of 16 bytes or more.

    Args:
        samples: texts.
        reader: the training shards.
        tokenizer: the shards' tokenizer.
        watch: told {"kind": "verbatim", "done", "total"} in tokens, after each block.
    """
    longest = max((len(sample.encode("utf-8", "replace")) for sample in samples), default=0)
    hashing = _Rolling(longest)
    wanted = [
        _Sample(data, hashing.prefix(np.frombuffer(data, np.uint8)))
        for data in (sample.encode("utf-8", "replace") for sample in samples)
    ]
    known = np.zeros(1 << FILTER_BITS, dtype=bool)
    for sample in wanted:
        known[_short(hashing.windows(sample.prefix_N, SHORTEST_BYTES))] = True
    for first, last in _blocks(reader):
        _search(reader, tokenizer, (first, last), wanted, known, hashing)
        if watch:
            watch({"kind": "verbatim", "done": int(reader.ends[last - 1]), "total": reader.tokens})
    return [_copy(text, sample, reader, tokenizer) for text, sample in zip(samples, wanted, strict=True)]


def _blocks(reader: ShardReader) -> Iterator[tuple[int, int]]:
    """Ranges of documents of about a million tokens each."""
    first = 0
    while first < reader.documents:
        begin = int(reader.ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(reader.ends, begin + BLOCK_TOKENS)))
        yield first, min(last, reader.documents)
        first = last


def _search(
    reader: ShardReader,
    tokenizer: Tokenizer,
    documents: tuple[int, int],
    samples: list[_Sample],
    known: NDArray[np.bool_],
    hashing: _Rolling,
) -> None:
    """Read a block of documents and note every longer run."""
    begin, end = reader.span(documents[0])[0], reader.span(documents[1] - 1)[1]
    ids_N = reader.window(begin, end - begin)
    spelling = [*tokenizer.tokens]
    spelling[reader.eot] = BETWEEN
    text = b"".join([spelling[token] for token in ids_N.tolist()])
    data_N = np.frombuffer(text, np.uint8)
    prefix_N = hashing.prefix(data_N)
    candidates = np.flatnonzero(known[_short(hashing.windows(prefix_N, SHORTEST_BYTES))])
    written_N = np.concatenate([[0], np.cumsum(~np.isin(data_N, BLANKS))])
    candidates = candidates[written_N[candidates + SHORTEST_BYTES] > written_N[candidates]]
    firsts = np.concatenate([[0], np.flatnonzero(data_N == BETWEEN[0]) + 1])
    for sample in samples:
        found = _longest(text, prefix_N, candidates, sample, hashing)
        if found:
            sample.length, position = found
            inside = int(np.searchsorted(firsts, position, side="right")) - 1
            sample.document, sample.start = documents[0] + inside, position - int(firsts[inside])


def _longest(
    text: bytes, prefix_N: Hashes, candidates: NDArray[np.int64], sample: _Sample, hashing: _Rolling
) -> tuple[int, int] | None:
    """Length and first place of the longest run that is longer than what the sample has; None where there is none."""

    def agreeing(length: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        places = places[places + length < len(prefix_N)]
        theirs = np.sort(hashing.windows(sample.prefix_N, length))
        if not len(theirs) or not len(places):
            return places[:0]
        ours = hashing.windows(prefix_N, length, places)
        nearest = np.minimum(np.searchsorted(theirs, ours), len(theirs) - 1)
        places = places[theirs[nearest] == ours]
        while len(places) and text[places[0] : places[0] + length] not in sample.data:
            places = places[1:]  # equal hashes of unequal windows: all but impossible
        return places

    length, step, growing = sample.length, 1, True
    alive = candidates
    best = None
    while step:
        further = agreeing(length + step, alive)
        if len(further):
            alive, length = further, length + step
            best = length, int(alive[0])
            step = step * 2 if growing else step // 2
        else:
            growing, step = False, step // 2
    return best


class _Rolling:
    """Hashes of all windows of a text from one pass over it.

    Args:
        length: longest text that is to be expected; the powers grow when a longer one comes.
    """

    def __init__(self, length: int) -> None:
        self._grow(length)

    def _grow(self, length: int) -> None:
        inverse = pow(BASE, -1, 1 << 64)
        self.power_N, self.inverse_N = (
            np.concatenate([[np.uint64(1)], np.cumprod(np.full(length, base, dtype=np.uint64))])
            for base in (np.uint64(BASE), np.uint64(inverse))
        )

    def prefix(self, data_N: Bytes) -> Hashes:
        """Sums [N + 1] of the bytes before each place, each byte times the power of its place."""
        if len(data_N) > len(self.power_N):
            self._grow(len(data_N))
        # Zero bytes must count too: "a" is not "\0a".
        terms_N = (data_N.astype(np.uint64) + np.uint64(1)) * self.power_N[: len(data_N)]
        return np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(terms_N)])

    def windows(self, prefix_N: Hashes, length: int, places: NDArray[np.int64] | None = None) -> Hashes:
        """The hash of the window of `length` bytes at each of `places`, or at every place there is."""
        if places is None:
            count = max(0, len(prefix_N) - length)
            return (prefix_N[length:] - prefix_N[:count]) * self.inverse_N[:count]
        return (prefix_N[places + length] - prefix_N[places]) * self.inverse_N[places]


def _short(hashes_N: Hashes) -> NDArray[np.int64]:
    return (hashes_N >> np.uint64(64 - FILTER_BITS)).astype(np.int64)


def _copy(text: str, sample: _Sample, reader: ShardReader, tokenizer: Tokenizer) -> Copy | None:
    if sample.document < 0:
        return None
    begin, end = reader.span(sample.document)
    document = tokenizer.decode_bytes(reader.window(begin, end - begin))
    run = document[sample.start : sample.start + sample.length].decode("utf-8", errors="ignore")
    line: dict[str, Any] = reader.line(sample.document)
    return Copy(
        text=run,
        characters=len(run),
        tokens=len(tokenizer.encode(run)),
        share=len(run) / len(text),
        document=sample.document,
        where=place(line["source"] or "", line["member"] or "", document[: sample.start].count(b"\n")),
        licence=line["licence"],
    )
