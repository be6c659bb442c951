"""The first half of ingest: files to blocks of documents on disk, each with its hash and near-duplicate signature.

    Found -> bundles (one large file, or small ones of 4 MB together) -> documents -> blocks of 4 MB (parquet)
          -> hash [32 bytes], signature [112] a document

A block, once written, is not made again: its name is a hash of the files' names, sizes and times and of the settings.
A killed ingest goes on at the block where it was. The reader runs in the calling thread, hashing and writing beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nomoat.core import durable
from nomoat.data import near
from nomoat.data.document import Document, Dropped
from nomoat.data.licence import LicenceFinder
from nomoat.data.manifest import digest
from nomoat.data.readers import Found, losses, read_file

BLOCK_BYTES = 4_000_000
BLOCK_DOCUMENTS = 20_000
FORMAT = 1  # a change of what blocks hold, or of how text is read, counts this up

LEDGER_FIELDS = (
    "source", "member", "offset_bytes", "licence", "evidence", "author", "date", "origin", "generation", "derived_from",
    "encoding", "column",
)  # fmt: skip
SCHEMA = pa.schema(
    [
        ("hash", pa.binary(32)),
        ("bytes", pa.int64()),
        ("signature", pa.binary(4 * near.VALUES)),
        ("text", pa.large_binary()),
        *((name, pa.string()) for name in LEDGER_FIELDS if name not in ("offset_bytes", "generation", "derived_from")),
        ("offset_bytes", pa.int64()),
        ("generation", pa.int32()),
        ("derived_from", pa.list_(pa.string())),
    ]
)
FACTS = ("hash", "bytes", "signature", "source", "member", "column", "encoding")


@dataclass
class Reading:
    """What the first half has found.

    Args:
        blocks: the files of documents, in the order of the sources.
        dropped: what was left out.
        files: the files that were read, as the manifest lists them.
    """

    blocks: list[Path] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)


def read_blocks(
    found: Sequence[Found],
    folder: Path,
    finder: LicenceFinder,
    text_column: str | None,
    threads: int,
    told: Callable[[int], None],
) -> Reading:
    """Read files into blocks below `folder`, skipping those that are there already.

    Args:
        found: the files, in order.
        folder: where the blocks go.
        finder: knows the licences.
        text_column: see `readers.read`.
        threads: for hashing and writing.
        told: is called with the bytes of the sources that are done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reading, done = Reading(), 0
    with workers(threads) as pool:
        for bundle in bundles(found):
            key = bundle_key(bundle, finder, text_column)
            marker = folder / f"{key}.json"
            facts = finished(marker)
            if facts is None:
                job = Bundle(bundle, folder / key, finder, text_column, pool, threads + 1)
                facts = job.run(lambda within, before=done: told(before + within))  # type: ignore[misc]
                durable.replace(marker, json.dumps(facts).encode())
            reading.blocks += [folder / f"{key}-{number:05d}.parquet" for number in range(facts["blocks"])]
            reading.dropped += [Dropped(**one) for one in facts["dropped"]]
            reading.files += facts["files"]
            done += sum(item.size for item in bundle)
            told(done)
    return reading


@contextmanager
def workers(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads that drops what waits when something fails, instead of doing it all first."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def bundles(found: Sequence[Found]) -> Iterator[list[Found]]:
    """Files that are worked on together: a large one alone, small ones up to a block's size."""
    bundle: list[Found] = []
    size = 0
    for item in found:
        if bundle and (size + item.size > BLOCK_BYTES or len(bundle) >= 1000):
            yield bundle
            bundle, size = [], 0
        bundle.append(item)
        size += item.size
    if bundle:
        yield bundle


def bundle_key(bundle: Sequence[Found], finder: LicenceFinder, text_column: str | None) -> str:
    """A name that changes with the files, with what stands beside them about licences, and with the settings."""
    spelled: list[Any] = [FORMAT, BLOCK_BYTES, BLOCK_DOCUMENTS, text_column, finder.stated]
    for item in bundle:
        beside = finder.sidecar(item.path) or finder.around(item.path.parent)
        spelled.append([item.shown, item.size, item.mtime_ns, beside])
    return hashlib.sha256(json.dumps(spelled).encode()).hexdigest()[:24]


def finished(marker: Path) -> dict[str, Any] | None:
    """What was noted when a bundle was done; None where it was not, or where a block of it is gone."""
    try:
        facts = json.loads(marker.read_bytes())
    except (OSError, ValueError):
        return None
    stem = marker.name.removesuffix(".json")
    there = all(marker.with_name(f"{stem}-{number:05d}.parquet").exists() for number in range(facts["blocks"]))
    return facts if there else None


class Bundle:
    """Reads a few files and hands full blocks to the pool, at most `ahead` of them at a time."""

    def __init__(
        self,
        files: Sequence[Found],
        stem: Path,
        finder: LicenceFinder,
        text_column: str | None,
        pool: ThreadPoolExecutor,
        ahead: int,
    ) -> None:
        self.files, self.stem, self.finder, self.text_column = files, stem, finder, text_column
        self.pool, self.ahead = pool, ahead
        self.waiting: list[Future[None]] = []
        self.held: list[Document] = []
        self.size = self.blocks = 0

    def run(self, told: Callable[[int], None]) -> dict[str, Any]:
        """Read the files; returns what the marker notes: blocks, dropped, files."""
        dropped: list[Dropped] = []
        noted: list[dict[str, Any]] = []
        before = 0
        for item in self.files:
            sha = self.pool.submit(digest, item.path)
            for one in self.read(item, lambda within, start=before: told(start + within)):  # type: ignore[misc]
                if isinstance(one, Dropped):
                    dropped.append(one)
                else:
                    self.take(one)
            if changed_since(item):
                dropped.append(Dropped(item.shown, "", "changed while it was read", "what was read until then is kept"))
            if sha.result():  # a file that could not be read is named among the dropped
                noted.append({"path": item.shown, "size": item.size, "mtime_ns": item.mtime_ns, "sha256": sha.result()})
            before += item.size
        self.flush()
        for future in self.waiting:
            future.result()
        return {"blocks": self.blocks, "dropped": [asdict(one) for one in dropped], "files": noted}

    def read(self, item: Found, told: Callable[[int], None]) -> Iterator[Document | Dropped]:
        """The documents of one file; `told` hears how far into it the reader is."""
        told_at = 0
        with losses(item.shown) as lost, item.path.open("rb") as file:
            for number, one in enumerate(read_file(file, item.path, item.shown, self.finder, self.text_column)):
                yield one
                if number % 64 == 0 and file.tell() > told_at:
                    told_at = min(file.tell(), item.size)
                    told(told_at)
        yield from lost

    def take(self, document: Document) -> None:
        self.held.append(document)
        self.size += len(document.text)
        if self.size >= BLOCK_BYTES or len(self.held) >= BLOCK_DOCUMENTS:
            self.flush()

    def flush(self) -> None:
        """Hand the documents held to the pool as one block, unless it stands on disk from an earlier attempt."""
        if not self.held:
            return
        path = self.stem.with_name(f"{self.stem.name}-{self.blocks:05d}.parquet")
        self.blocks += 1
        documents, self.held, self.size = self.held, [], 0
        if path.exists():
            return
        while len(self.waiting) >= self.ahead:
            self.waiting.pop(0).result()
        self.waiting.append(self.pool.submit(write_block, path, documents))


def changed_since(item: Found) -> bool:
    try:
        status = os.stat(item.path)  # noqa: PTH116 - Path.stat is what tests replace to make files vanish
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) != (item.size, item.mtime_ns)


def write_block(path: Path, documents: Sequence[Document]) -> None:
    """Hash the texts, make their signatures, and write all of it as one file, whole or not at all."""
    texts = [one.text for one in documents]
    encoded = [text.encode() for text in texts]
    signature_NV = near.signatures(texts)
    raw = pa.py_buffer(np.ascontiguousarray(signature_NV).tobytes())
    columns: dict[str, Any] = {
        "hash": [hashlib.sha256(one).digest() for one in encoded],
        "bytes": [len(one) for one in encoded],
        "signature": pa.FixedSizeBinaryArray.from_buffers(SCHEMA.field("signature").type, len(texts), [None, raw]),
        "text": encoded,
    }
    for name in LEDGER_FIELDS:
        columns[name] = [getattr(one, name) for one in documents]
    table = pa.table([pa.array(columns[one.name], one.type) if isinstance(columns[one.name], list)
                      else columns[one.name] for one in SCHEMA], schema=SCHEMA)  # fmt: skip
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="lz4", use_dictionary=list(LEDGER_FIELDS), write_statistics=False)
    durable.replace(path, sink.getvalue().to_pybytes())


@dataclass(frozen=True)
class Facts:
    """What the split needs of every document, in order: where it stands, hash, size, signature, and the counts.

    Args:
        starts: number of the first document of each block, and the total at the end [blocks + 1].
        hashes: [N, 32]. sizes: bytes [N]. signatures: [N, 112].
        one_text: all documents are pieces of a single text.
        encodings: encoding -> documents. columns: how the text was chosen -> sources.
    """

    starts: NDArray[np.int64]
    hashes: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    signatures: near.Signatures
    one_text: bool
    encodings: dict[str, int]
    columns: dict[str, list[str]]


def gather(blocks: Sequence[Path]) -> Facts:
    """Read the facts of all documents, not their texts."""
    starts, hashes, sizes, signatures = [0], [], [], []
    encodings: dict[str, int] = {}
    columns: dict[str, dict[str, None]] = {}
    texts: set[tuple[str, str]] = set()
    for path in blocks:
        table = pq.read_table(path, columns=list(FACTS))
        starts.append(starts[-1] + len(table))
        hashes.append(fixed(table["hash"], 32, np.dtype(np.uint8)))
        sizes.append(table["bytes"].to_numpy())
        signatures.append(fixed(table["signature"], near.VALUES, np.dtype(np.uint32)))
        for one in table["encoding"].value_counts().to_pylist():
            encodings[one["values"]] = encodings.get(one["values"], 0) + one["counts"]
        for one in table.select(["column", "source"]).group_by(["column", "source"]).aggregate([]).to_pylist():
            if one["column"]:
                columns.setdefault(one["column"], {})[one["source"]] = None
        if len(texts) < 2:
            pairs = zip(table["source"].to_pylist(), table["member"].to_pylist(), strict=True)
            texts |= {(source, whole(member)) for source, member in pairs}
    return Facts(
        np.array(starts),
        np.concatenate([np.zeros((0, 32), np.uint8), *hashes]),
        np.concatenate([np.zeros(0, np.int64), *sizes]),
        np.concatenate([np.zeros((0, near.VALUES), np.uint32), *signatures]),
        len(texts) == 1 and not columns,
        dict(sorted(encodings.items(), key=lambda item: (-item[1], item[0]))),
        {how: list(sources) for how, sources in columns.items()},
    )


def fixed(column: pa.ChunkedArray, width: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A column of fixed binary values as an array [N, width]."""
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype)[chunk.offset * width : (chunk.offset + len(chunk)) * width]
        for chunk in column.chunks
    ]
    return np.concatenate([np.zeros(0, dtype), *parts]).reshape(-1, width)


def whole(member: str) -> str:
    """The member without the line or part: the same for all pieces of one text."""
    head, _, last = member.rpartition(", ")
    return head if last.startswith(("line ", "part ")) else member
