"""Token shards: documents back to back on disk, each closed by the document end, and their ledger lines beside them.

    ids of a document + its ledger line -> ShardWriter -> train-00000.bin .idx .meta.parquet
    start positions [rows] -> ShardReader.windows -> ids [rows, length] (one slice of a memory map each)

`.bin` holds little-endian uint16 (uint32 above 65,536 ids), `.idx` the uint64 end of each document in tokens, and the
parquet file one row a document, with what the other two must hold in its footer: a torn or cut file is noticed at
opening. Position p is the p-th token of all shards in a row; reading past the last token goes on at the first (a ring).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from nomoat.core.errors import DataError
from nomoat.data.tokenizer import Tokenizer

SHARD_TOKENS = 128_000_000
ROW_GROUP = 16_384  # documents whose ledger lines are held in memory before they are written
LEDGER = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("licence", pa.string()),
        ("evidence", pa.string()),
        ("author", pa.string()),
        ("date", pa.string()),
        ("origin", pa.string()),
        ("generation", pa.int32()),
        ("derived_from", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class ShardFile:
    """A written file: name inside the folder, size in bytes, SHA-256."""

    name: str
    bytes: int
    sha256: str


class ShardWriter:
    """Write the documents of one split of a dataset; a shard is closed behind the document that fills it.

    Args:
        folder: where the files go; made if missing.
        split: "train", "heldout": the beginning of the files' names.
        tokenizer: gives the width of an id, the document end and the hash that is noted in each shard.
        shard_tokens: tokens after which the next shard begins.
    """

    def __init__(self, folder: Path | str, split: str, tokenizer: Tokenizer, shard_tokens: int = SHARD_TOKENS) -> None:
        self.folder, self.split, self.tokenizer, self.shard_tokens = Path(folder), split, tokenizer, shard_tokens
        self.folder.mkdir(parents=True, exist_ok=True)
        self.dtype = tokenizer.dtype.newbyteorder("<")
        self.end = np.array([tokenizer.eot], dtype=self.dtype)
        self.files: list[ShardFile] = []
        self.tokens = self.documents = self.shards = 0
        self._open()

    def add(self, ids: ArrayLike, line: Mapping[str, Any]) -> None:
        """Append one document: its ids [tokens] without the document end, and its ledger line (keys of `LEDGER`)."""
        document = np.asarray(ids, dtype=self.dtype)
        if self.shard_total >= self.shard_tokens:
            self._close(last=False)
            self._open()
        for part in (document, self.end):
            raw = part.tobytes()
            self.bin.write(raw)
            self.sha.update(raw)
        self.shard_total += len(document) + 1
        self.tokens += len(document) + 1
        self.documents += 1
        self.ends.append(self.shard_total)
        self.lines.append({name: line.get(name) for name in LEDGER.names})
        if len(self.lines) >= ROW_GROUP:
            self._flush_lines()

    def finish(self) -> list[ShardFile]:
        """Close and fsync every file; returns their names, sizes and hashes, for the manifest."""
        self._close(last=True)
        _fsync_folder(self.folder)
        return self.files

    def _open(self) -> None:
        self.stem = f"{self.split}-{self.shards:05d}"
        self.bin: BinaryIO = (self.folder / f"{self.stem}.bin").open("wb")
        self.meta_file: BinaryIO = (self.folder / f"{self.stem}.meta.parquet").open("wb")
        self.meta = pq.ParquetWriter(self.meta_file, LEDGER, compression="zstd")
        self.sha = hashlib.sha256()
        self.shard_total = 0
        self.ends: list[int] = []
        self.lines: list[dict[str, Any]] = []
        self.shards += 1

    def _flush_lines(self) -> None:
        if self.lines:
            self.meta.write_table(pa.Table.from_pylist(self.lines, schema=LEDGER))
            self.lines = []

    def _close(self, last: bool) -> None:
        size = self.bin.tell()
        _fsync_close(self.bin)
        self.files.append(ShardFile(f"{self.stem}.bin", size, self.sha.hexdigest()))
        index = np.array(self.ends, dtype="<u8").tobytes()
        with (self.folder / f"{self.stem}.idx").open("wb") as file:
            file.write(index)
            file.flush()
            os.fsync(file.fileno())
        self.files.append(ShardFile(f"{self.stem}.idx", len(index), hashlib.sha256(index).hexdigest()))
        self._flush_lines()
        facts = {
            "tokens": self.shard_total,
            "documents": len(self.ends),
            "dtype": self.tokenizer.dtype.name,
            "eot": self.tokenizer.eot,
            "tokenizer": self.tokenizer.hash,
            "last": int(last),
        }
        self.meta.add_key_value_metadata({f"nomoat.{name}": str(fact) for name, fact in facts.items()})
        self.meta.close()
        _fsync_close(self.meta_file)
        path = self.folder / f"{self.stem}.meta.parquet"
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.files.append(ShardFile(path.name, path.stat().st_size, digest))


class ShardReader:
    """Read one split of a dataset by token position.

    Args:
        folder: the dataset's folder.
        split: "train" or "heldout".

    Attributes:
        tokens, documents: totals over the shards.
        ends: position behind each document's last token (its document end) [documents].
        eot, tokenizer_hash, dtype: as noted when the shards were written.

    Raises:
        DataError: no shards, or files that do not fit together (torn, cut, of another tokenizer).
    """

    def __init__(self, folder: Path | str, split: str = "train") -> None:
        self.folder, self.split = Path(folder), split
        stems = sorted(path.name.removesuffix(".bin") for path in self.folder.glob(f"{split}-[0-9]*.bin"))
        opened = [_Shard(self.folder, stem) for stem in stems]
        numbered = stems == [f"{split}-{number:05d}" for number in range(len(stems))]
        if not stems or not numbered or [shard.last for shard in opened] != [stem == stems[-1] for stem in stems]:
            raise DataError(
                f"{self.folder} holds no complete `{split}` shards",
                "The ingest did not end, or files were moved",
                AGAIN,
            )
        self.shards = [shard.tokens for shard in opened]
        if len({(shard.dtype, shard.eot, shard.tokenizer_hash) for shard in opened}) > 1:
            raise DataError(f"The `{split}` shards of {self.folder} come from different tokenizers", fix=AGAIN)
        self.dtype, self.eot, self.tokenizer_hash = opened[0].dtype, opened[0].eot, opened[0].tokenizer_hash
        self.firsts = np.cumsum([0] + [len(tokens) for tokens in self.shards])
        self.ends = np.concatenate([shard.ends + first for shard, first in zip(opened, self.firsts, strict=False)])
        self.document_firsts = np.cumsum([0] + [len(shard.ends) for shard in opened])
        self.tokens, self.documents = int(self.firsts[-1]), len(self.ends)
        self.stems = stems

    def window(self, start: int, length: int) -> NDArray[Any]:
        """The ids [length] from position `start` on."""
        return self.windows(np.array([start]), length)[0]

    def windows(self, starts: ArrayLike, length: int) -> NDArray[Any]:
        """The ids [rows, length] from each of the positions `starts` [rows] on."""
        start_R = np.asarray(starts, dtype=np.int64) % max(self.tokens, 1)
        if length > self.tokens:
            raise DataError(f"A window of {length} tokens is longer than the text of {self.tokens}", fix="Use less")
        if len(self.shards) == 1 and (not len(start_R) or start_R.max() + length <= self.tokens):
            return _slices(self.shards[0], start_R, length)
        shard_R = np.searchsorted(self.firsts, start_R, side="right") - 1
        ids_RL = np.empty((len(start_R), length), dtype=self.dtype)
        inside_R = start_R + length <= self.firsts[shard_R + 1]
        for shard in np.unique(shard_R[inside_R]):
            rows = np.flatnonzero(inside_R & (shard_R == shard))
            ids_RL[rows] = _slices(self.shards[shard], start_R[rows] - self.firsts[shard], length)
        for row in np.flatnonzero(~inside_R):
            ids_RL[row] = self.gather(np.arange(start_R[row], start_R[row] + length))
        return ids_RL

    def gather(self, positions: ArrayLike) -> NDArray[Any]:
        """The ids at any positions [n]; slower than slices."""
        position_N = np.asarray(positions, dtype=np.int64) % max(self.tokens, 1)
        if len(self.shards) == 1:
            return self.shards[0][position_N]
        shard_N = np.searchsorted(self.firsts, position_N, side="right") - 1
        ids_N = np.empty(len(position_N), dtype=self.dtype)
        for shard in np.unique(shard_N):
            here = shard_N == shard
            ids_N[here] = self.shards[shard][position_N[here] - self.firsts[shard]]
        return ids_N

    def document_of(self, positions: ArrayLike) -> NDArray[np.int64]:
        """The number of the document that holds each position; its document end is its last token."""
        return np.searchsorted(self.ends, np.asarray(positions) % max(self.tokens, 1), side="right")

    def span(self, document: int) -> tuple[int, int]:
        """First position of a document and the one behind its document end."""
        return (int(self.ends[document - 1]) if document else 0), int(self.ends[document])

    def line(self, document: int) -> dict[str, Any]:
        """The ledger line of a document: source, member, licence and so on (keys of `LEDGER`)."""
        if not 0 <= document < self.documents:
            raise DataError(f"There is no document {document} in {self.folder}", f"It holds {self.documents:,}")
        shard = int(np.searchsorted(self.document_firsts, document, side="right")) - 1
        row = document - int(self.document_firsts[shard])
        group = 0
        with pq.ParquetFile(self.folder / f"{self.stems[shard]}.meta.parquet") as file:
            while row >= (rows := file.metadata.row_group(group).num_rows):
                group, row = group + 1, row - rows
            return file.read_row_group(group).slice(row, 1).to_pylist()[0]

    def ledger(self) -> pa.Table:
        """Every ledger line of the split, in the order of the documents."""
        return pa.concat_tables([pq.read_table(self.folder / f"{stem}.meta.parquet") for stem in self.stems])


AGAIN = "Ingest the data again"


class _Shard:
    """The three files of one shard, checked against each other."""

    def __init__(self, folder: Path, stem: str) -> None:
        self.folder, self.stem = folder, stem
        paths = [folder / f"{stem}.{kind}" for kind in ("bin", "idx", "meta.parquet")]
        for path in paths:
            if not path.is_file():
                raise self._torn(path.name, "it is missing")
        try:
            footer = pq.read_metadata(paths[2])
            noted = {key.decode(): value.decode() for key, value in (footer.metadata or {}).items()}
            tokens, documents = int(noted["nomoat.tokens"]), int(noted["nomoat.documents"])
            self.dtype, self.eot = np.dtype(noted["nomoat.dtype"]), int(noted["nomoat.eot"])
            self.tokenizer_hash, self.last = noted["nomoat.tokenizer"], noted["nomoat.last"] == "1"
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise self._torn(paths[2].name, f"its footer cannot be read ({error})") from error
        wanted = (tokens * self.dtype.itemsize, documents * 8)
        for path, size in zip(paths, wanted, strict=False):
            if path.stat().st_size != size:
                raise self._torn(path.name, f"it has {path.stat().st_size:,} bytes where {size:,} were written")
        self.ends = np.fromfile(paths[1], dtype="<u8").astype(np.int64)
        little = self.dtype.newbyteorder("<")
        # An empty file cannot be mapped.
        mapped = np.memmap(paths[0], dtype=little, mode="r") if tokens else np.zeros(0, little)
        self.tokens: NDArray[Any] = mapped.view(np.ndarray)  # the subclass costs a microsecond a slice
        self._check(footer.num_rows, tokens, documents)

    def _check(self, rows: int, tokens: int, documents: int) -> None:
        if rows != documents:
            raise self._torn(f"{self.stem}.meta.parquet", f"it has {rows} rows for {documents} documents")
        if (np.diff(self.ends, prepend=0) <= 0).any() or (documents and int(self.ends[-1]) != tokens):
            raise self._torn(f"{self.stem}.idx", "its document ends do not rise to the number of tokens")
        if documents and int(self.tokens[-1]) != self.eot:
            raise self._torn(f"{self.stem}.bin", "its last token is not a document end")

    def _torn(self, name: str, why: str) -> DataError:
        return DataError(f"{self.folder / name} is damaged", why[0].upper() + why[1:], AGAIN)


def _slices(tokens: NDArray[Any], start_R: NDArray[np.int64], length: int) -> NDArray[Any]:
    """Rows of `length` ids; the strided view makes NumPy copy whole rows instead of single ids."""
    if not len(start_R):
        return np.empty((0, length), dtype=tokens.dtype)
    shape = (len(tokens) - length + 1, length)
    view = np.ndarray(shape, tokens.dtype, tokens, strides=(tokens.itemsize, tokens.itemsize))
    return view[start_R]


def _fsync_close(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
