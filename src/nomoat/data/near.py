"""Near-duplicates: groups of documents that share most of their five-word (or five-token) shingles.

    text -> words, hashed [words] -> shingles of five, hashed [shingles] -> MinHash signature [112]
         -> 28 bands of 4 -> documents that meet in a band and agree in 60 % of all values -> groups

Two documents with a share J of common shingles (Jaccard) meet with probability 1 - (1 - J^4)^28, more than 0.99 from
J = 0.63 on; that they also agree in enough values is as likely at J = 0.7, 1 in 60 at 0.5; it does not occur at 0.3.
The usual 14 bands of 8 without this second look miss a quarter of the copies in which a tenth of 100 words was replaced
(J = 0.75). Single words replaced all over a text leave J below 0.5: not found.

All of it is NumPy over integers, and nothing is random.

Broder 1997 (shingles, MinHash); Penedo et al. 2024, arXiv:2406.17557 (FineWeb: five words, 14 bands of 8).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHINGLE = 5
BANDS, BAND_ROWS = 28, 4
VALUES = BANDS * BAND_ROWS
EQUAL_SHARE = 0.6  # of the 112 values, to believe a pair that met in a band
BLOCK = 8192  # shingles permuted at once: they and their permuted copy stay in the cache
STRETCH = 32_768  # bytes hashed into words at once, for the same reason
ALONE = 0xE3  # UTF-8's first byte from U+3000 on: signs that are words by themselves
NOTHING = np.uint32(0xFFFFFFFF)

Signatures = NDArray[np.uint32]
Hashes = NDArray[np.uint64]

_SEEDED = np.random.Generator(np.random.PCG64(112))
# The 112 permutations of the 32-bit hashes: h -> (h xor offset) * odd multiplier.
OFFSETS = _SEEDED.integers(0, 2**32, VALUES, dtype=np.uint32)
MULTIPLIERS = _SEEDED.integers(0, 2**32, VALUES, dtype=np.uint32) | np.uint32(1)


def groups(documents: Iterable[Any]) -> NDArray[np.int64]:
    """The group of each document [documents], named by the number of its first member; most documents are alone.

    Args:
        documents: texts, or arrays of token ids [tokens]; not both.
    """
    return group(signatures(documents))


def signatures(documents: Iterable[Any]) -> Signatures:
    """The MinHash signature of each document [documents, 112]; all ones for one without words."""
    made: list[Signatures] = []
    held: list[Any] = []
    size = 0
    for document in documents:
        held.append(document)
        size += len(document)
        if size >= BLOCK * 4:
            made.append(_signatures(*_words(held)))
            held, size = [], 0
    made.append(_signatures(*_words(held)))
    return np.concatenate(made)


def group(signature_NV: Signatures) -> NDArray[np.int64]:
    """The groups [documents] of the documents with these signatures [documents, 112]."""
    group_N = np.arange(len(signature_NV))
    filled_N = np.flatnonzero((signature_NV != NOTHING).any(axis=1))
    for band in range(BANDS):
        rows = np.ascontiguousarray(signature_NV[filled_N, band * BAND_ROWS : (band + 1) * BAND_ROWS])
        _, bucket = np.unique(rows.view(f"V{rows.itemsize * BAND_ROWS}"), return_inverse=True)
        order = np.argsort(bucket.reshape(-1), kind="stable")
        member, bucket = filled_N[order], bucket.reshape(-1)[order]
        together = np.flatnonzero(np.diff(bucket) == 0)
        first = member[np.searchsorted(bucket, bucket[together])]
        left, right = np.concatenate([member[together], first]), np.tile(member[together + 1], 2)
        near = (signature_NV[left] == signature_NV[right]).mean(axis=1) >= EQUAL_SHARE
        group_N = join(group_N, left[near], right[near])
    return group_N


def word_hashes(text: str) -> Hashes:
    """One hash a word [words]: a run of letters and digits, ASCII ones in lower case; each sign from U+3000 on.

    So a Chinese, Japanese or Korean sign is a word; spaces and ASCII punctuation count for nothing.
    """
    return _words([text])[0]


def _words(documents: list[Any]) -> tuple[Hashes, NDArray[np.int64]]:
    """The words of all documents in a row [words], and how many each has [documents]."""
    if not documents or not isinstance(documents[0], str):
        ids = [np.asarray(document).astype(np.uint64) for document in documents]
        return np.concatenate([np.zeros(0, np.uint64), *ids]), np.array([len(one) for one in ids], dtype=np.int64)
    encoded = [text.encode("utf-8", "replace") for text in documents]
    raw = np.frombuffer(b"\n".join(encoded), dtype=np.uint8)
    inside = CODES[raw] != 0
    begins = inside & (raw >= ALONE)
    begins[:1] |= inside[:1]
    begins[1:] |= inside[1:] & ~inside[:-1]
    start_W = np.flatnonzero(begins)
    hashes: list[Hashes] = [np.zeros(0, dtype=np.uint64)]
    low = 0
    while low < len(start_W):
        origin = int(start_W[low])
        high = int(np.searchsorted(start_W, origin + STRETCH))
        end = int(start_W[high]) if high < len(start_W) else len(raw)
        if end > origin + STRETCH and high > low + 1:  # the last word may reach beyond: leave it for the next stretch
            high -= 1
            end = int(start_W[high])
        end = min(end, origin + STRETCH)  # of a longer word its beginning counts
        place = start_W[low:high] - origin
        weighted = CODES[raw[origin:end]] * POWERS[: end - origin]
        # Each word's sum of code x P^position, moved back to position 0; separators have the code 0.
        hashes.append(np.add.reduceat(weighted, place) * INVERSE_POWERS[place])
        low = high
    ends = np.cumsum([len(one) + 1 for one in encoded])
    return np.concatenate(hashes), np.diff(np.searchsorted(start_W, ends), prepend=0)


def _signatures(words: Hashes, count_N: NDArray[np.int64]) -> Signatures:
    """The signatures of documents that stand in a row, from the hashes of their words [words] and their counts."""
    signature_NV = np.full((len(count_N), VALUES), NOTHING, dtype=np.uint32)
    filled = np.flatnonzero(count_N)
    if not len(filled):
        return signature_NV
    # A text of fewer than five words is one shingle, padded.
    length_N = np.maximum(count_N[filled], SHINGLE)
    ends = np.cumsum(length_N)
    shift_N = ends - length_N - (np.cumsum(count_N[filled]) - count_N[filled])
    mixed = np.zeros(int(ends[-1]), dtype=np.uint64)
    mixed[np.arange(len(words)) + np.repeat(shift_N, count_N[filled])] = _mix(words + ODD)
    shingle = mixed[: len(mixed) - SHINGLE + 1].copy()
    for later in range(1, SHINGLE):
        shingle *= ODD
        shingle += mixed[later : len(mixed) - SHINGLE + 1 + later]
    whole = np.ones(len(shingle), dtype=bool)
    for back in range(1, SHINGLE):  # shingles that reach into the next document
        whole[ends[:-1] - back] = False
    hash_S = (_mix(shingle[whole]) >> np.uint64(32)).astype(np.uint32)
    shingles_N = length_N - SHINGLE + 1
    signature_NV[filled] = _smallest(hash_S, np.cumsum(shingles_N) - shingles_N)
    return signature_NV


def _smallest(hash_S: NDArray[np.uint32], first_N: NDArray[np.int64]) -> Signatures:
    """The smallest value of each permutation among the shingles of each document, which begin at `first_N`."""
    signature_NV = np.full((len(first_N), VALUES), NOTHING, dtype=np.uint32)
    for begin in range(0, len(hash_S), BLOCK):
        part = hash_S[begin : begin + BLOCK]
        low = int(np.searchsorted(first_N, begin, side="right")) - 1
        high = int(np.searchsorted(first_N, begin + len(part)))
        place = np.maximum(first_N[low:high] - begin, 0)
        moved = np.empty_like(part)
        smallest_VN = np.empty((VALUES, high - low), dtype=np.uint32)
        for value in range(VALUES):
            np.bitwise_xor(part, OFFSETS[value], out=moved)
            np.multiply(moved, MULTIPLIERS[value], out=moved)
            np.minimum.reduceat(moved, place, out=smallest_VN[value])
        np.minimum(signature_NV[low:high], smallest_VN.T, out=signature_NV[low:high])
    return signature_NV


def join(group_N: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Union of all pairs at once: hook the larger root to the smaller, then shorten every path, until nothing moves."""
    while True:
        one, other = group_N[left], group_N[right]
        apart = one != other
        if not apart.any():
            return group_N
        np.minimum.at(group_N, np.maximum(one, other)[apart], np.minimum(one, other)[apart])
        while (shorter := group_N[group_N]).tolist() != group_N.tolist():
            group_N = shorter


def _mix(word: Hashes) -> Hashes:
    mixed = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _codes() -> Hashes:
    """A 64-bit code of each byte that belongs to a word, 0 for the others; capital letters as small ones."""
    code = _mix(np.arange(1, 257, dtype=np.uint64) * ODD)
    for byte in range(128):
        letter = chr(byte)
        code[byte] = code[ord(letter.lower())] if letter.isalnum() or letter == "_" else 0
    return code


def _powers(base: int) -> Hashes:
    steps = np.full(STRETCH, base, dtype=np.uint64)
    steps[0] = 1
    return np.cumprod(steps)


ODD = np.uint64(0x9E3779B97F4A7C15)
CODES = _codes()
POWERS, INVERSE_POWERS = _powers(0x9E3779B97F4A7C15), _powers(pow(0x9E3779B97F4A7C15, -1, 2**64))
