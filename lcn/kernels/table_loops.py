"""Numba loops on summed-area tables: windows of a size of their own at each point.

All groups of a map have the same windows. So one task is ``PLANES`` groups, side by side in one
table: for every corner between cells it holds, of each of these groups, the sum of ``x - shift``
over all that lies above and left, and the sum of its square. These are one vector of float64. The
sums over a window, of all groups, are four such vectors. The backward adds what each window
contributes to the same four corners, and running sums over both axes spread it over the window.

Only as many lines of a table are kept as the windows of a row reach: a ring, which mostly stays in
the cache. Vectors are those of :mod:`lcn.kernels.cpu_loops`. Between the table and the rows of the
map, blocks of eight cells are transposed in registers.

Nothing can leave a table, so it is checked: where the whole sum of squares is so large beside a
window's own that digits are lost, the window is summed again cell by cell if it is small; otherwise
the group is only flagged, and plain PyTorch does it. So it is with NaN and infinities.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

from typing import Any

import numpy as np
from numba import carray, njit

from .cpu_loops import (
    _INLINE,
    _MANY,
    _PLAIN,
    LANES,
    _as,
    _compiled,
    _fill,
    _larger,
    _load,
    _maximum,
    _not_negative,
    _pointer,
    _prefetch,
    _rsqrt,
    _splat,
    _store,
    _take_task,
    _total,
    _transposed,
    _truncated,
    _wide,
    _zeros,
)

# What a task reads; fields that end in _ptr are addresses.
JOB_FIELDS = (
    "next_task",
    *("x_ptr", "grad_ptr", "out_ptr", "weight_ptr", "bias_ptr", "partial_ptr", "flags_ptr"),
    # The windows, [1 or samples, height, line]: upper and lower left corner in the ring and the
    # columns, uint32, and one over their number of values, float64. A line is the width rounded up
    # to whole vectors; its last cells repeat the one before.
    *("tops_ptr", "bottoms_ptr", "rights_ptr", "shares_ptr"),
    # int64 [1 or samples, 2, height]: the first line of a table that a row of cells or a later one
    # needs, and the last that this or an earlier one needs.
    "lines_ptr",
    "own_windows",  # 1 if there are windows for each sample
    *("samples", "channels", "height", "width", "per_group"),
    "ring",  # lines of a table that are kept
    "planes",  # groups that a task takes
    *("eps", "limit"),
)
_REAL = ("eps", "limit")
JOB = np.dtype([(name, np.float64 if name in _REAL else np.int64) for name in JOB_FIELDS])

PLANES = LANES // 2
_SMALL_WINDOW = 256  # cells of a window that is worth summing again cell by cell


# ---------------------------------------------------------------- windows


@njit(**_PLAIN)
def _lines_of_row(p, i, h, w):
    """The first line of a table that the windows of a row need, and the last."""
    first, last = np.int64(h), np.int64(0)
    for j in range(w):
        rows = min(p[j], h)
        top = min(max(i - rows // 2, 0), h - rows)
        first, last = min(first, top), max(last, top + rows)
    return first, last


@njit(**_PLAIN)
def _lines(p, h, w, first, last):
    for i in range(h):
        first[i], last[i] = _lines_of_row(p[i * w : i * w + w], i, h, w)
    for i in range(1, h):
        last[i] = max(last[i], last[i - 1])
        first[h - 1 - i] = min(first[h - 1 - i], first[h - i])


@njit(**_PLAIN)
def _corners_of_row(p, q, i, h, w, ring, start, scale, tops, bottoms, rights, shares):
    line = tops.size + 1
    for j in range(w):
        rows, columns = min(p[j], h), min(q[j], w)
        top = min(max(i - rows // 2, 0), h - rows)
        left = min(max(j - columns // 2, 0), w - columns)
        upper = start % ring + top - start
        upper -= ring if upper >= ring else 0
        lower = upper + rows
        lower -= ring if lower >= ring else 0
        tops[j] = upper * line + left
        bottoms[j] = lower * line + left
        rights[j] = columns
        shares[j] = scale / (rows * columns)
    for j in range(w, tops.size):
        tops[j], bottoms[j], rights[j] = tops[w - 1], bottoms[w - 1], rights[w - 1]
        shares[j] = shares[w - 1]


def compile_lines() -> Any:
    """``lines`` from p, int64 ``[samples, height, width]`` at ``x_ptr``."""

    def body(address):
        job = carray(address, 1, JOB)[0]
        h, w = job.height, job.width
        p = carray(_pointer(job.x_ptr), _MANY, np.int64)
        lines = carray(_pointer(job.lines_ptr), _MANY, np.int64)
        while True:
            n = _take_task(address)
            if n >= job.samples:
                return
            at = 2 * n * h
            _lines(
                p[n * h * w : (n + 1) * h * w], h, w, lines[at : at + h], lines[at + h : at + 2 * h]
            )

    return _compiled(body)


def compile_corners() -> Any:
    """The windows from p and q, int64 ``[samples, height, width]`` at ``x_ptr`` and ``grad_ptr``,
    and their lines."""

    def body(address):
        job = carray(address, 1, JOB)[0]
        h, w = job.height, job.width
        line = (w + LANES - 1) // LANES * LANES
        p = carray(_pointer(job.x_ptr), _MANY, np.int64)
        q = carray(_pointer(job.grad_ptr), _MANY, np.int64)
        tops = carray(_pointer(job.tops_ptr), _MANY, np.uint32)
        bottoms = carray(_pointer(job.bottoms_ptr), _MANY, np.uint32)
        rights = carray(_pointer(job.rights_ptr), _MANY, np.uint32)
        shares = carray(_pointer(job.shares_ptr), _MANY, np.float64)
        lines = carray(_pointer(job.lines_ptr), _MANY, np.int64)
        while True:
            n = _take_task(address)
            if n >= job.samples:
                return
            for i in range(h):
                of, to = (n * h + i) * w, (n * h + i) * line
                _corners_of_row(
                    p[of : of + w], q[of : of + w], i, h, w, job.ring, lines[2 * n * h + i],
                    1.0 / job.per_group, tops[to : to + line], bottoms[to : to + line],
                    rights[to : to + line], shares[to : to + line],
                )  # fmt: skip

    return _compiled(body)


# ---------------------------------------------------------------- a group's rows


@njit(**_INLINE)
def _shift_of(x, base, height, width):
    """The smallest of three values of a group; not one that is NaN or infinite."""
    shift = np.inf
    for at in (0, width // 2, (height // 2) * width + width - 1):
        value = _total(_wide(_load(x, base + at, 1)))
        if abs(value) < abs(shift):
            shift = value
    return shift if abs(shift) < np.inf else 0.0


@njit(**_INLINE)
def _add_values_at(sums, squares, at, x, base, shift, j, cells):
    value = _wide(_load(x, base + j, cells)) - shift
    _store(sums, at + j, None, _load(sums, at + j, None) + value)
    _store(squares, at + j, None, _load(squares, at + j, None) + value * value)


@njit(**_INLINE)
def _add_values(sums, squares, at, x, base, width, shift):
    """Add a row, less the shift, and its square to ``sums`` and ``squares`` from ``at`` on."""
    whole, shifts = width - width % LANES, _splat(shift)
    for j in range(0, whole, LANES):
        _add_values_at(sums, squares, at, x, base, shifts, j, None)
    if whole < width:
        _add_values_at(sums, squares, at, x, base, shifts, whole, width - whole)


@njit(**_INLINE)
def _moments_at(total, square, share, shift, eps, high, low, rstd, at, most):
    """Mean, as ``high + low``, and rstd of eight windows from their sums.

    Returns the larger of ``most`` and one over the smallest sum of squares about the mean.
    """
    mean = total * share
    variance = _as(square * share - mean * mean, eps)
    mean = mean + shift
    top = _truncated(mean)
    _store(high, at, None, _as(top, eps))
    _store(low, at, None, _as(mean - top, eps))
    root = _rsqrt(_not_negative(variance) + eps)
    _store(rstd, at, None, root)
    return _larger(most, _as(share, eps) * root * root)


@njit(**_INLINE)
def _normalize_at(x, base, out, out_base, high, low, rstd, at, weight, bias, j, cells):
    centered = _load(x, base + j, cells) - _load(high, at + j, None) - _load(low, at + j, None)
    _store(out, out_base + j, cells, centered * (_load(rstd, at + j, None) * weight) + bias)


@njit(**_INLINE)
def _normalize_row(x, base, out, width, high, low, rstd, at, weight, bias):
    whole = width - width % LANES
    w, b = _splat(weight), _splat(bias)
    for j in range(0, whole, LANES):
        _prefetch(out, base + 4 * width + j)
        _normalize_at(x, base, out, base, high, low, rstd, at, w, b, j, None)
    if whole < width:
        _normalize_at(x, base, out, base, high, low, rstd, at, w, b, whole, width - whole)


@njit(**_INLINE)
def _products_at(x, grad, base, high, low, rstd, at, w, a, b, to, of_bias, of_weight, j, cells):
    g = _load(grad, base + j, cells)
    gd = g * (_load(x, base + j, cells) - _load(high, at + j, None) - _load(low, at + j, None))
    _store(a, to + j, None, _load(a, to + j, None) + g * w)
    _store(b, to + j, None, _load(b, to + j, None) + gd * w)
    return of_bias + g, of_weight + gd * _load(rstd, at + j, None)


@njit(**_INLINE)
def _add_products(x, grad, base, width, high, low, rstd, at, weight, a, b, to, totals, totals_at):
    """Adds ``grad w`` and ``grad w (x - mean)`` of a channel to ``a`` and ``b``, and the sums of
    grad and ``grad (x - mean) rstd`` to ``totals``, two vectors."""
    whole = width - width % LANES
    w = _splat(weight)
    of_bias = of_weight = _splat(a.dtype.type(0))
    for j in range(0, whole, LANES):
        of_bias, of_weight = _products_at(
            x, grad, base, high, low, rstd, at, w, a, b, to, of_bias, of_weight, j, None
        )
    if whole < width:
        of_bias, of_weight = _products_at(
            x, grad, base, high, low, rstd, at, w, a, b, to, of_bias, of_weight, whole,
            width - whole,
        )  # fmt: skip
    _store(totals, totals_at, None, _load(totals, totals_at, None) + _wide(of_bias))
    totals_at += LANES
    _store(totals, totals_at, None, _load(totals, totals_at, None) + _wide(of_weight))


@njit(**_INLINE)
def _terms_at(a, b, to, high, low, rstd, at, share, shift):
    """What each window adds to the gradient of its cells: ``first + second * (x - shift)``."""
    mean = _wide(_load(high, at, None)) - shift + _wide(_load(low, at, None))
    r = _wide(_load(rstd, at, None))
    scaled = r * share
    second = r * (r * scaled) * _wide(_load(b, to, None))
    return scaled * _wide(_load(a, to, None)) - mean * second, second


@njit(**_INLINE)
def _input_gradient_at(x, grad, base, out, rstd, at, w, shift, firsts, seconds, to, j, cells):
    own = _load(grad, base + j, cells) * (_load(rstd, at + j, None) * w)
    value = _wide(_load(x, base + j, cells)) - shift
    others = _load(firsts, to + j, None) + _load(seconds, to + j, None) * value
    _store(out, base + j, cells, own - _as(others, own))


@njit(**_INLINE)
def _input_gradient(x, grad, base, out, width, rstd, at, weight, shift, firsts, seconds, to):
    """A row of a channel, from what the windows add: ``firsts + seconds * (x - shift)``."""
    whole = width - width % LANES
    w, shifts = _splat(weight), _splat(shift)
    for j in range(0, whole, LANES):
        _prefetch(out, base + 4 * width + j)
        _input_gradient_at(
            x, grad, base, out, rstd, at, w, shifts, firsts, seconds, to, j, None
        )  # fmt: skip
    if whole < width:
        _input_gradient_at(
            x, grad, base, out, rstd, at, w, shifts, firsts, seconds, to, whole, width - whole
        )


# ---------------------------------------------------------------- tables


@njit(**_INLINE)
def _eight_rows(firsts, seconds, line, j):
    """``firsts`` and ``seconds`` ``[PLANES, line]`` at the cells ``j .. j + 7``: a vector a cell."""
    return _transposed(
        (
            _load(firsts, j, None),
            _load(firsts, line + j, None),
            _load(firsts, 2 * line + j, None),
            _load(firsts, 3 * line + j, None),
            _load(seconds, j, None),
            _load(seconds, line + j, None),
            _load(seconds, 2 * line + j, None),
            _load(seconds, 3 * line + j, None),
        )
    )


@njit(**_INLINE)
def _next_cell(table, above, here, run, change):
    run = run + change
    _store(table, here, None, _load(table, above, None) + run)
    return run


@njit(**_PLAIN)
def _add_line(job, x, bases, shifts, row, table, sums, squares, line):
    """The line of the table below a row, from the line above it."""
    _fill(sums, 0, sums.size, 0.0)
    _fill(squares, 0, squares.size, 0.0)
    h, w = job.height, job.width
    for plane in range(PLANES):
        for c in range(job.per_group):
            base = bases[plane] + (c * h + row) * w
            _add_values(sums, squares, plane * line, x, base, w, shifts[plane])
    above, here = (row % job.ring) * (line + 1) * LANES, ((row + 1) % job.ring) * (line + 1) * LANES
    run = _splat(0.0)
    _store(table, here, None, run)
    for j in range(0, line, LANES):
        cells = _eight_rows(sums, squares, line, j)
        at, to = above + (j + 1) * LANES, here + (j + 1) * LANES
        run = _next_cell(table, at, to, run, cells[0])
        run = _next_cell(table, at + LANES, to + LANES, run, cells[1])
        run = _next_cell(table, at + 2 * LANES, to + 2 * LANES, run, cells[2])
        run = _next_cell(table, at + 3 * LANES, to + 3 * LANES, run, cells[3])
        run = _next_cell(table, at + 4 * LANES, to + 4 * LANES, run, cells[4])
        run = _next_cell(table, at + 5 * LANES, to + 5 * LANES, run, cells[5])
        run = _next_cell(table, at + 6 * LANES, to + 6 * LANES, run, cells[6])
        run = _next_cell(table, at + 7 * LANES, to + 7 * LANES, run, cells[7])
    return here + line * LANES


@njit(**_INLINE)
def _window_at(table, tops, bottoms, rights, j):
    """The sums over the window of a cell."""
    top, bottom = np.int64(tops[j]) * LANES, np.int64(bottoms[j]) * LANES
    right = np.int64(rights[j]) * LANES
    lower = _load(table, bottom + right, None) - _load(table, bottom, None)
    return lower - (_load(table, top + right, None) - _load(table, top, None))


@njit(**_INLINE)
def _statistics(table, tops, bottoms, rights, shares, at, shifts, eps, high, low, rstd, line, most):
    """Mean and rstd of a row of cells, of all groups, ``[PLANES, line]``."""
    epses = _splat(high.dtype.type(eps))
    least_0 = least_1 = least_2 = least_3 = _splat(high.dtype.type(0))
    shift_0, shift_1 = _splat(shifts[0]), _splat(shifts[1])
    shift_2, shift_3 = _splat(shifts[2]), _splat(shifts[3])
    for j in range(0, line, LANES):
        k = at + j
        sums = _transposed(
            (
                _window_at(table, tops, bottoms, rights, k),
                _window_at(table, tops, bottoms, rights, k + 1),
                _window_at(table, tops, bottoms, rights, k + 2),
                _window_at(table, tops, bottoms, rights, k + 3),
                _window_at(table, tops, bottoms, rights, k + 4),
                _window_at(table, tops, bottoms, rights, k + 5),
                _window_at(table, tops, bottoms, rights, k + 6),
                _window_at(table, tops, bottoms, rights, k + 7),
            )
        )
        share = _load(shares, k, None)
        least_0 = _moments_at(
            sums[0], sums[4], share, shift_0, epses, high, low, rstd, j, least_0
        )  # fmt: skip
        least_1 = _moments_at(
            sums[1], sums[5], share, shift_1, epses, high, low, rstd, line + j, least_1
        )
        least_2 = _moments_at(
            sums[2], sums[6], share, shift_2, epses, high, low, rstd, 2 * line + j, least_2
        )
        least_3 = _moments_at(
            sums[3], sums[7], share, shift_3, epses, high, low, rstd, 3 * line + j, least_3
        )
    most[0], most[1], most[2], most[3] = (
        _maximum(least_0), _maximum(least_1), _maximum(least_2), _maximum(least_3)
    )  # fmt: skip


@njit(**_PLAIN)
def _sum_again(job, x, base, top, left, p, q, shift):
    """Mean, less the shift, and rstd of a window, cell by cell."""
    h, w = job.height, job.width
    average, square, share = 0.0, 0.0, 1.0 / (job.per_group * p * q)
    for c in range(job.per_group):
        for i in range(top, top + p):
            for k in range(left, left + q):
                average += _total(_wide(_load(x, base + (c * h + i) * w + k, 1))) - shift
    average *= share
    for c in range(job.per_group):
        for i in range(top, top + p):
            for k in range(left, left + q):
                value = _total(_wide(_load(x, base + (c * h + i) * w + k, 1))) - shift - average
                square += value * value
    return average, 1.0 / np.sqrt(square * share + job.eps)


@njit(**_PLAIN)
def _statistics_again(
    job, x, base, shift, i, first_line, tops, bottoms, rights, shares, windows_at, total, high, low,
    rstd, at,
):  # fmt: skip
    """Where digits were lost; False if a window is too large for that."""
    line = (job.width + LANES - 1) // LANES * LANES + 1
    for j in range(job.width):
        k, r = windows_at + j, np.float64(rstd[at + j])
        if total * shares[k] * r * r <= 0.99 * job.limit:
            continue
        q = np.int64(rights[k])
        slot, left = np.int64(tops[k]) // line, np.int64(tops[k]) % line
        p = (np.int64(bottoms[k]) // line - slot) % job.ring
        if p * q > _SMALL_WINDOW:
            return False
        top = first_line + (slot - first_line) % job.ring
        mean, rstd[at + j] = _sum_again(job, x, base, top, left, p, q, shift)
        mean += shift
        high[at + j] = mean
        low[at + j] = mean - high[at + j]
    # The cells of the last vector beyond the width repeat the last one within.
    for j in range(at + job.width, at + line - 1):
        high[j], low[j], rstd[j] = high[j - 1], low[j - 1], rstd[j - 1]
    return True


@njit(**_PLAIN)
def _statistics_of_row(
    job, x, bases, shifts, i, lines, table, end, tops, bottoms, rights, shares, windows_at, high,
    low, rstd, rstd_at, line, most, given_up,
):  # fmt: skip
    """Mean and rstd of a row of cells; flags the groups that plain PyTorch has to do."""
    own_rstd = rstd[rstd_at : rstd_at + PLANES * line]
    _statistics(
        table, tops, bottoms, rights, shares, windows_at, shifts, job.eps, high, low, own_rstd,
        line, most,
    )  # fmt: skip
    for plane in range(PLANES):
        total = table[end + PLANES + plane]
        if given_up[plane] or total * most[plane] <= job.limit:
            continue
        given_up[plane] = not total < np.inf or not _statistics_again(
            job, x, bases[plane], shifts[plane], i, lines[i], tops, bottoms, rights, shares,
            windows_at, total, high, low, own_rstd, plane * line,
        )  # fmt: skip


@njit(**_PLAIN)
def _start(job, x, first_plane, bases, shifts, given_up):
    """The groups of a task; the last one again where there are fewer than ``PLANES``."""
    h, w, groups = job.height, job.width, job.channels // job.per_group
    n = first_plane // groups
    stop = (n + 1) * groups if job.own_windows else job.samples * groups
    for k in range(PLANES):
        plane = min(first_plane + min(k, job.planes - 1), stop - 1)
        bases[k] = plane * job.per_group * h * w
        shifts[k] = _shift_of(x, bases[k], h, w)
        given_up[k] = 0
    return n if job.own_windows else 0


@njit(**_PLAIN)
def _finish(job, bases, given_up, flags):
    for k in range(PLANES):
        flags[bases[k] // (job.per_group * job.height * job.width)] = given_up[k]


@njit(**_PLAIN)
def _forward_task(
    job, x, first_plane, tops, bottoms, rights, shares, lines, weight, bias, out, flags, table,
    sums, squares, high, low, rstd, bases, shifts, given_up, most,
):  # fmt: skip
    h, w = job.height, job.width
    line = sums.size // PLANES
    own = _start(job, x, first_plane, bases, shifts, given_up)
    windows, lines = own * h * line, lines[2 * own * h : 2 * (own + 1) * h]
    _fill(table, 0, (line + 1) * LANES, 0.0)
    done, end = 0, 0
    for i in range(h):
        while done < lines[h + i]:
            end = _add_line(job, x, bases, shifts, done, table, sums, squares, line)
            done += 1
        _statistics_of_row(
            job, x, bases, shifts, i, lines, table, end, tops, bottoms, rights, shares,
            windows + i * line, high, low, rstd, 0, line, most, given_up,
        )  # fmt: skip
        for plane in range(PLANES):
            channel = bases[plane] // (h * w) % job.channels
            for c in range(job.per_group):
                _normalize_row(
                    x, bases[plane] + (c * h + i) * w, out, w, high, low, rstd, plane * line,
                    weight[channel + c], bias[channel + c],
                )  # fmt: skip
    _finish(job, bases, given_up, flags)


# ---------------------------------------------------------------- gradients


@njit(**_INLINE)
def _add_to_corners(table, tops, bottoms, rights, j, terms):
    top, bottom = np.int64(tops[j]) * LANES, np.int64(bottoms[j]) * LANES
    right = np.int64(rights[j]) * LANES
    _store(table, top, None, _load(table, top, None) + terms)
    _store(table, top + right, None, _load(table, top + right, None) - terms)
    _store(table, bottom, None, _load(table, bottom, None) - terms)
    _store(table, bottom + right, None, _load(table, bottom + right, None) + terms)


@njit(**_PLAIN)
def _scatter(
    table, tops, bottoms, rights, shares, at, shifts, a, b, high, low, rstd, rstd_at, line
):
    """Adds what the windows of a row contribute to their corners."""
    shift_0, shift_1 = _splat(shifts[0]), _splat(shifts[1])
    shift_2, shift_3 = _splat(shifts[2]), _splat(shifts[3])
    own = rstd[rstd_at : rstd_at + PLANES * line]
    for j in range(0, line, LANES):
        k = at + j
        share = _load(shares, k, None)
        j_1, j_2, j_3 = line + j, 2 * line + j, 3 * line + j
        first_0, second_0 = _terms_at(a, b, j, high, low, own, j, share, shift_0)
        first_1, second_1 = _terms_at(a, b, j_1, high, low, own, j_1, share, shift_1)
        first_2, second_2 = _terms_at(a, b, j_2, high, low, own, j_2, share, shift_2)
        first_3, second_3 = _terms_at(a, b, j_3, high, low, own, j_3, share, shift_3)
        cells = _transposed(
            (first_0, first_1, first_2, first_3, second_0, second_1, second_2, second_3)
        )
        _add_to_corners(table, tops, bottoms, rights, k, cells[0])
        _add_to_corners(table, tops, bottoms, rights, k + 1, cells[1])
        _add_to_corners(table, tops, bottoms, rights, k + 2, cells[2])
        _add_to_corners(table, tops, bottoms, rights, k + 3, cells[3])
        _add_to_corners(table, tops, bottoms, rights, k + 4, cells[4])
        _add_to_corners(table, tops, bottoms, rights, k + 5, cells[5])
        _add_to_corners(table, tops, bottoms, rights, k + 6, cells[6])
        _add_to_corners(table, tops, bottoms, rights, k + 7, cells[7])


@njit(**_INLINE)
def _spread_cell(table, at, columns, to, run):
    """The running sum along a row, added to those down the columns; empties the table."""
    run = run + _load(table, at, None)
    _store(table, at, None, _splat(0.0))
    column = _load(columns, to, None) + run
    _store(columns, to, None, column)
    return run, column


@njit(**_PLAIN)
def _spread_row(table, at, columns, line, firsts, seconds):
    """What the windows add to a row of cells, ``[PLANES, line]``."""
    run = _splat(0.0)
    for j in range(0, line, LANES):
        k, to = at + j * LANES, j * LANES
        run, cell_0 = _spread_cell(table, k, columns, to, run)
        run, cell_1 = _spread_cell(table, k + LANES, columns, to + LANES, run)
        run, cell_2 = _spread_cell(table, k + 2 * LANES, columns, to + 2 * LANES, run)
        run, cell_3 = _spread_cell(table, k + 3 * LANES, columns, to + 3 * LANES, run)
        run, cell_4 = _spread_cell(table, k + 4 * LANES, columns, to + 4 * LANES, run)
        run, cell_5 = _spread_cell(table, k + 5 * LANES, columns, to + 5 * LANES, run)
        run, cell_6 = _spread_cell(table, k + 6 * LANES, columns, to + 6 * LANES, run)
        run, cell_7 = _spread_cell(table, k + 7 * LANES, columns, to + 7 * LANES, run)
        rows = _transposed((cell_0, cell_1, cell_2, cell_3, cell_4, cell_5, cell_6, cell_7))
        _store(firsts, j, None, rows[0])
        _store(firsts, line + j, None, rows[1])
        _store(firsts, 2 * line + j, None, rows[2])
        _store(firsts, 3 * line + j, None, rows[3])
        _store(seconds, j, None, rows[4])
        _store(seconds, line + j, None, rows[5])
        _store(seconds, 2 * line + j, None, rows[6])
        _store(seconds, 3 * line + j, None, rows[7])


@njit(**_PLAIN)
def _extremes(rstd, at, width, least, most):
    for j in range(at, at + width):
        least, most = min(least, rstd[j]), max(most, rstd[j])
    return least, most


@njit(**_PLAIN)
def _backward_task(
    job, x, grad, first_plane, tops, bottoms, rights, shares, lines, weight, out, partial, flags,
    table, terms, sums, squares, high, low, rstd, a, b, columns, totals, extremes, bases, shifts,
    given_up, most,
):  # fmt: skip
    h, w = job.height, job.width
    line = sums.size // PLANES
    per_group, ring = job.per_group, job.ring
    own = _start(job, x, first_plane, bases, shifts, given_up)
    windows, lines = own * h * line, lines[2 * own * h : 2 * (own + 1) * h]
    _fill(table, 0, (line + 1) * LANES, 0.0)
    _fill(columns, 0, columns.size, 0.0)
    _fill(totals, 0, totals.size, 0.0)
    for plane in range(PLANES):
        extremes[2 * plane], extremes[2 * plane + 1] = np.inf, 0.0
    done, end, ready = 0, 0, 0
    for i in range(h):
        while done < lines[h + i]:
            end = _add_line(job, x, bases, shifts, done, table, sums, squares, line)
            done += 1
        rstd_at = i % ring * PLANES * line
        _statistics_of_row(
            job, x, bases, shifts, i, lines, table, end, tops, bottoms, rights, shares,
            windows + i * line, high, low, rstd, rstd_at, line, most, given_up,
        )  # fmt: skip
        _fill(a, 0, a.size, a.dtype.type(0))
        _fill(b, 0, b.size, b.dtype.type(0))
        own_rstd = rstd[rstd_at : rstd_at + PLANES * line]
        for plane in range(PLANES):
            extremes[2 * plane], extremes[2 * plane + 1] = _extremes(
                own_rstd, plane * line, w, extremes[2 * plane], extremes[2 * plane + 1]
            )
            channel = bases[plane] // (h * w) % job.channels
            for c in range(per_group):
                _add_products(
                    x, grad, bases[plane] + (c * h + i) * w, w, high, low, own_rstd, plane * line,
                    weight[channel + c], a, b, plane * line, totals,
                    2 * (plane * per_group + c) * LANES,
                )  # fmt: skip
        _scatter(
            terms, tops, bottoms, rights, shares, windows + i * line, shifts, a, b, high, low, rstd,
            rstd_at, line,
        )  # fmt: skip
        # A row of cells is finished as soon as no later window begins in or above it.
        while ready < (h if i == h - 1 else lines[i + 1]):
            _spread_row(terms, ready % ring * (line + 1) * LANES, columns, line, sums, squares)
            for plane in range(PLANES):
                channel = bases[plane] // (h * w) % job.channels
                for c in range(per_group):
                    _input_gradient(
                        x, grad, bases[plane] + (c * h + ready) * w, out, w, rstd,
                        (ready % ring * PLANES + plane) * line, weight[channel + c],
                        shifts[plane], sums, squares, plane * line,
                    )  # fmt: skip
            ready += 1
    at = h % ring * (line + 1) * LANES
    _fill(terms, at, at + (line + 1) * LANES, 0.0)
    for plane in range(PLANES):
        # What windows of steep gradients add leaves its rounding everywhere else.
        if not h * w * extremes[2 * plane + 1] < job.limit * extremes[2 * plane]:
            given_up[plane] = 1
        channel = bases[plane] // (h * w)
        n, channel, total = channel // job.channels, channel % job.channels, 0.0
        for c in range(per_group):
            at = 2 * (plane * per_group + c) * LANES
            of_bias = _total(_load(totals, at, None))
            of_weight = _total(_load(totals, at + LANES, None))
            partial[n, 0, channel + c] = of_weight
            partial[n, 1, channel + c] = of_bias
            total += abs(of_weight) + abs(of_bias)
        if not total < np.inf:
            given_up[plane] = 1
    _finish(job, bases, given_up, flags)


# ---------------------------------------------------------------- entry points


@njit(**_INLINE)
def _first_plane(task, job):
    """The first group of a task; -1 after the last task. Tasks do not cross samples whose windows
    differ."""
    groups, samples = job.channels // job.per_group, job.samples
    if not job.own_windows:
        groups, samples = groups * samples, 1
    tasks = (groups + job.planes - 1) // job.planes
    if task >= tasks * samples:
        return -1
    return task // tasks * groups + task % tasks * job.planes


def compile_forward(element: Any, working: Any) -> Any:
    """``void body(void *job)`` for an element type as stored and its working precision."""

    def body(address):
        job = carray(address, 1, JOB)[0]
        x = carray(_pointer(job.x_ptr), _MANY, element)
        out = carray(_pointer(job.out_ptr), _MANY, element)
        weight = carray(_pointer(job.weight_ptr), job.channels, working)
        bias = carray(_pointer(job.bias_ptr), job.channels, working)
        tops = carray(_pointer(job.tops_ptr), _MANY, np.uint32)
        bottoms = carray(_pointer(job.bottoms_ptr), _MANY, np.uint32)
        rights = carray(_pointer(job.rights_ptr), _MANY, np.uint32)
        shares = carray(_pointer(job.shares_ptr), _MANY, np.float64)
        lines = carray(_pointer(job.lines_ptr), _MANY, np.int64)
        flags = carray(_pointer(job.flags_ptr), _MANY, np.uint8)
        line = (job.width + LANES - 1) // LANES * LANES
        wide, narrow = np.empty(0, np.float64), np.empty(0, working)
        table = _zeros(job.ring * (line + 1) * LANES, wide)
        sums, squares = _zeros(PLANES * line, wide), _zeros(PLANES * line, wide)
        high, low = _zeros(PLANES * line, narrow), _zeros(PLANES * line, narrow)
        rstd = _zeros(PLANES * line, narrow)
        bases, shifts = np.zeros(PLANES, np.int64), np.zeros(PLANES)
        given_up, most = np.zeros(PLANES, np.uint8), np.zeros(PLANES)
        while True:
            first = _first_plane(_take_task(address), job)
            if first < 0:
                return
            _forward_task(
                job, x, first, tops, bottoms, rights, shares, lines, weight, bias, out, flags,
                table, sums, squares, high, low, rstd, bases, shifts, given_up, most,
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
        tops = carray(_pointer(job.tops_ptr), _MANY, np.uint32)
        bottoms = carray(_pointer(job.bottoms_ptr), _MANY, np.uint32)
        rights = carray(_pointer(job.rights_ptr), _MANY, np.uint32)
        shares = carray(_pointer(job.shares_ptr), _MANY, np.float64)
        lines = carray(_pointer(job.lines_ptr), _MANY, np.int64)
        flags = carray(_pointer(job.flags_ptr), _MANY, np.uint8)
        line = (job.width + LANES - 1) // LANES * LANES
        wide, narrow = np.empty(0, np.float64), np.empty(0, working)
        table = _zeros(job.ring * (line + 1) * LANES, wide)
        terms = _zeros(job.ring * (line + 1) * LANES, wide)
        sums, squares = _zeros(PLANES * line, wide), _zeros(PLANES * line, wide)
        high, low = _zeros(PLANES * line, narrow), _zeros(PLANES * line, narrow)
        a, b = _zeros(PLANES * line, narrow), _zeros(PLANES * line, narrow)
        rstd = _zeros(job.ring * PLANES * line, narrow)
        columns, totals = _zeros(line * LANES, wide), np.zeros(2 * PLANES * job.per_group * LANES)
        bases, shifts = np.zeros(PLANES, np.int64), np.zeros(PLANES)
        given_up, most = np.zeros(PLANES, np.uint8), np.zeros(PLANES)
        extremes = np.zeros(2 * PLANES)
        while True:
            first = _first_plane(_take_task(address), job)
            if first < 0:
                return
            _backward_task(
                job, x, grad, first, tops, bottoms, rights, shares, lines, weight, out, partial,
                flags, table, terms, sums, squares, high, low, rstd, a, b, columns, totals,
                extremes, bases, shifts, given_up, most,
            )  # fmt: skip

    return _compiled(body)
