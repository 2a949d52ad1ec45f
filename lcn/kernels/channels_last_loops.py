"""Numba loops of the CPU kernel for channels-last maps, ``[N, H, W, C]`` in memory.

The same sums as in :mod:`lcn.kernels.cpu_loops`, with its vectors, but a vector is ``LANES`` groups
at one place: a window slides along a row without moving anything between lanes. A task is one such
vector of groups of one sample, or a band of its rows. If the number of groups is no multiple of
``LANES``, the last vector overlaps the one before: both compute the same for the groups in common.

The channels of the groups are taken apart as they are loaded, into ``planes``: plane ``k`` holds
channel ``k`` of each group. Groups of 1, 2 and 4 channels are as many planes of one block of
memory. Groups of 8, 16 and so on are parts of 8 planes, each part from 8 blocks. In compiled code
``kind`` is a tuple as long as the number of planes; its values do not matter.

Buffers of a row are ``[cells, LANES]``.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from . import cpu_loops
from .cpu_loops import (
    _BYTES,
    _DOUBLE,
    _FLAGS,
    _I32,
    _I64,
    _INLINE,
    _MANY,
    _MOST_RATIO,
    _MOST_RATIO_WIDE,
    _PLAIN,
    _STORED,
    FINISH,
    FOLD,
    LANES,
    WHOLE,
    Vector,
    _as,
    _at_least,
    _band_start,
    _cast,
    _compiled,
    _constant,
    _decoded,
    _encoded,
    _fill,
    _first_row_of,
    _job_at,
    _larger,
    _load,
    _maximum,
    _pointer,
    _prefetch,
    _rsqrt,
    _splat,
    _store,
    _take_task,
    _total,
    _transposed_vectors,
    _truncated,
    _vector_of,
    _wide,
    _window_row_of,
    _zeros,
)

# ---------------------------------------------------------------- planes of a cell


def _element_pointer(context, builder, array_type, array, at):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [at])


def _loaded_planes(context, builder, array_type, array, at, stride, count):
    """The planes of the cell at ``array[at]``, in the working precision."""
    stored = array_type.dtype
    element = _STORED[stored]
    align = _BYTES[element]
    if count == LANES:
        blocks = []
        for lane in range(LANES):
            offset = builder.add(at, builder.mul(stride, ir.Constant(_I64, lane)))
            pointer = _element_pointer(context, builder, array_type, array, offset)
            pointer = builder.bitcast(pointer, _vector_of(element).as_pointer())
            blocks.append(builder.load(pointer, align=align))
        planes = _transposed_vectors(builder, blocks)
    else:
        pointer = _element_pointer(context, builder, array_type, array, at)
        block_type = ir.VectorType(element, LANES * count)
        block = builder.load(builder.bitcast(pointer, block_type.as_pointer()), align=align)
        planes = [block]
        if count > 1:
            planes = [
                builder.shuffle_vector(
                    block, block, _constant(_I32, [k + count * lane for lane in range(LANES)])
                )
                for k in range(count)
            ]
    return [_decoded(builder, stored, plane) for plane in planes]


def _concatenated(builder, vectors):
    while len(vectors) > 1:
        width = 2 * vectors[0].type.count
        lanes = ir.Constant(ir.VectorType(_I32, width), list(range(width)))
        vectors = [
            builder.shuffle_vector(one, other, lanes)
            for one, other in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    return vectors[0]


def _store_planes(context, builder, array_type, array, at, stride, planes):
    stored = array_type.dtype
    element = _STORED[stored]
    align = _BYTES[element]
    planes = [_encoded(builder, stored, plane) for plane in planes]
    if len(planes) == LANES:
        for lane, block in enumerate(_transposed_vectors(builder, planes)):
            offset = builder.add(at, builder.mul(stride, ir.Constant(_I64, lane)))
            pointer = _element_pointer(context, builder, array_type, array, offset)
            builder.store(block, builder.bitcast(pointer, block.type.as_pointer()), align=align)
        return
    count = len(planes)
    block = _concatenated(builder, planes)
    if count > 1:
        lanes = [k * LANES + lane for lane in range(LANES) for k in range(count)]
        lanes = ir.Constant(ir.VectorType(_I32, len(lanes)), lanes)
        block = builder.shuffle_vector(block, block, lanes)
    pointer = _element_pointer(context, builder, array_type, array, at)
    builder.store(block, builder.bitcast(pointer, block.type.as_pointer()), align=align)


def _loaded_vectors(context, builder, array_type, array, at, count, step=1):
    """``count`` vectors of a buffer, each ``step`` vectors after the one before."""
    vectors = []
    for k in range(count):
        offset = builder.add(at, ir.Constant(_I64, k * step * LANES))
        pointer = _element_pointer(context, builder, array_type, array, offset)
        vector = _vector_of(_STORED[array_type.dtype])
        pointer = builder.bitcast(pointer, vector.as_pointer())
        vectors.append(builder.load(pointer, align=_BYTES[vector.element]))
    return vectors


def _add_to_buffer(context, builder, array_type, array, at, value):
    pointer = _element_pointer(context, builder, array_type, array, at)
    pointer = builder.bitcast(pointer, value.type.as_pointer())
    align = _BYTES[value.type.element]
    total = builder.fadd(builder.load(pointer, align=align), value, flags=_FLAGS)
    builder.store(total, pointer, align=align)


class _Terms:
    """Multiplications, additions and subtractions that may fuse."""

    def __init__(self, builder):
        self._builder = builder

    def add(self, a, b):
        return self._builder.fadd(a, b, flags=_FLAGS)

    def sub(self, a, b):
        return self._builder.fsub(a, b, flags=_FLAGS)

    def mul(self, a, b):
        return self._builder.fmul(a, b, flags=_FLAGS)

    def total(self, values):
        total = values[0]
        for value in values[1:]:
            total = self.add(total, value)
        return total


_WIDE = Vector(types.float64)


@intrinsic
def _entering(typing_context, kind, x, at, stride, shift):
    """Sums over the planes of a cell of ``x - shift`` and of its square, float64."""

    def codegen(context, builder, signature, args):
        terms = _Terms(builder)
        planes = _loaded_planes(context, builder, x, args[1], args[2], args[3], kind.count)
        values = [terms.sub(_cast(builder, plane, _DOUBLE), args[4]) for plane in planes]
        squares = [terms.mul(value, value) for value in values]
        result = terms.total(values), terms.total(squares)
        return context.make_tuple(builder, signature.return_type, result)

    return types.Tuple((_WIDE, _WIDE))(kind, x, at, stride, shift), codegen


@intrinsic
def _exchanged(typing_context, kind, x, new, old, stride, twice):
    """What these sums gain where the cell at ``new`` enters and that at ``old`` leaves; ``twice``
    is the shift times two."""

    def codegen(context, builder, signature, args):
        terms = _Terms(builder)
        entering, leaving = (
            [
                _cast(builder, plane, _DOUBLE)
                for plane in _loaded_planes(context, builder, x, args[1], at, args[4], kind.count)
            ]
            for at in args[2:4]
        )
        changes, squares = [], []
        for a, b in zip(entering, leaving, strict=True):
            change = terms.sub(a, b)
            changes.append(change)
            squares.append(terms.mul(change, terms.add(a, terms.sub(b, args[5]))))
        result = terms.total(changes), terms.total(squares)
        return context.make_tuple(builder, signature.return_type, result)

    return types.Tuple((_WIDE, _WIDE))(kind, x, new, old, stride, twice), codegen


@intrinsic
def _normalize_cell(
    typing_context, kind, x, out, at, stride, high, low, rstd, weight, bias, affine_at
):
    """``out = (x - high - low) * rstd * weight + bias`` for the planes of a cell."""

    def codegen(context, builder, signature, args):
        terms, count = _Terms(builder), kind.count
        _, x_array, out_array, at, stride, high, low, rstd, w_array, b_array, affine_at = args
        planes = _loaded_planes(context, builder, x, x_array, at, stride, count)
        weights = _loaded_vectors(context, builder, weight, w_array, affine_at, count)
        biases = _loaded_vectors(context, builder, bias, b_array, affine_at, count)
        results = []
        for plane, w, b in zip(planes, weights, biases, strict=True):
            centred = terms.sub(terms.sub(plane, high), low)
            results.append(terms.add(terms.mul(centred, terms.mul(rstd, w)), b))
        _store_planes(context, builder, out, out_array, at, stride, results)
        return context.get_dummy_value()

    arguments = kind, x, out, at, stride, high, low, rstd, weight, bias, affine_at
    return types.none(*arguments), codegen


@intrinsic
def _products_of_cell(
    typing_context, kind, x, grad, at, stride, high, low, rstd, weight, affine_at, totals
):
    """A and B of a cell, sums over its planes of ``grad weight`` and of ``grad weight d`` with
    ``d = x - high - low``. Adds ``grad`` and ``grad d rstd`` of each plane to ``totals``
    ``[planes, 2, LANES]``."""

    def codegen(context, builder, signature, args):
        terms, count = _Terms(builder), kind.count
        _, x_array, grad_array, at, stride, high, low, rstd, w_array, affine_at, t_array = args
        values = _loaded_planes(context, builder, x, x_array, at, stride, count)
        grads = _loaded_planes(context, builder, grad, grad_array, at, stride, count)
        weights = _loaded_vectors(context, builder, weight, w_array, affine_at, count)
        a_terms, b_terms = [], []
        for k, (value, g, w) in enumerate(zip(values, grads, weights, strict=True)):
            gd = terms.mul(g, terms.sub(terms.sub(value, high), low))
            a_terms.append(terms.mul(g, w))
            b_terms.append(terms.mul(gd, w))
            for i, term in enumerate((g, terms.mul(gd, rstd))):
                offset = builder.mul(affine_at, ir.Constant(_I64, 2))
                offset = builder.add(offset, ir.Constant(_I64, (2 * k + i) * LANES))
                _add_to_buffer(context, builder, totals, t_array, offset, term)
        result = terms.total(a_terms), terms.total(b_terms)
        return context.make_tuple(builder, signature.return_type, result)

    arguments = kind, x, grad, at, stride, high, low, rstd, weight, affine_at, totals
    return types.Tuple((high, high))(*arguments), codegen


@intrinsic
def _input_gradient_of_cell(
    typing_context, kind, x, grad, out, at, stride, rstd, p, q, shift, weight, affine_at
):
    """``out = grad rstd weight - p - (x - shift) q`` for the planes of a cell."""

    def codegen(context, builder, signature, args):
        terms, count = _Terms(builder), kind.count
        _, x_array, g_array, o_array, at, stride, rstd, p, q, shift, w_array, affine_at = args
        values = _loaded_planes(context, builder, x, x_array, at, stride, count)
        grads = _loaded_planes(context, builder, grad, g_array, at, stride, count)
        weights = _loaded_vectors(context, builder, weight, w_array, affine_at, count)
        results = []
        for value, g, w in zip(values, grads, weights, strict=True):
            scaled = terms.sub(terms.mul(g, terms.mul(rstd, w)), p)
            results.append(terms.sub(scaled, terms.mul(terms.sub(value, shift), q)))
        _store_planes(context, builder, out, o_array, at, stride, results)
        return context.get_dummy_value()

    arguments = kind, x, grad, out, at, stride, rstd, p, q, shift, weight, affine_at
    return types.none(*arguments), codegen


# ---------------------------------------------------------------- statistics of a row of windows


@njit(**_PLAIN)
def _first_channel_of(vector, job):
    """First channel of a vector of groups; the last vector ends with the last group."""
    groups = job.channels // job.per_group
    return min(vector * LANES, groups - LANES) * job.per_group


@njit(**_INLINE)
def _parts(job):
    return max(job.per_group // LANES, 1)


@njit(**_PLAIN)
def _find_shifts(job, x, base, shifts):
    """The smallest of three values of each group, float64; not one that is NaN or infinite."""
    for lane in range(LANES):
        shift = np.inf
        for i, j in ((0, 0), (0, job.width // 2), (job.height // 2, job.width - 1)):
            cell = base + (i * job.width + j) * job.channels + lane * job.per_group
            value = _first_wide(x, cell)
            if abs(value) < abs(shift):
                shift = value
        shifts[lane] = shift if abs(shift) < np.inf else 0.0


@njit(**_INLINE)
def _first_wide(x, at):
    return cpu_loops._first(_wide(_load(x, at, 1)))


@njit(**_PLAIN)
def _first_window_row(kind, x, base, start, stop, job, shifts, sums, squares):
    """Sums of each column over the rows ``start .. stop - 1``, from ``sums[LANES]`` on."""
    width, channels, shift = job.width, job.channels, _load(shifts, 0, None)
    _fill(sums, 0, (width + 1) * LANES, 0.0)
    _fill(squares, 0, (width + 1) * LANES, 0.0)
    for i in range(start, stop):
        row = base + i * width * channels
        for j in range(width):
            for part in range(_parts(job)):
                cell = row + j * channels + part * LANES
                total, square = _entering(kind, x, cell, job.per_group, shift)
                at = (j + 1) * LANES
                _store(sums, at, None, _load(sums, at, None) + total)
                _store(squares, at, None, _load(squares, at, None) + square)


@njit(**_INLINE)
def _next_window_row(kind, x, base, start, stop, job, shifts, sums, squares):
    """The same for the rows ``start .. stop - 1``, given those of the window row above."""
    width, channels, shift = job.width, job.channels, _load(shifts, 0, None)
    twice = shift + shift
    line = width * channels
    new, old = base + (stop - 1) * line, base + (start - 1) * line
    for j in range(width):
        at, cell = (j + 1) * LANES, j * channels
        _prefetch(x, new + 2 * line + cell)
        for _ in range(_parts(job)):
            change, square = _exchanged(kind, x, new + cell, old + cell, job.per_group, twice)
            _store(sums, at, None, _load(sums, at, None) + change)
            _store(squares, at, None, _load(squares, at, None) + square)
            cell += LANES


@njit(**_INLINE)
def _moments(total, square, scale, shift, one, eps):
    """Mean square of ``x - shift``, mean as high and low, and rstd, from the sums of a window."""
    mean = total * scale
    mean_square = square * scale
    variance = _as(mean_square - mean * mean, one)
    mean = mean + shift
    top = _truncated(mean)
    root = _rsqrt(_at_least(variance + eps, eps))
    return mean_square, _as(top, one), _as(mean - top, one), root


@njit(**_INLINE)
def _moments_at(at, total, square, scale, shift, one, eps, high, low, rstd, rstd_at):
    mean_square, top, rest, root = _moments(total, square, scale, shift, one, eps)
    _store(high, at, None, top)
    _store(low, at, None, rest)
    _store(rstd, rstd_at + at, None, root)
    return mean_square, root


@njit(**_INLINE)
def _next_sums(sums, squares, total, square, k, job):
    """Of window ``k`` of a row from those of the window before it."""
    enters, leaves = (k + job.col_size) * LANES, k * LANES
    total = total + (_load(sums, enters, None) - _load(sums, leaves, None))
    square = square + (_load(squares, enters, None) - _load(squares, leaves, None))
    return total, square


@njit(**_INLINE)
def _sums_before(sums, squares, job):
    """What a window's sums are made of but for its last column, for the first window of a row."""
    total = square = _splat(0.0)
    for j in range(1, job.col_size):
        total = total + _load(sums, j * LANES, None)
        square = square + _load(squares, j * LANES, None)
    return total, square


@njit(**_INLINE)
def _are_exact(square, largest_square, largest_root, high):
    """Whether the sums of a row are finite, of which ``square`` is the last, and no variance is too
    small beside what passed through them (``_MOST_RATIO``)."""
    root = _wide(largest_root)
    limit = _MOST_RATIO if high.itemsize == 4 else _MOST_RATIO_WIDE
    # A NaN or infinity stays in the square.
    return _total(square - square) == 0.0 and _maximum(largest_square * root * root) <= limit


@njit(**_INLINE)
def _window_moments(sums, squares, shifts, high, low, rstd, rstd_at, most, job, scale):
    """Mean as high and low, and rstd, of the windows of a row, at the cells that they are for.

    ``most`` is the largest mean square since the column sums were begun, for each group. Returns
    whether all sums are finite and no variance is too small beside it (``_MOST_RATIO``).
    """
    size, count = job.col_size, job.col_count
    shift, scales = _load(shifts, 0, None), _splat(scale)
    one, eps = _splat(high.dtype.type(1)), _splat(high.dtype.type(job.eps))
    total, square = _sums_before(sums, squares, job)
    largest_square, largest = _load(most, 0, None), _splat(high.dtype.type(0))
    for k in range(count):
        total, square = _next_sums(sums, squares, total, square, k, job)
        at = (size // 2 + k) * LANES
        mean_square, root = _moments_at(
            at, total, square, scales, shift, one, eps, high, low, rstd, rstd_at
        )
        largest_square = _larger(largest_square, mean_square)
        largest = _larger(largest, root)
    _store(most, 0, None, largest_square)
    return _are_exact(square, largest_square, largest, high)


@njit(**_PLAIN)
def _box_sums(row, start, size, count, sums, sums_at):
    """Sum ``k`` is that of ``size`` cells of a row from the ``k``-th on, without subtraction."""
    for first in range(0, count, size):
        total = _splat(0.0)
        for i in range(first + size - 1, first - 1, -1):
            total = total + _load(row, start + i * LANES, None)
            if i < count:
                _store(sums, sums_at + i * LANES, None, total)
        total = _splat(0.0)
        for k in range(first + 1, min(first + size, count)):
            total = total + _load(row, start + (k + size - 1) * LANES, None)
            at = sums_at + k * LANES
            _store(sums, at, None, _load(sums, at, None) + total)


@njit(**_PLAIN)
def _moments_anew(
    kind, x, base, start, stop, job, shifts, sums, squares, high, low, rstd, rstd_at, most, scale
):
    """Statistics of a row of windows from sums without a past."""
    _first_window_row(kind, x, base, start, stop, job, shifts, sums, squares)
    size, count = job.col_size, job.col_count
    windows = sums.size // 2
    _box_sums(sums, LANES, size, count, sums, windows)
    _box_sums(squares, LANES, size, count, squares, windows)
    shift, scales, largest = _load(shifts, 0, None), _splat(scale), _splat(0.0)
    one, eps = _splat(high.dtype.type(1)), _splat(high.dtype.type(job.eps))
    for k in range(count):
        total = _load(sums, windows + k * LANES, None)
        square = _load(squares, windows + k * LANES, None)
        at = (size // 2 + k) * LANES
        mean_square, _ = _moments_at(
            at, total, square, scales, shift, one, eps, high, low, rstd, rstd_at
        )
        largest = _larger(largest, mean_square)
    _store(most, 0, None, largest)


@njit(**_INLINE)
def _column_sums(kind, k, first, job, x, base, shifts, sums, squares, most):
    """Sums of each column over window row ``k``; they hold those of the row above if there is
    one."""
    stop = k + job.row_size
    if first:
        _first_window_row(kind, x, base, k, stop, job, shifts, sums, squares)
        _fill(most, 0, LANES, 0.0)
    else:
        _next_window_row(kind, x, base, k, stop, job, shifts, sums, squares)


@njit(**_INLINE)
def _scale_of(job):
    return 1.0 / (job.per_group * job.row_size * job.col_size)


@njit(**_PLAIN)
def _fill_borders(row, at, job):
    """Only col_count windows differ: the cells near the left and right border share one."""
    left = job.col_size // 2
    right = left + job.col_count
    value = _load(row, at + left * LANES, None)
    for j in range(left):
        _store(row, at + j * LANES, None, value)
    value = _load(row, at + (right - 1) * LANES, None)
    for j in range(right, job.width):
        _store(row, at + j * LANES, None, value)


@njit(**_INLINE)
def _moments_of_row(
    kind, k, anew, job, x, base, shifts, sums, squares, high, low, rstd, rstd_at, most
):
    """Statistics of window row ``k``, for each cell of the output rows that use it."""
    scale = _scale_of(job)
    is_exact = not anew and _window_moments(
        sums, squares, shifts, high, low, rstd, rstd_at, most, job, scale
    )
    if not is_exact:
        _moments_anew(
            kind, x, base, k, k + job.row_size, job, shifts, sums, squares, high, low, rstd,
            rstd_at, most, scale,
        )  # fmt: skip
    _fill_borders(high, 0, job)
    _fill_borders(low, 0, job)
    _fill_borders(rstd, rstd_at, job)


# ---------------------------------------------------------------- forward


@njit(**_INLINE)
def _take_apart(kind, vector, first_channel, job, out):
    """A weight or bias ``[channels]`` as planes ``[parts, planes, LANES]``."""
    planes = len(kind)
    for part in range(_parts(job)):
        for k in range(planes):
            for lane in range(LANES):
                channel = first_channel + lane * job.per_group + part * LANES + k
                out[(part * planes + k) * LANES + lane] = vector[channel]


@njit(**_INLINE)
def _normalize_rows(kind, job, x, out, base, high, low, rstd, weight, bias, i_begin, i_end):
    """Output rows ``i_begin .. i_end - 1`` of a vector of groups."""
    width, channels = job.width, job.channels
    for i in range(i_begin, i_end):
        row = base + i * width * channels
        for j in range(width):
            at = j * LANES
            means, lows, r = _load(high, at, None), _load(low, at, None), _load(rstd, at, None)
            for part in range(_parts(job)):
                cell = row + j * channels + part * LANES
                _normalize_cell(
                    kind, x, out, cell, job.per_group, means, lows, r, weight, bias,
                    part * len(kind) * LANES,
                )  # fmt: skip


@njit(**_INLINE)
def _first_cell_of(k, job):
    """First cell of a row that uses its window ``k``; for ``k = col_count`` the width."""
    if k == 0:
        return 0
    return job.width if k == job.col_count else job.col_size // 2 + k


@njit(**_INLINE)
def _normalize_as_windows_slide(
    kind, job, x, out, row, shifts, sums, squares, most, weight, bias, high
):
    """One output row, whose windows no other row uses; whether their sums were exact."""
    shift, scale = _load(shifts, 0, None), _splat(_scale_of(job))
    one, eps = _splat(high.dtype.type(1)), _splat(high.dtype.type(job.eps))
    total, square = _sums_before(sums, squares, job)
    largest_square, largest = _load(most, 0, None), _splat(high.dtype.type(0))
    for k in range(job.col_count):
        total, square = _next_sums(sums, squares, total, square, k, job)
        mean_square, top, rest, root = _moments(total, square, scale, shift, one, eps)
        largest_square = _larger(largest_square, mean_square)
        largest = _larger(largest, root)
        for j in range(_first_cell_of(k, job), _first_cell_of(k + 1, job)):
            for part in range(_parts(job)):
                _normalize_cell(
                    kind, x, out, row + j * job.channels + part * LANES, job.per_group, top,
                    rest, root, weight, bias, part * len(kind) * LANES,
                )  # fmt: skip
    _store(most, 0, None, largest_square)
    return _are_exact(square, largest_square, largest, high)


@njit(**_PLAIN)
def _forward_task(
    kind, job, x, out, weight, bias, shifts, sums, squares, high, low, rstd, most, base, band
):
    _find_shifts(job, x, base, shifts)
    first_row, stop_row = _band_start(band, job), _band_start(band + 1, job)
    first_k = _window_row_of(first_row, job)
    for k in range(first_k, _window_row_of(stop_row - 1, job) + 1):
        _column_sums(kind, k, k == first_k, job, x, base, shifts, sums, squares, most)
        i_begin = max(_first_row_of(k, job), first_row)
        i_end = min(_first_row_of(k + 1, job), stop_row)
        is_alone = i_end - i_begin == 1
        if is_alone and _normalize_as_windows_slide(
            kind, job, x, out, base + i_begin * job.width * job.channels, shifts, sums, squares,
            most, weight, bias, high,
        ):  # fmt: skip
            continue
        _moments_of_row(
            kind, k, is_alone, job, x, base, shifts, sums, squares, high, low, rstd, 0, most
        )
        _normalize_rows(kind, job, x, out, base, high, low, rstd, weight, bias, i_begin, i_end)


# ---------------------------------------------------------------- backward
#
# As in cpu_loops. ``planes`` there, the rows of P, Q and r that are kept, are ``terms`` here.


@njit(**_INLINE)
def _add_products(
    kind, job, x, grad, base, high, low, rstd, rstd_at, weight, a, b, row_totals, totals,
    i_begin, i_end,
):  # fmt: skip
    """A and B of each cell, added up over the output rows, to ``a`` and ``b`` ``[cells, LANES]``
    in float64, and the sums for weight and bias to ``totals``; those of a row are in the working
    precision."""
    width, channels = job.width, job.channels
    zero = row_totals.dtype.type(0)
    for i in range(i_begin, i_end):
        row = base + i * width * channels
        _fill(row_totals, 0, row_totals.size, zero)
        for j in range(width):
            at = j * LANES
            means, lows = _load(high, at, None), _load(low, at, None)
            r = _load(rstd, rstd_at + at, None)
            a_of_cell = b_of_cell = _splat(0.0)
            if i > i_begin:
                a_of_cell, b_of_cell = _load(a, at, None), _load(b, at, None)
            _prefetch(grad, row + 2 * width * channels + j * channels)
            for part in range(_parts(job)):
                cell = row + j * channels + part * LANES
                a_of_part, b_of_part = _products_of_cell(
                    kind, x, grad, cell, job.per_group, means, lows, r, weight,
                    part * len(kind) * LANES, row_totals,
                )  # fmt: skip
                a_of_cell = a_of_cell + _wide(a_of_part)
                b_of_cell = b_of_cell + _wide(b_of_part)
            _store(a, at, None, a_of_cell)
            _store(b, at, None, b_of_cell)
        for at in range(0, totals.size, LANES):
            _store(totals, at, None, _load(totals, at, None) + _wide(_load(row_totals, at, None)))


@njit(**_INLINE)
def _gather_at_borders(row, job):
    """Add what the cells near a border have to the cell whose window they share."""
    left = job.col_size // 2
    last = left + job.col_count - 1
    total = _load(row, left * LANES, None)
    for j in range(left):
        total = total + _load(row, j * LANES, None)
    _store(row, left * LANES, None, total)
    total = _load(row, last * LANES, None)
    for j in range(last + 1, job.width):
        total = total + _load(row, j * LANES, None)
    _store(row, last * LANES, None, total)


@njit(**_INLINE)
def _window_terms(a, b, high, low, terms, terms_at, shifts, job):
    """P and Q of each window from A and B at the cells that it is for."""
    _gather_at_borders(a, job)
    _gather_at_borders(b, job)
    one = _splat(terms.dtype.type(1))
    scale = _splat(terms.dtype.type(1.0 / (job.per_group * job.row_size * job.col_size)))
    shift = _as(_load(shifts, 0, None), one)
    line = job.width * LANES
    for k in range(job.col_count):
        at = (job.col_size // 2 + k) * LANES
        mean = _load(high, at, None) - shift + _load(low, at, None)
        r = _load(terms, terms_at + 2 * line + at, None)
        scaled = r * scale
        q = r * _as(_load(b, at, None), one) * (r * scaled)
        p = scaled * _as(_load(a, at, None), one) - mean * q
        _store(terms, terms_at + k * LANES, None, p)
        _store(terms, terms_at + line + k * LANES, None, q)


@njit(**_INLINE)
def _terms_of(k, band, job):
    """Where the terms of window row ``k`` begin."""
    slot = k % job.slots if job.bands == 1 else k + band
    return slot * 3 * job.width * LANES


@njit(**_INLINE)
def _change_windows(windows, job, terms, at, sign):
    signs = _splat(sign)
    first = job.col_size * LANES
    for k in range(0, job.col_count * LANES, LANES):
        change = _wide(_load(terms, at + k, None)) * signs
        _store(windows, first + k, None, _load(windows, first + k, None) + change)


@njit(**_PLAIN)
def _change_terms(p_windows, q_windows, job, terms, terms_base, k, sign):
    """Add or take away P and Q of window row ``k``, of every band that has rows which use it."""
    for band in range(job.bands):
        first = _window_row_of(_band_start(band, job), job)
        last = _window_row_of(_band_start(band + 1, job) - 1, job)
        if first <= k <= last:
            at = terms_base + _terms_of(k, band, job)
            _change_windows(p_windows, job, terms, at, sign)
            _change_windows(q_windows, job, terms, at + job.width * LANES, sign)


@njit(**_INLINE)
def _exchange_terms(windows, job, terms, new, old):
    first = job.col_size * LANES
    for k in range(0, job.col_count * LANES, LANES):
        change = _wide(_load(terms, new + k, None)) - _wide(_load(terms, old + k, None))
        _store(windows, first + k, None, _load(windows, first + k, None) + change)


@njit(**_INLINE)
def _sum_terms(p_windows, q_windows, u, job, terms, terms_base):
    """The sums down the rows of windows that hold row ``u``, from nothing."""
    _fill(p_windows, 0, p_windows.size, 0.0)
    _fill(q_windows, 0, q_windows.size, 0.0)
    for k in range(max(u - job.row_size + 1, 0), min(u + 1, job.row_count)):
        _change_terms(p_windows, q_windows, job, terms, terms_base, k, 1.0)


@njit(**_INLINE)
def _terms_of_row(u, first, job, terms, terms_base, p_windows, q_windows):
    """Bring the sums down the rows of windows that hold row ``u`` from those of the row above."""
    if first:
        _sum_terms(p_windows, q_windows, u, job, terms, terms_base)
        return
    enters, leaves = u < job.row_count, u - job.row_size >= 0
    if enters and leaves and job.bands == 1:
        new = terms_base + _terms_of(u, 0, job)
        old = terms_base + _terms_of(u - job.row_size, 0, job)
        line = job.width * LANES
        _exchange_terms(p_windows, job, terms, new, old)
        _exchange_terms(q_windows, job, terms, new + line, old + line)
        return
    if enters:
        _change_terms(p_windows, q_windows, job, terms, terms_base, u, 1.0)
    if leaves:
        _change_terms(p_windows, q_windows, job, terms, terms_base, u - job.row_size, -1.0)


@njit(**_INLINE)
def _gradient_at(kind, job, x, grad, out, cell, r, p, q, shift, weight):
    one = r
    for part in range(_parts(job)):
        _input_gradient_of_cell(
            kind, x, grad, out, cell + part * LANES, job.per_group, r, _as(p, one), _as(q, one),
            shift, weight, part * len(kind) * LANES,
        )  # fmt: skip


@njit(**_PLAIN)
def _finish_row_anew(
    kind, job, x, grad, out, row, shift, terms, terms_base, rstd_at, p_windows, q_windows,
    p_cells, q_cells, weight, u,
):  # fmt: skip
    """The gradient of input row ``u`` from sums without a past, in which no NaN is left over."""
    size, width = job.col_size, job.width
    _sum_terms(p_windows, q_windows, u, job, terms, terms_base)
    cells = p_cells.size // 2  # in the room of the sums of windows
    _box_sums(p_windows, LANES, size, width, p_cells, cells)
    _box_sums(q_windows, LANES, size, width, q_cells, cells)
    for j in range(width):
        at = j * LANES
        p, q = _load(p_cells, cells + at, None), _load(q_cells, cells + at, None)
        r = _load(terms, rstd_at + at, None)
        _gradient_at(kind, job, x, grad, out, row + j * job.channels, r, p, q, shift, weight)


@njit(**_INLINE)
def _finish_row(
    kind, job, x, grad, out, base, shifts, terms, terms_base, p_windows, q_windows, sums,
    squares, weight, u, band, first,
):  # fmt: skip
    """The gradient of input row ``u``."""
    _terms_of_row(u, first, job, terms, terms_base, p_windows, q_windows)
    width, ends = job.width, job.col_size * LANES
    row = base + u * width * job.channels
    rstd_at = terms_base + _terms_of(_window_row_of(u, job), band, job) + 2 * width * LANES
    one = _splat(terms.dtype.type(1))
    shift = _as(_load(shifts, 0, None), one)
    p = q = _splat(0.0)
    for j in range(width):
        at = j * LANES
        p = p + (_load(p_windows, ends + at, None) - _load(p_windows, at, None))
        q = q + (_load(q_windows, ends + at, None) - _load(q_windows, at, None))
        r = _load(terms, rstd_at + at, None)
        _gradient_at(kind, job, x, grad, out, row + j * job.channels, r, p, q, shift, weight)
    if _total((p - p) + (q - q)) != 0.0:  # a NaN or infinity stays in them
        _finish_row_anew(
            kind, job, x, grad, out, row, shift, terms, terms_base, rstd_at, p_windows,
            q_windows, sums, squares, weight, u,
        )  # fmt: skip


@njit(**_PLAIN)
def _write_partial(kind, job, totals, partial, first_channel):
    planes = len(kind)
    for part in range(_parts(job)):
        for k in range(planes):
            at = 2 * (part * planes + k) * LANES
            for lane in range(LANES):
                channel = first_channel + lane * job.per_group + part * LANES + k
                partial[0, channel] = totals[at + LANES + lane]
                partial[1, channel] = totals[at + lane]


@njit(**_PLAIN)
def _backward_task(
    kind, job, x, grad, out, weight, partial, terms, terms_base, shifts, sums, squares, high,
    low, most, a, b, row_totals, totals, p_windows, q_windows, base, first_channel, band,
):  # fmt: skip
    """The stage of the job for band ``band`` of a vector of groups, at ``base`` in the tensors.

    ``weight`` is ``[parts, planes, LANES]``, ``partial`` ``[2, channels]``: gradients of weight and
    bias. ``terms`` is ``[slots, 3, width, LANES]`` from ``terms_base`` on: P and Q of the windows
    of a row, r of its cells.
    """
    stage = job.stage
    _find_shifts(job, x, base, shifts)
    first_row, stop_row = _band_start(band, job), _band_start(band + 1, job)
    first_k = _window_row_of(first_row, job)
    last_k = first_k if stage == FINISH else _window_row_of(stop_row - 1, job)
    _fill(totals, 0, totals.size, 0.0)
    done = first_row
    for k in range(first_k, last_k + 1):
        ready = stop_row if stage == FINISH else done
        if stage != FINISH:
            terms_at = terms_base + _terms_of(k, band, job)
            rstd_at = terms_at + 2 * job.width * LANES
            _column_sums(kind, k, k == first_k, job, x, base, shifts, sums, squares, most)
            _moments_of_row(
                kind, k, False, job, x, base, shifts, sums, squares, high, low, terms, rstd_at,
                most,
            )  # fmt: skip
            i_begin = max(_first_row_of(k, job), first_row)
            i_end = min(_first_row_of(k + 1, job), stop_row)
            _add_products(
                kind, job, x, grad, base, high, low, terms, rstd_at, weight, a, b, row_totals,
                totals, i_begin, i_end,
            )  # fmt: skip
            _window_terms(a, b, high, low, terms, terms_at, shifts, job)
            if stage == WHOLE:
                # An input row is finished as soon as all windows that hold it are there.
                ready = job.height if k == job.row_count - 1 else k + 1
        for u in range(done, ready):
            _finish_row(
                kind, job, x, grad, out, base, shifts, terms, terms_base, p_windows, q_windows,
                sums, squares, weight, u, band, u == first_row,
            )  # fmt: skip
        done = ready
    if stage != FINISH:
        _write_partial(kind, job, totals, partial, first_channel)


# ---------------------------------------------------------------- entry points


def compile_forward(element: Any, working: Any, planes: int) -> Any:
    """``void body(void *job)`` for an element type as stored, its working precision and the number
    of planes."""
    kind = (0,) * planes

    def body(address):
        job = _job_at(address)
        x = carray(_pointer(job.x_ptr), _MANY, element)
        out = carray(_pointer(job.out_ptr), _MANY, element)
        weight = carray(_pointer(job.weight_ptr), job.channels, working)
        bias = carray(_pointer(job.bias_ptr), job.channels, working)
        cells = (job.width + 1) * LANES
        wide, narrow = np.empty(0, np.float64), np.empty(0, working)
        sums, squares = _zeros(2 * cells, wide), _zeros(2 * cells, wide)
        high = _zeros(cells, narrow)
        low, rstd, most = _zeros(cells, narrow), _zeros(cells, narrow), _zeros(LANES, wide)
        shifts = _zeros(LANES, wide)
        weights = _zeros(job.per_group * LANES, narrow)
        biases = _zeros(job.per_group * LANES, narrow)
        vectors = (job.channels // job.per_group + LANES - 1) // LANES
        while True:
            task = _take_task(address)
            if task >= job.samples * vectors * job.bands:
                return
            group, band = task // job.bands, task % job.bands
            n, first_channel = group // vectors, _first_channel_of(group % vectors, job)
            _take_apart(kind, weight, first_channel, job, weights)
            _take_apart(kind, bias, first_channel, job, biases)
            base = n * job.height * job.width * job.channels + first_channel
            _forward_task(
                kind, job, x, out, weights, biases, shifts, sums, squares, high, low, rstd, most,
                base, band,
            )  # fmt: skip

    return _compiled(body)


def compile_backward(element: Any, working: Any, planes: int) -> Any:
    """As :func:`compile_forward`."""
    kind = (0,) * planes

    def body(address):
        job = _job_at(address)
        x = carray(_pointer(job.x_ptr), _MANY, element)
        grad = carray(_pointer(job.grad_ptr), _MANY, element)
        out = carray(_pointer(job.out_ptr), _MANY, element)
        weight = carray(_pointer(job.weight_ptr), job.channels, working)
        partial = carray(
            _pointer(job.partial_ptr), (job.bands, job.samples, 2, job.channels), np.float64
        )
        cells = (job.width + 1) * LANES
        wide, narrow = np.empty(0, np.float64), np.empty(0, working)
        sums, squares = _zeros(2 * cells, wide), _zeros(2 * cells, wide)
        high = _zeros(cells, narrow)
        low, most, shifts = _zeros(cells, narrow), _zeros(LANES, wide), _zeros(LANES, wide)
        a, b = _zeros(cells, wide), _zeros(cells, wide)
        weights = _zeros(job.per_group * LANES, narrow)
        row_totals = _zeros(2 * job.per_group * LANES, narrow)
        totals = _zeros(2 * job.per_group * LANES, wide)
        p_windows = _zeros(job.col_size * LANES + cells, wide)
        q_windows = _zeros(job.col_size * LANES + cells, wide)
        per_group = job.slots * 3 * job.width * LANES
        shared = job.stage == FOLD or job.stage == FINISH
        terms = carray(_pointer(job.planes_ptr), _MANY, working)
        if not shared:
            terms = _zeros(per_group, narrow)
        vectors = (job.channels // job.per_group + LANES - 1) // LANES
        while True:
            task = _take_task(address)
            if task >= job.samples * vectors * job.bands:
                return
            group, band = task // job.bands, task % job.bands
            n, first_channel = group // vectors, _first_channel_of(group % vectors, job)
            _take_apart(kind, weight, first_channel, job, weights)
            base = n * job.height * job.width * job.channels + first_channel
            _backward_task(
                kind, job, x, grad, out, weights, partial[band, n], terms,
                group * per_group if shared else 0, shifts, sums, squares, high, low, most, a, b,
                row_totals, totals, p_windows, q_windows, base, first_channel, band,
            )  # fmt: skip

    return _compiled(body)
