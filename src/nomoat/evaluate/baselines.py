"""What anybody has for nothing: gzip, xz and a 5-gram model on the same held-out text, in bits per byte.

    training text -> compressor, or n-gram tables -> held-out text -> bits per byte

The fair reading of a compressor gives it what a model gets: the training text first, of which it keeps what its window
can hold. Its figure is then the growth of the compressed file by the held-out text, as in Benedetto et al. 2002
(compress(training + held-out) - compress(training)). The plain reading, the held-out text alone, stands beside it.
A compressor also gains from one held-out document to the next, which a model does not.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nomoat.core import durable
from nomoat.data.shards import ShardReader
from nomoat.data.tokenizer import Tokenizer
from nomoat.evaluate.bits import BitsPerByte, Excerpt, summarise
from nomoat.evaluate.ngram import KneserNey

TRAINING_TOKENS = 8_000_000
"""Training text that the n-gram model sees at most: whole documents, drawn by a fixed seed."""

GZIP_WINDOW = 32_768
XZ_MOST_BYTES = 16_000_000
"""Training text that xz is given at most; it takes a second a megabyte and twelve times its size of memory."""

CURVE_TOKENS = 2_000_000
CURVE_HELD_OUT = 131_072
"""Tokens of training and held-out text that the learning curve of a 3-gram model is drawn on, at most."""

NEUTRAL = bytes(8192)
"""Zeros after a long training text: they push all of it through the encoder, at an error of about 50 bytes."""

ONE_PASS_BYTES = 4_000_000
"""From this length on the training text is compressed once for both sizes, not twice."""


@dataclass(frozen=True)
class Baseline:
    """A figure to stand beside a model's.

    Args:
        name: "gzip", "xz" or "5-gram".
        bits_per_byte: given the training text.
        alone: on the held-out text alone; None for the n-gram model, which knows nothing before it is trained.
        how: how it was measured, in a few words.
        training_bytes: how much training text it could use.
        interval: 95 % interval over documents, where there is one.
    """

    name: str
    bits_per_byte: float
    alone: float | None
    how: str
    training_bytes: int
    interval: Sequence[float] | None = None


def baselines(training: ShardReader, held_out: Excerpt, tokenizer: Tokenizer) -> tuple[Baseline, ...]:
    """gzip, xz and the 5-gram model on the held-out text, each given as much of the training text as it can use.

    They depend on the data alone, so they are kept in the dataset's folder (where it can be written) and found there.
    """
    key = hashlib.sha256(repr((1, tokenizer.hash, TRAINING_TOKENS, XZ_MOST_BYTES, training.tokens)).encode())
    for array in (training.ends, held_out.tokens_N):
        key.update(np.ascontiguousarray(array).tobytes())
    path = training.folder / "baselines" / f"{key.hexdigest()[:16]}.json"
    try:
        stored = [Baseline(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
        return tuple(stored)
    except (OSError, ValueError, TypeError):  # not there yet, or torn
        pass
    known = Excerpt.of(training, TRAINING_TOKENS)
    text = tokenizer.decode_bytes(held_out.tokens_N)
    enough = int(np.searchsorted(tokenizer.lengths[known.tokens_N][::-1].cumsum(), XZ_MOST_BYTES)) + 1
    before = tokenizer.decode_bytes(known.tokens_N[-enough:])
    found = (gzip(before, text), xz(before, text), five_gram(known, held_out, tokenizer.lengths, tokenizer.eot)[0])
    try:
        path.parent.mkdir(exist_ok=True)
        durable.replace(path, json.dumps([asdict(one) for one in found]).encode())
    except OSError:
        pass  # a read-only or full disk: they can be measured again
    return found


def learning_curve(training: ShardReader, held_out: ShardReader, tokenizer: Tokenizer) -> list[tuple[int, float]]:
    """Held-out bits per byte of a 3-gram model of a quarter, a half and all of the training text: how hard it is.

    Windows are spread evenly over both; text beyond `CURVE_TOKENS` is left out, so that it takes a second or two.

    Returns:
        (tokens, bits per byte), rising; [] where nothing is held out.
    """
    if not held_out.tokens:
        return []
    read_N = _spread(held_out, CURVE_HELD_OUT)
    spelled = int(tokenizer.lengths[read_N].sum())
    found = {}
    for part in (4, 2, 1):
        known_N = _spread(training, min(training.tokens, CURVE_TOKENS) // part)
        model = KneserNey(known_N, tokenizer.vocab_size, tokenizer.eot, order=3)
        found[len(known_N)] = float(model.bits(read_N).sum()) / max(1, spelled)
    return sorted(found.items())


def _spread(reader: ShardReader, tokens: int, length: int = 256) -> NDArray[Any]:
    """About `tokens` tokens in windows of `length`, spread evenly."""
    if reader.tokens <= max(tokens, length):
        return reader.window(0, reader.tokens)
    starts = np.linspace(0, reader.tokens - length, max(1, tokens // length)).astype(np.int64)
    return reader.windows(starts, length).reshape(-1)


def gzip(training: bytes, held_out: bytes) -> Baseline:
    """gzip -9 (DEFLATE): it can look back on 32 kB, so the training text's end is all that it can use."""
    prefix = training[-GZIP_WINDOW:]

    def size(text: bytes) -> int:
        return len(zlib.compress(text, 9))

    grown = size(prefix + held_out) - size(prefix)
    how = "gzip -9; its window holds the last 32 kB of the training text"
    return Baseline("gzip", 8 * grown / len(held_out), 8 * size(held_out) / len(held_out), how, len(prefix))


def xz(training: bytes, held_out: bytes, most_bytes: int = XZ_MOST_BYTES) -> Baseline:
    """xz -9e (LZMA) with a dictionary that holds all of the training text, or its last `most_bytes`."""
    prefix = training[-most_bytes:]
    room = max(4096, len(prefix) + len(NEUTRAL) + len(held_out))
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": room}]

    def size(text: bytes) -> int:
        return len(lzma.compress(text, lzma.FORMAT_RAW, filters=filters))

    if len(prefix) < ONE_PASS_BYTES:
        grown = size(prefix + held_out) - size(prefix)
    else:
        stream = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=filters)
        for before in (prefix, NEUTRAL):
            stream.compress(before)
        grown = len(stream.compress(held_out)) + len(stream.flush())
    how = f"xz -9e, its dictionary holding {len(prefix) / 1e6:.1f} MB of the training text"
    return Baseline("xz", 8 * grown / len(held_out), 8 * size(held_out) / len(held_out), how, len(prefix))


def five_gram(
    training: Excerpt, held_out: Excerpt, lengths_V: NDArray[np.int64], eot: int, order: int = 5
) -> tuple[Baseline, BitsPerByte]:
    """Interpolated modified Kneser-Ney over the same tokens and documents as the model."""
    model = KneserNey(training.tokens_N, len(lengths_V), eot, order)
    found = summarise(model.bits(held_out.tokens_N), held_out, lengths_V)
    size = int(lengths_V[training.tokens_N].sum())
    how = f"interpolated modified Kneser-Ney over the same tokens, trained on {size / 1e6:.1f} MB"
    return Baseline(f"{order}-gram", found.value, None, how, size, (found.low, found.high)), found
