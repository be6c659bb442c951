"""What a reader hands on: a document with its ledger line, or a thing that was left out with the reason.

    file -> Document(text, where it came from, whose it is) | Dropped(where, why)

A document is at most `PIECE_BYTES` long; longer texts come as several, cut at a blank line or at the end of a line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

PIECE_BYTES = 2_000_000
"""The longest document, in bytes of its source: longer texts are cut, so that memory stays bounded."""


@dataclass(slots=True)
class Document:
    """One text and what the ledger needs to know of it.

    Args:
        text: the text, line ends as `\\n`.
        source: the file, as a path relative to the folder that was read (or the file's own name).
        member: where inside the file: `"inner.txt"` in a zip, `"line 17"` of a jsonl, csv or long text, `"row 3"` of a
            parquet, several joined by `", "`; empty where the document is the whole file.
        offset_bytes: where it begins in the file, or in the decompressed member; 0 where that has no meaning (parquet).
        licence: an SPDX expression, None where unknown.
        evidence: where the licence was found ("LICENSE, line 1", "column license"), or why none was taken.
        author: who wrote it, where known.
        date: when, as written in the source, where known.
        origin: "human", or the name of the generator.
        generation: 0 for human text, 1 + the parents' largest for synthetic text.
        derived_from: hashes of the documents it was made from.
        encoding: how the bytes were read.
        column: the column that was taken as text, where there are columns.
    """

    text: str
    source: str
    member: str = ""
    offset_bytes: int = 0
    licence: str | None = None
    evidence: str = ""
    author: str = ""
    date: str = ""
    origin: str = "human"
    generation: int = 0
    derived_from: tuple[str, ...] = ()
    encoding: str = "utf-8"
    column: str = ""


@dataclass(slots=True)
class Dropped:
    """Something that was left out.

    Args:
        source: the file, as in `Document`.
        member: the line, row or zip member; empty for the whole file.
        reason: a few words without names or numbers, the same for the same kind of thing, so that they can be counted.
        detail: what the reason does not say.
    """

    source: str
    member: str
    reason: str
    detail: str = ""


COLUMN_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".pq")
PAGE_SUFFIXES = (".html", ".htm", ".xhtml")


def place(source: str, member: str = "", lines_before: int = 0) -> str:
    """Say where something stands: "file, line N", counting `lines_before` line ends from the document's start.

    A row of a table and the text of a page have no lines of the file; theirs are counted as "text line".

    >>> place("a.txt", "line 40", 2), place("b.zip", "c.md", 6), place("d.jsonl", "line 17", 3)
    ('a.txt, line 42', 'b.zip, c.md, line 7', 'd.jsonl, line 17, text line 4')
    """
    parts = member.split(", ") if member else []
    cut = next((n for n, part in enumerate(parts) if re.fullmatch(r"(?:line|row|part) \d+", part)), len(parts))
    files, positions = [source, *parts[:cut]], parts[cut:]
    kind = re.sub(r"\.(?:gz|zst)$", "", files[-1].lower())
    if kind.endswith(COLUMN_SUFFIXES + PAGE_SUFFIXES):
        inner = [f"text line {lines_before + 1}"] if lines_before or not positions else []
        return ", ".join([*files, *positions, *inner])
    start = int(positions[0].split()[1]) if positions else 1
    return ", ".join([*files, f"line {start + lines_before}"])


def inside(item: Document | Dropped, name: str) -> Document | Dropped:
    """The same document or loss, said to lie in the member `name` of an archive."""
    return replace(item, member=f"{name}, {item.member}" if item.member else name)
