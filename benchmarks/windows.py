"""Random windows from token shards, in tokens per second, beside a plain NumPy gather and nanoGPT's `get_batch`.

    python benchmarks/windows.py [--tokens 100000000] [--rounds 9]

The text is 100 million random ids in documents of about 1,500 tokens, in the page cache. Every case ends with int64 in
memory, and B x L tokens count for a batch. "ours_windows" is `ShardReader.windows` at random positions; "ours_batch" is
the whole `TextStream` (computed order, tokens, mask, documents and positions as tensors), which the others do not have.
nanoGPT's `get_batch` is written here from its description: a memory map opened anew for each batch, one slice a row for
inputs and one for targets, stacked.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peers import record, spread

from nomoat.data.shards import ShardReader, ShardWriter
from nomoat.data.text import Text
from nomoat.data.tokenizer import CharTokenizer

SHAPES = ((12, 64), (64, 256), (16, 1024), (8, 2048))


def write_shards(folder: Path, tokens: int) -> None:
    """Random ids below 50,000 in documents of log-normal length."""
    tokenizer = CharTokenizer([chr(number) for number in range(0x100, 0xD000)])
    tokenizer.save(folder / "tokenizer.json")
    chance = np.random.default_rng(0)
    writer = ShardWriter(folder, "train", tokenizer)
    while writer.tokens < tokens:
        writer.add(chance.integers(0, tokenizer.eot, int(chance.lognormal(7, 0.8)) + 1, dtype=np.uint16), {})
    writer.finish()


def cases(folder: Path, batch: int, length: int) -> dict[str, Callable[[], object]]:
    """What makes one batch, by name."""
    reader = ShardReader(folder)
    ids = reader.shards[0]
    chance = np.random.default_rng(1)
    stream = Text(str(folder), length).open().batches(batch, seed=0)

    def starts() -> np.ndarray:
        return chance.integers(0, len(ids) - length - 1, batch)

    def nano() -> tuple[torch.Tensor, torch.Tensor]:
        data = np.memmap(folder / "train-00000.bin", dtype=np.uint16, mode="r")
        ix = torch.randint(len(data) - length, (batch,))
        x = torch.stack([torch.from_numpy(data[i : i + length].astype(np.int64)) for i in ix])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + length].astype(np.int64)) for i in ix])
        return x, y

    return {
        "ours_windows": lambda: reader.windows(starts(), length + 1).astype(np.int64),
        "ours_batch": lambda: next(stream),
        "numpy_gather": lambda: ids[starts()[:, None] + np.arange(length + 1)].astype(np.int64),
        "nanogpt_get_batch": nano,
    }


def rate(make: Callable[[], object], tokens: int, seconds: float = 0.15) -> float:
    """Tokens per second over at least so many seconds."""
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        for _ in range(8):
            make()
        count += 8
    return count * tokens / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, object] = {"tokens": chosen.tokens, "rounds": chosen.rounds}
    with tempfile.TemporaryDirectory() as name:
        write_shards(Path(name), chosen.tokens)
        for batch, length in SHAPES:
            makers = cases(Path(name), batch, length)
            rates: dict[str, list[float]] = {case: [] for case in makers}
            for _ in range(chosen.rounds):
                for case, make in makers.items():
                    rates[case].append(rate(make, batch * length) / 1e6)
            ours = rates["ours_windows"]
            figures[f"{batch}x{length}"] = {
                "million_tokens_per_second": {case: spread(values) for case, values in rates.items()},
                "ratio_to_numpy_gather": spread([a / b for a, b in zip(ours, rates["numpy_gather"], strict=True)]),
                "ratio_to_nanogpt": spread([a / b for a, b in zip(ours, rates["nanogpt_get_batch"], strict=True)]),
                "ratio_batch_to_nanogpt": spread(
                    [a / b for a, b in zip(rates["ours_batch"], rates["nanogpt_get_batch"], strict=True)]
                ),
            }
    record("windows", figures)


if __name__ == "__main__":
    main()
