"""Numba loops for real windows: one size for a layer or for each group, so that windows slide.

One task is one group of one sample. Down the rows, a window is whole rows and a share of a row at
either end. Sums over the whole rows of each column gain one row and lose one as the window moves.
Along the row, running sums are read between cells by linear interpolation, which is exact: the sum
over a part of a cell is that part of its value. All cells near a border whose windows were moved
inside share one window, so that a map that its window covers has two or three of them.

With P and Q of :mod:`lcn.kernels.cpu_loops` and c the share of a cell in a window, the backward
sums ``c P`` and ``c Q`` first along the row, for each row of windows (``spread``), and then down
the rows in the same way. The derivative by the window's size is that of the cells at its ends.

A sliding sum keeps a trace of what has left it. Where that would cost digits, as after a NaN, the
task only sets its flag, and plain PyTorch does its group.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit
from numba.extending import intrinsic

from .cpu_loops import (
    _FLAGS,
    _I32,
    _INLINE,
    _MANY,
    _PLAIN,
    LANES,
    _compiled,
    _fill,
    _larger,
    _load,
    _maximum,
    _pointer,
    _splat,
    _store,
    _take_task,
    _total,
    _wide,
    _zeros,
)
from .table_loops import (
    _FEW_CHANNELS,
    _add_products,
    _add_values,
    _input_gradient,
    _moments_at,
    _normalize_row,
    _shift_of,
    _terms_at,
)

# What a task reads; fields that end in _ptr are addresses.
JOB_FIELDS = (
    "next_task",
    *("x_ptr", "grad_ptr", "out_ptr", "weight_ptr", "bias_ptr", "partial_ptr", "flags_ptr"),
    "windows_ptr",  # float64 [1 or groups, 2], p and q, from 1 to the map's
    "window_grads_ptr",  # float64 [samples, groups, 2]
    "own_windows",  # 1 if there is one for each group
    *("samples", "channels", "height", "width", "per_group"),
    "slots",  # rows of windows that are kept
    *("eps", "limit"),
)
_REAL = ("eps", "limit")
JOB = np.dtype([(name, np.float64 if name in _REAL else np.int64) for name in JOB_FIELDS])
ROOM = 2 * LANES  # cells that a row buffer has beyond the width of the map
_MOST_IN_ROW = 64  # channels whose A and B are added up in the working precision


# ---------------------------------------------------------------- windows along an axis


@njit(**_PLAIN)
def _place(length, size, numbers, shares):
    """The windows along an axis: which there are, and what a border's windows cover.

    ``numbers`` gets how many cells have the first window and how many the last, which are those
    that were moved inside, and in which cell the others begin and end, counted from their own;
    ``shares`` ``[2, size]`` the share of each cell in the first window and in the last. Returns how
    far inside of their cells the others begin and end.
    """
    begin, end = 0.5 - 0.5 * length, 0.5 + 0.5 * length
    first, last = 0, 0
    for i in range(size):
        first += i + begin < 0.0
        last += i + begin >= 0.0 and i + begin > size - length
    numbers[0], numbers[1] = first, last
    numbers[2], numbers[3] = np.int64(np.floor(begin)), np.int64(np.floor(end))
    f, g = begin - numbers[2], end - numbers[3]
    for i in range(size):
        shares[i] = min(max(length - i, 0.0), 1.0)
        shares[size + i] = min(max(length - (size - 1 - i), 0.0), 1.0)
    return f, g


@njit(**_INLINE)
def _ends_of(i, length, size):
    """Of the window of cell ``i``: the cells at its ends, how far in, and how fast begin and end
    move as it grows."""
    begin, speed = i + 0.5 - 0.5 * length, -0.5
    if begin < 0.0:
        begin, speed = 0.0, 0.0
    elif begin > size - length:
        begin, speed = size - length, -1.0
    first = min(np.int64(begin), size - 1)
    last = min(np.int64(begin + length), size - 1)
    return first, last, begin - first, begin + length - last, speed, speed + 1.0


# ---------------------------------------------------------------- vectors


@intrinsic
def _scan(typing_context, value):
    """The sums of a vector up to each of its lanes."""

    def codegen(context, builder, signature, args):
        total, zero = args[0], ir.Constant(args[0].type, None)
        step = 1
        while step < LANES:
            lanes = [LANES if lane < step else lane - step for lane in range(LANES)]
            lanes = ir.Constant(ir.VectorType(_I32, LANES), lanes)
            moved = builder.shuffle_vector(total, zero, lanes)
            total = builder.fadd(total, moved, flags=_FLAGS)
            step *= 2
        return total

    return value(value), codegen


@intrinsic
def _last_in_all(typing_context, value):
    def codegen(context, builder, signature, args):
        lanes = ir.Constant(ir.VectorType(_I32, LANES), [LANES - 1] * LANES)
        return builder.shuffle_vector(args[0], args[0], lanes)

    return value(value), codegen


@njit(**_INLINE)
def _between(row, at, share):
    """``row`` between ``at`` and ``at + 1``, of eight places side by side."""
    here = _load(row, at, None)
    return here + share * (_load(row, at + 1, None) - here)


@njit(**_INLINE)
def _value_between(row, at, share):
    return row[at] + share * (row[at + 1] - row[at])


# ---------------------------------------------------------------- statistics of a row of windows


@njit(**_INLINE)
def _values_of_row_at(x, base, step, channels, shift, sums, squares, j, cells):
    total = square = _splat(0.0)
    for c in range(channels):
        value = _wide(_load(x, base + c * step + j, cells)) - shift
        total, square = total + value, square + value * value
    _store(sums, j, None, total)
    _store(squares, j, None, square)


@njit(**_PLAIN)
def _values_of_row(job, x, base, row, shift, sums, squares):
    """The sums of a row over the channels of its group, less the shift, and of their squares."""
    w, step = job.width, job.height * job.width
    base += row * w
    whole, shifts = w - w % LANES, _splat(shift)
    if job.per_group <= _FEW_CHANNELS:
        for j in range(0, whole, LANES):
            _values_of_row_at(x, base, step, job.per_group, shifts, sums, squares, j, None)
        if whole < w:
            _values_of_row_at(x, base, step, job.per_group, shifts, sums, squares, whole, w - whole)
    else:
        _fill(sums, 0, w, 0.0)
        _fill(squares, 0, w, 0.0)
        for c in range(job.per_group):
            _add_values(sums, squares, 0, x, base + c * step, w, shift)
    _fill(sums, w, w + LANES, 0.0)
    _fill(squares, w, w + LANES, 0.0)


@njit(**_PLAIN)
def _begin_columns(job, x, base, shift, first, last, inner, lower, upper):
    """The column sums of the first row of windows: whole rows, and the rows at both ends."""
    w, step = job.width, job.height * job.width
    _fill(inner[0], 0, w + LANES, 0.0)
    _fill(inner[1], 0, w + LANES, 0.0)
    for c in range(job.per_group):
        for row in range(first + 1, last):
            _add_values(inner[0], inner[1], 0, x, base + c * step + row * w, w, shift)
    _fill(inner[0], w, w + LANES, 0.0)
    _fill(inner[1], w, w + LANES, 0.0)
    _values_of_row(job, x, base, first, shift, lower[0], lower[1])
    _values_of_row(job, x, base, last, shift, upper[0], upper[1])
    if first == last:  # which is then counted twice
        for k in range(2):
            for j in range(w):
                inner[k][j] -= lower[k][j]


@njit(**_INLINE)
def _column_sums_at(inner, enters, lower, upper, enter, leave, f, g, j):
    """The next sums over whole rows, and with the shares of the rows at the ends."""
    low = _load(lower, j, None)
    whole = _load(inner, j, None) + enter * _load(enters, j, None) - leave * low
    _store(inner, j, None, whole)
    return whole + f * low + g * _load(upper, j, None)


@njit(**_PLAIN)
def _running_sums(width, inner, enters, lower, upper, enter, leave, f, g, line):
    """``line[j]``: the sum over the columns before ``j`` of what a row of windows holds of them."""
    enters_, leaves = _splat(enter), _splat(leave)
    of_lower, of_upper = _splat(1.0 - f), _splat(g)
    total = square = _splat(0.0)
    for j in range(0, width, LANES):
        s = _column_sums_at(
            inner[0], enters[0], lower[0], upper[0], enters_, leaves, of_lower, of_upper, j
        )
        q = _column_sums_at(
            inner[1], enters[1], lower[1], upper[1], enters_, leaves, of_lower, of_upper, j
        )
        s, q = _scan(s) + total, _scan(q) + square
        total, square = _last_in_all(s), _last_in_all(q)
        _store(line[0], j + 1, None, s)
        _store(line[1], j + 1, None, q)
    for k in range(2):
        _fill(line[k], width + 1, width + 1 + LANES, line[k][width])
        # An end at the border moves inside.
        line[k][width + 1] = 2.0 * line[k][width] - line[k][width - 1]


@njit(**_PLAIN)
def _window_sums(line, length, width, columns, f, g, start, stop, windows):
    """Sums over the windows of the cells ``start .. stop - 1``, the first and the last of which may
    stand for all that were moved inside. A vector may be read from any of these cells on."""
    for k in range(2):
        begins, ends = _splat(f), _splat(g)
        of, to = line[k], windows[k]
        for j in range(columns[0], width - columns[1], LANES):
            end = _between(of, j + columns[3], ends)
            _store(to, j, None, end - _between(of, j + columns[2], begins))
        for j in (start, stop - 1):
            first, last, a, b, _, _ = _ends_of(j, length, width)
            to[j] = _value_between(of, last, b) - _value_between(of, first, a)
        _fill(to, stop, stop + LANES, to[stop - 1])


@njit(**_PLAIN)
def _moments(windows, start, stop, width, share, shift, eps, high, low, rstd, rstd_at):
    """Mean and rstd of a row of cells. Returns one over the smallest sum of squares about the mean,
    with eps for each value."""
    one = _splat(high.dtype.type(eps))
    shares, shifts = _splat(share), _splat(shift)
    most = _splat(high.dtype.type(0))
    own = rstd[rstd_at : rstd_at + high.size]
    for j in range(start, stop, LANES):
        most = _moments_at(
            _load(windows[0], j, None), _load(windows[1], j, None), shares, shifts, one, high, low,
            own, j, most,
        )  # fmt: skip
    for row in (high, low, own):
        _fill(row, 0, start, row[start])
        _fill(row, stop, width + LANES, row[stop - 1])
    most = np.float64(_maximum(most))
    return share * most * most


@njit(**_INLINE)
def _rows_of_window(i, rows, height):
    """The rows that have the window of row ``i``, the first of them: where they end."""
    if i < rows[0]:
        return rows[0]
    return height if i >= height - rows[1] else i + 1


@njit(**_PLAIN)
def _statistics(
    job, x, base, shift, i, p, q, columns, f, g, state, inner, edges, lower, line, windows, high,
    low, rstd, rstd_at,
):  # fmt: skip
    """Statistics of the windows of row ``i``, given those of the row of windows before.

    ``state`` holds the cells at the ends of the window before, which of the two ``edges`` has the
    values of its last row; the first of these is -1 at the start.
    Returns what ``_moments`` does.
    """
    h, w = job.height, job.width
    first, last, a, b, _, _ = _ends_of(i, p, h)
    enter, leave = 0.0, 0.0
    if state[0] < 0:
        state[2] = 0
        _begin_columns(job, x, base, shift, first, last, inner, lower, edges[0])
    else:
        if last != state[1]:
            enter = 1.0
            state[2] = 1 - state[2]
            _values_of_row(job, x, base, last, shift, edges[state[2]][0], edges[state[2]][1])
        if first != state[0]:
            leave = 1.0
            _values_of_row(job, x, base, first, shift, lower[0], lower[1])
    state[0], state[1] = first, last
    upper = edges[state[2]]
    enters = edges[1 - state[2]] if enter else upper
    _running_sums(w, inner, enters, lower, upper, enter, leave, a, b, line)
    start, stop = max(columns[0] - 1, 0), min(w - columns[1] + 1, w)
    _window_sums(line, q, w, columns, f, g, start, stop, windows)
    share = 1.0 / (job.per_group * p * q)
    return _moments(windows, start, stop, w, share, shift, job.eps, high, low, rstd, rstd_at)


@njit(**_PLAIN)
def _forward_task(
    job, x, base, p, q, rows, columns, shares, weight, bias, out, state, inner, edges, lower, line,
    windows, high, low, rstd,
):  # fmt: skip
    """False if plain PyTorch has to do this group."""
    h, w = job.height, job.width
    shift = _shift_of(x, base, h, w)
    _place(p, h, rows, shares)
    f, g = _place(q, w, columns, shares)
    state[0] = -1
    i, total = 0, 0.0
    while i < h:
        ratio = _statistics(
            job, x, base, shift, i, p, q, columns, f, g, state, inner, edges, lower, line, windows,
            high, low, rstd, 0,
        )  # fmt: skip
        total = max(total, line[1][w])
        if not (total * ratio <= job.limit and abs(line[0][w]) + line[1][w] < np.inf):
            return False
        stop = _rows_of_window(i, rows, h)
        for c in range(job.per_group):
            for row in range(i, stop):
                at = base + (c * h + row) * w
                _normalize_row(x, at, out, w, high, low, rstd, 0, weight[c], bias[c])
        i = stop
    return True


# ---------------------------------------------------------------- gradients


@njit(**_INLINE)
def _sum_of(row, start, stop):
    total = _splat(0.0)
    whole = stop - (stop - start) % LANES
    for j in range(start, whole, LANES):
        total = total + _wide(_load(row, j, None))
    return _total(total + _wide(_load(row, whole, stop - whole)))


@njit(**_PLAIN)
def _fold(row, start, stop, width):
    """Adds up at ``start`` what is before it, and at ``stop - 1`` what is behind it."""
    row[start] += _sum_of(row, 0, start)
    row[stop - 1] += _sum_of(row, stop, width)
    _fill(row, stop, stop + LANES, row.dtype.type(0))


@njit(**_PLAIN)
def _terms_of_row(
    a, b, high, low, rstd, rstd_at, shift, share, start, stop, line, windows, width, columns, terms,
    found,
):  # fmt: skip
    """P and Q of each window of a row, and what the derivatives by the window need of them.

    Into ``found``: the sum of products of P and Q with the sums over the window, and with how fast
    these change with its columns; the largest rstd so far and minus the smallest; P and Q of the
    first and of the last window, if these stand for cells whose windows were moved inside, which
    are then taken out of ``terms``.
    """
    own = rstd[rstd_at : rstd_at + high.size]
    shares, shifts, half = _splat(share), _splat(shift), _splat(0.5)
    of_sums = of_ends = _splat(0.0)
    zeros = _splat(high.dtype.type(0))
    most, least = zeros, _splat(high.dtype.type(-np.inf))
    first, last = columns[0], width - columns[1]
    for j in range(start, stop, LANES):
        p, q = _terms_at(a, b, high, low, own, j, shares, shifts)
        _store(terms[0], j, None, p)
        _store(terms[1], j, None, q)
        of_sums = of_sums + p * _load(windows[0], j, None)
        of_sums = of_sums + half * q * _load(windows[1], j, None)
        r = _load(own, j, None)
        most, least = _larger(most, r), _larger(least, zeros - r)
    found[0] = _total(of_sums)
    found[2] = max(found[2], np.float64(_maximum(most)))
    found[3] = max(found[3], np.float64(_maximum(least)))
    _fill(terms[0], stop, stop + LANES, 0.0)
    _fill(terms[1], stop, stop + LANES, 0.0)
    if start < first:
        found[4], found[5] = terms[0][start], terms[1][start]
        terms[0][start], terms[1][start] = 0.0, 0.0
    if stop > last:
        found[6], found[7] = terms[0][stop - 1], terms[1][stop - 1]
        terms[0][stop - 1], terms[1][stop - 1] = 0.0, 0.0
    for k in range(2):
        of, factor = line[k], half if k else _splat(1.0)
        for j in range(first, last, LANES):
            at, to = j + columns[2], j + columns[3]
            ends = _load(of, at + 1, None) - _load(of, at, None)
            ends = ends + _load(of, to + 1, None) - _load(of, to, None)
            of_ends = of_ends + factor * _load(terms[k], j, None) * ends
    found[1] = 0.5 * _total(of_ends)


@njit(**_PLAIN)
def _sums_before(terms, first, last, running, pad, end):
    """``running[pad + j]``: the sum of ``terms[first:j]``, as far as ``running[end]``."""
    total = _splat(0.0)
    for j in range(first, last, LANES):
        value = _scan(_load(terms, j, None)) + total
        total = _last_in_all(value)
        _store(running, pad + j + 1, None, value)
    _fill(running, pad + last + 1, end, running[pad + last])


@njit(**_PLAIN)
def _spread(
    terms, found, columns, f, g, width, running, pad, shares, lower, upper, of_lower, of_upper,
    spread, spread_at,
):  # fmt: skip
    """The sums of ``c P`` and ``c Q`` over the windows of a row, for each column.

    Returns the sum of their products with the values of the rows at the window's ends, which
    move by ``of_lower`` and ``of_upper``.
    """
    first, last = columns[0], width - columns[1]
    inside = last > first
    moves_lower, moves_upper = _splat(of_lower), _splat(of_upper)
    products = _splat(0.0)
    one = _splat(1.0)
    for k in range(2):
        from_first, from_last = _splat(found[4 + k]), _splat(found[6 + k])
        if inside:
            end = pad + width + 2 * LANES - columns[2]
            _sums_before(terms[k], first, last, running, pad, end)
        begins, ends = _splat(1.0 - f), _splat(1.0 - g)
        factor = _splat(0.5) if k else one
        low, up = lower[k], upper[k]
        for j in range(0, width, LANES):
            value = from_first * _load(shares, j, None) + from_last * _load(
                shares, width + ROOM + j, None
            )
            if inside:
                value = value + _between(running, pad + j - columns[2], begins)
                value = value - _between(running, pad + j - columns[3], ends)
            _store(spread[k], spread_at + j, None, value)
            moved = moves_upper * _load(up, j, None) - moves_lower * _load(low, j, None)
            products = products + factor * value * moved
    return _total(products)


@njit(**_PLAIN)
def _add_spread(
    inner, spread, new, old, enter, leave, f, g, of_first, of_last, firsts, lasts, out, w
):
    """What the windows add to a row of cells, from ``inner`` of the row above, which it updates."""
    enters, leaves, begins, ends = _splat(enter), _splat(leave), _splat(f), _splat(g)
    tops, bottoms = _splat(of_first), _splat(of_last)
    before, here = new
    for j in range(0, w, LANES):
        oldest = leaves * _load(spread, old + j, None)
        total = _load(inner, j, None) + enters * _load(spread, before + j, None) - oldest
        _store(inner, j, None, total)
        total = total + begins * _load(spread, here + j, None) + ends * oldest
        total = total + tops * _load(firsts, j, None) + bottoms * _load(lasts, j, None)
        _store(out, j, None, total)


@njit(**_PLAIN)
def _backward_task(
    job, x, grad, base, p, q, rows, columns, row_shares, shares, weight, out, partial, of_window,
    state, inner, edges, lower, line, windows, high, low, rstd, narrow, wide, totals, terms,
    running, spread, firsts, lasts, row_inner, cells, found,
):  # fmt: skip
    """False if plain PyTorch has to do this group."""
    h, w, slots = job.height, job.width, job.slots
    size, pad = w + ROOM, w + ROOM
    shift = _shift_of(x, base, h, w)
    f_row, g_row = _place(p, h, rows, row_shares)
    f, g = _place(q, w, columns, line[0])
    for j in range(w):  # the same with room behind
        shares[j], shares[size + j] = line[0][j], line[0][w + j]
    line[0][0] = 0.0
    state[0] = -1
    of_window[0], of_window[1] = 0.0, 0.0
    found[2], found[3] = 0.0, -np.inf
    found[4], found[5], found[6], found[7] = 0.0, 0.0, 0.0, 0.0
    share = 1.0 / (job.per_group * p * q)
    start, stop = max(columns[0] - 1, 0), min(w - columns[1] + 1, w)
    _fill(totals, 0, totals.size, 0.0)
    for k in range(2):
        _fill(row_inner[k], 0, size, 0.0)
        _fill(firsts[k], 0, size, 0.0)
        _fill(lasts[k], 0, size, 0.0)
    _fill(running, 0, pad + columns[0] + 1, 0.0)
    inside, outside = rows[0], h - rows[1]  # the rows whose windows were not moved
    i, ready, total = 0, 0, 0.0
    while i < h:
        slot = i % slots if inside <= i < outside else slots + (i >= inside)
        ratio = _statistics(
            job, x, base, shift, i, p, q, columns, f, g, state, inner, edges, lower, line, windows,
            high, low, rstd, slot * size,
        )  # fmt: skip
        total = max(total, line[1][w])
        if not (total * ratio <= job.limit and abs(line[0][w]) + line[1][w] < np.inf):
            return False
        end = _rows_of_window(i, rows, h)
        if end == i + 1 and job.per_group <= _MOST_IN_ROW:
            _products_of_rows(
                job, x, grad, base, i, end, high, low, rstd, slot * size, weight, narrow[0],
                narrow[1], totals, start, stop,
            )  # fmt: skip
            _terms_of_row(
                narrow[0], narrow[1], high, low, rstd, slot * size, shift, share, start, stop, line,
                windows, w, columns, terms, found,
            )  # fmt: skip
        else:
            _products_of_rows(
                job, x, grad, base, i, end, high, low, rstd, slot * size, weight, wide[0], wide[1],
                totals, start, stop,
            )  # fmt: skip
            _terms_of_row(
                wide[0], wide[1], high, low, rstd, slot * size, shift, share, start, stop, line,
                windows, w, columns, terms, found,
            )  # fmt: skip
        _, _, _, _, of_lower, of_upper = _ends_of(i, p, h)
        to = firsts if i < inside else lasts if i >= outside else spread
        of_window[0] -= _spread(
            terms, found, columns, f, g, w, running, pad, shares, lower, edges[state[2]], of_lower,
            of_upper, to, slot * size if slot < slots else 0,
        )  # fmt: skip
        of_window[0] += found[0] / p
        of_window[1] += found[0] / q - found[1] - _border_ends(line, found, columns, q, w)
        # A row of cells is finished if the next windows begin below it.
        next_ = h
        if end < h:
            next_, _, _, _, _, _ = _ends_of(end, p, h)
        while ready < next_:
            _finish_row(
                job, x, grad, base, out, ready, rows, f_row, g_row, row_shares, shift, weight, rstd,
                spread, firsts, lasts, row_inner, cells, inside, outside,
            )  # fmt: skip
            ready += 1
        i = end
    if not h * w * found[2] < job.limit * -found[3]:
        return False
    finite = abs(of_window[0]) + abs(of_window[1])
    for c in range(job.per_group):
        partial[0, c] = _total(_load(totals, (2 * c + 1) * LANES, None))
        partial[1, c] = _total(_load(totals, 2 * c * LANES, None))
        finite += abs(partial[0, c]) + abs(partial[1, c])
    return finite < np.inf


@njit(**_INLINE)
def _products_of_rows(
    job, x, grad, base, i, end, high, low, rstd, rstd_at, weight, a, b, totals, start, stop
):
    """A and B of the windows of the rows ``i .. end - 1``, which are one row of windows."""
    h, w = job.height, job.width
    _fill(a, 0, a.size, a.dtype.type(0))
    _fill(b, 0, b.size, b.dtype.type(0))
    own = rstd[rstd_at : rstd_at + high.size]
    for c in range(job.per_group):
        for row in range(i, end):
            _add_products(
                x, grad, base + (c * h + row) * w, w, high, low, own, 0, weight[c], a, b, 0, totals,
                2 * c * LANES,
            )  # fmt: skip
    _fold(a, start, stop, w)
    _fold(b, start, stop, w)


@njit(**_PLAIN)
def _border_ends(line, found, columns, length, width):
    """P and Q of the windows that were moved inside, with the columns at their moving ends."""
    total = 0.0
    for k in range(2):
        factor = 0.5 if k else 1.0
        if columns[0]:
            _, last, _, _, _, _ = _ends_of(0, length, width)
            total += factor * found[4 + k] * (line[k][last + 1] - line[k][last])
        if columns[1]:
            first, _, _, _, _, _ = _ends_of(width - 1, length, width)
            total += factor * found[6 + k] * (line[k][first + 1] - line[k][first])
    return total


@njit(**_INLINE)
def _in_ring(i, inside, outside, slots, size):
    """Where the row of windows of row ``i`` lies, and whether there is one that was not moved."""
    if inside <= i < outside:
        return i % slots * size, 1.0
    return slots * size, 0.0  # zeros


@njit(**_PLAIN)
def _finish_row(
    job, x, grad, base, out, u, rows, f, g, row_shares, shift, weight, rstd, spread, firsts, lasts,
    row_inner, cells, inside, outside,
):  # fmt: skip
    """The gradient of row ``u`` of the input."""
    h, w, slots = job.height, job.width, job.slots
    size = w + ROOM
    before, enter = _in_ring(u - 1 - rows[2], inside, outside, slots, size)
    here, begins = _in_ring(u - rows[2], inside, outside, slots, size)
    old, leave = _in_ring(u - rows[3], inside, outside, slots, size)
    of_first, of_last = row_shares[u], row_shares[h + u]
    _, left = _in_ring(u - 1 - rows[3], inside, outside, slots, size)
    moves = enter + begins + leave + left > 0.0
    if moves or u == 0 or of_first != row_shares[u - 1] or of_last != row_shares[h + u - 1]:
        for k in range(2):
            _add_spread(
                row_inner[k], spread[k], (before, here), old, enter, leave,
                begins * (1.0 - f), g, of_first, of_last, firsts[k], lasts[k], cells[k], w,
            )  # fmt: skip
    slot = u % slots if inside <= u < outside else slots + (u >= inside)
    for c in range(job.per_group):
        _input_gradient(
            x, grad, base + (c * h + u) * w, out, w, rstd, slot * size, weight[c], shift, cells[0],
            cells[1], 0,
        )  # fmt: skip


# ---------------------------------------------------------------- entry points


@njit(error_model="numpy", forceinline=True)
def _two(count):
    empty = np.empty(0, np.float64)
    return _zeros(count, empty), _zeros(count, empty)


def compile_forward(element: Any, working: Any) -> Any:
    """``void body(void *job)`` for an element type as stored and its working precision."""

    def body(address):
        job = carray(address, 1, JOB)[0]
        x = carray(_pointer(job.x_ptr), _MANY, element)
        out = carray(_pointer(job.out_ptr), _MANY, element)
        weight = carray(_pointer(job.weight_ptr), job.channels, working)
        bias = carray(_pointer(job.bias_ptr), job.channels, working)
        sizes = carray(_pointer(job.windows_ptr), _MANY, np.float64)
        flags = carray(_pointer(job.flags_ptr), _MANY, np.uint8)
        h, w, per_group = job.height, job.width, job.per_group
        size, narrow = w + ROOM, np.empty(0, working)
        inner, edges, lower = _two(size), (_two(size), _two(size)), _two(size)
        line, windows = _two(size), _two(size)
        high, low, rstd = _zeros(size, narrow), _zeros(size, narrow), _zeros(size, narrow)
        rows, columns, state = np.zeros(4, np.int64), np.zeros(4, np.int64), np.zeros(3, np.int64)
        shares = np.zeros(2 * max(h, w))
        groups = job.channels // per_group
        while True:
            task = _take_task(address)
            if task >= job.samples * groups:
                return
            g = task % groups
            own = slice(g * per_group, (g + 1) * per_group)
            at = 2 * g if job.own_windows else 0
            flags[task] = not _forward_task(
                job, x, task * per_group * h * w, sizes[at], sizes[at + 1], rows, columns, shares,
                weight[own], bias[own], out, state, inner, edges, lower, line, windows, high, low,
                rstd,
            )  # fmt: skip

    return _compiled(body)


def compile_backward(element: Any, working: Any) -> Any:
    """As :func:`compile_forward`."""

    def body(address):
        job = carray(address, 1, JOB)[0]
        x = carray(_pointer(job.x_ptr), _MANY, element)
        grad = carray(_pointer(job.grad_ptr), _MANY, element)
        out = carray(_pointer(job.out_ptr), _MANY, element)
        weight = carray(_pointer(job.weight_ptr), job.channels, working)
        partial = carray(_pointer(job.partial_ptr), (job.samples, 2, job.channels), np.float64)
        sizes = carray(_pointer(job.windows_ptr), _MANY, np.float64)
        window_grads = carray(_pointer(job.window_grads_ptr), _MANY, np.float64)
        flags = carray(_pointer(job.flags_ptr), _MANY, np.uint8)
        h, w, per_group = job.height, job.width, job.per_group
        size, like = w + ROOM, np.empty(0, working)
        inner, edges, lower = _two(size), (_two(size), _two(size)), _two(size)
        line, windows = _two(2 * size), _two(size)
        high, low, rstd = (
            _zeros(size, like),
            _zeros(size, like),
            _zeros((job.slots + 2) * size, like),
        )
        narrow, wide = (_zeros(size, like), _zeros(size, like)), _two(size)
        terms, firsts, lasts = _two(size), _two(size), _two(size)
        running, spread = _zeros(3 * size, np.empty(0, np.float64)), _two((job.slots + 1) * size)
        row_inner, cells = _two(size), _two(size)
        rows, columns, state = np.zeros(4, np.int64), np.zeros(4, np.int64), np.zeros(3, np.int64)
        row_shares, shares = np.zeros(2 * h), _zeros(2 * size, np.empty(0, np.float64))
        totals, found = np.zeros(2 * LANES * per_group), np.zeros(8)
        groups = job.channels // per_group
        while True:
            task = _take_task(address)
            if task >= job.samples * groups:
                return
            n, g = task // groups, task % groups
            own = slice(g * per_group, (g + 1) * per_group)
            at = 2 * g if job.own_windows else 0
            flags[task] = not _backward_task(
                job, x, grad, task * per_group * h * w, sizes[at], sizes[at + 1], rows, columns,
                row_shares, shares, weight[own], out, partial[n, :, own],
                window_grads[2 * task : 2 * task + 2], state, inner, edges, lower, line, windows,
                high, low, rstd, narrow, wide, totals, terms, running, spread, firsts, lasts,
                row_inner, cells, found,
            )  # fmt: skip

    return _compiled(body)
