"""Text as training data: a dataset folder, a context length and a packing; batches for any step, at any world size.

    step -> sample indices -> Order (source, item, epoch) -> Rows -> Batch (tokens, mask, document, positions, index)

Two packings. "stream" reads windows over all documents in a row: no padding, documents cut at the windows' ends.
"documents" keeps documents whole where they fit and pads less than a fiftieth; see `packing.py`. Neither loses a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nomoat.core.errors import ConfigError, DataError, nearest
from nomoat.core.types import Batch
from nomoat.data.manifest import Manifest, changed
from nomoat.data.order import Indices, Order, key
from nomoat.data.packing import stored_plan
from nomoat.data.rows import PackedRows, StreamRows, Windows, together
from nomoat.data.shards import ShardReader
from nomoat.data.tokenizer import Tokenizer, load

PACKINGS = ("stream", "documents")
PHASE = -2  # apart from the sources' own numbers, which name the keys of their permutations
AHEAD = 4096  # samples whose place is computed at once: it costs little more than that of one batch


@dataclass(frozen=True)
class Text:
    """Recipe data: one dataset folder or several, mixed.

    Args:
        path: the folder that ingest wrote, or several of them with one tokenizer.
        context_length: tokens that a model sees at once, L; a row has L + 1.
        packing: "stream" or "documents".
        weights: share of the samples from each folder; None: each row of every folder once an epoch.
        tokenizer: kind that the folders must have ("bpe", "byte", "char"); None: whichever they have.
        ids: the manifest's id of each folder as it was when the recipe was resolved; empty: not checked.
    """

    path: str | tuple[str, ...]
    context_length: int = 256
    packing: str = "stream"
    weights: tuple[float, ...] | None = None
    tokenizer: str | None = None
    ids: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The dataset folders."""
        return (self.path,) if isinstance(self.path, str) else self.path

    def changed(self) -> list[str]:
        """Say in words how the data differs from what the recipe was resolved with; [] where it does not."""
        found = []
        for path, known in zip(self.paths, self.ids or (None,) * len(self.paths), strict=True):
            if known is not None and Manifest.load(path).id != known:
                found.append(f"the dataset in {path} was made anew from other files")
            found += changed(path)
        return found

    def open(self, folder: Path | str | None = None) -> TextStream:
        """Open the shards, those of `folder` in place of `path` where it is given.

        Raises:
            ConfigError: unknown packing, text shorter than the context, weights that do not fit.
            DataError: no dataset, damaged shards, tokenizers that differ.
        """
        return TextStream([Path(path) for path in (self.paths if folder is None else (folder,))], self)

    def stream(
        self, family: Any, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """This worker's part of the batch of every step from `start` on, without end; what the loop calls."""
        opened = self.open()
        known = getattr(getattr(family, "config", None), "vocab_size", None)
        if known is not None and known < opened.tokenizer.vocab_size:
            raise ConfigError(
                f"The model knows {known:,} tokens, the data has {opened.tokenizer.vocab_size:,}",
                fix=f"Set family.vocab_size={opened.tokenizer.vocab_size}",
            )
        return opened.batches(batch_size, seed, start, rank, world)

    def sampler(self, seed: int) -> Callable[[ArrayLike], Batch]:
        """What gives the samples of any global indices [B]."""
        return partial(self.open().batch, seed=seed)

    def held_out(self, family: Any, batch_size: int, tokens: int) -> Iterator[Batch]:
        """Batches of about `tokens` held-out tokens, their windows spread evenly; `bytes` [B] is what each row spells.

        Nothing where the data has no held-out part.
        """
        opened = self.open()
        if not opened.held_tokens:
            return
        windows = opened.held_out_windows()
        count = min(len(windows), max(1, tokens // self.context_length))
        chosen = np.linspace(0, len(windows) - 1, count).round().astype(np.int64)
        for first in range(0, count, batch_size):
            here = chosen[first : first + batch_size]
            batch = windows.rows(here).batch(here)
            spelled_BL = opened.tokenizer.lengths[batch["tokens"].numpy()] * batch["mask"].numpy()
            yield {**batch, "bytes": spelled_BL.sum(1).tolist()}


class TextStream:
    """Opened text: any sample in constant time.

    Attributes:
        tokenizer: the folders' tokenizer.
        readers: the training shards of each folder.
        tokens: training tokens, each document's end among them.
        epoch_samples: samples after which every row of every folder has been read.
    """

    def __init__(self, folders: Sequence[Path], text: Text) -> None:
        if text.packing not in PACKINGS:
            raise ConfigError(
                f"There is no packing `{text.packing}`", nearest(text.packing, PACKINGS), "Use stream or documents"
            )
        self.text, self.folders = text, list(folders)
        self.tokenizer = _one_tokenizer(self.folders, text.tokenizer)
        self.readers = [self._reader(folder, "train") for folder in self.folders]
        self.tokens = sum(reader.tokens for reader in self.readers)
        self.sources = [self._rows(reader) for reader in self.readers]
        self.sizes = [source.size for source in self.sources]
        self.epoch_samples = Order(self.sizes, text.weights, seed=0).epoch_samples

    def batch(self, indices: ArrayLike, seed: int) -> Batch:
        """The samples of these global indices [B]."""
        index_B = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        return self._read(index_B, *self._places(Order(self.sizes, self.text.weights, seed), index_B))

    def batches(self, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Batches of the steps from `start` on; worker `rank` of `world` gets every world-th sample of each."""
        order = Order(self.sizes, self.text.weights, seed)
        steps = max(1, AHEAD // batch_size)
        share = np.arange(rank, batch_size, world)
        while True:
            index_N = (np.arange(start, start + steps)[:, None] * batch_size + share).reshape(-1)
            places = self._places(order, index_N)
            for first in range(0, len(index_N), max(1, len(share))):
                here = slice(first, first + len(share))
                yield self._read(index_N[here], *(place[here] for place in places))
            start += steps

    @property
    def held_tokens(self) -> int:
        """Held-out tokens of all folders."""
        return sum(self._reader(folder, "heldout").tokens for folder in self.folders)

    def held_out_windows(self, context_length: int | None = None) -> Windows:
        """The held-out part in windows without overlap, each token once; of all folders, one behind the other."""
        readers = [self._reader(folder, "heldout") for folder in self.folders]
        held = [reader.window(0, reader.tokens) for reader in readers if reader.tokens]
        if not held:
            raise DataError("The data has no held-out part", "It was ingested as one training part", "Ingest it again")
        tokens = np.concatenate(held)
        length = context_length or self.text.context_length
        return Windows(tokens, self.tokenizer.eot, length, self.tokenizer.lengths)

    def _places(self, order: Order, index_N: Indices) -> tuple[Indices, Indices, Indices]:
        """Source, item and phase of each sample; an epoch's windows begin elsewhere than the last one's."""
        source_N, item_N, epoch_N = order.at(index_N)
        phase_N = key(order.seed, PHASE, source_N, epoch_N) % np.uint64(self.text.context_length)
        return source_N, item_N, phase_N.astype(np.int64)

    def _read(self, index_B: Indices, source_B: Indices, item_B: Indices, phase_B: Indices) -> Batch:
        used = np.unique(source_B)
        if len(used) == 1:
            return self.sources[used[0]].rows(item_B, phase_B).batch(index_B)
        parts = [np.flatnonzero(source_B == source) for source in used]
        batches = [
            self.sources[source].rows(item_B[part], phase_B[part]).batch(index_B[part])
            for source, part in zip(used, parts, strict=True)
        ]
        return together(batches, parts)

    def _rows(self, reader: ShardReader) -> StreamRows | PackedRows:
        length = self.text.context_length
        if self.text.packing == "stream":
            return StreamRows(reader, length)
        return PackedRows(reader, length, stored_plan(reader.folder, reader.split, reader.ends, length))

    def _reader(self, folder: Path, split: str) -> ShardReader:
        reader = ShardReader(folder, split)
        if reader.tokenizer_hash != self.tokenizer.hash:
            raise DataError(
                f"The shards in {folder} were made with another tokenizer than its tokenizer.json",
                fix="Ingest it again",
            )
        return reader


def _one_tokenizer(folders: Sequence[Path], kind: str | None) -> Tokenizer:
    for folder in folders:
        if not (folder / "tokenizer.json").is_file():
            raise DataError(
                f"{folder} is no dataset", "It has no tokenizer.json", "Ingest the files first: `nomoat make PATH` does"
            )
    tokenizers = [load(folder / "tokenizer.json") for folder in folders]
    first = tokenizers[0]
    for folder, tokenizer in zip(folders, tokenizers, strict=True):
        if tokenizer.hash != first.hash:
            raise DataError(f"{folder} has another tokenizer than {folders[0]}", fix="Ingest both with the same one")
    if kind is not None and first.kind != kind:
        raise ConfigError(
            f"The data was ingested as `{first.kind}`, the recipe asks for `{kind}`", fix="Ingest it again"
        )
    return first
