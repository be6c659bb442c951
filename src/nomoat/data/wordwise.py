"""Encode a whole batch of texts at once: split it into words in NumPy, look each word's ids up, encode only new words.

    texts -> code points [chars] -> class of each -> where GPT-2's pattern begins a word -> hash of each word [words]
          -> its number in the table of known words -> ids of all words, one behind the other

The same ids as `BpeTokenizer.encode`, which encodes the words that are new. Natural text says the same few words again
and again, so hardly any is: several times as fast.

The pattern (Radford et al. 2019): 's|'t|'re|'ve|'m|'ll|'d| ?letters| ?digits| ?others|spaces but the last|spaces.
"""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nomoat.data.near import INVERSE_POWERS, ODD, POWERS, STRETCH
from nomoat.data.tokenizer import BpeTokenizer

LETTER, DIGIT, OTHER, SPACE, UNKNOWN = 1, 2, 3, 4, 5
WHITE = (*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
LONGEST = 256  # a hash that is linear in 2^64 can be made to collide, but only by words longer than this
SLOT_BITS = 20
MOST_WORDS = 1 << 21  # then the table begins anew: text that keeps bringing new words must not fill the memory
TOGETHER = 1 << 17  # characters worked on at once
BLANK, QUOTE = ord(" "), ord("'")

Array = NDArray[Any]


class Wordwise:
    """An encoder for batches, which threads may share.

    Args:
        tokenizer: whose ids these are.
    """

    def __init__(self, tokenizer: BpeTokenizer) -> None:
        self.tokenizer = tokenizer
        self.known = Known(tokenizer)

    def encode_batch(self, texts: Sequence[str]) -> list[Array]:
        """The ids [tokens] of each text."""
        if self.known.used > MOST_WORDS:
            self.known = Known(self.tokenizer)
        known = self.known  # a thread that has begun goes on with the words it has
        ids: list[Array | None] = [None] * len(texts)
        held: dict[int, list[tuple[int, str, Array]]] = {1: [], 4: []}  # by the bytes of a code point
        sizes = {1: 0, 4: 0}
        for number, text in enumerate(texts):
            points = code_points(text)
            if points is None:
                ids[number] = self.tokenizer.encode(text)
                continue
            width = points.itemsize
            held[width].append((number, text, points))
            sizes[width] += len(points)
            if sizes[width] >= TOGETHER:
                encode_waiting(known, held[width], ids)
                held[width], sizes[width] = [], 0
        for waiting in held.values():
            encode_waiting(known, waiting, ids)
        return [one for one in ids if one is not None]


def encode_waiting(known: Known, waiting: list[tuple[int, str, Array]], ids: list[Array | None]) -> None:
    """Encode some texts together, given as (number, text, code points), and put the ids of each into its place."""
    if not waiting:
        return
    points = np.concatenate([one for _, _, one in waiting])
    ends = np.cumsum([len(one) for _, _, one in waiting])
    begins = np.zeros(len(points) + 1, dtype=bool)
    begins[0] = True
    begins[ends] = True
    start_W = word_starts(points, begins[:-1])
    word_W = known.look_up(points, start_W, "".join(text for _, text, _ in waiting))
    flat, end_W = known.spelled(word_W)
    borders = np.concatenate([[0], end_W])[np.searchsorted(start_W, np.concatenate([[0], ends]))]
    for (number, _, _), low, high in zip(waiting, borders[:-1], borders[1:], strict=True):
        ids[number] = flat[low:high]


class Known:
    """The words met so far: hash -> number -> ids.

    One thread at a time adds words; others may look up meanwhile: a word's ids are in place before its number is in the
    table, the number before the hash, and what is in the table stays.
    """

    def __init__(self, tokenizer: BpeTokenizer) -> None:
        self.spell = tokenizer.encoding.encode_ordinary if tokenizer.fast else tokenizer.encode
        self.lock = threading.Lock()
        self.keys = np.zeros(1 << SLOT_BITS, dtype=np.uint64)
        self.words = np.zeros(1 << SLOT_BITS, dtype=np.int64)
        self.numbers: dict[int, int] = {}
        self.flat = np.zeros(1 << 16, dtype=tokenizer.dtype)  # the ids of all words
        self.first = np.zeros(1 << 16, dtype=np.int64)  # where each word's begin
        self.count = np.zeros(1 << 16, dtype=np.int64)
        self.used = self.size = 0

    def spelled(self, word_W: Array) -> tuple[Array, Array]:
        """The ids of the words in a row [tokens], and where each word's end [words]."""
        count_W = self.count[word_W]
        end_W = np.cumsum(count_W)
        place = np.repeat(self.first[word_W] - end_W + count_W, count_W) + np.arange(end_W[-1] if len(end_W) else 0)
        return self.flat[place], end_W

    def look_up(self, points: Array, start_W: Array, text: str) -> Array:
        """The number of each word [words]; new words are added."""
        length_W = np.diff(start_W, append=len(points))
        hash_W = word_hashes(points, start_W, length_W)
        slot_W = (hash_W >> np.uint64(64 - SLOT_BITS)).astype(np.int64)
        missed = np.flatnonzero((self.keys[slot_W] != hash_W) | (length_W > LONGEST))
        word_W = self.words[slot_W]
        if not len(missed):
            return word_W
        with self.lock:
            long = length_W[missed] > LONGEST
            word_W[missed[long]] = self.add(cut(text, start_W, length_W, missed[long]))
            missed = missed[~long]
            hashes, example, back = np.unique(hash_W[missed], return_index=True, return_inverse=True)
            keys = hashes.tolist()
            fresh = [row for row, key in enumerate(keys) if key not in self.numbers]
            added = self.add(cut(text, start_W, length_W, missed[example[fresh]]))
            self.numbers.update(zip([keys[row] for row in fresh], added.tolist(), strict=True))
            numbers = np.array([self.numbers[key] for key in keys], dtype=np.int64)
            self.insert(hashes, numbers)
        word_W[missed] = numbers[back.reshape(-1)]
        return word_W

    def insert(self, hashes: Array, numbers: Array) -> None:
        """Put words into the table where their places are free; others are looked up the slow way each time."""
        slots = (hashes >> np.uint64(64 - SLOT_BITS)).astype(np.int64)
        slots, rows = np.unique(slots, return_index=True)
        free = self.keys[slots] == 0
        self.words[slots[free]] = numbers[rows[free]]
        self.keys[slots[free]] = hashes[rows[free]]

    def add(self, words: list[str]) -> Array:
        """Encode words, keep their ids and return their numbers [words]."""
        encoded = [self.spell(word) for word in words]
        count_W = np.array([len(ids) for ids in encoded], dtype=np.int64)
        ids = np.fromiter(chain.from_iterable(encoded), dtype=self.flat.dtype, count=int(count_W.sum()))
        self.flat = put(self.flat, self.size, ids)
        self.count = put(self.count, self.used, count_W)
        self.first = put(self.first, self.used, self.size + np.cumsum(count_W) - count_W)
        self.size += len(ids)
        self.used += len(words)
        return np.arange(self.used - len(words), self.used)


def cut(text: str, start_W: Array, length_W: Array, words: Array) -> list[str]:
    """Some words of a text, by their numbers."""
    begin = start_W[words]
    return [text[low:high] for low, high in zip(begin.tolist(), (begin + length_W[words]).tolist(), strict=True)]


def put(array: Array, at: int, values: Array) -> Array:
    """Write values into an array from `at` on; a longer copy where there is no room."""
    if at + len(values) > len(array):
        array = np.concatenate([array, np.zeros(len(array) + len(values), dtype=array.dtype)])
    array[at : at + len(values)] = values
    return array


def code_points(text: str) -> Array | None:
    """The code points [chars] in one or four bytes each; None where one is of a class that we do not know for sure."""
    try:
        return np.frombuffer(text.encode("latin-1"), dtype=np.uint8)
    except UnicodeEncodeError:
        pass
    try:
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    except UnicodeEncodeError:  # lone surrogates
        return None
    return None if (classes(points) == UNKNOWN).any() else points


def classes(points: Array) -> Array:
    """Letter, digit, other, space, or not known to this Python's Unicode tables [chars]."""
    if points.dtype == np.uint8:
        return LATIN[points]
    if (points < 0x10000).all():
        return plane()[points]
    made = plane()[np.minimum(points, 0xFFFF)]
    high = np.flatnonzero(points >= 0x10000)
    symbols, back = np.unique(points[high], return_inverse=True)
    made[high] = np.array([class_of(symbol) for symbol in symbols.tolist()], dtype=np.uint8)[back.reshape(-1)]
    return made


@cache
def plane() -> Array:
    """The class of each code point below U+10000."""
    return np.array([class_of(point) for point in range(0x10000)], dtype=np.uint8)


def class_of(point: int) -> int:
    if point in WHITE:
        return SPACE
    category = unicodedata.category(chr(point))
    if category in ("Cn", "Cs"):  # not assigned yet: a newer table may know it as a letter
        return UNKNOWN
    return {"L": LETTER, "N": DIGIT}.get(category[0], OTHER)


LATIN = np.array([class_of(point) for point in range(256)], dtype=np.uint8)


def word_starts(points: Array, text_starts: NDArray[np.bool_]) -> Array:
    """Where GPT-2's pattern begins a word [words], in texts that stand in a row and begin at `text_starts` [chars]."""
    kind = classes(points)
    blank = points == BLANK
    first = text_starts.copy()
    first[1:] |= kind[1:] != kind[:-1]  # of a run of one class
    last = np.append(first[1:], True)
    start = first.copy()
    space = kind == SPACE
    # The last of some spaces stands alone, or, if it is a blank, with what follows; at the text's end they all go on.
    before = space & last & ~np.append(text_starts[1:], True)
    start |= before
    start[1:] &= ~(before & blank)[:-1]
    shorten(points, kind, start, first & last, text_starts)
    return np.flatnonzero(start)


def shorten(points: Array, kind: Array, start: Array, alone: Array, text_starts: Array) -> None:
    """Begin a new word behind 's 't 'm 'd 're 've 'll, where an apostrophe stands alone and begins a word."""
    quote = np.flatnonzero((points == QUOTE) & alone & start)
    quote = quote[quote + 1 < len(points)]
    quote = quote[~text_starts[quote + 1]]
    following = points[quote + 1]
    after = points[np.minimum(quote + 2, len(points) - 1)]
    inside = (quote + 2 < len(points)) & ~text_starts[np.minimum(quote + 2, len(points) - 1)]
    short = np.isin(following, [ord(letter) for letter in "stmd"])
    pairs = [(following == ord(a)) & (after == ord(b)) & inside for a, b in ("re", "ve", "ll")]
    long = pairs[0] | pairs[1] | pairs[2]
    start[quote[short | long] + 1] = False
    for which, length in ((short, 2), (long, 3)):
        behind = quote[which] + length
        behind = behind[behind < len(points)]
        start[behind[(kind[behind] == LETTER)]] = True


def word_hashes(points: Array, start_W: Array, length_W: Array) -> Array:
    """A 64-bit hash of each word [words]; words longer than `LONGEST` get that of their beginning."""
    hashes = [np.zeros(0, dtype=np.uint64)]
    low = 0
    while low < len(start_W):
        origin = int(start_W[low])
        high = max(low + 1, int(np.searchsorted(start_W, origin + STRETCH - LONGEST, side="right")))
        end = min(origin + STRETCH, int(start_W[high - 1] + min(length_W[high - 1], LONGEST)))
        part = points[origin:end].astype(np.uint64)
        coded = (part + ODD) * np.uint64(0xBF58476D1CE4E5B9)
        coded ^= coded >> np.uint64(32)
        place = start_W[low:high] - origin
        hashes.append(np.add.reduceat(coded * POWERS[: end - origin], place) * INVERSE_POWERS[place])
        low = high
    mixed = np.concatenate(hashes) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31)) | np.uint64(1)  # never 0, which marks a free place
