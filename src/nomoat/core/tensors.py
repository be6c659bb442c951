"""Tensors in safetensors files: read when they are needed, some rows at a time, and written in one pass.

    file -> name -> Later -> rows -> file, SHA-256

Format: huggingface.co/docs/safetensors. A model larger than memory passes through one tensor, or some rows, at a time.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nomoat.core import durable
from nomoat.core.errors import CheckpointError

PIECE_BYTES = 1 << 24
ROW_NUMBERS = 1 << 20
"""Numbers of a tensor that are read at once, where it can be read by rows."""
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Later:
    """A tensor that is made when it is needed: a model larger than memory can be read and written one by one.

    Args:
        shape: its sizes.
        dtype: its type.
        make: makes it, on the CPU; called anew each time.
        pieces: makes the same, some whole rows at a time, where that is possible.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]
    pieces: Callable[[], Iterator[Tensor]] | None = None

    @classmethod
    def by_rows(cls, shape: tuple[int, ...], dtype: torch.dtype, pieces: Callable[[], Iterator[Tensor]]) -> Later:
        """One that is made some rows at a time."""

        def make() -> Tensor:
            made = list(pieces())
            return made[0] if len(made) == 1 else torch.cat(made)

        return cls(shape, dtype, make, pieces)

    def rows(self) -> Iterator[Tensor]:
        """Its rows in order, in as small pieces as they can be had."""
        return iter((self.make(),)) if self.pieces is None else self.pieces()

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


Some = Tensor | Later
"""A tensor, now or later."""


def read_later(path: Path) -> tuple[dict[str, Later], dict[str, str]]:
    """Return the tensors of any safetensors file as ones to be read one by one, and the header's texts.

    Raises:
        CheckpointError: it is no sound safetensors file, or holds a type that is not read here.
    """
    from safetensors import SafetensorError, safe_open

    types = {word: dtype for dtype, word in _TYPES.items()}

    def reading(key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Later:
        def make() -> Tensor:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(key)

        def pieces() -> Iterator[Tensor]:
            step = max(1, ROW_NUMBERS // math.prod(shape[1:]))
            for start in range(0, shape[0], step):
                with safe_open(path, framework="pt") as file:  # opened anew: what is mapped counts as memory
                    piece = file.get_slice(key)[start : start + step]
                yield piece

        return Later(shape, dtype, make, pieces if math.prod(shape) > ROW_NUMBERS else None)

    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            texts = file.metadata() or {}
        shapes = {key: (tuple(part.get_shape()), types[part.get_dtype()]) for key, part in slices.items()}
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(f"{path.name} is no safetensors file that can be read", str(error)) from error
    return {key: reading(key, *kind) for key, kind in shapes.items()}, texts


def write_tensors(path: Path, tensors: Mapping[str, Some], metadata: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Write one safetensors file; returns its size and SHA-256, taken on the way.

    Args:
        path: the file.
        tensors: name -> tensor, or one to be made when its turn comes.
        metadata: texts for the header; None: which names share a tensor's memory, as `read` expects.

    Raises:
        OSError: the disk is full or broken.
    """
    header: dict[str, Any] = {}
    first: dict[tuple[Any, ...], str] = {}
    shared: dict[str, str] = {}
    order: list[Some] = []
    offset = 0
    # Wider types first, as the format's own writer does, so that every tensor is aligned when mapped; before them what
    # fills whole words, in the order given: a matrix's tiles stand beside the scales that are made with them.
    for name, tensor in sorted(tensors.items(), key=lambda item: _order(*item)):
        place = (tensor.data_ptr(), tensor.stride(), tensor.device) if isinstance(tensor, Tensor) else (name,)
        place = (*place, tensor.shape, tensor.dtype)
        if tensor.nbytes and place in first and metadata is None:
            shared[name] = first[place]
            continue
        first[place] = name
        size = tensor.nbytes
        shape = list(tensor.shape)
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": shape, "data_offsets": [offset, offset + size]}
        order.append(tensor)
        offset += size
    if shared or metadata:
        header["__metadata__"] = dict(metadata or shared)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    taken = hashlib.sha256()
    count = 0

    def pieces() -> Iterator[memoryview]:
        nonlocal count
        for piece in _pieces(len(text).to_bytes(8, "little") + text, order):
            taken.update(piece)
            count += len(piece)
            yield piece

    durable.write(path, pieces())
    return {"bytes": count, "sha256": taken.hexdigest()}


def _order(name: str, tensor: Some) -> tuple[Any, ...]:
    """Where a tensor stands in its file; Python's sort keeps the order of equals."""
    return (0,) if tensor.nbytes % 8 == 0 else (1, -tensor.dtype.itemsize, name)


def _pieces(head: bytes, tensors: list[Some]) -> Iterator[memoryview]:
    yield memoryview(head)
    for tensor in tensors:
        if tensor.nbytes:
            written = 0
            for made in tensor.rows() if isinstance(tensor, Later) else (tensor,):
                assert (made.shape[1:], made.dtype) == (torch.Size(tensor.shape[1:]), tensor.dtype)
                flat = made.detach().cpu().contiguous().view(-1).view(torch.uint8)
                view = flat.numpy().data
                written += len(view)
                for start in range(0, len(view), PIECE_BYTES):
                    yield view[start : start + PIECE_BYTES]
                del made, flat, view  # before the next one is made
            assert written == tensor.nbytes
