"""Vector code for decoding on a CPU, written as LLVM instructions: the few inner loops that no compiler finds.

    weights (f32, bf16: rows; q8, q4: tiles of 16 rows) x prepared rows -> sums        exact in int32 within a group
    scores, mixing and softmax of attention; gates of an MLP; the barrier between threads

Numba turns each `intrinsic` into instructions of the machine at hand: AVX-512 VNNI's dot product of bytes where there
is one, plain vector arithmetic of any processor elsewhere. All arguments are addresses and sizes.

    q8 tile  [K/32 groups][8 x 4 inputs][16 rows][4]  bytes, w + 128; scales [K/32][16] half floats
    q4 tile  [K/32 groups][4 x 4 inputs][16 rows][4]  bytes, low half w + 8 of input i, high half of input i + 16
    q8/q4 x  int8 [K], scale float [K/32], correction int32 [K/32] = (128 or 8) x sum of the group
    bf16 x   float [K/32][16 even, 16 odd]            f32 x  float [K]

The group formats are those of llama.cpp's Q8_0 and Q4_0 (32 weights, one half-float scale).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

LANES = 16
AHEAD, AHEAD_ROWS = 4096, 8
"""How far ahead of the products weights are asked for, in bytes (tiles) and rows: a quarter of the time in bf16."""
GROUP = 32
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()

Value = Any
Builder = Any
intrinsic: Any = extending.intrinsic  # its first argument is given by Numba: type checkers would miss it


def has_byte_products() -> bool:
    """Whether this processor multiplies bytes and adds them up in one instruction on 64 bytes (AVX-512 VNNI)."""
    features = llvmlite.binding.get_host_cpu_features()
    return bool(features.get("avx512vnni") and features.get("avx512f"))


def _vector(kind: Any, lanes: int = LANES) -> Any:
    return ir.VectorType(kind, lanes)


def _all(value: Any, kind: Any = F32, lanes: int = LANES) -> Any:
    return ir.Constant(_vector(kind, lanes), [value] * lanes)


def _splat(b: Builder, value: Value, lanes: int = LANES) -> Value:
    empty = ir.Constant(_vector(value.type, lanes), ir.Undefined)
    one = b.insert_element(empty, value, I32(0))
    return b.shuffle_vector(one, empty, _all(0, I32, lanes))


def _load(b: Builder, address: Value, kind: Any) -> Value:
    loaded = b.load(b.inttoptr(address, kind.as_pointer()))
    loaded.align = 1
    return loaded


def _store(b: Builder, value: Value, address: Value) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer())).align = 1


def _ahead(b: Builder, address: Value, distance: Value | int) -> None:
    """Ask for the cache line so many bytes behind `address`: the processor's own foresight ends with each page."""
    distance = I64(distance) if isinstance(distance, int) else distance
    place = b.inttoptr(b.add(address, distance), I8.as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    b.call(function, [place, I32(0), I32(3), I32(1)])  # a read, kept in all caches, data


def _at(b: Builder, address: Value, index: Value | int, size: int) -> Value:
    index = I64(index) if isinstance(index, int) else index
    return b.add(address, b.mul(index, I64(size)))


def _call(b: Builder, name: str, result: Any, *arguments: Value) -> Value:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), arguments)


def _fma(b: Builder, x: Value, y: Value, z: Value) -> Value:
    return _call(b, f"llvm.fma.v{LANES}f32", x.type, x, y, z)


def _sum(b: Builder, x: Value) -> Value:
    kind = ir.FunctionType(F32, [F32, x.type])
    function = cgutils.get_or_insert_function(b.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
    return b.call(function, [ir.Constant(F32, 0.0), x], fastmath=("reassoc",))


def _void(count: int) -> Any:
    return types.void(*[types.int64] * count)


def _apart(b: Builder, name: str, given: list[Value], body: Callable[[Builder, list[Value]], None]) -> None:
    """Call a function that stands once in the module and is never inlined: the compiler has a tenth of the work."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * len(given))
    function = cgutils.get_or_insert_function(b.module, kind, f"nomoat_{name}")
    if function.is_declaration:
        function.linkage = "internal"
        function.attributes.add("noinline")
        inner = ir.IRBuilder(function.append_basic_block("entry"))
        body(inner, list(function.args))
        inner.ret_void()
    b.call(function, given)


def _halves(b: Builder, address: Value) -> tuple[Value, Value]:
    """32 bfloat16 numbers as two float vectors: those at even places, those at odd ones."""
    pairs = _load(b, address, _vector(I32))
    even = b.bitcast(b.shl(pairs, _all(16, I32)), _vector(F32))
    odd = b.bitcast(b.and_(pairs, _all(0xFFFF0000, I32)), _vector(F32))
    return even, odd


def _widened(b: Builder, address: Value, half: bool) -> Value:
    """16 numbers as floats, in order; `half`: they are bfloat16."""
    if not half:
        return _load(b, address, _vector(F32))
    wide = b.zext(_load(b, address, _vector(I16)), _vector(I32))
    return b.bitcast(b.shl(wide, _all(16, I32)), _vector(F32))


def _byte_products(b: Builder, total: Value, w: Value, x: Value, fast: bool) -> Value:
    """total[row] + the sum of four products; w: 16 x 4 unsigned bytes as int32, x: four signed bytes as one int32."""
    x = _splat(b, x)
    if fast:
        return _call(b, "llvm.x86.avx512.vpdpbusd.512", total.type, total, w, x)
    for place in range(4):
        left = b.and_(b.lshr(w, _all(8 * place, I32)), _all(255, I32))
        right = b.ashr(b.shl(x, _all(24 - 8 * place, I32)), _all(24, I32))
        total = b.add(total, b.mul(left, right))
    return total


def grouped(rows: int, bits: int, fast: bool) -> Callable[..., Any]:
    """One tile of 16 outputs for `rows` prepared inputs, weights of 8 or 4 bits.

    The function takes w, scales, x, x's scales, its corrections, out, the number of groups, and the bytes from one row
    to the next in out.
    """
    blocks, tile = (8, 512) if bits == 8 else (4, 256)

    @intrinsic
    def product(ty, w, s, x, xs, xc, out, groups, o_step):
        def body(b, given):
            w, s, x, xs, xc, out, groups, o_step = given
            x_step, g_step = b.mul(groups, I64(GROUP)), b.mul(groups, I64(4))
            sums = [cgutils.alloca_once_value(b, _all(0.0)) for _ in range(rows)]
            with cgutils.for_range(b, groups) as loop:
                scale = b.fpext(_load(b, _at(b, s, loop.index, 2 * LANES), _vector(F16)), _vector(F32))
                weights = _at(b, w, loop.index, tile)
                inputs = [_at(b, _at(b, x, loop.index, GROUP), b.mul(I64(r), x_step), 1) for r in range(rows)]
                places = [_at(b, b.mul(I64(r), g_step), loop.index, 4) for r in range(rows)]
                totals = [_splat(b, b.neg(_load(b, b.add(xc, place), I32))) for place in places]
                for block in range(blocks):
                    packed = _load(b, _at(b, weights, block, 64), _vector(I32))
                    _ahead(b, _at(b, weights, block, 64), AHEAD)
                    parts = [(packed, block)]
                    if bits == 4:
                        low, high = b.and_(packed, _all(0x0F0F0F0F, I32)), b.lshr(packed, _all(4, I32))
                        parts = [(low, block), (b.and_(high, _all(0x0F0F0F0F, I32)), block + 4)]
                    for part, place in parts:
                        for r in range(rows):
                            four = _load(b, _at(b, inputs[r], place, 4), I32)
                            totals[r] = _byte_products(b, totals[r], part, four, fast)
                for r in range(rows):
                    both = b.fmul(scale, _splat(b, _load(b, b.add(xs, places[r]), F32)))
                    b.store(_fma(b, b.sitofp(totals[r], _vector(F32)), both, b.load(sums[r])), sums[r])
            for r in range(rows):
                _store(b, b.load(sums[r]), b.add(out, b.mul(I64(r), o_step)))

        def code(context, b, signature, given):
            _apart(b, f"q{bits}_{rows}_{int(fast)}", given, body)
            return context.get_dummy_value()

        return _void(8), code

    return product


def by_rows(outputs: int, rows: int, half: bool) -> Callable[..., Any]:
    """`outputs` outputs for `rows` inputs; weights lie row after row in bfloat16 (`half`) or float.

    The function takes w, x, out, blocks of 32 inputs, bytes from row to row in w, in x and in out.
    """

    @intrinsic
    def product(ty, w, x, out, blocks, w_step, x_step, o_step):
        def body(b, given):
            w, x, out, blocks, w_step, x_step, o_step = given
            sums = [[cgutils.alloca_once_value(b, _all(0.0)) for _ in range(rows)] for _ in range(outputs)]
            with cgutils.for_range(b, blocks) as loop:
                inputs = []
                for r in range(rows):
                    start = b.add(_at(b, x, loop.index, 128), b.mul(I64(r), x_step))
                    inputs.append([_load(b, start, _vector(F32)), _load(b, _at(b, start, 64, 1), _vector(F32))])
                for o in range(outputs):
                    start = b.add(_at(b, w, loop.index, 64 if half else 128), b.mul(I64(o), w_step))
                    _ahead(b, start, b.mul(w_step, I64(AHEAD_ROWS)))
                    if half:
                        pair: tuple[Value, Value] = _halves(b, start)
                    else:
                        pair = _load(b, start, _vector(F32)), _load(b, _at(b, start, 64, 1), _vector(F32))
                    for r in range(rows):
                        total = _fma(b, pair[0], inputs[r][0], b.load(sums[o][r]))
                        b.store(_fma(b, pair[1], inputs[r][1], total), sums[o][r])
            for o in range(outputs):
                for r in range(rows):
                    _store(b, _sum(b, b.load(sums[o][r])), b.add(_at(b, out, o, 4), b.mul(I64(r), o_step)))

        def code(context, b, signature, given):
            _apart(b, f"rows_{outputs}_{rows}_{int(half)}", given, body)
            return context.get_dummy_value()

        return _void(7), code

    return product


def scoring(half: bool) -> Callable[..., Any]:
    """out[m] = q . keys[m] for m < count; takes q (float), keys, bytes from key to key, count, vectors of 16, out."""

    @intrinsic
    def scores(ty, q, keys, step, count, vectors, out):
        def code(context, b, signature, given):
            q, keys, step, count, vectors, out = given
            total = cgutils.alloca_once(b, _vector(F32))
            with cgutils.for_range(b, count) as each:
                key = b.add(keys, b.mul(each.index, step))
                b.store(_all(0.0), total)
                with cgutils.for_range(b, vectors) as loop:
                    k = _widened(b, _at(b, key, loop.index, 32 if half else 64), half)
                    b.store(_fma(b, k, _load(b, _at(b, q, loop.index, 64), _vector(F32)), b.load(total)), total)
                _store(b, _sum(b, b.load(total)), _at(b, out, each.index, 4))
            return context.get_dummy_value()

        return _void(6), code

    return scores


def mixing(half: bool) -> Callable[..., Any]:
    """out = sum over m of share[m] values[m]; takes shares, values, bytes from value to value, count, vectors, out."""

    @intrinsic
    def mix(ty, shares, values, step, count, vectors, out):
        def code(context, b, signature, given):
            shares, values, step, count, vectors, out = given
            total = cgutils.alloca_once(b, _vector(F32))
            with cgutils.for_range(b, vectors) as column:
                start = _at(b, values, column.index, 32 if half else 64)
                b.store(_all(0.0), total)
                with cgutils.for_range(b, count) as each:
                    v = _widened(b, b.add(start, b.mul(each.index, step)), half)
                    share = _splat(b, _load(b, _at(b, shares, each.index, 4), F32))
                    b.store(_fma(b, v, share, b.load(total)), total)
                _store(b, b.load(total), _at(b, out, column.index, 64))
            return context.get_dummy_value()

        return _void(6), code

    return mix


def _exp(b: Builder, x: Value) -> Value:
    """e^x to 2e-7 relative: 2^n by the exponent's bits, the rest by its series. x is cut to [-87, 88]."""
    x = _call(b, f"llvm.maxnum.v{LANES}f32", x.type, x, _all(-87.0))
    x = _call(b, f"llvm.minnum.v{LANES}f32", x.type, x, _all(88.0))
    turns = _call(b, f"llvm.rint.v{LANES}f32", x.type, b.fmul(x, _all(1.4426950408889634)))
    rest = _fma(b, turns, _all(-0.693145751953125), x)
    rest = _fma(b, turns, _all(-1.428606765330187e-06), rest)
    series = _all(1 / 720)
    for factor in (1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        series = _fma(b, series, rest, _all(factor))
    exponent = b.shl(b.add(b.fptosi(turns, _vector(I32)), _all(127, I32)), _all(23, I32))
    return b.fmul(series, b.bitcast(exponent, _vector(F32)))


@intrinsic
def exponentials(ty, x, top, vectors):
    """x = e^(x - top) in place over so many vectors of 16; returns the sum."""

    def code(context, b, signature, given):
        x, top, vectors = given
        total = cgutils.alloca_once_value(b, _all(0.0))
        high = _splat(b, top)
        with cgutils.for_range(b, vectors) as loop:
            place = _at(b, x, loop.index, 64)
            power = _exp(b, b.fsub(_load(b, place, _vector(F32)), high))
            _store(b, power, place)
            b.store(b.fadd(b.load(total), power), total)
        return _sum(b, b.load(total))

    return types.float32(types.int64, types.float32, types.int64), code


@intrinsic
def sigmoids(ty, x, factor, out, vectors):
    """out = x / (1 + e^(-factor x)) over so many vectors of 16: SiLU with factor 1."""

    def code(context, b, signature, given):
        x, factor, out, vectors = given
        minus = _splat(b, b.fneg(factor))
        with cgutils.for_range(b, vectors) as loop:
            value = _load(b, _at(b, x, loop.index, 64), _vector(F32))
            below = b.fadd(_all(1.0), _exp(b, b.fmul(minus, value)))
            _store(b, b.fdiv(value, below), _at(b, out, loop.index, 64))
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64, types.int64), code


@intrinsic
def into_bytes(ty, x, groups, offset, out, scales, corrections):
    """Each group of 32 floats as int8 with one scale; corrections = offset x the sum of the group's integers."""

    def code(context, b, signature, given):
        x, groups, offset, out, scales, corrections = given
        with cgutils.for_range(b, groups) as loop:
            start = _at(b, x, loop.index, 128)
            halves = [_load(b, _at(b, start, 64 * half, 1), _vector(F32)) for half in (0, 1)]
            sizes = [_call(b, f"llvm.fabs.v{LANES}f32", one.type, one) for one in halves]
            most = _call(b, f"llvm.maxnum.v{LANES}f32", sizes[0].type, *sizes)
            most = _call(b, f"llvm.vector.reduce.fmax.v{LANES}f32", F32, most)
            scale = b.fdiv(most, F32(127.0))
            some = b.fcmp_ordered(">", most, F32(0.0))
            inverse = _splat(b, b.select(some, b.fdiv(F32(127.0), b.select(some, most, F32(1.0))), F32(0.0)))
            total = _all(0, I32)
            for half, one in enumerate(halves):
                whole = _call(b, f"llvm.rint.v{LANES}f32", one.type, b.fmul(one, inverse))
                integers = b.fptosi(whole, _vector(I32))
                total = b.add(total, integers)
                _store(b, b.trunc(integers, _vector(I8)), b.add(_at(b, out, loop.index, GROUP), I64(LANES * half)))
            summed = _call(b, f"llvm.vector.reduce.add.v{LANES}i32", I32, total)
            _store(b, scale, _at(b, scales, loop.index, 4))
            _store(b, b.mul(summed, b.trunc(offset, I32)), _at(b, corrections, loop.index, 4))
        return context.get_dummy_value()

    return _void(6), code


@intrinsic
def rounded(ty, x):
    """The bits of the bfloat16 nearest to a float, ties to even."""

    def code(context, b, signature, given):
        bits = b.bitcast(given[0], I32)
        even = b.and_(b.lshr(bits, I32(16)), I32(1))
        return b.trunc(b.lshr(b.add(bits, b.add(even, I32(0x7FFF))), I32(16)), I16)

    return types.uint16(types.float32), code


@intrinsic
def add_to(ty, address, value):
    """Add to an int64 that other threads see; returns what it was."""

    def code(context, b, signature, given):
        return b.atomic_rmw("add", b.inttoptr(given[0], I64.as_pointer()), given[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


@intrinsic
def seen_at(ty, address):
    """An int64 that other threads change."""

    def code(context, b, signature, given):
        return b.load_atomic(b.inttoptr(given[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), code


@intrinsic
def give_way(ty, microseconds):
    """Let another thread have the core: for a moment, or sleep so many microseconds (libc)."""

    def code(context, b, signature, given):
        with b.if_else(b.icmp_signed(">", given[0], I64(0))) as (sleeps, yields):
            with sleeps:
                _call(b, "usleep", I32, b.trunc(given[0], I32))
            with yields:
                kind = ir.FunctionType(I32, [])
                b.call(cgutils.get_or_insert_function(b.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(types.int64), code


@intrinsic
def array_at(ty, address):
    """The pointer that an address stands for; numba.carray makes an array of it."""

    def code(context, b, signature, given):
        return b.inttoptr(given[0], I8.as_pointer())

    return types.voidptr(types.int64), code
