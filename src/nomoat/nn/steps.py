"""One decoding step of a whole stack as one native call: all layers, a few tokens, threads that meet at barriers.

    x_ND -> [norm -> qkv] | [turn, write keys and values, attend] | [out, + x] | [norm -> up -> gate] | [down, + x]
         -> ... -> norm -> output table -> logits_NV                              `|` is a barrier

In eager mode a step of a small model is mostly the launching of some hundred kernels. Here nothing is launched: the
tables below say what lies where, every thread walks through them, and takes its next piece of a product from a
counter, so that a core which is busy with something else holds nobody up.

`matrices` is int64 [number, 8]; `layers` int64 [depth, 12]; `sizes` and `areas` are int64, `numbers` float32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray, njit

from nomoat.nn.vectors import (
    add_to,
    array_at,
    by_rows,
    exponentials,
    give_way,
    grouped,
    has_byte_products,
    into_bytes,
    mixing,
    rounded,
    scoring,
    seen_at,
    sigmoids,
)

KINDS = {"f32": 0, "bf16": 1, "q8": 2, "q4": 3}
# Columns of a matrix: how it lies, addresses of weights, scales and bias, outputs, inputs, inputs padded, bytes a row.
KIND, WEIGHTS, SCALES, BIAS, OUTPUTS, INPUTS, PADDED, ROW_BYTES = range(8)
# Columns of a layer: matrices by their row, norms and memory by their address.
QKV, OUT, UP, DOWN, NORM, NORM_BIAS, NORM_2, NORM_2_BIAS, QUERY_NORM, KEY_NORM, KEYS, VALUES = range(12)
SIZE_NAMES = (
    "depth", "width", "heads", "groups", "head_width", "inner", "gated", "activation", "norm", "pairs", "window",
    "half_memory", "slot_bytes", "head_bytes", "sequences", "length", "capacity", "final_norm", "final_bias", "table",
)  # fmt: skip
(
    DEPTH, WIDTH, HEADS, GROUPS, HEAD_WIDTH, INNER, GATED, ACTIVATION, NORM_KIND, PAIRS, WINDOW,
    HALF_MEMORY, SLOT_BYTES, HEAD_BYTES, SEQUENCES, LENGTH, CAPACITY, FINAL_NORM, FINAL_BIAS, TABLE,
) = range(len(SIZE_NAMES))  # fmt: skip
SIZES = len(SIZE_NAMES)
AREA_NAMES = ("x", "mixed", "attended", "wide", "hidden", "logits", "cos", "sin", "slots", "starts", "own", "counters")
X, MIXED, ATTENDED, WIDE, HIDDEN, LOGITS, COS, SIN, SLOTS, STARTS, OWN, COUNTERS = range(len(AREA_NAMES))
EPSILON, SCALE = 0, 1
NORMS = {"rms": 0, "layer": 1, "rms_bare": 0}
ACTIVATIONS = {"silu": 0, "quick_gelu": 1, "gelu_tanh": 2, "gelu": 3, "relu": 4, "relu2": 5}
AREAS = len(AREA_NAMES)
BLOCK = 64
"""Rows of a product that are read together: as prepared bytes they stay in a core's own cache."""
ROWS = 16
"""Most rows (sequences x tokens each) of one step; longer pieces are better read by PyTorch's matrix products."""

FAST = has_byte_products()
SCORE_HALF, SCORE_WHOLE, MIX_HALF, MIX_WHOLE = scoring(True), scoring(False), mixing(True), mixing(False)

native: Any = njit(nogil=True, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy")


def _tiles(one, two, four, eight):
    """All rows of one tile of 16 outputs, eight, four, two or one at a time."""

    @native
    def product(w, s, x, xs, xc, out, groups, rows, o_step):
        r, x_step, g_step = 0, groups * 32, groups * 4
        while r < rows:
            a, b, c, o = x + r * x_step, xs + r * g_step, xc + r * g_step, out + r * o_step
            if rows - r >= 8:
                eight(w, s, a, b, c, o, groups, o_step)
                r += 8
            elif rows - r >= 4:
                four(w, s, a, b, c, o, groups, o_step)
                r += 4
            elif rows - r >= 2:
                two(w, s, a, b, c, o, groups, o_step)
                r += 2
            else:
                one(w, s, a, b, c, o, groups, o_step)
                r += 1

    return product


def _lines(one, two, four, eight):
    """All rows of four outputs (the kernel for eight rows makes two at a time) or of one."""

    @native
    def product(w, x, out, blocks, w_step, rows, o_step, second):
        r, x_step = 0, blocks * 128
        while r < rows:
            a, o = x + r * x_step, out + r * o_step
            if rows - r >= 8:
                eight(w, a, o, blocks, w_step, x_step, o_step)
                if second:
                    eight(w + 2 * w_step, a, o + 8, blocks, w_step, x_step, o_step)
                r += 8
            elif rows - r >= 4:
                four(w, a, o, blocks, w_step, x_step, o_step)
                r += 4
            elif rows - r >= 2:
                two(w, a, o, blocks, w_step, x_step, o_step)
                r += 2
            else:
                one(w, a, o, blocks, w_step, x_step, o_step)
                r += 1

    return product


_Q8, _Q4 = (_tiles(*(grouped(rows, bits, FAST) for rows in (1, 2, 4, 8))) for bits in (8, 4))
_HALF, _WHOLE = (
    _lines(*(by_rows(outputs, rows, half) for outputs, rows in ((4, 1), (4, 2), (4, 4), (2, 8))))
    for half in (True, False)
)
_HALF_LAST, _WHOLE_LAST = (_lines(*(by_rows(1, rows, half) for rows in (1, 2, 4, 8))) for half in (True, False))


@native
def _rows_of(kind, w, x, out, count, blocks, w_step, rows, o_step):
    """`count` outputs (up to 16) for all rows, weights in bfloat16 (kind 1) or float."""
    n = 0
    while n < count:
        v, o = w + n * w_step, out + 4 * n
        if count - n >= 4:
            if kind == 1:
                _HALF(v, x, o, blocks, w_step, rows, o_step, 1)
            else:
                _WHOLE(v, x, o, blocks, w_step, rows, o_step, 1)
            n += 4
        else:
            if kind == 1:
                _HALF_LAST(v, x, o, blocks, w_step, rows, o_step, 0)
            else:
                _WHOLE_LAST(v, x, o, blocks, w_step, rows, o_step, 0)
            n += 1


@native
def prepare(matrix, x, rows, area):
    """Bring rows of floats into the order that a matrix's products read, at `area`."""
    kind, inputs, padded, x_step = matrix[KIND], matrix[INPUTS], matrix[PADDED], 4 * matrix[INPUTS]
    if kind >= 2:
        groups = inputs // 32
        scales = area + rows * inputs
        corrections = scales + rows * groups * 4
        for r in range(rows):
            into_bytes(
                x + r * x_step, groups, 128 if kind == 2 else 8,
                area + r * inputs, scales + r * groups * 4, corrections + r * groups * 4,
            )  # fmt: skip
        return
    for r in range(rows):
        given = carray(array_at(x + r * x_step), (inputs,), np.float32)
        laid = carray(array_at(area + r * padded * 4), (padded,), np.float32)
        if kind == 0:
            for i in range(inputs):
                laid[i] = given[i]
            for i in range(inputs, padded):
                laid[i] = 0.0
        else:
            full = inputs // 32
            for block in range(full):
                for i in range(16):
                    laid[32 * block + i] = given[32 * block + 2 * i]
                    laid[32 * block + 16 + i] = given[32 * block + 2 * i + 1]
            for i in range(32 * full, padded):
                place = 32 * full + (i - 32 * full) // 2 + 16 * (i % 2)
                laid[place] = given[i] if i < inputs else np.float32(0.0)


@native
def multiply(matrix, area, rows, unit, out, o_step):
    """Outputs 16 `unit` to 16 `unit` + 15 of prepared rows, bias added."""
    kind, padded = matrix[KIND], matrix[PADDED]
    first, groups = 16 * unit, matrix[PADDED] // 32
    count = min(16, matrix[OUTPUTS] - first)
    place = out + 4 * first
    if kind >= 2:
        scales = area + rows * padded
        corrections = scales + rows * groups * 4
        s = matrix[SCALES] + unit * groups * 32
        if kind == 2:
            _Q8(matrix[WEIGHTS] + unit * groups * 512, s, area, scales, corrections, place, groups, rows, o_step)
        else:
            _Q4(matrix[WEIGHTS] + unit * groups * 256, s, area, scales, corrections, place, groups, rows, o_step)
    else:
        step = matrix[ROW_BYTES]
        _rows_of(kind, matrix[WEIGHTS] + first * step, area, place, count, groups, step, rows, o_step)
    if matrix[BIAS]:
        bias = carray(array_at(matrix[BIAS] + 4 * first), (count,), np.float32)
        for r in range(rows):
            y = carray(array_at(place + r * o_step), (count,), np.float32)
            for i in range(count):
                y[i] += bias[i]


@native
def norm_rows(x, rows, width, kind, epsilon, weight, bias, out):
    """RMS norm (kind 0) or layer norm of each row; weight and bias may be absent (address 0)."""
    for r in range(rows):
        given = carray(array_at(x + r * width * 4), (width,), np.float32)
        laid = carray(array_at(out + r * width * 4), (width,), np.float32)
        mean = np.float32(0.0)
        if kind == 1:
            for i in range(width):
                mean += given[i]
            mean /= np.float32(width)
        power = np.float32(0.0)
        for i in range(width):
            power += (given[i] - mean) * (given[i] - mean)
        inverse = np.float32(1.0) / np.float32(math.sqrt(power / np.float32(width) + epsilon))
        if weight:
            factor = carray(array_at(weight), (width,), np.float32)
            for i in range(width):
                laid[i] = (given[i] - mean) * inverse * factor[i]
        else:
            for i in range(width):
                laid[i] = (given[i] - mean) * inverse
        if bias:
            shift = carray(array_at(bias), (width,), np.float32)
            for i in range(width):
                laid[i] += shift[i]


@native
def _turn(head, width, pairs, cos, sin):
    x = carray(array_at(head), (width,), np.float32)
    c, s = carray(array_at(cos), (pairs,), np.float32), carray(array_at(sin), (pairs,), np.float32)
    for i in range(pairs):
        left, right = x[i], x[i + pairs]
        x[i] = left * c[i] - right * s[i]
        x[i + pairs] = right * c[i] + left * s[i]


@native
def _keep(head, width, half, place):
    x = carray(array_at(head), (width,), np.float32)
    if half:
        bits = carray(array_at(place), (width,), np.uint16)
        for i in range(width):
            bits[i] = rounded(x[i])
    else:
        kept = carray(array_at(place), (width,), np.float32)
        for i in range(width):
            kept[i] = x[i]


@native
def attend(layer, sizes, numbers, areas, job, scores):
    """One sequence and key-value head: turn its new tokens, remember them, let their queries look back."""
    heads, groups, width, pairs = sizes[HEADS], sizes[GROUPS], sizes[HEAD_WIDTH], sizes[PAIRS]
    length, half = sizes[LENGTH], sizes[HALF_MEMORY]
    sequence, group = job // groups, job % groups
    slot = carray(array_at(areas[SLOTS]), (sequence + 1,), np.int64)[sequence]
    start = carray(array_at(areas[STARTS]), (sequence + 1,), np.int64)[sequence]
    share, row_bytes = heads // groups, (heads + 2 * groups) * width * 4
    size = width * (2 if half else 4)
    keys = layer[KEYS] + slot * sizes[SLOT_BYTES] + group * sizes[HEAD_BYTES]
    values = layer[VALUES] + slot * sizes[SLOT_BYTES] + group * sizes[HEAD_BYTES]
    for token in range(length):
        position = start + token
        row = areas[MIXED] + (sequence * length + token) * row_bytes
        key, value = row + (heads + group) * width * 4, row + (heads + groups + group) * width * 4
        cos, sin = areas[COS] + position * pairs * 4, areas[SIN] + position * pairs * 4
        if layer[KEY_NORM]:
            norm_rows(key, 1, width, 0, numbers[EPSILON], layer[KEY_NORM], 0, key)
        if pairs:
            _turn(key, width, pairs, cos, sin)
        _keep(key, width, half, keys + position * size)
        _keep(value, width, half, values + position * size)
        first = max(0, position + 1 - sizes[WINDOW]) if sizes[WINDOW] else 0
        count = position + 1 - first
        vectors = (count + 15) // 16
        seen = carray(array_at(scores), (vectors * 16,), np.float32)
        for h in range(group * share, (group + 1) * share):
            query = row + h * width * 4
            if layer[QUERY_NORM]:
                norm_rows(query, 1, width, 0, numbers[EPSILON], layer[QUERY_NORM], 0, query)
            if pairs:
                _turn(query, width, pairs, cos, sin)
            if half:
                SCORE_HALF(query, keys + first * size, size, count, width // 16, scores)
            else:
                SCORE_WHOLE(query, keys + first * size, size, count, width // 16, scores)
            top = np.float32(-1e30)
            for m in range(count):
                seen[m] *= numbers[SCALE]
                top = max(top, seen[m])
            for m in range(count, vectors * 16):
                seen[m] = -1e30
            total = exponentials(scores, top, vectors)
            for m in range(count):
                seen[m] /= total
            out = areas[ATTENDED] + ((sequence * length + token) * heads + h) * width * 4
            if half:
                MIX_HALF(scores, values + first * size, size, count, width // 16, out)
            else:
                MIX_WHOLE(scores, values + first * size, size, count, width // 16, out)


@native
def activate(kind, x, count):
    """The activation of `count` floats (a multiple of 16) in place."""
    if kind == 0:
        sigmoids(x, np.float32(1.0), x, count // 16)
        return
    if kind == 1:
        sigmoids(x, np.float32(1.702), x, count // 16)
        return
    y = carray(array_at(x), (count,), np.float32)
    for i in range(count):
        v = y[i]
        if kind == 2:
            bent = np.float32(0.7978845608028654) * (v + np.float32(0.044715) * v * v * v)
            y[i] = np.float32(0.5) * v * (np.float32(1.0) + math.tanh(bent))
        elif kind == 3:
            y[i] = np.float32(0.5) * v * (np.float32(1.0) + math.erf(v * np.float32(0.7071067811865476)))
        else:
            v = max(v, np.float32(0.0))
            y[i] = v if kind == 4 else v * v


@native
def meet(counter, threads):
    """Wait until all threads have come here."""
    if add_to(counter, 1) + 1 == threads:
        return
    spins = 0
    while seen_at(counter) < threads:
        spins += 1
        if spins > 4000:
            give_way(0)
            spins = 0


@native
def _spread(matrix, given, rows, out, o_step, area, counter, threads, x):
    """A whole product, shared out among the threads by pieces; where x is no 0, the result is added to x."""
    prepare(matrix, given, rows, area)
    units = (matrix[OUTPUTS] + 15) // 16
    piece = max(1, units // (8 * threads))
    while True:
        unit = add_to(counter, piece)
        if unit >= units:
            break
        for u in range(unit, min(unit + piece, units)):
            multiply(matrix, area, rows, u, out, o_step)
            if x:
                for r in range(rows):
                    a = carray(array_at(x + r * o_step + u * 64), (16,), np.float32)
                    b = carray(array_at(out + r * o_step + u * 64), (16,), np.float32)
                    for i in range(16):
                        a[i] += b[i]


@native
def _widen(matrix, given, rows, sizes, wide, hidden, area, counter, threads):
    """The first half of an MLP: up (and gate), activation; shared out among the threads."""
    inner, gated = sizes[INNER], sizes[GATED]
    step = (2 * inner if gated else inner) * 4
    prepare(matrix, given, rows, area)
    units = inner // 16
    piece = max(1, units // (8 * threads))
    while True:
        unit = add_to(counter, piece)
        if unit >= units:
            break
        for u in range(unit, min(unit + piece, units)):
            multiply(matrix, area, rows, u, wide, step)
            if gated:
                multiply(matrix, area, rows, u + units, wide, step)
            for r in range(rows):
                here = wide + r * step + u * 64
                activate(sizes[ACTIVATION], here, 16)
                y = carray(array_at(here), (16,), np.float32)
                h = carray(array_at(hidden + (r * inner + u * 16) * 4), (16,), np.float32)
                z = carray(array_at(here + inner * 4 * gated), (16,), np.float32)
                for i in range(16):
                    h[i] = y[i] * z[i] if gated else y[i]
    meet(counter + 8, threads)


@native
def walk(thread, threads, tables):
    """One thread's way through a step; `tables` are the addresses of matrices, layers, sizes, numbers and areas."""
    at = carray(array_at(tables), (5,), np.int64)
    sizes = carray(array_at(at[2]), (SIZES,), np.int64)
    numbers, areas = carray(array_at(at[3]), (2,), np.float32), carray(array_at(at[4]), (AREAS,), np.int64)
    matrices = carray(array_at(at[0]), (4 * sizes[DEPTH] + 1, 8), np.int64)
    layers = carray(array_at(at[1]), (sizes[DEPTH], 12), np.int64)
    width, rows = sizes[WIDTH], sizes[SEQUENCES] * sizes[LENGTH]
    own = carray(array_at(areas[OWN]), (2 * threads,), np.int64)
    area, aside = own[2 * thread], own[2 * thread + 1]
    x, counter, epsilon, kind = areas[X], areas[COUNTERS], numbers[EPSILON], sizes[NORM_KIND]
    mixed, attended, wide, hidden = areas[MIXED], areas[ATTENDED], areas[WIDE], areas[HIDDEN]
    step, held = 4 * width, 4 * sizes[HEAD_WIDTH] * (sizes[HEADS] + 2 * sizes[GROUPS])
    for number in range(sizes[DEPTH]):
        layer = layers[number]
        norm_rows(x, rows, width, kind, epsilon, layer[NORM], layer[NORM_BIAS], aside)
        _spread(matrices[layer[QKV]], aside, rows, mixed, held, area, counter, threads, 0)
        meet(counter + 8, threads)
        counter += 16
        while True:
            job = add_to(counter, 1)
            if job >= sizes[SEQUENCES] * sizes[GROUPS]:
                break
            attend(layer, sizes, numbers, areas, job, aside)
        meet(counter + 8, threads)
        counter += 16
        _spread(matrices[layer[OUT]], attended, rows, hidden, step, area, counter, threads, x)
        meet(counter + 8, threads)
        counter += 16
        norm_rows(x, rows, width, kind, epsilon, layer[NORM_2], layer[NORM_2_BIAS], aside)
        _widen(matrices[layer[UP]], aside, rows, sizes, wide, hidden, area, counter, threads)
        counter += 16
        _spread(matrices[layer[DOWN]], hidden, rows, attended, step, area, counter, threads, x)
        meet(counter + 8, threads)
        counter += 16
    table = matrices[sizes[TABLE]]
    norm_rows(x, rows, width, kind, epsilon, sizes[FINAL_NORM], sizes[FINAL_BIAS], aside)
    padded = (table[OUTPUTS] + 15) // 16 * 64
    _spread(table, aside, rows, areas[LOGITS], padded, area, counter, threads, 0)


@native
def work(thread, threads, tables):
    """What a crew is handed: a whole step, or (matrices absent) one product of many rows."""
    at = carray(array_at(tables), (8,), np.int64)
    if at[0]:
        walk(thread, threads, tables)
        return
    matrix = carray(array_at(at[1]), (8,), np.int64)
    given, rows, out, counter = at[2], at[3], at[4], at[5]
    own = carray(array_at(at[6]), (threads,), np.int64)
    step, padded = matrix[INPUTS] * 4, (matrix[OUTPUTS] + 15) // 16 * 64
    for first in range(0, rows, BLOCK):
        some = min(BLOCK, rows - first)
        _spread(matrix, given + first * step, some, out + first * padded, padded, own[thread], counter, threads, 0)
        counter += 16
