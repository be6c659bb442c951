"""A bounded sample of texts, chosen by their content: what a tokenizer is trained on when there is too much.

    texts -> chunks of about 32,000 characters -> the chunks with the smallest hashes, as many as fit -> their order

Reading order does not matter and nothing is random: the same texts give the same sample.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from hashlib import blake2b

CHUNK = 32_768


def bounded_sample(texts: Iterable[str], limit: int) -> list[str]:
    """The chunks of smallest hash whose UTF-8 bytes sum to at most `limit` (at least one chunk where there is text)."""
    kept: list[tuple[int, str, int]] = []  # a heap with the largest hash on top
    total = 0
    for text in texts:
        for chunk in chunks(text):
            encoded = chunk.encode("utf-8", "surrogatepass")
            order = -int.from_bytes(blake2b(encoded, digest_size=16).digest(), "big")
            heapq.heappush(kept, (order, chunk, len(encoded)))
            total += len(encoded)
            while total > limit and len(kept) > 1:
                total -= heapq.heappop(kept)[2]
    return [chunk.encode("utf-8", "replace").decode() for _, chunk, _ in sorted(kept, reverse=True)]


def chunks(text: str) -> Iterator[str]:
    """Cut `text` behind the last line end of each 32,768 characters, or behind them where there is none."""
    start = 0
    while start < len(text):
        stop = start + CHUNK
        if stop < len(text):
            line = text.rfind("\n", start, stop)
            stop = line + 1 if line >= start else stop
        yield text[start:stop]
        start = stop
