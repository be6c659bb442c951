"""Bytes from files, compressed or not, in bounded memory; their encoding; their pieces and lines.

    path -> opened: Source (decompressed bytes, a cap on how much may come out) -> pieces | lines -> decoded -> str

Nothing here reads more than a few megabytes at a time, so a file of any size passes.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from nomoat.data.document import PIECE_BYTES

CHUNK_BYTES = 1 << 20
LINE_BYTES = 32_000_000  # a longer line of a jsonl or csv is taken for damage
RATIO = 250  # real text shrinks 3 to 30 times, logs up to 100; deflate can do 1,032 at most
FREE_BYTES = 64_000_000  # what may come out before the ratio is looked at

MAGIC = {
    b"%PDF-": "PDF",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"\xff\xd8\xff": "JPEG",
    b"PK\x03\x04": "zip, docx or the like",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
    b"\x7fELF": "a program",
    b"SQLite format 3": "SQLite",
    b"\xd0\xcf\x11\xe0": "an old Office file",
    b"{\\rtf": "RTF",
    b"%!PS": "PostScript",
}
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1a\x1b"))
CHARSET = re.compile(rb"""<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE)


class UnreadableError(Exception):
    """Bytes that cannot be text of ours; `reason` is a kind, `detail` the particulars."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class Source:
    """Decompressed bytes with a cap: more than `RATIO` times the compressed size is refused as a bomb.

    Args:
        stream: anything with `read(n)`.
        compressed_bytes: size of what it comes from; None where nothing is compressed.
    """

    def __init__(self, stream: IO[bytes] | Any, compressed_bytes: int | None = None) -> None:
        self.stream, self.head, self.given = stream, b"", 0
        self.most = None if compressed_bytes is None else max(FREE_BYTES, RATIO * compressed_bytes)

    def peek(self, size: int = 1 << 16) -> bytes:
        """The first bytes, which `read` will give again."""
        while len(self.head) < size:
            more = self.take(size - len(self.head))
            if not more:
                break
            self.head += more
        return self.head[:size]

    def take(self, size: int) -> bytes:
        block = bytes(self.stream.read(size))
        self.given += len(block)
        if self.most is not None and self.given > self.most:
            raise UnreadableError("expands without end", f"more than {RATIO} times its size: a decompression bomb")
        return block

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        if self.head:
            block, self.head = self.head[:size], self.head[size:]
            return block
        return self.take(size)


class Recoded:
    """Bytes of another encoding as UTF-8, with `read(n)`; broken units become U+FFFD."""

    def __init__(self, source: Source, encoding: str) -> None:
        self.source, self.decoder = source, codecs.getincrementaldecoder(encoding)("replace")
        self.ended = False

    def read(self, size: int) -> bytes:
        while not self.ended:
            block = self.source.read(size)
            self.ended = not block
            text = self.decoder.decode(block, final=self.ended)
            if text:
                return text.encode("utf-8", "replace")
        return b""


def inner_name(name: str) -> tuple[str, str]:
    """Split a compression suffix off: `"a.csv.gz"` -> `("a.csv", "gz")`, `"a.csv"` -> `("a.csv", "")`."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, suffix.lower()) if dot and suffix.lower() in ("gz", "zst") else (name, "")


@contextmanager
def opened(stream: IO[bytes], compression: str, size: int | None) -> Iterator[Source]:
    """Decompress an open file: `compression` is "gz", "zst" or ""; `size` its compressed size, None for a plain one."""
    if compression == "gz":
        import gzip

        with gzip.GzipFile(fileobj=stream) as plain:
            yield Source(plain, size)
    elif compression == "zst":
        import pyarrow as pa

        with pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd") as plain:
            yield Source(plain, size)
    else:
        yield Source(stream, size)


class Opening(NamedTuple):
    """What the first bytes say: the source as UTF-8 or bytes to be decoded piece by piece, and the encoding."""

    source: Source
    encoding: str


def text_source(source: Source, html: bool = False) -> Opening:
    """Look at the first bytes: binary is refused, UTF-16 and UTF-32 and a declared charset are turned into UTF-8.

    Raises:
        UnreadableError: for binary content.
    """
    head = source.peek()
    for mark, encoding in BOMS:
        if head.startswith(mark):
            source.read(len(mark))
            return Opening(source, encoding) if encoding == "utf-8-sig" else recoded(source, encoding)
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            raise UnreadableError("binary file", name)
    encoding = utf16_without_mark(head) if b"\0" in head else ""
    if encoding:
        return recoded(source, encoding)
    if len(head) - len(head.translate(None, CONTROLS)) > len(head) // 50:
        raise UnreadableError("binary file", "control characters")
    declared = CHARSET.search(head[:2048]) if html else None
    if declared:
        name = declared[1].decode("ascii", "replace")
        try:
            b"".decode(name)
        except LookupError:
            return Opening(source, "utf-8")
        if codecs.lookup(name).name not in ("utf-8", "ascii", "iso8859-1", "cp1252"):
            return recoded(source, name)
    return Opening(source, "utf-8")


def recoded(source: Source, encoding: str) -> Opening:
    return Opening(Source(Recoded(source, encoding)), encoding)


def utf16_without_mark(head: bytes) -> str:
    """Name the UTF-16 whose zero bytes stand where Latin text has them; empty where they do not."""
    half = max(1, len(head) // 2)
    even, odd = head[0::2].count(0) / half, head[1::2].count(0) / half
    if odd > 0.4 and even < 0.02:
        return "utf-16-le"
    return "utf-16-be" if even > 0.4 and odd < 0.02 else ""


def decoded(data: bytes) -> tuple[str, str]:
    """Read bytes as UTF-8, else as Windows-1252 (Latin-1 with curly quotes).

    A text with more good UTF-8 characters than broken ones stays UTF-8, with U+FFFD for the broken.

    Returns:
        The text and the encoding's name.

    Raises:
        UnreadableError: for zero bytes, and for bytes that are neither, such as Shift-JIS or KOI8-R.
    """
    if b"\0" in data:
        raise UnreadableError("binary data among text", "zero bytes")
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        high = len(data) - len(data.translate(None, bytes(range(128, 256))))
    text = data.decode("utf-8", "replace")
    if text.count("\ufffd") * 4 < high:
        return text, "utf-8 with errors"
    if high > len(data) * 0.3:
        raise UnreadableError("unknown encoding", "neither UTF-8 nor Latin-1; convert it to UTF-8")
    try:
        return data.decode("cp1252"), "cp1252"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "latin-1"


class Piece(NamedTuple):
    """A stretch of bytes with the place where it begins: the offset, and the line (the first is 1)."""

    data: bytes
    offset: int
    line: int


def pieces(source: Source, limit: int = PIECE_BYTES) -> Iterator[Piece]:
    """Cut a stream into pieces of at most `limit` bytes, at a blank line, else a line end, else a space."""
    buffer, offset, line, ended = b"", 0, 1, False
    while True:
        while not ended and len(buffer) <= limit:
            block = source.read(CHUNK_BYTES)
            ended = not block
            buffer += block
        if len(buffer) <= limit:
            if buffer:
                yield Piece(buffer, offset, line)
            return
        cut = border(buffer, limit)
        yield Piece(buffer[:cut], offset, line)
        line += buffer.count(b"\n", 0, cut) or buffer.count(b"\r", 0, cut)
        offset += cut
        buffer = buffer[cut:]


def border(data: bytes, limit: int) -> int:
    """Where to cut: after the last blank line, line end or space in the second half of `data[:limit]`."""
    for mark in (b"\n\n", b"\n\r\n", b"\n", b"\r", b" "):
        found = data.rfind(mark, limit // 2, limit)
        if found >= 0:
            return found + len(mark)
    cut = limit
    while cut > limit - 4 and data[cut] & 0xC0 == 0x80:  # do not cut inside a UTF-8 character
        cut -= 1
    return cut


def lines(source: Source, limit: int = LINE_BYTES) -> Iterator[Piece]:
    """Each line without its end, empty ones too; one longer than `limit` comes as an empty piece with line -N."""
    rest, offset, number, skipping = b"", 0, 1, False
    while True:
        block = source.read(CHUNK_BYTES)
        if not block:
            break
        parts = (rest + block).split(b"\n")
        rest = parts.pop()
        for part in parts:
            if skipping or len(part) > limit:
                yield Piece(b"", offset, -number)
                skipping = False
            else:
                yield Piece(part, offset, number)
            offset += len(part) + 1
            number += 1
        if len(rest) > limit:
            skipping, offset, rest = True, offset + len(rest), b""
    if rest or skipping:
        yield Piece(b"" if skipping else rest, offset, -number if skipping else number)


def unified(text: str) -> str:
    """Line ends as `\\n`, and no lone surrogates (JSON can smuggle them in), so that every text can be encoded."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def as_seekable(source: Source, limit: int) -> io.BytesIO:
    """The whole source in memory, for formats that need to jump about.

    Raises:
        UnreadableError: where it is longer than `limit` bytes.
    """
    data = bytearray()
    while block := source.read(CHUNK_BYTES):
        data += block
        if len(data) > limit:
            raise UnreadableError("too large inside an archive", f"more than {limit // 1_000_000} MB: unpack it first")
    return io.BytesIO(data)
