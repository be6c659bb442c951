"""Read a file or a folder of text, code, markdown, HTML, csv, jsonl and parquet, also .gz, .zst and inside .zip.

    folder -walk-> Found | Dropped;  file -read-> Document | Dropped, never an exception for what is in it

What is no text is left out with its reason. Nothing is ever unpacked to the disk.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from nomoat.data.document import PIECE_BYTES, Document, Dropped, inside
from nomoat.data.html_text import TextOf
from nomoat.data.licence import LicenceFinder, is_licence_file, is_sidecar
from nomoat.data.rules import OVERRIDES
from nomoat.data.streams import (
    FREE_BYTES,
    RATIO,
    Source,
    UnreadableError,
    as_seekable,
    decoded,
    inner_name,
    opened,
    pieces,
    text_source,
    unified,
)
from nomoat.data.tables import read_csv, read_jsonl, read_parquet

__all__ = ["PIECE_BYTES", "Document", "Dropped", "Found", "read", "walk"]

OTHERS = {"__pycache__": "compiled files", "node_modules": "other people's packages"}
NESTED_BYTES = 256_000_000  # a parquet inside an archive is held in memory, up to this
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
BLANK = "empty"
SYNTH = "rows.jsonl", "answers.sqlite"
"""By these files a folder of `nomoat synth` is known; the first is what it came to."""


@dataclass(frozen=True)
class Found:
    """A file to be read: its path, the path as shown, and what the disk says of it."""

    path: Path
    shown: str
    size: int
    mtime_ns: int


def walk(root: Path, leave_out: Callable[[Path], str] | None = None) -> Iterator[Found | Dropped]:
    """List the files below a folder (or the one file) in an order that depends on the names alone.

    Hidden files, caches, packages, virtual environments, our own runs and datasets, and what is no file are left out,
    as is all but the rows of a folder that `nomoat synth` wrote: what it dropped is there to be looked at. Each folder
    is entered once however many links lead to it, so that loops of links end.

    Args:
        root: a folder or a file.
        leave_out: a further judge of paths: a reason, or nothing.
    """
    if not root.is_dir():
        status = root.stat()
        yield Found(root, visible(root.name), status.st_size, status.st_mtime_ns)
        return
    entered = {identity(root.stat())}
    open_folders = [(root, "")]
    while open_folders:
        folder, prefix = open_folders.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            yield Dropped(prefix or ".", "", *told(error))
            continue
        if {entry.name for entry in entries} >= {*SYNTH}:
            entries = [entry for entry in entries if entry.name == SYNTH[0]]
        below = []
        for entry in entries:
            shown, path = prefix + visible(entry.name), Path(entry.path)
            try:
                reason = set_aside(entry) or (leave_out(path) if leave_out else "")
                status = entry.stat()
            except OSError as error:
                yield Dropped(shown, "", *(("broken link", "") if entry.is_symlink() else told(error)))
                continue
            if reason:
                yield Dropped(shown, "", reason)
            elif stat.S_ISDIR(status.st_mode):
                if identity(status) in entered:
                    yield Dropped(shown, "", "folder read already", "a link leads back to it")
                else:
                    entered.add(identity(status))
                    below.append((path, shown + "/"))
            elif stat.S_ISREG(status.st_mode):
                yield Found(path, shown, status.st_size, status.st_mtime_ns)
            else:
                yield Dropped(shown, "", "not a file", "a pipe, socket or device")
        open_folders += reversed(below)


def identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def visible(name: str) -> str:
    """A name that can be printed and stored, whatever bytes it is made of."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def set_aside(entry: os.DirEntry[str]) -> str:
    """Why an entry is not read for its name or kind alone; empty where it is."""
    if entry.name.startswith("."):
        return "hidden"
    if entry.is_dir():
        folder = Path(entry.path)
        if (folder / "pyvenv.cfg").exists():
            return "other people's packages"
        ours = ("dataset.json", "train-00000.idx"), ("dataset.json", "pictures.parquet"), ("recipe.json", "STATUS")
        if any((folder / a).exists() and (folder / b).exists() for a, b in ours) or entry.name.endswith(".partial"):
            return "a run or dataset of nomoat"
        return OTHERS.get(entry.name, "")
    if is_sidecar(entry.name) or is_licence_file(entry.name) or entry.name == OVERRIDES:
        return "licence file, read as evidence"
    return ""


def read(
    path: Path,
    shown: str | None = None,
    licences: LicenceFinder | None = None,
    text_column: str | None = None,
    limit: int = PIECE_BYTES,
) -> Iterator[Document | Dropped]:
    """Read one file of any of the formats, in bounded memory.

    Args:
        path: the file.
        shown: the path as documents will carry it; the file's name where left out.
        licences: finds the licence of what carries none itself; None: only what stands beside the file.
        text_column: column names (with commas between) to take as text in tables.
        limit: longest document, in bytes.

    Yields:
        Documents, and what was left out with the reason; never raises for the file's content.
    """
    name = visible(path.name) if shown is None else shown
    with losses(name) as lost, path.open("rb") as file:
        yield from read_file(file, path, name, licences or LicenceFinder(path.parent), text_column, limit)
    yield from lost


def read_file(
    file: IO[bytes],
    path: Path,
    name: str,
    finder: LicenceFinder,
    text_column: str | None = None,
    limit: int = PIECE_BYTES,
) -> Iterator[Document | Dropped]:
    """The same for a file that is open; its `tell()` says how far the reader is."""
    with losses(name) as lost:
        size = os.fstat(file.fileno()).st_size
        if name.lower().endswith(".zip"):
            yield from read_zip(file, size, path, name, finder, text_column, limit)
        else:
            for item in read_open(file, size, name, text_column, limit):
                yield finder.settle(item, path) if isinstance(item, Document) else item
    yield from lost


@contextmanager
def losses(name: str) -> Iterator[list[Dropped]]:
    """Turn whatever a damaged file can raise into one `Dropped`, in the list."""
    lost: list[Dropped] = []
    try:
        yield lost
    except UnreadableError as error:
        lost.append(Dropped(name, "", error.reason, error.detail))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        lost.append(Dropped(name, "", "damaged archive", str(error)))
    except NotImplementedError as error:  # what zipfile says to an unknown compression
        lost.append(Dropped(name, "", "archive that cannot be opened", str(error)))
    except OSError as error:
        lost.append(Dropped(name, "", *told(error)))


def told(error: OSError) -> tuple[str, str]:
    """The reason and the detail of an error of the file system or of a decompressor."""
    known = {errno.EACCES: "no permission", errno.EPERM: "no permission", errno.ENOENT: "vanished"}
    if error.errno is None:  # gzip and pyarrow raise OSError for damaged content
        return "damaged archive", str(error)[:200]
    return known.get(error.errno, "cannot be read"), error.strerror or ""


def read_open(
    file: IO[bytes] | Any,
    size: int,
    name: str,
    asked: str | None,
    limit: int,
    packed: bool = False,
) -> Iterator[Document | Dropped]:
    """Read an open file as what its name says; `packed` where it comes out of an archive and cannot be jumped in."""
    inner, compression = inner_name(name)
    suffix = PurePosixPath(inner).suffix.lower()
    if suffix in (".parquet", ".pq") and not (packed or compression):
        yield from read_parquet(file, name, asked)
        return
    with opened(file, compression, size if compression else None) as source:
        if suffix in (".parquet", ".pq"):
            yield from read_parquet(as_seekable(source, NESTED_BYTES), name, asked)
            return
        if not source.peek(1):
            yield Dropped(name, "", BLANK)
            return
        text, encoding = text_source(source, html=suffix in HTML_SUFFIXES)
        if suffix in (".jsonl", ".ndjson"):
            made = read_jsonl(text, name, asked, encoding)
        elif suffix in (".csv", ".tsv"):
            made = read_csv(text, inner if compression else name, asked, encoding)
        elif suffix in HTML_SUFFIXES:
            made = read_html(text, name, encoding, limit)
        else:
            yield from read_text(text, name, encoding, limit)
            return
        for item in made:
            item.source = name
            yield from split(item, limit) if isinstance(item, Document) and len(item.text) > limit // 4 else (item,)


def read_text(source: Source, name: str, encoding: str, limit: int) -> Iterator[Document | Dropped]:
    """Text as it is, in pieces; each piece is decoded for itself, so one bad stretch does not spoil the rest."""
    for piece in pieces(source, limit):
        member = "" if piece.line == 1 and not piece.offset else f"line {piece.line}"
        try:
            text, spelled = decoded(piece.data)
        except UnreadableError as error:
            yield Dropped(name, member, error.reason, error.detail)
            continue
        if text.isspace():
            yield Dropped(name, member, BLANK)
        else:
            spelled = encoding if encoding != "utf-8" else spelled
            yield Document(unified(text), name, member, piece.offset, encoding=spelled)


def read_html(source: Source, name: str, encoding: str, limit: int) -> Iterator[Document | Dropped]:
    """The text of a page, without scripts and styles; a page without any is left out."""
    parser, spelled, made = TextOf(), encoding, 0
    for piece in pieces(source, limit):
        text, how = decoded(piece.data)
        spelled = spelled if how == "utf-8" else how
        parser.feed(text)
        if parser.size > limit // 4:
            made += 1
            yield Document(unified(parser.taken()), name, f"part {made}", encoding=spelled)
    parser.close()
    rest = unified(parser.taken())
    if rest.strip():
        yield Document(rest, name, f"part {made + 1}" if made else "", encoding=spelled)
    elif not made:
        yield Dropped(name, "", BLANK, "a page without text")


def split(item: Document, limit: int) -> Iterator[Document]:
    """Cut a document of a table or page that is longer than `limit` bytes into several."""
    data = item.text.encode()
    if len(data) <= limit:
        yield item
        return
    for number, piece in enumerate(pieces(Source(io.BytesIO(data)), limit), 1):
        where = f"{item.member}, part {number}".removeprefix(", ")
        yield replace(item, text=piece.data.decode("utf-8", "replace"), member=where)


def read_zip(
    file: IO[bytes], size: int, path: Path, name: str, finder: LicenceFinder, asked: str | None, limit: int
) -> Iterator[Document | Dropped]:
    """Every member of a zip, read in place: nothing is written to the disk, whatever the members are called."""
    with zipfile.ZipFile(file) as archive:
        members = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename)
        if sum(info.file_size for info in members) > max(FREE_BYTES, RATIO * size):
            raise UnreadableError(
                "expands without end", f"its members claim more than {RATIO} times its size: a zip bomb"
            )
        local = finder.within({info.filename: info for info in members}, archive, path)
        for info in members:
            reason = member_set_aside(info)
            if reason:
                yield Dropped(name, visible(info.filename), reason)
                continue
            with losses(name) as lost, archive.open(info) as stream:
                for item in read_open(stream, info.compress_size, visible(info.filename), asked, limit, packed=True):
                    settled = local.settle(item, PurePosixPath(info.filename)) if isinstance(item, Document) else item
                    moved = inside(settled, visible(info.filename))
                    moved.source = name
                    yield moved
            yield from (inside(item, visible(info.filename)) for item in lost)


def member_set_aside(info: zipfile.ZipInfo) -> str:
    """Why a member of a zip is not read; empty where it is."""
    path = PurePosixPath(info.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        return "path that leads out of the archive"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "link inside an archive"
    if any(part.startswith(".") for part in path.parts) or "__MACOSX" in path.parts:
        return "hidden"
    if any(part in OTHERS for part in path.parts):
        return OTHERS[next(part for part in path.parts if part in OTHERS)]
    if info.flag_bits & 1:
        return "locked with a password"
    if path.suffix.lower() == ".zip":
        return "archive inside an archive"
    if info.file_size > FREE_BYTES and info.file_size > RATIO * max(1, info.compress_size):
        return "expands without end"
    return "licence file, read as evidence" if is_licence_file(path.name) or is_sidecar(path.name) else ""
