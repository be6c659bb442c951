"""GGUF files, versions 2 and 3 (ggml-org/ggml, docs/gguf.md): a header checked number by number, tensors one at a time.

    file -> Header(metadata, tensors: name -> Place) -> rows(place) -> bytes [R, S]
    metadata, tensors to be made -> write_gguf -> file

A header is believed in nothing: every count and length is held against what is left of the file and against limits of
our own before anything is allocated for it.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nomoat.core import durable
from nomoat.core.errors import DataError, NomoatError
from nomoat.hub.blocks import FORMATS, OTHERS, Bytes, row_bytes

MAGIC = b"GGUF"
MOST_HEADER = 1 << 28
MOST_TEXT = 1 << 24
MOST_ITEMS = 1 << 23
MOST_KEYS = MOST_TENSORS = 1 << 16
MOST_AXES, MOST_DEPTH, MOST_ALIGNMENT = 4, 2, 1 << 16
"""Far above what any model has: 8 million strings and numbers in all lists together, 65,536 tensors."""

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
KINDS = {form.code: kind for kind, form in FORMATS.items()}


@dataclass(frozen=True)
class Place:
    """Where a tensor stands in its file.

    Args:
        shape: sizes, the slowest first, as everywhere but in GGUF.
        kind: one of `blocks.FORMATS`.
        offset: its first byte in the file.
    """

    shape: tuple[int, ...]
    kind: str
    offset: int

    @property
    def rows(self) -> int:
        """Rows of the last axis."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes a row."""
        return row_bytes(self.kind, self.shape[-1])


@dataclass(frozen=True)
class Header:
    """What a GGUF says of itself.

    Args:
        path: the file.
        metadata: key -> number, text, or list of such.
        tensors: name -> place, in the file's order.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Place]

    def read(self, name: str, first: int = 0, count: int | None = None) -> Bytes:
        """The bytes [R, S] of a tensor's rows: of `count` from the `first` on (None: of all).

        Raises:
            DataError: the file has become shorter since its header was read.
        """
        place = self.tensors[name]
        with self.path.open("rb") as file:
            file.seek(place.offset + first * place.row_bytes)
            count = place.rows - first if count is None else count
            flat = np.fromfile(file, np.uint8, count * place.row_bytes)
        if len(flat) != count * place.row_bytes:
            raise DataError(f"{self.path.name} ends within `{name}`", "it is truncated", "fetch it again")
        return flat.reshape(count, place.row_bytes)


def read_header(path: Path) -> Header:
    """Read and check the header of a GGUF.

    Raises:
        DataError: it is no GGUF, of another version, truncated, or contradicts itself.
    """
    with path.open("rb") as file:
        cursor = _Cursor(file, path)
        try:
            return cursor.header()
        except NomoatError:
            raise
        except (ValueError, OverflowError, struct.error) as error:
            raise cursor.wrong(str(error)) from error


class _Cursor:
    """Reads a header from its beginning; never past the file's end, never more than the limits."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.size = os.fstat(file.fileno()).st_size
        self.at, self.items = 0, 0

    def wrong(self, why: str) -> DataError:
        return DataError(f"{self.path.name} is no sound GGUF file", why, "fetch it again, from a source you trust")

    def take(self, count: int) -> bytes:
        if count > min(self.size, MOST_HEADER) - self.at:
            raise self.wrong(f"its header claims {count:,} bytes at {self.at:,}, beyond its end or any sound header's")
        self.at += count
        return self.file.read(count)

    def number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def count(self, what: str, most: int) -> int:
        number = int(self.number("Q"))
        if number > most:
            raise self.wrong(f"it claims {number:,} {what}; {most:,} are the most that is read")
        return number

    def text(self) -> str:
        return self.take(self.count("bytes of one text", MOST_TEXT)).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in NUMBERS:
            number = self.number(NUMBERS[kind])
            # The shortest decimal that is the same single-precision number: 1e-05, not 9.999999747378752e-06.
            return float(str(np.float32(number))) if kind == 6 else number
        if kind == TEXT:
            return self.text()
        if kind != LIST or depth >= MOST_DEPTH:
            raise self.wrong(f"a value of type {kind}, {depth} lists deep, is none that GGUF has")
        inner, length = self.number("I"), self.count("items of one list", MOST_ITEMS)
        self.items += length
        if self.items > MOST_ITEMS:
            raise self.wrong(f"its lists have more than {MOST_ITEMS:,} items together")
        if inner in NUMBERS:
            width = struct.calcsize("<" + NUMBERS[inner])
            return list(struct.unpack(f"<{length}{NUMBERS[inner]}", self.take(width * length)))
        return [self.value(inner, depth + 1) for _ in range(length)]

    def header(self) -> Header:
        if self.take(4) != MAGIC:
            raise self.wrong("it does not begin with the letters GGUF")
        version = self.number("I")
        if version not in (2, 3):
            why = "big-endian files are not read here" if version in (2 << 24, 3 << 24) else "versions 2 and 3 are read"
            raise self.wrong(f"its version is {version}; {why}")
        tensors, keys = self.count("tensors", MOST_TENSORS), self.count("keys", MOST_KEYS)
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self.text()
            if key in metadata:
                raise self.wrong(f"it has the key `{key[:80]}` twice")
            metadata[key] = self.value(self.number("I"))
        return Header(self.path, metadata, self.places(tensors, self.alignment(metadata)))

    def alignment(self, metadata: Mapping[str, Any]) -> int:
        found = metadata.get("general.alignment", 32)
        if not isinstance(found, int) or not 8 <= found <= MOST_ALIGNMENT or found & (found - 1):
            raise self.wrong(f"an alignment of {str(found)[:80]} is no power of two from 8 to {MOST_ALIGNMENT:,}")
        return found

    def places(self, tensors: int, alignment: int) -> dict[str, Place]:
        """The tensors' places, each within the file and none over another."""
        found: dict[str, tuple[tuple[int, ...], str, int]] = {}
        for _ in range(tensors):
            name, axes = self.text(), self.number("I")
            if name in found or not 1 <= axes <= MOST_AXES:
                raise self.wrong(f"the tensor `{name[:80]}` is there twice, or has {axes} axes")
            shape = tuple(reversed([self.number("Q") for _ in range(axes)]))
            code, offset = self.number("I"), self.number("Q")
            if code not in KINDS:
                kind = OTHERS.get(code, f"number {code}")
                raise DataError(
                    f"`{name[:80]}` is of type {kind}, which is not read here", f"read are {', '.join(FORMATS)}"
                )
            if min(shape) < 1 or offset % alignment:
                raise self.wrong(f"the tensor `{name[:80]}` has sizes {shape} at byte {offset}")
            found[name] = shape, KINDS[code], offset
        start = -(-self.at // alignment) * alignment
        places = {name: Place(shape, kind, start + offset) for name, (shape, kind, offset) in found.items()}
        end = start
        for name, place in sorted(places.items(), key=lambda item: item[1].offset):
            if place.offset < end:
                raise self.wrong(f"the tensor `{name[:80]}` lies over another one")
            end = place.offset + place.rows * place.row_bytes
            if end > self.size:
                raise self.wrong(f"the tensor `{name[:80]}` ends at byte {end:,} of {self.size:,}: the file is cut off")
        return places


@dataclass(frozen=True)
class Made:
    """A tensor to be written.

    Args:
        shape: sizes, the slowest first.
        kind: one of `blocks.FORMATS`.
        make: gives its rows' bytes [R, S] when its turn comes.
    """

    shape: tuple[int, ...]
    kind: str
    make: Callable[[], Bytes]


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Made]) -> None:
    """Write a GGUF of version 3, tensor by tensor.

    Args:
        path: a new file.
        metadata: key -> bool, number, text, or list of one kind of these.
        tensors: name -> what to write, in this order.

    Raises:
        OSError: the disk is full or broken.
    """
    alignment = 32
    head = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        kind, packed = _packed(value)
        head += [_text(key), struct.pack("<I", kind), packed]
    offset = 0
    sizes = []
    for name, made in tensors.items():
        shape = tuple(reversed(made.shape))
        head += [_text(name), struct.pack(f"<I{len(shape)}Q", len(shape), *shape)]
        head += [struct.pack("<IQ", FORMATS[made.kind].code, offset)]
        sizes.append(math.prod(made.shape[:-1]) * row_bytes(made.kind, made.shape[-1]))
        offset += sizes[-1] + -sizes[-1] % alignment
    start = b"".join(head)

    def pieces() -> Iterator[Any]:
        yield start + bytes(-len(start) % alignment)
        for made, size in zip(tensors.values(), sizes, strict=True):
            rows_RS = made.make()
            assert rows_RS.nbytes == size
            yield np.ascontiguousarray(rows_RS).data
            yield bytes(-size % alignment)

    durable.write(path, pieces())


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "replace")
    return struct.pack("<Q", len(data)) + data


def _packed(value: Any) -> tuple[int, bytes]:
    """The type that llama.cpp expects of such a value, and its bytes."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        kind = 4 if 0 <= value < 2**32 else 5 if -(2**31) <= value < 0 else 10 if value > 0 else 11
        return kind, struct.pack("<" + NUMBERS[kind], value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return TEXT, _text(value)
    first = value[0] if value else ""
    if isinstance(first, str):
        return LIST, struct.pack("<IQ", TEXT, len(value)) + b"".join(map(_text, value))
    kind = 7 if isinstance(first, bool) else 5 if isinstance(first, int) else 6
    return LIST, struct.pack(f"<IQ{len(value)}{NUMBERS[kind]}", kind, len(value), *value)
