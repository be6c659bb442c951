"""The manifest of a dataset: what was read, what was left out, what is held out, whose it is; and whether it still is.

    dataset.json <-> Manifest;  verify: the dataset's own files;  changed: the files it was made from

The id is a hash of the contents: the same text and tokenizer give the same id, whenever and wherever it is made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nomoat.core.errors import DataError
from nomoat.core.ledger import Ledger, Share
from nomoat.data import corpus
from nomoat.data.document import Dropped
from nomoat.data.readers import Found, walk

NAME = "dataset.json"
DROPPED = "dropped.jsonl"
FORMAT = 1
AGAIN = "Ingest the data again"


@dataclass(frozen=True)
class Manifest:
    """What a dataset holds.

    Args:
        id: SHA-256 of the contents.
        source: the file or folder it was made from; empty: Python's standard library.
        title: what to call the source on a card.
        request: hash of source and settings: the same request need not be worked on twice.
        settings: how it was read: licence, text_column, held_out_share, held_out_bytes, tokenizer, vocab_size.
        files: of each file that was read {path, size, mtime_ns, sha256}.
        tokenizer: its hash.
        splits: "train" and "heldout" -> {documents, tokens, bytes}; tokens count the document ends.
        shards: {name, bytes, sha256} of the dataset's own files.
        dropped: reason -> how many; the file DROPPED names each.
        near_duplicates: documents that have one; all of a group are on one side.
        encodings: encoding -> documents.
        columns: which column was taken as text -> files.
        ledger: licences, origins and generation of the training documents, see `licences`.
        held_out: of each held-out document {hash, source, member, bytes}.
        seconds: what the parts of the work took, those of an earlier, killed attempt not counted.
    """

    id: str
    source: str
    title: str
    request: str
    settings: Mapping[str, Any]
    files: list[dict[str, Any]]
    tokenizer: str
    splits: dict[str, dict[str, int]]
    shards: list[dict[str, Any]]
    dropped: dict[str, int]
    near_duplicates: int
    encodings: dict[str, int]
    columns: dict[str, list[str]]
    ledger: dict[str, Any]
    held_out: list[dict[str, Any]]
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path | str) -> Manifest:
        """Read the manifest of a dataset folder.

        Raises:
            DataError: there is none, or it is damaged.
        """
        path = Path(folder) / NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{one.name: data[one.name] for one in fields(cls)})
        except FileNotFoundError as error:
            raise DataError(f"{folder} is no dataset", f"it has no {NAME}", AGAIN) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged", f"{type(error).__name__}: {error}", AGAIN) from error

    def to_json(self) -> bytes:
        return (json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, indent=1) + "\n").encode()

    def left_out(self, folder: Path | str) -> str:
        """What was left out of the dataset in `folder`, counted by reason, each with its first place; else ""."""
        first: dict[str, str] = {}
        with suppress(OSError), (Path(folder) / DROPPED).open(encoding="utf-8") as lines:
            for line in map(json.loads, lines):
                first.setdefault(line["reason"], ", ".join(filter(None, (line["source"], line["member"]))))
        said = (f"{count:,} x {reason} ({first.get(reason, '')})" for reason, count in self.dropped.items())
        return f"Left out: {', '.join(said)}; {Path(folder) / DROPPED} names each." if self.dropped else ""

    @property
    def licences(self) -> Ledger:
        """The licences of the training documents, for the card."""
        shares = tuple(
            Share(**{**share, "evidence": tuple((text, count) for text, count in share["evidence"])})
            for share in self.ledger["shares"]
        )
        origins = tuple((origin, count) for origin, count in self.ledger["origins"])
        return Ledger(shares, origins, self.ledger["generation"])


def verify(folder: Path | str) -> list[str]:
    """Hash the dataset's own files again; what is wrong with them, in words; [] where all is well."""
    problems = []
    for shard in Manifest.load(folder).shards:
        path = Path(folder) / shard["name"]
        if not path.is_file():
            problems.append(f"{shard['name']} is missing")
        elif path.stat().st_size != shard["bytes"]:
            problems.append(f"{shard['name']} has {path.stat().st_size:,} bytes, not {shard['bytes']:,}")
        elif digest(path) != shard["sha256"]:
            problems.append(f"{shard['name']} has other contents than were written")
    return problems


def changed(folder: Path | str) -> list[str]:
    """Say in words how the files that a dataset was made from differ now; [] where they do not.

    A file with another date but the same contents has not changed.
    """
    manifest = Manifest.load(folder)
    root = Path(manifest.source) if manifest.source else corpus.library()
    if not root.exists():
        return [f"{root} is gone"]
    now = {item.shown: item for item in listed(root, not manifest.source) if isinstance(item, Found)}
    said = []
    for then in manifest.files:
        item = now.pop(then["path"], None)
        if item is None:
            said.append(f"{then['path']} is missing")
        elif item.size != then["size"]:
            said.append(f"{then['path']} has changed: {item.size:,} bytes, then {then['size']:,}")
        elif item.mtime_ns != then["mtime_ns"] and digest(item.path) != then["sha256"]:
            said.append(f"{then['path']} has changed")
    return said + [f"{name} is new" for name in now]


def listed(root: Path, is_library: bool) -> list[Found | Dropped]:
    """The files of a source, as ingest lists them."""
    return list(corpus.modules(root) if is_library else walk(root))


def digest(path: Path) -> str:
    """SHA-256 of a file; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
