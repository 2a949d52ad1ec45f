"""Numba loops of the CPU kernel.  All compiled code is in this file, since Numba recompiles a
cached function only when the file it is in changes.

One task is one group of one sample, or a band of its rows where there are fewer groups than
threads.  A window moves down its group: float64 sums of each column gain the row below and lose
the row above, a running sum along the row then gives every window by one difference, and the rows
that use these windows are normalized while they are in cache.  No plane of statistics is written.

Sums are of ``x - shift``, with the first value of the group as shift, so that an offset does not
cost digits.  The mean is kept as two numbers of the working precision, ``high + low``: near the
mean ``x - high`` is exact, and ``low`` is what an offset of 1,000 would otherwise round away.

Windows along one axis, ``k = 0 .. count - 1``, start at ``k * step + offset`` and have ``size``
cells; ``step`` is 1, or ``size`` for tiles.  Output cell ``i`` uses window
``clamp(i - size // 2, 0, count - 1)``, or ``i // size`` for tiles.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

# What a task reads; fields that end in _ptr are addresses.
JOB_FIELDS = (
    "next_task",
    *("x_ptr", "grad_ptr", "out_ptr", "weight_ptr", "bias_ptr", "partial_ptr", "planes_ptr"),
    *("samples", "channels", "height", "width"),
    *("x_n", "x_c", "x_h", "grad_n", "grad_c", "grad_h"),
    *("stage", "per_group", "bands", "slots", "tiled", "unbiased"),
    *("row_count", "row_size", "row_step", "col_count", "col_size", "offset"),
    "eps",
)
JOB = np.dtype([(name, np.float64 if name == "eps" else np.int64) for name in JOB_FIELDS])

# No "reassoc" where a difference of close numbers counts, no "nnan": a NaN must stay one.
_EXACT: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract", "nsz"}}
_SUMS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract", "nsz", "reassoc"}}


# ---------------------------------------------------------------- element types and pointers


@intrinsic
def _pointer(typing_context, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


@intrinsic
def _take_task(typing_context, job_address):
    """The next task number; atomic.  ``next_task`` is the first field of the job."""

    def codegen(context, builder, signature, args):
        counter = builder.bitcast(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.voidptr), codegen


def _bits_intrinsic(source, target, convert):
    @intrinsic
    def function(typing_context, value):
        def codegen(context, builder, signature, args):
            return convert(builder, args[0])

        return target(source), codegen

    return function


_I16, _I32, _F16, _F32 = ir.IntType(16), ir.IntType(32), ir.HalfType(), ir.FloatType()
_float_of_half = _bits_intrinsic(
    types.uint16, types.float32, lambda b, v: b.fpext(b.bitcast(v, _F16), _F32)
)
_half_of_float = _bits_intrinsic(
    types.float32, types.uint16, lambda b, v: b.bitcast(b.fptrunc(v, _F16), _I16)
)
_float_of_bfloat = _bits_intrinsic(
    types.int16,
    types.float32,
    lambda b, v: b.bitcast(b.shl(b.zext(v, _I32), ir.Constant(_I32, 16)), _F32),
)


def _round_to_bfloat(b, value):
    """Nearest, ties to even; a NaN stays one."""
    bits = b.bitcast(value, _I32)
    odd = b.and_(b.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
    rounded = b.lshr(b.add(bits, b.add(odd, ir.Constant(_I32, 0x7FFF))), ir.Constant(_I32, 16))
    is_nan = b.fcmp_unordered("uno", value, value)
    return b.trunc(b.select(is_nan, ir.Constant(_I32, 0x7FC0), rounded), _I16)


_bfloat_of_float = _bits_intrinsic(types.float32, types.int16, _round_to_bfloat)


def _read(row: Any, j: Any) -> Any:
    """``row[j]`` as a number; float16 is stored as uint16, bfloat16 as int16."""


def _write(row: Any, j: Any, value: Any) -> None:
    """Store ``value``, in the working precision, as ``row[j]``."""


@overload(_read, inline="always")
def _overload_read(row, j):
    if row.dtype == types.uint16:
        return lambda row, j: _float_of_half(row[j])
    if row.dtype == types.int16:
        return lambda row, j: _float_of_bfloat(row[j])
    return lambda row, j: row[j]


@overload(_write, inline="always")
def _overload_write(row, j, value):
    if row.dtype == types.uint16:

        def write_half(row, j, value):
            row[j] = _half_of_float(value)

        return write_half
    if row.dtype == types.int16:

        def write_bfloat(row, j, value):
            row[j] = _bfloat_of_float(value)

        return write_bfloat

    def write_as_is(row, j, value):
        row[j] = value

    return write_as_is


# ---------------------------------------------------------------- rows of sums


@njit(**_EXACT)
def _add_row(sums, squares, row, shift):
    for j in range(row.size):
        value = np.float64(_read(row, j)) - shift
        sums[j] += value
        squares[j] += value * value


@njit(**_EXACT)
def _add_four_rows(sums, squares, row0, row1, row2, row3, shift):
    for j in range(sums.size):
        v0 = np.float64(_read(row0, j)) - shift
        v1 = np.float64(_read(row1, j)) - shift
        v2 = np.float64(_read(row2, j)) - shift
        v3 = np.float64(_read(row3, j)) - shift
        sums[j] += (v0 + v1) + (v2 + v3)
        squares[j] += (v0 * v0 + v1 * v1) + (v2 * v2 + v3 * v3)


@njit(**_EXACT)
def _exchange_row(sums, squares, new, old, shift):
    """Add ``new`` and take ``old`` away; the squares as a product of sum and difference."""
    twice = 2.0 * shift
    for j in range(sums.size):
        a = np.float64(_read(new, j))
        b = np.float64(_read(old, j))
        sums[j] += a - b
        squares[j] += (a - b) * (a + b - twice)


@njit(**_EXACT)
def _exchange_two_rows(sums, squares, new0, old0, new1, old1, shift):
    """:func:`_exchange_row` for two channels in one pass over the sums."""
    twice = 2.0 * shift
    for j in range(sums.size):
        a = np.float64(_read(new0, j))
        b = np.float64(_read(old0, j))
        c = np.float64(_read(new1, j))
        d = np.float64(_read(old1, j))
        sums[j] += (a - b) + (c - d)
        squares[j] += (a - b) * (a + b - twice) + (c - d) * (c + d - twice)


@njit(**_EXACT)
def _running_sums(first, second, first_to, second_to):
    """``first_to[j]`` is the sum of ``first[:j]``; likewise the second.

    Two at once and four at a time: the chain of dependent additions is what this costs.
    """
    n = first.size
    s = 0.0
    t = 0.0
    first_to[0] = 0.0
    second_to[0] = 0.0
    for block in range(n // 4):
        j = 4 * block
        a0, a2 = first[j], first[j + 2]
        a1, a3 = a0 + first[j + 1], a2 + first[j + 3]
        b0, b2 = second[j], second[j + 2]
        b1, b3 = b0 + second[j + 1], b2 + second[j + 3]
        a2 += a1
        a3 += a1
        b2 += b1
        b3 += b1
        first_to[j + 1] = s + a0
        first_to[j + 2] = s + a1
        first_to[j + 3] = s + a2
        second_to[j + 1] = t + b0
        second_to[j + 2] = t + b1
        second_to[j + 3] = t + b2
        s += a3
        t += b3
        first_to[j + 4] = s
        second_to[j + 4] = t
    for j in range(n - n % 4, n):
        s += first[j]
        t += second[j]
        first_to[j + 1] = s
        second_to[j + 1] = t


@njit(**_EXACT)
def _sliding_moments(s0, s1, q0, q1, scale, eps, shift, high, low, rstd):
    """Mean as high and low, and rstd, of each window; its sums are ``s1 - s0``, ``q1 - q0``."""
    for k in range(high.size):
        mean = (s1[k] - s0[k]) * scale
        variance = (q1[k] - q0[k]) * scale - mean * mean
        mean += shift
        high[k] = mean
        low[k] = mean - high[k]
        rstd[k] = (0.0 if variance < 0.0 else variance) + eps
    one = rstd.dtype.type(1)
    for k in range(high.size):
        rstd[k] = one / np.sqrt(rstd[k])


@njit
def _moments_of_cells(sums_to, squares_to, job, rows, shift, cell):
    """Statistics of the window that each cell of an output row uses: ``cell`` ``[3, width]``.

    Only ``col_count`` windows differ; cells near the left and right border share one.
    """
    count, size, width = job.col_count, job.col_size, job.width
    if not job.tiled:
        half, start, stop = size // 2, job.offset, job.offset + size
        _sliding_moments(
            sums_to[start : start + count],
            sums_to[stop : stop + count],
            squares_to[start : start + count],
            squares_to[stop : stop + count],
            1.0 / (job.per_group * rows * size),
            job.eps,
            shift,
            cell[0, half : half + count],
            cell[1, half : half + count],
            cell[2, half : half + count],
        )
        for s in range(3):
            _fill(cell[s, :half], cell[s, half])
            _fill(cell[s, half + count :], cell[s, half + count - 1])
        return
    for k in range(count):
        start = k * size
        stop = min(start + size, width)
        _sliding_moments(
            sums_to[start : start + 1],
            sums_to[stop : stop + 1],
            squares_to[start : start + 1],
            squares_to[stop : stop + 1],
            1.0 / (job.per_group * rows * (stop - start)),
            job.eps,
            shift,
            cell[0, start : start + 1],
            cell[1, start : start + 1],
            cell[2, start : start + 1],
        )
        for s in range(3):
            _fill(cell[s, start:stop], cell[s, start])


@njit(**_EXACT)
def _fill(cells, value):
    for j in range(cells.size):
        cells[j] = value


@njit(**_EXACT)
def _add(total, term):
    for k in range(total.size):
        total[k] += term[k]


@njit(**_EXACT)
def _subtract(total, term):
    for k in range(total.size):
        total[k] -= term[k]


@njit
def _gather(cells, job, windows):
    """``windows[k]`` gains the sum of the cells that use window ``k``."""
    count, size, width = job.col_count, job.col_size, job.width
    if not job.tiled:
        half = size // 2
        windows[0] += _sum(cells[:half])
        _add(windows, cells[half : half + count])
        windows[count - 1] += _sum(cells[half + count :])
        return
    for k in range(count):
        windows[k] += _sum(cells[k * size : min((k + 1) * size, width)])


@njit(**_SUMS)
def _sum(cells):
    total = 0.0
    for j in range(cells.size):
        total += cells[j]
    return total


@njit
def _first_row_of(k, job):
    """First output row that uses the row ``k`` of windows; ``k = row_count`` gives the height."""
    if k == 0:
        return 0
    if k >= job.row_count:
        return job.height
    return k * job.row_step if job.tiled else k + job.row_size // 2


@njit
def _window_row_of(i, job):
    """The row of windows that output row ``i`` uses."""
    if job.tiled:
        return i // job.row_step
    return min(max(i - job.row_size // 2, 0), job.row_count - 1)


@njit
def _band_start(band, job):
    """First output row of a band; ``band = bands`` gives the height."""
    return job.height * band // job.bands


@njit
def _row(array, base, width):
    return array[base : base + width]


@njit
def _out_row(out, n, channel, i, job):
    start = ((n * job.channels + channel) * job.height + i) * job.width
    return out[start : start + job.width]


@njit
def _first_window_row(sums, squares, x, base, start, stop, job, shift):
    """Column sums of the rows ``start .. stop - 1`` of a group."""
    sums[:] = 0.0
    squares[:] = 0.0
    for c in range(job.per_group):
        plane = base + c * job.x_c
        i = start
        while i + 4 <= stop:
            _add_four_rows(
                sums,
                squares,
                _row(x, plane + i * job.x_h, job.width),
                _row(x, plane + (i + 1) * job.x_h, job.width),
                _row(x, plane + (i + 2) * job.x_h, job.width),
                _row(x, plane + (i + 3) * job.x_h, job.width),
                shift,
            )
            i += 4
        for rest in range(i, stop):
            _add_row(sums, squares, _row(x, plane + rest * job.x_h, job.width), shift)


@njit
def _next_window_row(sums, squares, x, base, start, stop, job, shift):
    """The same from the sums of one row further up."""
    old, new = base + (start - 1) * job.x_h, base + (stop - 1) * job.x_h
    for c in range(0, job.per_group - 1, 2):
        a, b = c * job.x_c, (c + 1) * job.x_c
        _exchange_two_rows(
            sums,
            squares,
            _row(x, new + a, job.width),
            _row(x, old + a, job.width),
            _row(x, new + b, job.width),
            _row(x, old + b, job.width),
            shift,
        )
    if job.per_group % 2:
        c = (job.per_group - 1) * job.x_c
        _exchange_row(
            sums, squares, _row(x, new + c, job.width), _row(x, old + c, job.width), shift
        )


# ---------------------------------------------------------------- windows, forward


@njit
def _moments_of_row(k, first, job, x, base, shift, sums, running, cell):
    """Statistics of window row ``k``, for each cell of the output rows that use it.

    ``sums`` holds the column sums from one call to the next.  Returns the rows in the window.
    """
    start = k * job.row_step + job.offset
    stop = min(start + job.row_size, job.height)
    if first or job.tiled:
        _first_window_row(sums[0], sums[1], x, base, start, stop, job, shift)
    else:
        _next_window_row(sums[0], sums[1], x, base, start, stop, job, shift)
    _running_sums(sums[0], sums[1], running[0], running[1])
    _moments_of_cells(running[0], running[1], job, stop - start, shift, cell)
    return stop - start


@njit(**_EXACT)
def _normalize_row(row, out, high, low, rstd, weight, bias):
    for j in range(row.size):
        _write(out, j, (_read(row, j) - high[j] - low[j]) * rstd[j] * weight + bias)


@njit
def _forward_windows(job, x, out, weight, bias, n, g, band):
    width = job.width
    sums, running = np.empty((2, width)), np.empty((2, width + 1))
    cell = np.empty((3, width), weight.dtype)
    base = n * job.x_n + g * job.per_group * job.x_c
    shift = np.float64(_read(x, base))
    first_row, stop_row = _band_start(band, job), _band_start(band + 1, job)
    first_k = _window_row_of(first_row, job)
    for k in range(first_k, _window_row_of(stop_row - 1, job) + 1):
        _moments_of_row(k, k == first_k, job, x, base, shift, sums, running, cell)
        for i in range(
            max(_first_row_of(k, job), first_row), min(_first_row_of(k + 1, job), stop_row)
        ):
            for c in range(job.per_group):
                channel = g * job.per_group + c
                _normalize_row(
                    _row(x, base + c * job.x_c + i * job.x_h, width),
                    _out_row(out, n, channel, i, job),
                    cell[0],
                    cell[1],
                    cell[2],
                    weight[channel],
                    bias[channel],
                )


# ---------------------------------------------------------------- windows, backward
#
# With d = x - mean and r = 1 / std of the cell, and sums over the cells v whose window holds u:
#   dx[u] = grad w r - sum_v P[v] - x[u] * sum_v Q[v]
#   A = sum_c grad w,  B = sum_c grad w d,  Q = r^3 B / n,  P = r A / n - mean Q
# A and B of the cells that share a window are added up first.  A row of ``planes`` holds, for one
# row of windows, P and Q summed over the windows that hold each column, and r of each cell; what
# is left is a running sum down the rows.  There are as many rows as the window is high, if a task
# has a whole group, or all of them, if the rows of a group are divided among tasks; then a window
# row that two bands share has a slot for each of them.

_ROWS_AT_ONCE = 8  # output rows whose products are added in the working precision


@njit(**_EXACT)
def _centred(value, high, low):
    return value - high - low


@njit(**_SUMS)
def _add_products(row, grad, high, low, rstd, weight, a, b):
    """Add ``grad w`` and ``grad w d`` to ``a`` and ``b``; returns their sums for the weights."""
    sum_grad = rstd.dtype.type(0)
    sum_grad_normed = rstd.dtype.type(0)
    for j in range(row.size):
        g = _read(grad, j)
        gd = g * _centred(_read(row, j), high[j], low[j])
        a[j] += g * weight
        b[j] += gd * weight
        sum_grad += g
        sum_grad_normed += gd * rstd[j]
    return sum_grad, sum_grad_normed


@njit(**_EXACT)
def _window_terms(a, b, high, low, rstd, scale, shift):
    """P and Q of each window in place of A and B."""
    for k in range(a.size):
        mean = (np.float64(high[k]) - shift) + np.float64(low[k])
        r = np.float64(rstd[k])
        q = r * r * r * scale * b[k]
        b[k] = q
        a[k] = r * scale * a[k] - mean * q


@njit
def _fold_rows(job, x, grad, weight, partial, n, g, rows, i_begin, i_end, state, plane):
    """A row of planes, from the output rows ``i_begin .. i_end - 1`` that share a window row."""
    running, cell, products, folded = state[1:]
    count, size, width = job.col_count, job.col_size, job.width
    folded[:] = 0.0
    for block in range(i_begin, i_end, _ROWS_AT_ONCE):
        products[:] = 0.0
        for i in range(block, min(block + _ROWS_AT_ONCE, i_end)):
            for c in range(job.per_group):
                channel = g * job.per_group + c
                sum_grad, sum_grad_normed = _add_products(
                    _row(x, n * job.x_n + channel * job.x_c + i * job.x_h, width),
                    _row(grad, n * job.grad_n + channel * job.grad_c + i * job.grad_h, width),
                    cell[0],
                    cell[1],
                    cell[2],
                    weight[channel],
                    products[0],
                    products[1],
                )
                partial[0, channel] += sum_grad_normed
                partial[1, channel] += sum_grad
        _gather(products[0], job, folded[0])
        _gather(products[1], job, folded[1])
    shift = np.float64(_read(x, n * job.x_n + g * job.per_group * job.x_c))
    if not job.tiled:
        half = size // 2
        scale = 1.0 / (job.per_group * rows * size)
        stop = half + count
        _window_terms(
            folded[0],
            folded[1],
            cell[0, half:stop],
            cell[1, half:stop],
            cell[2, half:stop],
            scale,
            shift,
        )
        _running_sums(folded[0], folded[1], running[0, : count + 1], running[1, : count + 1])
        _sums_over_holders(running[0], job, plane[0])
        _sums_over_holders(running[1], job, plane[1])
    else:
        for k in range(count):
            start, stop = k * size, min((k + 1) * size, width)
            scale = 1.0 / (job.per_group * rows * (stop - start))
            _window_terms(
                folded[0, k : k + 1],
                folded[1, k : k + 1],
                cell[0, start:stop],
                cell[1, start:stop],
                cell[2, start:stop],
                scale,
                shift,
            )
            _fill(plane[0, start:stop], folded[0, k])
            _fill(plane[1, start:stop], folded[1, k])
    _copy(plane[2], cell[2])


@njit(**_EXACT)
def _copy(to, values):
    for j in range(to.size):
        to[j] = values[j]


@njit(**_EXACT)
def _difference(to, upper, lower):
    for j in range(to.size):
        to[j] = upper[j] - lower[j]


@njit(**_EXACT)
def _below(to, upper, lower):
    for j in range(to.size):
        to[j] = upper - lower[j]


@njit
def _sums_over_holders(running, job, cells):
    """For each column the sum over the windows that hold it, from the running sums over windows.

    Column ``j`` is held by the windows ``max(j - size + 1, 0) .. min(j, count - 1)``.
    """
    count, size, width = job.col_count, job.col_size, job.width
    both = min(size, count)
    _copy(cells[:both], running[1 : both + 1])
    _fill(cells[both:size], running[count])
    _difference(cells[size:count], running[size + 1 :], running[1:])
    _below(cells[max(size, count) : width], running[count], running[max(size, count) - size + 1 :])


@njit
def _backward_state(job, weight):
    """Row buffers: column sums, running sums, statistics of cells, A/B of cells, of windows."""
    width = job.width
    return (
        np.empty((2, width)),
        np.empty((2, width + 1)),
        np.empty((3, width), weight.dtype),
        np.empty((2, width), weight.dtype),
        np.empty((2, job.col_count)),
    )


@njit
def _slot(k, band, job):
    return k % job.slots if job.bands == 1 else k + band


@njit(**_EXACT)
def _slide(total, enters, leaves, rounded):
    for j in range(total.size):
        total[j] += np.float64(enters[j]) - np.float64(leaves[j])
        rounded[j] = total[j]


@njit
def _change_totals(totals, planes, k, adds, job):
    """Add or take away P and Q of window row ``k``, of every band that has rows which use it."""
    for band in range(job.bands):
        first = _window_row_of(_band_start(band, job), job)
        last = _window_row_of(_band_start(band + 1, job) - 1, job)
        if first <= k <= last:
            plane = planes[_slot(k, band, job)]
            for s in range(2):
                if adds:
                    _add(totals[s], plane[s])
                else:
                    _subtract(totals[s], plane[s])


@njit
def _totals_of_row(u, first, totals, planes, rounded, job):
    """Bring ``totals`` to the windows that hold row ``u``, from those of the row above if there
    is one, and ``rounded`` to their values in the working precision."""
    if job.tiled:
        if not first and u % job.row_step:
            return
        totals[:] = 0.0
        _change_totals(totals, planes, u // job.row_step, True, job)
    elif first:
        totals[:] = 0.0
        for k in range(max(u - job.row_size + 1, 0), min(u + 1, job.row_count)):
            _change_totals(totals, planes, k, True, job)
    else:
        enters, leaves = u < job.row_count, u - job.row_size >= 0
        if not enters and not leaves:
            return
        if enters and leaves and job.bands == 1:
            new = planes[_slot(u, 0, job)]
            old = planes[_slot(u - job.row_size, 0, job)]
            _slide(totals[0], new[0], old[0], rounded[0])
            _slide(totals[1], new[1], old[1], rounded[1])
            return
        if enters:
            _change_totals(totals, planes, u, True, job)
        if leaves:
            _change_totals(totals, planes, u - job.row_size, False, job)
    _copy(rounded[0], totals[0])
    _copy(rounded[1], totals[1])


@njit(**_EXACT)
def _input_gradient_row(row, grad, out, rstd, p, q, weight, shift):
    for j in range(row.size):
        g = _read(grad, j) * weight * rstd[j]
        _write(out, j, g - p[j] - (_read(row, j) - shift) * q[j])


@njit
def _finish_row(job, x, grad, out, weight, n, g, u, band, first, totals, planes, cell):
    """The gradient of input row ``u``."""
    base = n * job.x_n + g * job.per_group * job.x_c
    shift = _read(x, base)
    _totals_of_row(u, first, totals, planes, cell, job)
    rstd = planes[_slot(_window_row_of(u, job), band, job), 2]
    for c in range(job.per_group):
        channel = g * job.per_group + c
        _input_gradient_row(
            _row(x, base + c * job.x_c + u * job.x_h, job.width),
            _row(grad, n * job.grad_n + channel * job.grad_c + u * job.grad_h, job.width),
            _out_row(out, n, channel, u, job),
            rstd,
            cell[0],
            cell[1],
            weight[channel],
            shift,
        )


@njit
def _backward_windows(job, x, grad, out, weight, partial, n, g):
    """A whole group: as soon as the windows that hold an input row are there, it is finished."""
    state = _backward_state(job, weight)
    sums, running, cell = state[:3]
    planes = np.empty((job.slots, 3, job.width), weight.dtype)
    totals = np.empty((2, job.width))
    total_cell = np.empty((2, job.width), weight.dtype)
    base = n * job.x_n + g * job.per_group * job.x_c
    shift = np.float64(_read(x, base))
    done = 0
    for k in range(job.row_count):
        rows = _moments_of_row(k, k == 0, job, x, base, shift, sums, running, cell)
        i_begin, i_end = _first_row_of(k, job), _first_row_of(k + 1, job)
        plane = planes[_slot(k, 0, job)]
        _fold_rows(job, x, grad, weight, partial, n, g, rows, i_begin, i_end, state, plane)
        ready = job.height if k == job.row_count - 1 else (k + 1) * job.row_step
        for u in range(done, ready):
            _finish_row(job, x, grad, out, weight, n, g, u, 0, u == 0, totals, planes, total_cell)
        done = ready


@njit
def _fold_band(job, x, grad, weight, partial, planes, n, g, band):
    """The planes of the windows that the output rows of a band use."""
    state = _backward_state(job, weight)
    sums, running, cell = state[:3]
    base = n * job.x_n + g * job.per_group * job.x_c
    shift = np.float64(_read(x, base))
    first_row, stop_row = _band_start(band, job), _band_start(band + 1, job)
    first_k = _window_row_of(first_row, job)
    for k in range(first_k, _window_row_of(stop_row - 1, job) + 1):
        rows = _moments_of_row(k, k == first_k, job, x, base, shift, sums, running, cell)
        i_begin = max(_first_row_of(k, job), first_row)
        i_end = min(_first_row_of(k + 1, job), stop_row)
        plane = planes[_slot(k, band, job)]
        _fold_rows(job, x, grad, weight, partial, n, g, rows, i_begin, i_end, state, plane)


@njit
def _finish_band(job, x, grad, out, weight, planes, n, g, band):
    """The gradient of the input rows of a band."""
    totals = np.empty((2, job.width))
    cell = np.empty((2, job.width), weight.dtype)
    first_row, stop_row = _band_start(band, job), _band_start(band + 1, job)
    for u in range(first_row, stop_row):
        first = u == first_row
        _finish_row(job, x, grad, out, weight, n, g, u, band, first, totals, planes, cell)


@njit(**_EXACT)
def _scale_row(grad, out, rstd, weight):
    for j in range(grad.size):
        _write(out, j, _read(grad, j) * weight * rstd[j])


@njit
def _backward_detached(job, x, grad, out, weight, partial, n, g, band):
    """No gradient through the statistics: ``dx = grad w r``."""
    sums, running, cell, products = _backward_state(job, weight)[:4]
    base = n * job.x_n + g * job.per_group * job.x_c
    shift = np.float64(_read(x, base))
    first_row, stop_row = _band_start(band, job), _band_start(band + 1, job)
    first_k = _window_row_of(first_row, job)
    for k in range(first_k, _window_row_of(stop_row - 1, job) + 1):
        _moments_of_row(k, k == first_k, job, x, base, shift, sums, running, cell)
        for i in range(
            max(_first_row_of(k, job), first_row), min(_first_row_of(k + 1, job), stop_row)
        ):
            for c in range(job.per_group):
                channel = g * job.per_group + c
                row = _row(x, base + c * job.x_c + i * job.x_h, job.width)
                grad_row = _row(
                    grad, n * job.grad_n + channel * job.grad_c + i * job.grad_h, job.width
                )
                products[:] = 0.0
                sum_grad, sum_grad_normed = _add_products(
                    row,
                    grad_row,
                    cell[0],
                    cell[1],
                    cell[2],
                    weight[channel],
                    products[0],
                    products[1],
                )
                partial[0, channel] += sum_grad_normed
                partial[1, channel] += sum_grad
                _scale_row(grad_row, _out_row(out, n, channel, i, job), cell[2], weight[channel])


# ---------------------------------------------------------------- the whole map
#
# One statistic per group.  ``planes`` holds the sums of each band where there is more than one.
# Where the cells of a group lie in one piece they are one run; otherwise a run is a row.


@njit
def _is_one_piece(job, channel_stride):
    return job.height == 1 and channel_stride == job.width


@njit(**_SUMS)
def _sum_run(run, shift):
    total = 0.0
    squares = 0.0
    for j in range(run.size):
        value = np.float64(_read(run, j)) - shift
        total += value
        squares += value * value
    return total, squares


@njit(**_SUMS)
def _add_run_products(run, grad, shift, sums):
    """Add the sums of grad and grad x of each channel of a run to ``sums`` ``[2 channels]``."""
    channels = sums.size // 2
    n = run.size // channels
    for c in range(channels):
        sum_grad = 0.0
        products = 0.0
        for j in range(n):
            g = np.float64(_read(grad, c * n + j))
            sum_grad += g
            products += g * (np.float64(_read(run, c * n + j)) - shift)
        sums[2 * c] += sum_grad
        sums[2 * c + 1] += products


@njit(**_EXACT)
def _normalize_run(run, out, high, low, rstd, weight, bias):
    n = run.size // weight.size
    for c in range(weight.size):
        scale = rstd * weight[c]
        for j in range(n):
            _write(out, c * n + j, (_read(run, c * n + j) - high - low) * scale + bias[c])


@njit(**_EXACT)
def _input_gradient_run(run, grad, out, rstd, weight, q, constant, shift):
    n = run.size // weight.size
    for c in range(weight.size):
        scale = rstd * weight[c]
        for j in range(n):
            value = _read(run, c * n + j) - shift
            _write(out, c * n + j, _read(grad, c * n + j) * scale - value * q - constant)


@njit
def _map_moments(total, squares, job):
    """Mean (from the shift) and variance of a whole group; the divisor of the variance."""
    n = job.per_group * job.height * job.width
    mean = total / n
    divisor = max(n - job.unbiased, 1)
    variance = (squares - total * mean) / divisor
    return mean, 0.0 if variance < 0.0 else variance, divisor


@njit
def _sum_map(job, x, n, g, band, sums):
    """Sums of ``x`` and its square, from the shift, over a band of a group."""
    base = n * job.x_n + g * job.per_group * job.x_c
    shift = np.float64(_read(x, base))
    if _is_one_piece(job, job.x_c):
        sums[0], sums[1] = _sum_run(_row(x, base, job.per_group * job.width), shift)
        return
    first_row, stop_row = _band_start(band, job), _band_start(band + 1, job)
    sums[0] = 0.0
    sums[1] = 0.0
    for c in range(job.per_group):
        for i in range(first_row, stop_row):
            total, squares = _sum_run(_row(x, base + c * job.x_c + i * job.x_h, job.width), shift)
            sums[0] += total
            sums[1] += squares


@njit
def _forward_map(job, x, out, weight, bias, n, g, band, total, squares):
    """Normalize a band of a group with the sums of the whole group."""
    base = n * job.x_n + g * job.per_group * job.x_c
    mean, variance, _ = _map_moments(total, squares, job)
    mean += np.float64(_read(x, base))
    high = weight.dtype.type(mean)
    low = weight.dtype.type(mean - high)
    rstd = weight.dtype.type(1.0 / np.sqrt(variance + job.eps))
    first = g * job.per_group
    if _is_one_piece(job, job.x_c):
        size = job.per_group * job.width
        _normalize_run(
            _row(x, base, size),
            _row(out, (n * job.channels + first) * job.width, size),
            high,
            low,
            rstd,
            _row(weight, first, job.per_group),
            _row(bias, first, job.per_group),
        )
        return
    first_row, stop_row = _band_start(band, job), _band_start(band + 1, job)
    for channel in range(first, first + job.per_group):
        for i in range(first_row, stop_row):
            _normalize_run(
                _row(x, n * job.x_n + channel * job.x_c + i * job.x_h, job.width),
                _out_row(out, n, channel, i, job),
                high,
                low,
                rstd,
                _row(weight, channel, 1),
                _row(bias, channel, 1),
            )


@njit
def _sum_map_products(job, x, grad, n, g, band, sums):
    """Sums over a band of a group: x and x^2, then for each channel grad and grad x."""
    _sum_map(job, x, n, g, band, sums)
    first = g * job.per_group
    base, grad_base = n * job.x_n + first * job.x_c, n * job.grad_n + first * job.grad_c
    shift = np.float64(_read(x, base))
    sums[2:] = 0.0
    if _is_one_piece(job, job.x_c) and _is_one_piece(job, job.grad_c):
        size = job.per_group * job.width
        _add_run_products(_row(x, base, size), _row(grad, grad_base, size), shift, sums[2:])
        return
    first_row, stop_row = _band_start(band, job), _band_start(band + 1, job)
    for c in range(job.per_group):
        for i in range(first_row, stop_row):
            _add_run_products(
                _row(x, base + c * job.x_c + i * job.x_h, job.width),
                _row(grad, grad_base + c * job.grad_c + i * job.grad_h, job.width),
                shift,
                sums[2 + 2 * c : 4 + 2 * c],
            )


@njit
def _backward_map(job, x, grad, out, weight, partial, n, g, band, sums):
    """The gradient of a band of a group from the sums of the whole group."""
    first = g * job.per_group
    base, grad_base = n * job.x_n + first * job.x_c, n * job.grad_n + first * job.grad_c
    shift = _read(x, base)
    mean, variance, divisor = _map_moments(sums[0], sums[1], job)
    exact_rstd = 1.0 / np.sqrt(variance + job.eps)
    a = 0.0
    b = 0.0
    for c in range(job.per_group):
        sum_grad = sums[2 + 2 * c]
        centred = sums[3 + 2 * c] - mean * sum_grad
        a += weight[first + c] * sum_grad
        b += weight[first + c] * centred
        if band == 0:
            partial[0, first + c] = centred * exact_rstd
            partial[1, first + c] = sum_grad
    exact_q = exact_rstd * exact_rstd * exact_rstd * b / divisor
    n_cells = job.per_group * job.height * job.width
    constant = weight.dtype.type(exact_rstd * a / n_cells - mean * exact_q)
    rstd, q = weight.dtype.type(exact_rstd), weight.dtype.type(exact_q)
    if _is_one_piece(job, job.x_c) and _is_one_piece(job, job.grad_c):
        size = job.per_group * job.width
        _input_gradient_run(
            _row(x, base, size),
            _row(grad, grad_base, size),
            _row(out, (n * job.channels + first) * job.width, size),
            rstd,
            _row(weight, first, job.per_group),
            q,
            constant,
            shift,
        )
        return
    first_row, stop_row = _band_start(band, job), _band_start(band + 1, job)
    for c in range(job.per_group):
        for i in range(first_row, stop_row):
            _input_gradient_run(
                _row(x, base + c * job.x_c + i * job.x_h, job.width),
                _row(grad, grad_base + c * job.grad_c + i * job.grad_h, job.width),
                _out_row(out, n, first + c, i, job),
                rstd,
                _row(weight, first + c, 1),
                q,
                constant,
                shift,
            )


# ---------------------------------------------------------------- entry points

# The stages of a job: what each task does.
WINDOWS, MAP, MAP_SUMS, MAP_FROM_SUMS, DETACHED, FOLD, FINISH = range(7)

_MANY = 1 << 48  # the arrays of a job are only ever read through slices


@njit
def _forward_task(job, x, out, weight, bias, sums, n, g, band):
    if job.stage == WINDOWS:
        _forward_windows(job, x, out, weight, bias, n, g, band)
        return
    group_sums = sums[n * (job.channels // job.per_group) + g]
    if job.stage == MAP:
        local = np.empty(2)
        _sum_map(job, x, n, g, 0, local)
        _forward_map(job, x, out, weight, bias, n, g, 0, local[0], local[1])
    elif job.stage == MAP_SUMS:
        _sum_map(job, x, n, g, band, group_sums[band])
    else:
        total, squares = group_sums[:, 0].sum(), group_sums[:, 1].sum()
        _forward_map(job, x, out, weight, bias, n, g, band, total, squares)


@njit
def _backward_task(job, x, grad, out, weight, partial, planes, sums, n, g, band):
    group = n * (job.channels // job.per_group) + g
    if job.stage == WINDOWS:
        _backward_windows(job, x, grad, out, weight, partial, n, g)
    elif job.stage == DETACHED:
        _backward_detached(job, x, grad, out, weight, partial, n, g, band)
    elif job.stage == FOLD:
        _fold_band(job, x, grad, weight, partial, planes[group], n, g, band)
    elif job.stage == FINISH:
        _finish_band(job, x, grad, out, weight, planes[group], n, g, band)
    elif job.stage == MAP:
        local = np.empty(2 + 2 * job.per_group)
        _sum_map_products(job, x, grad, n, g, 0, local)
        _backward_map(job, x, grad, out, weight, partial, n, g, 0, local)
    elif job.stage == MAP_SUMS:
        _sum_map_products(job, x, grad, n, g, band, sums[group, band])
    else:
        total = np.zeros(2 + 2 * job.per_group)
        for other in range(job.bands):
            total += sums[group, other]
        _backward_map(job, x, grad, out, weight, partial, n, g, band, total)


def compile_forward(element: Any, working: Any) -> Any:
    """``void body(void *job)`` for an element type as stored and its working precision."""

    def body(address):
        job = carray(address, 1, JOB)[0]
        x = carray(_pointer(job.x_ptr), _MANY, element)
        out = carray(_pointer(job.out_ptr), _MANY, element)
        weight = carray(_pointer(job.weight_ptr), job.channels, working)
        bias = carray(_pointer(job.bias_ptr), job.channels, working)
        groups = job.channels // job.per_group
        sums = carray(_pointer(job.planes_ptr), (job.samples * groups, job.bands, 2), np.float64)
        while True:
            task = _take_task(address)
            if task >= job.samples * groups * job.bands:
                return
            group, band = task // job.bands, task % job.bands
            _forward_task(job, x, out, weight, bias, sums, group // groups, group % groups, band)

    return _compiled(body)


def compile_backward(element: Any, working: Any) -> Any:
    """As :func:`compile_forward`."""

    def body(address):
        job = carray(address, 1, JOB)[0]
        x = carray(_pointer(job.x_ptr), _MANY, element)
        grad = carray(_pointer(job.grad_ptr), _MANY, element)
        out = carray(_pointer(job.out_ptr), _MANY, element)
        weight = carray(_pointer(job.weight_ptr), job.channels, working)
        partial = carray(
            _pointer(job.partial_ptr), (job.bands, job.samples, 2, job.channels), np.float64
        )
        groups = job.channels // job.per_group
        planes = carray(
            _pointer(job.planes_ptr), (job.samples * groups, job.slots, 3, job.width), working
        )
        sums = carray(
            _pointer(job.planes_ptr),
            (job.samples * groups, job.bands, 2 + 2 * job.per_group),
            np.float64,
        )
        while True:
            task = _take_task(address)
            if task >= job.samples * groups * job.bands:
                return
            group, band = task // job.bands, task % job.bands
            n, g = group // groups, group % groups
            _backward_task(job, x, grad, out, weight, partial[band, n], planes, sums, n, g, band)

    return _compiled(body)


def _compiled(body: Any) -> Any:
    signature = types.void(types.voidptr)
    try:
        return cfunc(signature, cache=True)(body)
    except RuntimeError:  # no directory to keep compiled code in: compile in every process
        return cfunc(signature)(body)
