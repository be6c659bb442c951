"""Block formats of GGUF tensors: a few numbers share a scale, and each is a small integer.

    bytes [R, S] -> blocks [N, size] -> scale, minimum, integers -> float32 [R, C]          and back: F16, BF16, Q8_0

A row is a whole number of blocks. Layouts and arithmetic are those of ggml (ggml-org/ggml, ggml-quants.c): the float32
that comes out is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nomoat.core.errors import DataError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

PIECE = 1 << 20
"""Numbers that are unpacked at once: what is needed on the way stays small."""


@dataclass(frozen=True)
class Format:
    """How numbers of one type stand in a file.

    Args:
        code: the type's number in a GGUF.
        count: numbers a block.
        size: bytes a block.
        unpack: blocks [N, size] to float32 [N, count].
    """

    code: int
    count: int
    size: int
    unpack: Callable[[Bytes], Floats]


def _scale(blocks_NS: Bytes, at: int) -> Floats:
    """The half-precision number at byte `at` of each block [N, 1]."""
    return np.ascontiguousarray(blocks_NS[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(bytes_NS: Bytes, span: int) -> Bytes:
    """Two integers a byte: of each `span` bytes first the low halves, then the high ones [N, 2 S]."""
    bytes_NMS = bytes_NS.reshape(len(bytes_NS), -1, span)
    return np.concatenate((bytes_NMS & 15, bytes_NMS >> 4), axis=2).reshape(len(bytes_NS), -1)


def _fifth_bits(blocks_NS: Bytes, at: int) -> Bytes:
    """The fifth bits of 32 integers, in four bytes at `at` [N, 32]."""
    return np.unpackbits(blocks_NS[:, at : at + 4], axis=1, bitorder="little") * np.uint8(16)


def _f32(blocks_NS: Bytes) -> Floats:
    return blocks_NS.view(np.float32)


def _f16(blocks_NS: Bytes) -> Floats:
    return blocks_NS.view(np.float16).astype(np.float32)


def _bf16(blocks_NS: Bytes) -> Floats:
    return (blocks_NS.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _q8_0(blocks_NS: Bytes) -> Floats:
    return blocks_NS[:, 2:].view(np.int8).astype(np.float32) * _scale(blocks_NS, 0)


def _q4_0(blocks_NS: Bytes) -> Floats:
    return (_nibbles(blocks_NS[:, 2:], 16).astype(np.float32) - 8) * _scale(blocks_NS, 0)


def _q4_1(blocks_NS: Bytes) -> Floats:
    return _nibbles(blocks_NS[:, 4:], 16) * _scale(blocks_NS, 0) + _scale(blocks_NS, 2)


def _q5_0(blocks_NS: Bytes) -> Floats:
    whole_NC = _nibbles(blocks_NS[:, 6:], 16) | _fifth_bits(blocks_NS, 2)
    return (whole_NC.astype(np.float32) - 16) * _scale(blocks_NS, 0)


def _q5_1(blocks_NS: Bytes) -> Floats:
    whole_NC = _nibbles(blocks_NS[:, 8:], 16) | _fifth_bits(blocks_NS, 4)
    return whole_NC * _scale(blocks_NS, 0) + _scale(blocks_NS, 2)


def _small_scales(packed_NS: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minima of six bits each, from twelve bytes: ([N, 8], [N, 8])."""
    scale_NS, least_NS, both_NS = packed_NS[:, :4], packed_NS[:, 4:8], packed_NS[:, 8:]
    scales_NM = np.concatenate((scale_NS & 63, both_NS & 15 | scale_NS >> 6 << 4), axis=1)
    return scales_NM, np.concatenate((least_NS & 63, both_NS >> 4 | least_NS >> 6 << 4), axis=1)


def _by_scale(whole_NC: Bytes, blocks_NS: Bytes) -> Floats:
    """scale x integer - minimum, with a scale and a minimum for each 32 of the 256."""
    scales_NM, least_NM = _small_scales(blocks_NS[:, 4:16])
    scales_NM1 = (_scale(blocks_NS, 0) * scales_NM)[:, :, None]
    least_NM1 = (_scale(blocks_NS, 2) * least_NM)[:, :, None]
    return (scales_NM1 * whole_NC.reshape(-1, 8, 32) - least_NM1).reshape(-1, 256)


def _q4_k(blocks_NS: Bytes) -> Floats:
    return _by_scale(_nibbles(blocks_NS[:, 16:], 32), blocks_NS)


def _q5_k(blocks_NS: Bytes) -> Floats:
    # Bit b of byte i is the fifth bit of number 32 b + i.
    fifth_N8C = blocks_NS[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)
    whole_NC = _nibbles(blocks_NS[:, 48:], 32) + np.uint8(16) * fifth_N8C.reshape(-1, 256)
    return _by_scale(whole_NC, blocks_NS)


def _q6_k(blocks_NS: Bytes) -> Floats:
    # Of each half (128 numbers) 64 bytes have the low four bits; of 32 bytes each two bits belong to one quarter.
    high_NH4C = blocks_NS[:, 128:192].reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    whole_NC = _nibbles(blocks_NS[:, :128], 64) | high_NH4C.reshape(-1, 256) << 4
    scales_NM = _scale(blocks_NS, 208) * blocks_NS[:, 192:208].view(np.int8)
    return (scales_NM[:, :, None] * (whole_NC.reshape(-1, 16, 16).view(np.int8) - np.int8(32))).reshape(-1, 256)


FORMATS = {
    "F32": Format(0, 1, 4, _f32),
    "F16": Format(1, 1, 2, _f16),
    "Q4_0": Format(2, 32, 18, _q4_0),
    "Q4_1": Format(3, 32, 20, _q4_1),
    "Q5_0": Format(6, 32, 22, _q5_0),
    "Q5_1": Format(7, 32, 24, _q5_1),
    "Q8_0": Format(8, 32, 34, _q8_0),
    "Q4_K": Format(12, 256, 144, _q4_k),
    "Q5_K": Format(13, 256, 176, _q5_k),
    "Q6_K": Format(14, 256, 210, _q6_k),
    "BF16": Format(30, 1, 2, _bf16),
}
PLAIN = ("F32", "F16", "BF16")
"""The types without blocks."""

OTHERS = {10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL"}
OTHERS |= {21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"}
"""Types that are not read here, by name for the error."""


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row of `columns` numbers.

    Raises:
        DataError: the row is no whole number of blocks.
    """
    form = FORMATS[kind]
    if columns % form.count:
        raise DataError(f"a row of {columns} numbers cannot be {kind}", f"its blocks hold {form.count} each")
    return columns // form.count * form.size


def unpack(kind: str, rows_RS: Bytes) -> Floats:
    """Bytes of rows [R, S] to float32 [R, C], a piece at a time."""
    form = FORMATS[kind]
    blocks_NS = np.ascontiguousarray(rows_RS).reshape(-1, form.size)
    flat_NC = np.empty((len(blocks_NS), form.count), np.float32)
    step = max(1, PIECE // form.count)
    for start in range(0, len(blocks_NS), step):
        flat_NC[start : start + step] = form.unpack(blocks_NS[start : start + step])
    return flat_NC.reshape(len(rows_RS), -1)


def pack(kind: str, values_RC: NDArray[Any]) -> Bytes:
    """Numbers [R, C] to bytes of rows [R, S], rounded to the nearest; kind: F32, F16, BF16 or Q8_0.

    Raises:
        DataError: a number is too large for the type, or the row is no whole number of blocks.
    """
    form, rows = FORMATS[kind], len(values_RC)
    width = row_bytes(kind, values_RC.shape[1])
    flat_NC = np.ascontiguousarray(values_RC, np.float32).reshape(-1, form.count)
    if kind == "F32":
        return flat_NC.view(np.uint8).reshape(rows, width)
    packed_NS = np.empty((len(flat_NC), form.size), np.uint8)
    step = max(1, PIECE // form.count)
    for start in range(0, len(flat_NC), step):
        packed_NS[start : start + step] = PACKERS[kind](flat_NC[start : start + step])
    return packed_NS.reshape(rows, width)


def _half(values_NC: Floats) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        halves_NC = values_NC.astype(np.float16)
    if (np.isinf(halves_NC) & np.isfinite(values_NC)).any():
        raise DataError(
            f"a weight of {np.abs(values_NC).max():.3g} is too large for half precision",
            "it holds numbers up to 65,504",
            "write bf16 or f32",
        )
    return halves_NC


def _pack_f16(values_NC: Floats) -> Bytes:
    return _half(values_NC).view(np.uint8)


def _pack_bf16(values_NC: Floats) -> Bytes:
    bits_NC = values_NC.view(np.uint32)
    rounded_NC = (bits_NC + (0x7FFF + (bits_NC >> 16 & 1)) >> 16).astype(np.uint16)  # ties to even
    return np.where(np.isnan(values_NC), np.uint16(0x7FC0), rounded_NC).view(np.uint8)


def _pack_q8_0(values_NC: Floats) -> Bytes:
    scale_N1 = np.abs(values_NC).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse_N1 = np.where(scale_N1 == 0, np.float32(0), np.float32(1) / scale_N1)
    size_NC = np.abs(values_NC * inverse_N1)
    whole_NC = np.floor(size_NC)
    whole_NC += size_NC - whole_NC >= 0.5  # halves away from zero, as C's roundf
    signed_NC = np.copysign(whole_NC, values_NC).astype(np.int8)
    return np.concatenate((_half(scale_N1).view(np.uint8), signed_NC.view(np.uint8)), axis=1)


PACKERS = {"F16": _pack_f16, "BF16": _pack_bf16, "Q8_0": _pack_q8_0}
