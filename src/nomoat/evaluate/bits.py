"""Bits per byte: how well a model predicts text, in a unit that does not depend on its tokens.

    tokens_N -> windows [B, L + 1] -> score -> bits_N -> sums by document -> bits per byte, interval, perplexity

Every token counts once, the document ends too: a text is only known when its end is. Bits divided by the bytes of the
text compare models with different vocabularies, compressors (gzip, xz) and n-gram models alike.

Shannon 1948; the interval is the percentile bootstrap of Efron 1979 over documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from nomoat.core.errors import DataError
from nomoat.core.types import Scores
from nomoat.data.rows import Windows
from nomoat.data.shards import ShardReader
from nomoat.data.tokenizer import Tokenizer
from nomoat.sampling.write import device_of

Watch = Callable[[Mapping[str, Any]], None]

BATCH_TOKENS = 8192
RESAMPLES = 1000
FEW_DOCUMENTS = 10
BLOCK_TOKENS = 256


@dataclass(frozen=True)
class Excerpt:
    """Documents back to back, as the shards hold them, or a sample of them.

    Args:
        tokens_N: ids, a document end behind each document.
        ends_D: position behind each document's end token.
        numbers_D: the number of each document in its split.
    """

    tokens_N: NDArray[Any]
    ends_D: NDArray[np.int64]
    numbers_D: NDArray[np.int64]

    @classmethod
    def of(cls, reader: ShardReader, most_tokens: int | None = None, seed: int = 0) -> Excerpt:
        """A split as it is, or whole documents of it drawn by `seed` until `most_tokens` are reached."""
        if reader.tokens == 0:
            raise DataError(f"the `{reader.split}` part of {reader.folder} is empty", fix="Ingest more text")
        if most_tokens is None or reader.tokens <= most_tokens:
            return cls(reader.window(0, reader.tokens), reader.ends, np.arange(reader.documents))
        order_D = np.random.default_rng(seed).permutation(reader.documents)
        sizes_D = np.diff(reader.ends, prepend=0)
        enough = int(np.searchsorted(sizes_D[order_D].cumsum(), most_tokens)) + 1
        chosen_D = np.sort(order_D[:enough])
        parts = [reader.window(begin, end - begin) for begin, end in map(reader.span, chosen_D.tolist())]
        return cls(np.concatenate(parts), sizes_D[chosen_D].cumsum(), chosen_D)

    def document(self, place: int) -> NDArray[Any]:
        """The ids of a document, its end included."""
        return self.tokens_N[int(self.ends_D[place - 1]) if place else 0 : int(self.ends_D[place])]

    def places(self) -> NDArray[np.int64]:
        """Which document each token belongs to [N]."""
        return np.repeat(np.arange(len(self.ends_D)), np.diff(self.ends_D, prepend=0))


@dataclass(frozen=True)
class BitsPerByte:
    """How many bits a byte of text costs.

    Args:
        value: bits per byte.
        low, high: its 95 % interval.
        perplexity: 2 to the mean bits of a token.
        tokens, bytes, documents: what was measured.
        resampled: "documents", or "blocks" of 256 tokens where there are fewer than ten documents.
    """

    value: float
    low: float
    high: float
    perplexity: float
    tokens: int
    bytes: int
    documents: int
    resampled: str = "documents"

    def as_text(self) -> str:
        """One line for people."""
        return (
            f"{self.value:.3f} bits per byte (95 %: {self.low:.3f} to {self.high:.3f}), "
            f"perplexity {self.perplexity:.1f} a token, on {self.bytes:,} bytes of {self.documents:,} documents"
        )


def measure(
    model: Scores, excerpt: Excerpt, lengths_V: NDArray[np.int64], eot: int, context_length: int | None = None
) -> BitsPerByte:
    """Bits per byte of a model, in windows of its context without overlap.

    Args:
        model: scores tokens; its context is `model.config.context_length` unless given.
        excerpt: the held-out documents.
        lengths_V: bytes that each token stands for (`tokenizer.lengths`).
        eot: the document end.
        context_length: tokens that the model can look back on.
    """
    return summarise(stream_bits(model, excerpt, lengths_V, eot, context_length), excerpt, lengths_V)


def measure_begun(model: Scores, tokenizer: Tokenizer, texts: Iterable[str]) -> BitsPerByte:
    """Bits per byte of texts by a model whose tokenizer is another's, in windows of its context without overlap.

    What ends a text is not counted: no two makers agree on it, and a model that answers may never have read it.
    """
    aligned = [tokenizer.aligned(text) for text in texts]
    found = token_bits(model, [np.concatenate([[tokenizer.opening], ids_N]) for ids_N, _ in aligned], overlap=0.0)
    bits_N, bytes_N = np.concatenate(found), np.concatenate([bytes_N for _, bytes_N in aligned])
    ends_D = np.cumsum([len(ids_N) for ids_N, _ in aligned])
    # Each token is a symbol of its own, for its bytes depend on where it stands.
    return summarise(bits_N, Excerpt(np.arange(len(bits_N)), ends_D, np.arange(len(ends_D))), bytes_N)


def stream_bits(
    model: Scores,
    excerpt: Excerpt,
    lengths_V: NDArray[np.int64],
    eot: int,
    context_length: int | None = None,
    watch: Watch | None = None,
) -> NDArray[np.float32]:
    """Bits [N] of each token of the excerpt, in windows of the context without overlap, documents kept apart.

    `watch` is told {"kind": "score", "done", "total"} in tokens after each batch.
    """
    windows = Windows(excerpt.tokens_N, eot, context_length or _reach(model), lengths_V)
    device, parts, done = device_of(model), [], 0
    for batch in windows.batches(max(1, BATCH_TOKENS // windows.length)):
        ready = {name: tensor.to(device) for name, tensor in batch.items()}
        with torch.inference_mode():
            logp_BL = model.score(ready).float().cpu()
        parts.append(logp_BL[batch["mask"][:, 1:]].numpy() / -math.log(2))
        done += len(parts[-1])
        if watch:
            watch({"kind": "score", "done": done, "total": len(excerpt.tokens_N)})
    return np.concatenate(parts)


class _Window(NamedTuple):
    """A cut of a sequence: inputs from `start` on; the first `skip` of its predictions were counted before."""

    sequence: int
    start: int
    length: int
    skip: int


def token_bits(
    model: Scores,
    sequences: Sequence[NDArray[Any]],
    context_length: int | None = None,
    overlap: float = 0.5,
    watch: Watch | None = None,
) -> list[NDArray[np.float32]]:
    """Bits of every token of each sequence but its first, which is only looked back on.

    Args:
        model: scores tokens.
        sequences: ids, one array each, of one document; long ones are cut into windows of the context.
        context_length: default: `model.config.context_length`.
        overlap: share of a window that repeats the one before, as context only: 0.5 lets every token but a sequence's
            first ones look back on at least half a window, at twice the cost.
        watch: told {"kind": "score", "done", "total"} in tokens, after each batch.

    Returns:
        One array a sequence, one shorter than it.
    """
    reach = context_length or _reach(model)
    found = [np.zeros(max(0, len(sequence) - 1), dtype=np.float32) for sequence in sequences]
    windows = [window for index, one in enumerate(found) for window in _windows(index, len(one), reach, overlap)]
    windows.sort(key=lambda window: -window.length)
    done, total = 0, sum(window.length for window in windows)
    while windows:
        rows = max(1, BATCH_TOKENS // windows[0].length)
        batch, windows = windows[:rows], windows[rows:]
        logp_BL = _score(model, batch, sequences)
        for row, (index, start, length, skip) in enumerate(batch):
            found[index][start + skip : start + length] = logp_BL[row, skip:length] / -math.log(2)
        done += sum(window.length for window in batch)
        if watch:
            watch({"kind": "score", "done": done, "total": total})
    return found


def _windows(sequence: int, predicted: int, reach: int, overlap: float) -> Iterator[_Window]:
    step = max(1, reach - int(overlap * reach))
    for start in range(0, max(1, predicted - (reach - step)), step):
        length = min(reach, predicted - start)
        if length > 0:
            yield _Window(sequence, start, length, reach - step if start else 0)


def _score(model: Scores, batch: list[_Window], sequences: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Log-probabilities [B, L] of a batch of windows, longest first; rows are padded behind their end."""
    shape = len(batch), batch[0].length + 1
    tokens_BL, mask_BL = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    for row, (index, start, length, skip) in enumerate(batch):
        tokens_BL[row, : length + 1] = sequences[index][start : start + length + 1]
        mask_BL[row, skip + 1 : length + 1] = True
    device = device_of(model)
    ready = {"tokens": torch.as_tensor(tokens_BL, device=device), "mask": torch.as_tensor(mask_BL, device=device)}
    with torch.inference_mode():
        return model.score(ready).float().cpu().numpy()


def _reach(model: Scores) -> int:
    return model.config.context_length  # type: ignore[attr-defined]


def summarise(
    bits_N: NDArray[np.floating[Any]], excerpt: Excerpt, lengths_V: NDArray[np.int64], seed: int = 0
) -> BitsPerByte:
    """Bits per byte with its interval from the bits [N] of each token of the excerpt."""
    bytes_N = lengths_V[excerpt.tokens_N]
    few = len(excerpt.ends_D) < FEW_DOCUMENTS
    group_N = np.arange(len(bits_N)) // BLOCK_TOKENS if few else excerpt.places()
    bits_G = np.bincount(group_N, bits_N)
    bytes_G = np.bincount(group_N, bytes_N)
    if bytes_G.sum() == 0:
        raise DataError("the held-out text has no bytes", fix="Ingest more text")
    low, high = interval(bits_G, bytes_G, seed)
    return BitsPerByte(
        value=float(bits_G.sum() / bytes_G.sum()),
        low=low,
        high=high,
        perplexity=2.0 ** float(np.mean(bits_N, dtype=np.float64)),
        tokens=len(bits_N),
        bytes=int(bytes_G.sum()),
        documents=len(excerpt.ends_D),
        resampled="blocks" if few else "documents",
    )


def interval(
    parts_G: NDArray[Any], wholes_G: NDArray[Any], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 95 % interval of sum(parts) / sum(wholes) when the groups are drawn again with replacement.

    Beyond 4,096 groups neighbours are drawn together, which costs little and changes the interval less.
    """
    together = -(-len(parts_G) // 4096)
    starts = np.arange(0, len(parts_G), together)
    pair_2G = np.stack([np.add.reduceat(parts_G, starts), np.add.reduceat(wholes_G, starts)]).astype(np.float64)
    chance = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    for index in range(resamples):
        part, whole = pair_2G[:, chance.integers(0, len(starts), len(starts))].sum(1)
        ratios[index] = part / whole if whole else np.nan
    low, high = np.nanpercentile(ratios, [2.5, 97.5])
    return float(low), float(high)
