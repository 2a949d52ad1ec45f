"""Numba loops of the CPU kernel.

One task is one group of one sample, or a band of its rows where there are fewer groups than
threads. A window moves down its group: float64 sums of each column gain the row below and lose
the row above, then it moves along the row, and the rows that use these windows are normalized while
they are in cache. No plane of statistics is written.

Sums are of ``x - shift``, with a value of the group as shift, so that an offset does not cost
digits. The mean is kept as two numbers of the working precision, ``high + low``: near the
mean ``x - high`` is exact, and ``low`` is what an offset of 1,000 would otherwise round away.

Windows along one axis, ``k = 0 .. count - 1``, start at ``k * step + offset`` and have ``size``
cells; ``step`` is 1, or ``size`` for tiles. Output cell ``i`` uses window
``clamp(i - size // 2, 0, count - 1)``, or ``i // size`` for tiles.

Rows are worked on ``LANES`` cells at a time, as vectors written out: loops of 4 to 64 vectors are
too short for what a vectorizing compiler does before and after each of them. A function whose name
ends in ``_at`` is the body of such a loop, for the cells ``j .. j + LANES - 1``; ``cells`` is None,
or how many of them are left at the end of the row. Row buffers have room for whole vectors.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

import collections
import functools
import hashlib
import operator
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils, config
from numba.core.options import DefaultOptions
from numba.extending import intrinsic, models, overload, register_model

# What a task reads, eight bytes each; fields that end in _ptr are addresses.
JOB_FIELDS = (
    "next_task",
    *("x_ptr", "grad_ptr", "out_ptr", "weight_ptr", "bias_ptr", "partial_ptr", "planes_ptr"),
    *("samples", "channels", "height", "width"),
    *("x_n", "x_c", "x_h", "grad_n", "grad_c", "grad_h"),
    *("stage", "per_group", "bands", "slots", "tiled"),
    *("row_count", "row_size", "row_step", "col_count", "col_size", "offset"),
    "eps",
)
_Job = collections.namedtuple("_Job", JOB_FIELDS)  # type: ignore[misc]
_JOB = types.NamedTuple(
    [types.float64 if name == "eps" else types.int64 for name in JOB_FIELDS], _Job
)

LANES = 8
# Numba compiles for this processor, unless its environment names another.
_HAS_AVX512 = (
    not config.CPU_NAME  # type: ignore[attr-defined]
    and binding.get_host_cpu_features().get("avx512vl", False)
)
ROOM = 2 * LANES  # cells that a row buffer has beyond the width of the map

# Without NRT, Numba's reference counting: atomic operations on every buffer for every row, a fifth
# of the backward on narrow maps. Only the entry points, which own the buffers, have it.
_PLAIN: dict[str, Any] = {"error_model": "numpy"}
if hasattr(DefaultOptions, "_nrt"):
    _PLAIN["_nrt"] = False
_INLINE: dict[str, Any] = {**_PLAIN, "forceinline": True}


# ---------------------------------------------------------------- vectors
#
# LANES numbers of one type: float64 (the sums) or the working precision (the rest), which is
# float64 for float64 inputs and float32 for all others. Stored elements are float64, float32,
# float16 (as uint16) or bfloat16 (as int16).


class Vector(types.Type):  # type: ignore[misc]
    def __init__(self, element):
        self.element = element
        super().__init__(name=f"Vector({element})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager, vector):
        super().__init__(
            manager, vector, _vector_of(manager.lookup(vector.element).get_value_type())
        )


_BIT, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 16, 32, 64))
_HALF, _FLOAT, _DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()
_STORED = {types.float64: _DOUBLE, types.float32: _FLOAT, types.uint16: _I16, types.int16: _I16}
_BYTES = {_DOUBLE: 8, _FLOAT: 4, _I16: 2}
# Multiplications and additions may fuse. No "reassoc", where a difference of close numbers
# counts; no "nnan": a NaN must stay one.
_FLAGS = ("contract", "nsz")


def _vector_of(element):
    return ir.VectorType(element, LANES)


def _constant(element, values):
    return ir.Constant(_vector_of(element), values)


def _same(element, value):
    return _constant(element, [value] * LANES)


def _splatted(builder, value):
    undefined = ir.Constant(_vector_of(value.type), ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, undefined, _same(_I32, 0))


def _cast(builder, value, element):
    if value.type.element == element:
        return value
    convert = builder.fpext if element == _DOUBLE else builder.fptrunc
    return convert(value, _vector_of(element))


def _decoded(builder, stored, value):
    """A stored vector in the working precision."""
    if stored == types.uint16:
        return builder.fpext(builder.bitcast(value, _vector_of(_HALF)), _vector_of(_FLOAT))
    if stored == types.int16:
        bits = builder.shl(builder.zext(value, _vector_of(_I32)), _same(_I32, 16))
        return builder.bitcast(bits, _vector_of(_FLOAT))
    return value


def _encoded(builder, stored, value):
    """A vector as it is stored."""
    if stored == types.uint16:
        return builder.bitcast(builder.fptrunc(value, _vector_of(_HALF)), _vector_of(_I16))
    if stored == types.int16:  # to nearest, ties to even; a NaN stays one
        bits = builder.bitcast(value, _vector_of(_I32))
        odd = builder.and_(builder.lshr(bits, _same(_I32, 16)), _same(_I32, 1))
        rounded = builder.add(bits, builder.add(odd, _same(_I32, 0x7FFF)))
        is_nan = builder.fcmp_unordered("uno", value, value)
        kept = builder.select(is_nan, _same(_I32, 0x7FC0), builder.lshr(rounded, _same(_I32, 16)))
        return builder.trunc(kept, _vector_of(_I16))
    return _cast(builder, value, _STORED[stored])


def _call_llvm(builder, name, result, arguments):
    function_type = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, function_type, name)
    return builder.call(function, arguments)


def _access(context, builder, array_type, array, j, cells):
    """Pointer to the vector at ``array[j]``, its type, and what a masked access needs besides."""
    element = _STORED[array_type.dtype]
    data = context.make_array(array_type)(context, builder, array).data
    vector = _vector_of(element)
    pointer = builder.bitcast(builder.gep(data, [j]), vector.as_pointer())
    if cells is None:
        return pointer, vector, None
    lane = _constant(_I64, list(range(LANES)))
    mask = builder.icmp_signed("<", lane, _splatted(builder, cells))
    name = {_DOUBLE: "f64", _FLOAT: "f32", _I16: "i16"}[element]
    return pointer, vector, (mask, f"v{LANES}{name}.p0", ir.Constant(_I32, _BYTES[element]))


@intrinsic
def _load(typing_context, array, j, cells):
    """``array[j : j + LANES]`` in the working precision; with ``cells``, zeros after that many."""
    stored = array.dtype
    whole = isinstance(cells, types.NoneType)

    def codegen(context, builder, signature, args):
        pointer, vector, masked = _access(
            context, builder, array, args[0], args[1], None if whole else args[2]
        )
        if masked is None:
            value = builder.load(pointer, align=_BYTES[vector.element])
        else:
            mask, suffix, align = masked
            arguments = (pointer, align, mask, ir.Constant(vector, None))
            value = _call_llvm(builder, f"llvm.masked.load.{suffix}", vector, arguments)
        return _decoded(builder, stored, value)

    working = types.float64 if stored == types.float64 else types.float32
    return Vector(working)(array, types.int64, cells), codegen


@intrinsic
def _store(typing_context, array, j, cells, value):
    """``array[j : j + LANES] = value``; with ``cells``, only that many of them."""
    whole = isinstance(cells, types.NoneType)

    def codegen(context, builder, signature, args):
        pointer, vector, masked = _access(
            context, builder, array, args[0], args[1], None if whole else args[2]
        )
        value = _encoded(builder, array.dtype, args[3])
        if masked is None:
            builder.store(value, pointer, align=_BYTES[vector.element])
        else:
            mask, suffix, align = masked
            arguments = (value, pointer, align, mask)
            _call_llvm(builder, f"llvm.masked.store.{suffix}", ir.VoidType(), arguments)
        return context.get_dummy_value()

    return types.none(array, types.int64, cells, value), codegen


def _vector_intrinsic(result_of, generate):
    """An intrinsic of one argument, whose code is that of ``generate(builder, value)``."""

    @intrinsic
    def function(typing_context, value):
        def codegen(context, builder, signature, args):
            return generate(builder, args[0])

        return result_of(value)(value), codegen

    return function


def _itself(vector):
    return vector


def _reciprocal_root(builder, value):
    """``1 / sqrt(value)``. Root and division take as long as all else that a window needs, so where
    the processor has an estimate of 14 bits, that and a step of Newton's, which is as exact."""
    element = value.type.element
    if not (_HAS_AVX512 and element == _FLOAT):
        suffix = {_DOUBLE: "f64", _FLOAT: "f32"}[element]
        root = _call_llvm(builder, f"llvm.sqrt.v{LANES}{suffix}", value.type, (value,))
        return builder.fdiv(_same(element, 1.0), root)
    name, no_mask = "llvm.x86.avx512.rsqrt14.ps.256", ir.Constant(ir.IntType(8), -1)
    estimate = _call_llvm(builder, name, value.type, (value, value, no_mask))
    product = builder.fmul(value, estimate)
    fused = f"llvm.fma.v{LANES}f32"
    arguments = builder.fneg(product), estimate, _same(element, 1.0)
    error = _call_llvm(builder, fused, value.type, arguments)
    half = builder.fmul(estimate, _same(element, 0.5))
    better = _call_llvm(builder, fused, value.type, (half, error, estimate))
    usual = builder.fcmp_ordered("ord", error, error)  # not so for 0, infinity and NaN
    return builder.select(usual, better, estimate)


def _over_lanes(builder, value, combine):
    half = LANES // 2
    while half:
        lanes = [min(lane + half, LANES - 1) for lane in range(LANES)]
        upper = builder.shuffle_vector(value, value, _constant(_I32, lanes))
        value = combine(value, upper)
        half //= 2
    return builder.extract_element(value, ir.Constant(_I32, 0))


def _sum_of_lanes(builder, value):
    return _over_lanes(builder, value, lambda a, b: builder.fadd(a, b, flags=_FLAGS))


def _maximum_of_lanes(builder, value):
    return _over_lanes(builder, value, lambda a, b: _larger_of(builder, a, b))


def _larger_of(builder, a, b):
    """``a``, unless ``b`` is larger: a NaN in ``b`` does not matter."""
    return builder.select(builder.fcmp_ordered(">", b, a), b, a)


def _last_lane(builder, value):
    return builder.extract_element(value, ir.Constant(_I32, LANES - 1))


def _first_lane(builder, value):
    return builder.extract_element(value, ir.Constant(_I32, 0))


# Numbers to vectors, and back.
_splat = _vector_intrinsic(Vector, _splatted)
_first = _vector_intrinsic(lambda vector: vector.element, _first_lane)
_last = _vector_intrinsic(lambda vector: vector.element, _last_lane)
_total = _vector_intrinsic(lambda vector: vector.element, _sum_of_lanes)
_maximum = _vector_intrinsic(lambda vector: vector.element, _maximum_of_lanes)
# Vectors to vectors.
_wide = _vector_intrinsic(lambda _: Vector(types.float64), lambda b, v: _cast(b, v, _DOUBLE))
_rsqrt = _vector_intrinsic(_itself, _reciprocal_root)


@intrinsic
def _larger(typing_context, a, b):
    """The larger of two numbers in each lane; a NaN in ``b`` does not matter."""

    def codegen(context, builder, signature, args):
        return _larger_of(builder, *args)

    return a(a, b), codegen


@intrinsic
def _at_least(typing_context, value, least):
    """``value``, unless ``least`` is larger; a NaN in ``value`` stays one."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", *args), args[1], args[0])

    return value(value, least), codegen


@intrinsic
def _as(typing_context, value, like):
    """``value`` in the type of the vector ``like``."""

    def codegen(context, builder, signature, args):
        return _cast(builder, args[0], args[1].type.element)

    return like(value, like), codegen


@intrinsic
def _truncated(typing_context, value):
    """Float64 cut to the 24 bits that float32 has."""

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(args[0], _vector_of(_I64))
        return builder.bitcast(builder.and_(bits, _same(_I64, -1 << 29)), args[0].type)

    return value(value), codegen


@intrinsic
def _prefetch(typing_context, array, j):
    """Ask for ``array[j]``, which may lie outside of the array, in the level-2 cache."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), cgutils.voidptr_t)
        hints = (ir.Constant(_I32, value) for value in (0, 2, 1))  # to read; level 2; data
        _call_llvm(builder, "llvm.prefetch.p0", ir.VoidType(), (pointer, *hints))
        return context.get_dummy_value()

    return types.none(array, types.int64), codegen


@intrinsic
def _load_stored(typing_context, array, j):
    """``array[j : j + LANES]`` as it is stored."""

    def codegen(context, builder, signature, args):
        pointer, vector, _ = _access(context, builder, array, args[0], args[1], None)
        return builder.load(pointer, align=_BYTES[vector.element])

    return Vector(array.dtype)(array, types.int64), codegen


@intrinsic
def _store_stored(typing_context, array, j, value):
    def codegen(context, builder, signature, args):
        pointer, vector, _ = _access(context, builder, array, args[0], args[1], None)
        builder.store(args[2], pointer, align=_BYTES[vector.element])
        return context.get_dummy_value()

    return types.none(array, types.int64, value), codegen


def _transposed_vectors(builder, vectors):
    vectors = list(vectors)
    step = 1
    while step < LANES:  # exchange the off-diagonal blocks of step x step
        upper, lower = [], []
        for lane in range(LANES):
            swapped = lane & step
            upper.append(LANES + lane - step if swapped else lane)
            lower.append(LANES + lane if swapped else lane + step)
        for i in range(LANES):
            if not i & step:
                a, b = vectors[i], vectors[i + step]
                vectors[i] = builder.shuffle_vector(a, b, _constant(_I32, upper))
                vectors[i + step] = builder.shuffle_vector(a, b, _constant(_I32, lower))
        step *= 2
    return vectors


@intrinsic
def _transposed(typing_context, rows):
    """Eight vectors, the rows of a matrix, to the vectors of its columns."""

    def codegen(context, builder, signature, args):
        vectors = _transposed_vectors(builder, cgutils.unpack_tuple(builder, args[0], LANES))
        return context.make_tuple(builder, signature.return_type, vectors)

    return rows(rows), codegen


@intrinsic
def _slide(typing_context, total, state, change):
    """The next LANES sums of a window that slides along a row, and the state for the next call.

    ``change`` is what each of these windows gains over the one before it. The sum of a window is
    that of the window a register before it and the changes since, added up in pairs, fours and, in
    registers of eight numbers, eights. The state is the last changes, pairs and fours.
    """
    width = LANES if _HAS_AVX512 else LANES // 2  # of a register, in numbers

    def codegen(context, builder, signature, args):
        def picked(one, other, first, count):
            lanes = ir.Constant(ir.VectorType(_I32, count), list(range(first, first + count)))
            return builder.shuffle_vector(one, other, lanes)

        def parts(vector):
            return [picked(vector, vector, at, width) for at in range(0, LANES, width)]

        def whole(vectors):
            return vectors[0] if len(vectors) == 1 else picked(*vectors, 0, LANES)

        last_total = parts(args[0])[-1]
        before = [parts(vector)[-1] for vector in cgutils.unpack_tuple(builder, args[1], 3)]
        totals, levels = [], ([], [], [])
        for sums in parts(args[2]):
            step = 1
            while step < width:
                level = step.bit_length() - 1
                levels[level].append(sums)
                moved = picked(before[level], sums, width - step, width)
                before[level], sums = sums, builder.fadd(sums, moved, flags=_FLAGS)
                step *= 2
            for level in range(step.bit_length() - 1, 3):
                levels[level].append(sums)  # not used with narrow registers
            last_total = builder.fadd(last_total, sums, flags=_FLAGS)
            totals.append(last_total)
        state_type, result_type = signature.args[1], signature.return_type
        new_state = context.make_tuple(builder, state_type, [whole(level) for level in levels])
        return context.make_tuple(builder, result_type, [whole(totals), new_state])

    return types.Tuple((total, state))(total, state, change), codegen


def _define(function, instruction):
    @intrinsic
    def apply(typing_context, a, b):
        def codegen(context, builder, signature, args):
            return getattr(builder, instruction)(*args, flags=_FLAGS)

        return a(a, b), codegen

    @overload(function)
    def overloaded(a, b):
        if isinstance(a, Vector) and a == b:
            return lambda a, b: apply(a, b)
        return None


for _function, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define(_function, _instruction)


@intrinsic
def _pointer(typing_context, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


@intrinsic
def _job_at(typing_context, address):
    """The job as values: fields in memory would be read again after every store."""

    def codegen(context, builder, signature, args):
        values = []
        for i, field in enumerate(_JOB):
            pointer = builder.bitcast(args[0], context.get_value_type(field).as_pointer())
            values.append(builder.load(builder.gep(pointer, [ir.Constant(_I64, i)])))
        return context.make_tuple(builder, _JOB, values)

    return _JOB(types.voidptr), codegen


@intrinsic
def _take_task(typing_context, job_address):
    """The next task number; atomic. ``next_task`` is the first field of the job."""

    def codegen(context, builder, signature, args):
        counter = builder.bitcast(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(_I64, 1), "monotonic")

    return types.int64(types.voidptr), codegen


# ---------------------------------------------------------------- rows, bands and small loops


@njit(error_model="numpy", forceinline=True)
def _zeros(count, like):
    """``count`` zeros of the type of ``like``, from a multiple of 64 bytes: a vector that crosses
    cache lines counts twice."""
    memory = np.zeros(count + 64 // like.itemsize, like.dtype)
    first = -memory.ctypes.data % 64 // like.itemsize
    return memory[first : first + count]


@njit(**_INLINE)
def _fill(row, start, stop, value):
    """``row[start:stop] = value``, which is in the type of the row."""
    values = _splat(value)
    whole = stop - (stop - start) % LANES
    for j in range(start, whole, LANES):
        _store(row, j, None, values)
    if whole < stop:
        _store(row, whole, stop - whole, values)


@njit(**_INLINE)
def _sum(row, start, cells):
    """The sum of ``row[start : start + cells]``."""
    total = _splat(0.0)
    whole = cells - cells % LANES
    for j in range(start, start + whole, LANES):
        total = total + _wide(_load(row, j, None))
    return _total(total + _wide(_load(row, start + whole, cells - whole)))


@njit(**_INLINE)
def _shift_of(job, x, base):
    """The smallest of three values of a group, in float64; not one that is NaN or infinite."""
    shift = np.inf
    for i, j in ((0, 0), (0, job.width // 2), (job.height // 2, job.width - 1)):
        value = _first(_wide(_load(x, base + i * job.x_h + j, 1)))
        if abs(value) < abs(shift):
            shift = value
    return shift if abs(shift) < np.inf else 0.0


@njit(**_INLINE)
def _first_row_of(k, job):
    """First output row that uses the row ``k`` of windows; ``k = row_count`` gives the height."""
    if k == 0:
        return 0
    if k >= job.row_count:
        return job.height
    return k * job.row_step if job.tiled else k + job.row_size // 2


@njit(**_INLINE)
def _window_row_of(i, job):
    """The row of windows that output row ``i`` uses."""
    if job.tiled:
        return i // job.row_step
    return min(max(i - job.row_size // 2, 0), job.row_count - 1)


@njit(**_INLINE)
def _band_start(band, job):
    """First output row of a band; ``band = bands`` gives the height."""
    return job.height * band // job.bands


# ---------------------------------------------------------------- statistics of a row of windows

_LEFT = LANES  # cells before the first column in a row of column sums; the last of them is zero
# A sum that slides keeps a trace of what has left it, of some 2^-53 of the largest sum that it has
# been. A row is summed anew where that is more than this times the variance of a window, plus eps,
# as it is after a NaN.
_MOST_RATIO, _MOST_RATIO_WIDE = 1e10, 1e6  # for float32, and for float64
_AHEAD = 4  # rows: so early memory is asked for what a loop will read or write


@njit(**_INLINE)
def _add_row_at(sums, squares, x, base, shift, j, cells):
    value = _wide(_load(x, base + j, cells)) - shift
    _store(sums, _LEFT + j, None, _load(sums, _LEFT + j, None) + value)
    _store(squares, _LEFT + j, None, _load(squares, _LEFT + j, None) + value * value)


@njit(**_INLINE)
def _first_window_row(sums, squares, x, base, start, stop, job, shift):
    """Column sums of the rows ``start .. stop - 1`` of a group.

    They are added one row at a time. To read several rows at once was slower from memory.
    """
    width, shifts = job.width, _splat(shift)
    whole = width - width % LANES
    _fill(sums, 0, sums.size // 2, 0.0)
    _fill(squares, 0, squares.size // 2, 0.0)
    for c in range(job.per_group):
        for i in range(start, stop):
            at = base + c * job.x_c + i * job.x_h
            ahead = at + _AHEAD * job.x_h
            for j in range(0, whole, LANES):
                _prefetch(x, ahead + j)
                _add_row_at(sums, squares, x, at, shifts, j, None)
            if whole < width:
                _add_row_at(sums, squares, x, at, shifts, whole, width - whole)


@njit(**_INLINE)
def _exchange_row_at(sums, squares, x, new, old, twice, j, cells):
    a, b = _wide(_load(x, new + j, cells)), _wide(_load(x, old + j, cells))
    change = a - b
    _store(sums, _LEFT + j, None, _load(sums, _LEFT + j, None) + change)
    square = _load(squares, _LEFT + j, None) + change * (a + b - twice)
    _store(squares, _LEFT + j, None, square)


@njit(**_INLINE)
def _exchange_two_rows_at(sums, squares, x, new, old, step, twice, j, cells):
    """The same for two channels, ``step`` apart."""
    a, b = _wide(_load(x, new + j, cells)), _wide(_load(x, old + j, cells))
    change = a - b
    square = change * (a + b - twice)
    a, b = _wide(_load(x, new + step + j, cells)), _wide(_load(x, old + step + j, cells))
    other = a - b
    square = square + other * (a + b - twice)
    _store(sums, _LEFT + j, None, _load(sums, _LEFT + j, None) + (change + other))
    _store(squares, _LEFT + j, None, _load(squares, _LEFT + j, None) + square)


@njit(**_INLINE)
def _next_window_row(sums, squares, x, base, start, stop, job, shift):
    """Column sums of the rows ``start .. stop - 1``, given those of ``start - 1 .. stop - 2``.

    Row ``stop - 1`` enters and row ``start - 1`` leaves. With the new value a and the old value b
    the squares change by ``(a - b) * (a + b)``. Channels are taken in twos, so that the sums are
    loaded and stored half as often.
    """
    width, twice, step = job.width, _splat(2.0 * shift), job.x_c
    whole = width - width % LANES
    old = base + (start - 1) * job.x_h
    new = base + (stop - 1) * job.x_h
    if job.per_group % 2:
        ahead = new + _AHEAD * job.x_h
        for j in range(0, whole, LANES):
            _prefetch(x, ahead + j)
            _exchange_row_at(sums, squares, x, new, old, twice, j, None)
        if whole < width:
            _exchange_row_at(sums, squares, x, new, old, twice, whole, width - whole)
        new, old = new + step, old + step
    for _ in range(job.per_group // 2):
        ahead = new + _AHEAD * job.x_h
        for j in range(0, whole, LANES):
            _prefetch(x, ahead + j)
            _prefetch(x, ahead + step + j)
            _exchange_two_rows_at(sums, squares, x, new, old, step, twice, j, None)
        if whole < width:
            _exchange_two_rows_at(sums, squares, x, new, old, step, twice, whole, width - whole)
        new, old = new + 2 * step, old + 2 * step


@njit(**_PLAIN)
def _box_sums(row, at, size, sums, sums_at, count):
    """``sums[sums_at + k]`` = sum of ``row[at + k : at + k + size]``, without subtraction.

    What leaves such a sum leaves no trace, be it NaN. In blocks of ``size`` sums: the row from each
    start to the end of the first of them, and from there on.
    """
    for first in range(0, count, size):
        total = 0.0
        for i in range(size - 1, -1, -1):
            total += row[at + first + i]
            if first + i < count:
                sums[sums_at + first + i] = total
        total = 0.0
        for k in range(first + 1, min(first + size, count)):
            total += row[at + k + size - 1]
            sums[sums_at + k] += total


@njit(**_INLINE)
def _slide_windows(sums, squares, job):
    """Sums of all windows of a row, into the second half of the buffers; whether they are finite.

    A window changes by what enters on the right less what leaves on the left.
    """
    size, count = job.col_size, job.col_count
    left, windows = _LEFT + job.offset - 1, sums.size // 2
    if job.offset:  # a column that no window holds
        sums[left] = squares[left] = 0.0
    total, square = _splat(_sum(sums, left, size)), _splat(_sum(squares, left, size))
    zero = _splat(0.0)
    total_state = square_state = (zero, zero, zero)
    for k in range(0, count, LANES):
        t = _load(sums, left + size + k, None) - _load(sums, left + k, None)
        s = _load(squares, left + size + k, None) - _load(squares, left + k, None)
        total, total_state = _slide(total, total_state, t)
        square, square_state = _slide(square, square_state, s)
        _store(sums, windows + k, None, total)
        _store(squares, windows + k, None, square)
    rest = _last(square)  # a NaN or infinity stays in it
    return rest - rest == 0.0


@njit(**_INLINE)
def _window_moments(sums, squares, high, low, rstd, rstd_at, job, scale, shift):
    """Mean as high and low, and rstd, of all windows of a row, at the cells that they are for.

    Returns the largest mean square, which may be infinite, and the largest rstd.
    """
    size, count = job.col_size, job.col_count
    windows = sums.size // 2
    most, largest = _splat(0.0), _splat(high.dtype.type(0))
    scales, shifts = _splat(scale), _splat(shift)
    one, eps = _splat(high.dtype.type(1)), _splat(high.dtype.type(job.eps))
    for k in range(0, count, LANES):
        mean = _load(sums, windows + k, None) * scales
        square = _load(squares, windows + k, None)
        most = _larger(most, square)
        variance = _as(square * scales - mean * mean, one)
        mean = mean + shifts
        top = _truncated(mean)
        at = size // 2 + k
        _store(high, at, None, _as(top, one))
        _store(low, at, None, _as(mean - top, one))
        root = _rsqrt(_at_least(variance + eps, eps))
        largest = _larger(largest, root)
        _store(rstd, rstd_at + at, None, root)
    return _maximum(_as(most * scales, largest)), _maximum(largest)


@njit(**_PLAIN)
def _moments_anew(job, x, base, shift, start, stop, sums, squares, high, low, rstd, rstd_at, scale):
    """Statistics of a row of windows from sums without a past; returns the largest mean square."""
    _first_window_row(sums, squares, x, base, start, stop, job, shift)
    windows, left = sums.size // 2, _LEFT + job.offset
    _box_sums(sums, left, job.col_size, sums, windows, job.col_count)
    _box_sums(squares, left, job.col_size, squares, windows, job.col_count)
    most, _ = _window_moments(sums, squares, high, low, rstd, rstd_at, job, scale, shift)
    return np.float64(most)


@njit(**_PLAIN)
def _tile_moments(sums, squares, high, low, rstd, rstd_at, job, rows, shift):
    """The same for tiles, the last of which may be narrower."""
    one = high.dtype.type(1)
    for start in range(0, job.width, job.col_size):
        stop = min(start + job.col_size, job.width)
        cells = stop - start
        n = job.per_group * rows * cells
        mean = _sum(sums, _LEFT + start, cells) / n
        variance = _sum(squares, _LEFT + start, cells) / n - mean * mean
        mean += shift
        r = one / np.sqrt(high.dtype.type((0.0 if variance < 0.0 else variance) + job.eps))
        for j in range(start, stop):
            high[j] = mean
            low[j] = mean - high[j]
            rstd[rstd_at + j] = r
    _store(rstd, rstd_at + job.width, None, _splat(high.dtype.type(0)))


@njit(**_INLINE)
def _moments_of_row(k, first, job, x, base, shift, sums, squares, high, low, rstd, rstd_at):
    """Statistics of window row ``k``, for each cell of the output rows that use it.

    ``sums`` and ``squares`` hold those of the columns from one call to the next, and behind them
    those of the windows. Returns the number of rows in the windows.
    """
    start = k * job.row_step + job.offset
    stop = min(start + job.row_size, job.height)
    if first or job.tiled:
        _first_window_row(sums, squares, x, base, start, stop, job, shift)
    else:
        _next_window_row(sums, squares, x, base, start, stop, job, shift)
    if job.tiled:
        _tile_moments(sums, squares, high, low, rstd, rstd_at, job, stop - start, shift)
        return stop - start
    scale = 1.0 / (job.per_group * (stop - start) * job.col_size)
    is_finite = _slide_windows(sums, squares, job)
    most, largest = _window_moments(sums, squares, high, low, rstd, rstd_at, job, scale, shift)
    # The largest since the column sums were begun, at a place that nothing else uses.
    most = squares[0] = max(np.float64(most), squares[0])
    limit = _MOST_RATIO if high.itemsize == 4 else _MOST_RATIO_WIDE
    if not (is_finite and most * largest * largest <= limit):
        squares[0] = _moments_anew(
            job, x, base, shift, start, stop, sums, squares, high, low, rstd, rstd_at, scale
        )
    # Only col_count windows differ: the cells near the left and right border share one.
    left, right = job.col_size // 2, job.col_size // 2 + job.col_count
    top, rest, root = _splat(high[left]), _splat(low[left]), _splat(rstd[rstd_at + left])
    for j in range(0, left, LANES):
        cells = min(LANES, left - j)
        _store(high, j, cells, top)
        _store(low, j, cells, rest)
        _store(rstd, rstd_at + j, cells, root)
    end = (job.width + LANES - 1) // LANES * LANES
    top, rest = _splat(high[right - 1]), _splat(low[right - 1])
    root = _splat(rstd[rstd_at + right - 1])
    for j in range(right, end, LANES):
        _store(high, j, None, top)
        _store(low, j, None, rest)
        _store(rstd, rstd_at + j, None, root)
    return stop - start


# ---------------------------------------------------------------- forward


@njit(**_INLINE)
def _normalize_at(x, base, out, out_base, high, low, rstd, weight, bias, j, cells):
    centred = _load(x, base + j, cells) - _load(high, j, None) - _load(low, j, None)
    _store(out, out_base + j, cells, centred * (_load(rstd, j, None) * weight) + bias)


@njit(**_INLINE)
def _normalize_rows(job, x, out, high, low, rstd, weight, bias, n, g, i_begin, i_end):
    """Output rows ``i_begin .. i_end - 1`` of a group."""
    width, height = job.width, job.height
    whole = width - width % LANES
    for channel in range(g * job.per_group, (g + 1) * job.per_group):
        w, b = _splat(weight[channel]), _splat(bias[channel])
        for i in range(i_begin, i_end):
            base = n * job.x_n + channel * job.x_c + i * job.x_h
            out_base = ((n * job.channels + channel) * height + i) * width
            ahead = out_base + _AHEAD * width
            for j in range(0, whole, LANES):
                _prefetch(out, ahead + j)
                _normalize_at(x, base, out, out_base, high, low, rstd, w, b, j, None)
            if whole < width:
                _normalize_at(x, base, out, out_base, high, low, rstd, w, b, whole, width - whole)


@njit(**_PLAIN)
def _forward_task(job, x, out, weight, bias, sums, squares, high, low, rstd, n, g, band):
    base = n * job.x_n + g * job.per_group * job.x_c
    shift = _shift_of(job, x, base)
    first_row, stop_row = _band_start(band, job), _band_start(band + 1, job)
    first_k = _window_row_of(first_row, job)
    for k in range(first_k, _window_row_of(stop_row - 1, job) + 1):
        _moments_of_row(k, k == first_k, job, x, base, shift, sums, squares, high, low, rstd, 0)
        i_begin = max(_first_row_of(k, job), first_row)
        i_end = min(_first_row_of(k + 1, job), stop_row)
        _normalize_rows(job, x, out, high, low, rstd, weight, bias, n, g, i_begin, i_end)


# ---------------------------------------------------------------- backward
#
# With d = x - mean and r = 1 / std of the cell, and sums over the cells v whose window holds u:
#   dx[u] = grad w r - sum_v P[v] - x[u] * sum_v Q[v]
#   A = sum_c grad w,  B = sum_c grad w d,  Q = r^3 B / n,  P = r A / n - mean Q
# A and B of the cells that share a window are added up first: over the channels, where the windows
# are for one row, in the working precision, over several rows in float64. A row of ``planes``
# holds, for one row of windows, P and Q of each window (for tiles: of each cell's tile), and r of
# each cell. The sum over the windows that hold a cell is then a window that slides over these
# rows. There are as many rows as the window is high, if a task has a whole group, or all of them,
# if the rows of a group are divided among tasks; then a window row that two bands share has a slot
# for each.


@njit(**_INLINE)
def _products_at(
    x, base, grad, grad_base, high, low, rstd, rstd_at, w, a, b, sum_grad, sum_normed, j, cells
):
    g = _load(grad, grad_base + j, cells)
    gd = g * (_load(x, base + j, cells) - _load(high, j, None) - _load(low, j, None))
    before_a, before_b = _load(a, j, None), _load(b, j, None)
    _store(a, j, None, before_a + _as(g * w, before_a))
    _store(b, j, None, before_b + _as(gd * w, before_b))
    return sum_grad + g, sum_normed + gd * _load(rstd, rstd_at + j, None)


@njit(**_INLINE)
def _add_products(
    job, x, grad, weight, high, low, rstd, rstd_at, a, b, totals, n, g, i_begin, i_end
):
    """Add A and B of each cell of the output rows to ``a`` and ``b`` ``[line]``, in the precision
    that these have, and the sums of grad and of grad d r to ``totals`` ``[per_group, 2, LANES]``.
    The sums of one row are in the working precision."""
    width = job.width
    whole = width - width % LANES
    for c in range(job.per_group):
        channel = g * job.per_group + c
        for i in range(i_begin, i_end):
            base = n * job.x_n + channel * job.x_c + i * job.x_h
            grad_base = n * job.grad_n + channel * job.grad_c + i * job.grad_h
            w = _splat(weight[channel])
            sum_grad = _splat(high.dtype.type(0))
            sum_normed = sum_grad
            ahead = grad_base + _AHEAD * job.grad_h
            for j in range(0, whole, LANES):
                _prefetch(grad, ahead + j)
                sum_grad, sum_normed = _products_at(
                    x, base, grad, grad_base, high, low, rstd, rstd_at, w, a, b,
                    sum_grad, sum_normed, j, None,
                )  # fmt: skip
            if whole < width:
                sum_grad, sum_normed = _products_at(
                    x, base, grad, grad_base, high, low, rstd, rstd_at, w, a, b,
                    sum_grad, sum_normed, whole, width - whole,
                )  # fmt: skip
            at = 2 * c * LANES
            _store(totals, at, None, _load(totals, at, None) + _wide(sum_grad))
            at += LANES
            _store(totals, at, None, _load(totals, at, None) + _wide(sum_normed))


@njit(**_INLINE)
def _window_terms(a, b, high, low, rstd, rstd_at, planes, p_at, q_at, job, scale, shift):
    """P and Q of each window from A and B at the cells that it is for, in the working precision,
    in which they are stored."""
    half, count = job.col_size // 2, job.col_count
    zeros = _splat(planes.dtype.type(0))
    scales, shifts = _splat(planes.dtype.type(scale)), _splat(planes.dtype.type(shift))
    for k in range(0, count, LANES):
        mean = _load(high, half + k, None) - shifts + _load(low, half + k, None)
        r = _load(rstd, rstd_at + half + k, None)
        scaled = r * scales
        q = r * _as(_load(b, half + k, None), zeros) * (r * scaled)
        p = scaled * _as(_load(a, half + k, None), zeros) - mean * q
        _store(planes, p_at + k, None, p)
        _store(planes, q_at + k, None, q)
    _store(planes, p_at + count, None, zeros)
    _store(planes, q_at + count, None, zeros)


@njit(**_PLAIN)
def _tile_terms(a, b, high, low, rstd, rstd_at, planes, p_at, q_at, job, rows, shift):
    """P and Q of the tile of each cell."""
    for start in range(0, job.width, job.col_size):
        stop = min(start + job.col_size, job.width)
        scale = 1.0 / (job.per_group * rows * (stop - start))
        mean = (np.float64(high[start]) - shift) + np.float64(low[start])
        r = np.float64(rstd[rstd_at + start])
        q = r * r * r * scale * _sum(b, start, stop - start)
        p = r * scale * _sum(a, start, stop - start) - mean * q
        for j in range(start, stop):
            planes[p_at + j] = p
            planes[q_at + j] = q


@njit(**_INLINE)
def _fold_rows(
    job, x, grad, weight, rows, i_begin, i_end, shift, high, low, planes, plane, a, b, totals,
    n, g,
):  # fmt: skip
    """A row of planes, at index ``plane``, from the output rows that share a row of windows; r of
    the cells is there already."""
    width, count, half = job.width, job.col_count, job.col_size // 2
    line = width + ROOM
    p_at, q_at, rstd_at = plane, plane + line, plane + 2 * line
    _fill(a, 0, a.size, a.dtype.type(0))
    _fill(b, 0, b.size, b.dtype.type(0))
    _add_products(
        job, x, grad, weight, high, low, planes, rstd_at, a, b, totals, n, g,
        i_begin, i_end,
    )  # fmt: skip
    if job.tiled:
        _tile_terms(a, b, high, low, planes, rstd_at, planes, p_at, q_at, job, rows, shift)
        return
    for row in (a, b):
        row[half] += _sum(row, 0, half)
        row[half + count - 1] += _sum(row, half + count, width - half - count)
    scale = 1.0 / (job.per_group * rows * job.col_size)
    _window_terms(a, b, high, low, planes, rstd_at, planes, p_at, q_at, job, scale, shift)


@njit(**_INLINE)
def _plane_of(k, band, job):
    """Where the row of planes for window row ``k`` begins."""
    slot = k % job.slots if job.bands == 1 else k + band
    return slot * 3 * (job.width + ROOM)


@njit(**_INLINE)
def _exchange_terms(windows, at, cells, planes, new, old):
    for j in range(0, cells, LANES):
        change = _wide(_load(planes, new + j, None)) - _wide(_load(planes, old + j, None))
        _store(windows, at + j, None, _load(windows, at + j, None) + change)


@njit(**_INLINE)
def _add_terms(windows, at, cells, planes, new, sign):
    signs = _splat(sign)
    for j in range(0, cells, LANES):
        change = _wide(_load(planes, new + j, None)) * signs
        _store(windows, at + j, None, _load(windows, at + j, None) + change)


@njit(**_PLAIN)
def _change_terms(p_windows, q_windows, at, cells, planes, planes_base, k, sign, job):
    """Add or take away P and Q of window row ``k``, of every band that has rows which use it."""
    for band in range(job.bands):
        first = _window_row_of(_band_start(band, job), job)
        last = _window_row_of(_band_start(band + 1, job) - 1, job)
        if first <= k <= last:
            plane = planes_base + _plane_of(k, band, job)
            _add_terms(p_windows, at, cells, planes, plane, sign)
            _add_terms(q_windows, at, cells, planes, plane + job.width + ROOM, sign)


@njit(**_INLINE)
def _sum_over_holders(windows, holders, size, width):
    """For each cell of a row the sum over the ``size`` windows that hold it; whether it is finite.

    ``windows`` begins with ``size`` zeros, for the windows that would start left of the map.
    """
    total = _splat(0.0)
    state = (total, total, total)
    for j in range(0, width, LANES):
        change = _load(windows, size + j, None) - _load(windows, j, None)
        total, state = _slide(total, state, change)
        _store(holders, j, None, total)
    rest = _last(total)  # a NaN or infinity stays in it
    return rest - rest == 0.0


@njit(**_PLAIN)
def _terms_anew(u, job, planes, planes_base, p_windows, q_windows, p_cells, q_cells):
    """As ``_terms_of_row``, from sums without a past, in which no NaN is left over."""
    size, width = job.col_size, job.width
    _fill(p_windows, 0, p_windows.size, 0.0)
    _fill(q_windows, 0, q_windows.size, 0.0)
    for k in range(max(u - job.row_size + 1, 0), min(u + 1, job.row_count)):
        _change_terms(p_windows, q_windows, size, job.col_count, planes, planes_base, k, 1.0, job)
    _box_sums(p_windows, 1, size, p_cells, 0, width)
    _box_sums(q_windows, 1, size, q_cells, 0, width)


@njit(**_INLINE)
def _terms_of_row(u, first, job, planes, planes_base, p_windows, q_windows, p_cells, q_cells):
    """Bring ``p_windows`` and ``q_windows``, sums down the rows of windows that hold row ``u``,
    from those of the row above if there is one, and the sums over all that hold each cell."""
    size, width = job.col_size, job.width
    if job.tiled:
        if not first and u % job.row_step:
            return
        _fill(p_windows, 0, p_windows.size, 0.0)
        _fill(q_windows, 0, q_windows.size, 0.0)
        k = u // job.row_step
        _change_terms(p_windows, q_windows, 0, width, planes, planes_base, k, 1.0, job)
        for j in range(width):
            p_cells[j] = p_windows[j]
            q_cells[j] = q_windows[j]
        return
    count, rows, row_count = job.col_count, job.row_size, job.row_count
    if first:
        _fill(p_windows, 0, p_windows.size, 0.0)
        _fill(q_windows, 0, q_windows.size, 0.0)
        for k in range(max(u - rows + 1, 0), min(u + 1, row_count)):
            _change_terms(p_windows, q_windows, size, count, planes, planes_base, k, 1.0, job)
    else:
        enters, leaves = u < row_count, u - rows >= 0
        if not enters and not leaves:
            return
        if enters and leaves and job.bands == 1:
            new = planes_base + _plane_of(u, 0, job)
            old = planes_base + _plane_of(u - rows, 0, job)
            line = width + ROOM
            _exchange_terms(p_windows, size, count, planes, new, old)
            _exchange_terms(q_windows, size, count, planes, new + line, old + line)
        else:
            if enters:
                _change_terms(p_windows, q_windows, size, count, planes, planes_base, u, 1.0, job)
            if leaves:
                _change_terms(
                    p_windows, q_windows, size, count, planes, planes_base, u - rows, -1.0, job
                )
    p_is_finite = _sum_over_holders(p_windows, p_cells, size, width)
    q_is_finite = _sum_over_holders(q_windows, q_cells, size, width)
    if not (p_is_finite and q_is_finite):
        _terms_anew(u, job, planes, planes_base, p_windows, q_windows, p_cells, q_cells)


@njit(**_INLINE)
def _input_gradient_at(
    x, base, grad, grad_base, out, out_base, rstd, rstd_at, p_cells, q_cells, w, shift, j, cells
):
    scaled = _load(grad, grad_base + j, cells) * (_load(rstd, rstd_at + j, None) * w)
    shifted = _load(x, base + j, cells) - shift
    gradient = scaled - _load(p_cells, j, None) - shifted * _load(q_cells, j, None)
    _store(out, out_base + j, cells, gradient)


@njit(**_INLINE)
def _finish_row(
    job, x, grad, out, weight, shift, planes, planes_base, p_windows, q_windows, p_cells, q_cells,
    n, g, u, band, first_row,
):  # fmt: skip
    """The gradient of input row ``u``."""
    _terms_of_row(u, first_row, job, planes, planes_base, p_windows, q_windows, p_cells, q_cells)
    width, height = job.width, job.height
    rstd_at = planes_base + _plane_of(_window_row_of(u, job), band, job) + 2 * (width + ROOM)
    whole = width - width % LANES
    shifts = _splat(p_cells.dtype.type(shift))
    for channel in range(g * job.per_group, (g + 1) * job.per_group):
        base = n * job.x_n + channel * job.x_c + u * job.x_h
        grad_base = n * job.grad_n + channel * job.grad_c + u * job.grad_h
        out_base = ((n * job.channels + channel) * height + u) * width
        w = _splat(weight[channel])
        ahead = out_base + _AHEAD * width
        for j in range(0, whole, LANES):
            _prefetch(out, ahead + j)
            _input_gradient_at(
                x, base, grad, grad_base, out, out_base, planes, rstd_at, p_cells, q_cells, w,
                shifts, j, None,
            )  # fmt: skip
        if whole < width:
            _input_gradient_at(
                x, base, grad, grad_base, out, out_base, planes, rstd_at, p_cells, q_cells, w,
                shifts, whole, width - whole,
            )  # fmt: skip


@njit(**_INLINE)
def _scale_row(job, grad, out, weight, rstd, rstd_at, n, g, i):
    """The gradient of row ``i`` where none goes through the statistics: ``grad w r``."""
    width, first = job.width, g * job.per_group
    for c in range(job.per_group):
        w = weight[first + c]
        base = n * job.grad_n + (first + c) * job.grad_c + i * job.grad_h
        out_base = ((n * job.channels + first + c) * job.height + i) * width
        for j in range(0, width, LANES):
            cells = min(LANES, width - j)
            value = _load(grad, base + j, cells) * (_load(rstd, rstd_at + j, None) * _splat(w))
            _store(out, out_base + j, cells, value)


# What a task of the backward does: everything for its group; the same without gradient through
# the statistics; or, for a band of a group, its planes first and when all have these, the gradient.
WHOLE, DETACHED, FOLD, FINISH = range(4)
_MOST_IN_ROW = 64  # channels whose A and B are added up in the working precision


@njit(**_PLAIN)
def _backward_task(
    job, x, grad, out, weight, partial, planes, planes_base, sums, squares, high, low, a, b,
    row_a, row_b, totals, p_windows, q_windows, p_cells, q_cells, n, g, band,
):  # fmt: skip
    """The stage of the job for band ``band`` of group ``g`` of sample ``n``.

    ``x``, ``grad`` and ``out`` are the whole tensors, from their first element; strides are in the
    job. ``weight`` is ``[channels]``, ``partial`` ``[2, channels]``: gradients of weight and bias.
    ``planes`` is ``[slots, 3, line]`` from ``planes_base`` on, with ``line = width + ROOM``: P and
    Q of the windows of a row, r of its cells. The rest are buffers.

    Float64: ``sums`` and ``squares`` ``[2, _LEFT + line]``, of columns and of windows; ``a`` and
    ``b`` ``[line]``; ``p_windows`` and ``q_windows`` ``[col_size + line]``; ``totals``
    ``[per_group, 2, LANES]``. Of the working precision, ``[line]``: ``high``, ``low``, ``row_a``,
    ``row_b``, ``p_cells`` and ``q_cells``.
    """
    stage = job.stage
    first_channel = g * job.per_group
    base = n * job.x_n + first_channel * job.x_c
    shift = _shift_of(job, x, base)
    first_row, stop_row = _band_start(band, job), _band_start(band + 1, job)
    first_k = _window_row_of(first_row, job)
    last_k = first_k if stage == FINISH else _window_row_of(stop_row - 1, job)
    _fill(totals, 0, totals.size, 0.0)
    done = first_row
    for k in range(first_k, last_k + 1):
        ready = stop_row if stage == FINISH else done
        if stage != FINISH:
            plane = planes_base if stage == DETACHED else planes_base + _plane_of(k, band, job)
            rstd_at = plane + 2 * (job.width + ROOM)
            rows = _moments_of_row(
                k, k == first_k, job, x, base, shift, sums, squares, high, low, planes, rstd_at
            )
            i_begin = max(_first_row_of(k, job), first_row)
            i_end = min(_first_row_of(k + 1, job), stop_row)
            if stage == DETACHED:
                _add_products(
                    job, x, grad, weight, high, low, planes, rstd_at, a, b, totals,
                    n, g, i_begin, i_end,
                )  # fmt: skip
                for i in range(i_begin, i_end):
                    _scale_row(job, grad, out, weight, planes, rstd_at, n, g, i)
            elif i_end - i_begin == 1 and not job.tiled and job.per_group <= _MOST_IN_ROW:
                _fold_rows(
                    job, x, grad, weight, rows, i_begin, i_end, shift, high, low, planes, plane,
                    row_a, row_b, totals, n, g,
                )  # fmt: skip
            else:
                _fold_rows(
                    job, x, grad, weight, rows, i_begin, i_end, shift, high, low, planes, plane,
                    a, b, totals, n, g,
                )  # fmt: skip
            if stage == WHOLE:
                # An input row is finished as soon as all windows that hold it are there.
                ready = job.height if k == job.row_count - 1 else (k + 1) * job.row_step
        for u in range(done, ready):
            _finish_row(
                job, x, grad, out, weight, shift, planes, planes_base, p_windows, q_windows,
                p_cells, q_cells, n, g, u, band, u == first_row,
            )  # fmt: skip
        done = ready
    if stage != FINISH:
        for c in range(job.per_group):
            partial[0, first_channel + c] = _total(_load(totals, (2 * c + 1) * LANES, None))
            partial[1, first_channel + c] = _total(_load(totals, 2 * c * LANES, None))


# ---------------------------------------------------------------- memory formats
#
# A channels-last map is a matrix [H W, C] per sample, any other [C, H W].

_TILE = 2 * LANES  # rows and columns of a tile: with 4 bytes an element, a row is a cache line


@njit(**_INLINE)
def _columns_of_block(x, at, stride):
    """The columns of LANES x LANES elements."""
    return _transposed(
        (
            _load_stored(x, at),
            _load_stored(x, at + stride),
            _load_stored(x, at + 2 * stride),
            _load_stored(x, at + 3 * stride),
            _load_stored(x, at + 4 * stride),
            _load_stored(x, at + 5 * stride),
            _load_stored(x, at + 6 * stride),
            _load_stored(x, at + 7 * stride),
        )
    )


@njit(**_PLAIN)
def _transpose_strip(x, out, base, rows, columns, first):
    """Rows ``first .. first + _TILE - 1`` of ``x`` ``[rows, columns]`` as columns of ``out``.

    On the side where lines are further apart, often by a power of two, they displace each other
    from the cache: there each is read or written as a whole.
    """
    stop = min(first + _TILE, rows)
    whole = columns - columns % _TILE if stop - first == _TILE else 0
    for j in range(0, whole, _TILE):
        for half in range(0, _TILE, LANES):
            if columns > rows:
                at, out_at = base + (first + half) * columns + j, base + j * rows + first + half
                left, right = at, at + LANES
                out_left, out_right = out_at, out_at + LANES * rows
            else:
                at, out_at = base + first * columns + j + half, base + (j + half) * rows + first
                left, right = at, at + LANES * columns
                out_left, out_right = out_at, out_at + LANES
            one, other = _columns_of_block(x, left, columns), _columns_of_block(x, right, columns)
            for i in range(LANES):
                _store_stored(out, out_left + i * rows, one[i])
                _store_stored(out, out_right + i * rows, other[i])
    for j in range(whole, columns):
        for i in range(first, stop):
            out[base + j * rows + i] = x[base + i * columns + j]


# ---------------------------------------------------------------- entry points

_MANY = 1 << 48  # length of arrays that come as an address


def compile_forward(element: Any, working: Any) -> Any:
    """``void body(void *job)`` for an element type as stored and its working precision."""

    def body(address):
        job = _job_at(address)
        x = carray(_pointer(job.x_ptr), _MANY, element)
        out = carray(_pointer(job.out_ptr), _MANY, element)
        weight = carray(_pointer(job.weight_ptr), job.channels, working)
        bias = carray(_pointer(job.bias_ptr), job.channels, working)
        cells = job.width + ROOM
        wide, narrow = np.empty(0, np.float64), np.empty(0, working)
        sums, squares = _zeros(2 * (_LEFT + cells), wide), _zeros(2 * (_LEFT + cells), wide)
        high, low = _zeros(cells, narrow), _zeros(cells, narrow)
        rstd = _zeros(cells, narrow)
        groups = job.channels // job.per_group
        while True:
            task = _take_task(address)
            if task >= job.samples * groups * job.bands:
                return
            group, band = task // job.bands, task % job.bands
            _forward_task(
                job, x, out, weight, bias, sums, squares, high, low, rstd,
                group // groups, group % groups, band,
            )  # fmt: skip

    return _compiled(body)


def compile_backward(element: Any, working: Any) -> Any:
    """As :func:`compile_forward`."""

    def body(address):
        job = _job_at(address)
        x = carray(_pointer(job.x_ptr), _MANY, element)
        grad = carray(_pointer(job.grad_ptr), _MANY, element)
        out = carray(_pointer(job.out_ptr), _MANY, element)
        weight = carray(_pointer(job.weight_ptr), job.channels, working)
        partial = carray(
            _pointer(job.partial_ptr), (job.bands, job.samples, 2, job.channels), np.float64
        )
        cells = job.width + ROOM
        wide, narrow = np.empty(0, np.float64), np.empty(0, working)
        sums, squares = _zeros(2 * (_LEFT + cells), wide), _zeros(2 * (_LEFT + cells), wide)
        high, low = _zeros(cells, narrow), _zeros(cells, narrow)
        a, b = _zeros(cells, wide), _zeros(cells, wide)
        row_a, row_b = _zeros(cells, narrow), _zeros(cells, narrow)
        p_windows = _zeros(job.col_size + cells, wide)
        q_windows = _zeros(job.col_size + cells, wide)
        p_cells, q_cells = _zeros(cells, narrow), _zeros(cells, narrow)
        totals = np.zeros(2 * LANES * job.per_group)
        per_group = job.slots * 3 * cells
        shared = job.stage == FOLD or job.stage == FINISH
        planes = carray(_pointer(job.planes_ptr), _MANY, working)
        if not shared:
            planes = _zeros(per_group, narrow)
        groups = job.channels // job.per_group
        while True:
            task = _take_task(address)
            if task >= job.samples * groups * job.bands:
                return
            group, band = task // job.bands, task % job.bands
            n, g = group // groups, group % groups
            _backward_task(
                job, x, grad, out, weight, partial[band, n], planes,
                group * per_group if shared else 0, sums, squares, high, low, a, b, row_a, row_b,
                totals, p_windows, q_windows, p_cells, q_cells, n, g, band,
            )  # fmt: skip

    return _compiled(body)


def compile_transpose(element: Any) -> Any:
    """The same for the matrices ``[height, width]`` of ``samples``; tasks are strips of rows."""

    def body(address):
        job = _job_at(address)
        x = carray(_pointer(job.x_ptr), _MANY, element)
        out = carray(_pointer(job.out_ptr), _MANY, element)
        rows, columns = job.height, job.width
        strips = (rows + _TILE - 1) // _TILE
        while True:
            task = _take_task(address)
            if task >= job.samples * strips:
                return
            base = task // strips * rows * columns
            _transpose_strip(x, out, base, rows, columns, task % strips * _TILE)

    return _compiled(body)


@functools.cache
def _state_of_loops() -> str:
    """Changes with the files of loops: Numba itself looks at the one that a function is in."""
    files = sorted(Path(__file__).parent.glob("*_loops.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def _compiled(body: Any) -> Any:
    signature = types.void(types.voidptr)
    body.__qualname__ += f"_{_state_of_loops()}"  # by which Numba finds what it kept
    try:
        return cfunc(signature, cache=True)(body)
    except RuntimeError:  # no directory to keep compiled code in: compile in every process
        return cfunc(signature)(body)
