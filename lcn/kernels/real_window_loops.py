"""Numba loops for real windows: a table's lines and columns, read between its corners.

As :mod:`lcn.kernels.table_loops`. Where an interval ends within a cell, the table is interpolated
linearly, which is exact: the sum over a part of a cell is that part of its value. Rows come first:
one line of the table for each row of cells, from which each cell takes its columns.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

from typing import Any

import numpy as np
from numba import carray, njit

from .cpu_loops import _INLINE, _PLAIN, _compiled, _pointer, _take_task
from .table_loops import (
    _MANY,
    _REDUCTION,
    JOB,
    _aligned,
    _build_table,
    _extremes,
    _moments,
    _normalize_row,
    _products_of_row,
    _shift_of,
    _spread_plane,
    _terms,
)


@njit(**_PLAIN)
def _place_intervals(length, size, cells, ends):
    """Of each cell: the cells in which its interval begins and ends, how far in, and how fast
    begin and end move as the interval grows."""
    for i in range(size):
        begin, speed = i + 0.5 - 0.5 * length, -0.5
        if begin < 0.0:
            begin, speed = 0.0, 0.0
        elif begin > size - length:
            begin, speed = size - length, -1.0
        first = min(np.int64(begin), size - 1)
        last = min(np.int64(begin + length), size - 1)
        cells[2 * i], cells[2 * i + 1] = first, last
        ends[4 * i], ends[4 * i + 1] = begin - first, begin + length - last
        ends[4 * i + 2], ends[4 * i + 3] = speed, speed + 1.0


@njit(**_INLINE)
def _lines_around(table, size, first, last):
    """The lines above and below the cell in which an interval begins, and that where it ends."""
    begin, end = first * size, last * size
    above, below = begin + size, end + size
    return (
        table[begin:above], table[above : above + size],
        table[end:below], table[below : below + size],
    )  # fmt: skip


@njit(**_PLAIN)
def _line_of_table(table, size, first, last, f, g, line):
    """The table's line at the end of an interval less that at its begin."""
    a, b, c, d = _lines_around(table, size, first, last)
    for k in range(size):
        line[k] = (c[k] + g * (d[k] - c[k])) - (a[k] + f * (b[k] - a[k]))


@njit(**_PLAIN)
def _change_of_line(table, size, first, last, f, g, line):
    """How fast that changes where begin and end move by ``f`` and ``g``."""
    a, b, c, d = _lines_around(table, size, first, last)
    for k in range(size):
        line[k] = g * (d[k] - c[k]) - f * (b[k] - a[k])


@njit(**_PLAIN)
def _columns_of_line(line, width, cells, ends, pairs):
    for j in range(width):
        a, b = 2 * np.int64(cells[2 * j]), 2 * np.int64(cells[2 * j + 1])
        f, g = ends[4 * j], ends[4 * j + 1]
        for k in range(2):
            begin = line[a + k] + f * (line[a + k + 2] - line[a + k])
            end = line[b + k] + g * (line[b + k + 2] - line[b + k])
            pairs[2 * j + k] = end - begin


@njit(**_PLAIN)
def _change_of_columns(line, width, cells, ends, pairs):
    for j in range(width):
        a, b = 2 * np.int64(cells[2 * j]), 2 * np.int64(cells[2 * j + 1])
        f, g = ends[4 * j + 2], ends[4 * j + 3]
        for k in range(2):
            begin = f * (line[a + k + 2] - line[a + k])
            pairs[2 * j + k] = g * (line[b + k + 2] - line[b + k]) - begin


@njit(**_PLAIN)
def _columns_to_line(pairs, width, cells, ends, line):
    """The adjoint of ``_columns_of_line``."""
    line[:] = 0.0
    for j in range(width):
        a, b = 2 * np.int64(cells[2 * j]), 2 * np.int64(cells[2 * j + 1])
        f, g = ends[4 * j], ends[4 * j + 1]
        for k in range(2):
            value = pairs[2 * j + k]
            line[a + k] -= (1.0 - f) * value
            line[a + k + 2] -= f * value
            line[b + k] += (1.0 - g) * value
            line[b + k + 2] += g * value


@njit(**_PLAIN)
def _add_line(row, line, size, factor):
    for k in range(size):
        row[k] += factor * line[k]


@njit(**_PLAIN)
def _line_to_table(line, size, first, last, f, g, table):
    """The adjoint of ``_line_of_table``."""
    a, b, c, d = _lines_around(table, size, first, last)
    _add_line(a, line, size, f - 1.0)
    _add_line(b, line, size, -f)
    _add_line(c, line, size, 1.0 - g)
    _add_line(d, line, size, g)


@njit(**_REDUCTION)
def _window_gradient(a, b, mean, rstd, pairs, changes, share, length, width):
    """A row's share of the gradient of one side of the window, ``length`` cells long."""
    total = 0.0
    for j in range(width):
        r = np.float64(rstd[j])
        of_mean = (changes[2 * j] - pairs[2 * j] / length) * share
        of_square = (changes[2 * j + 1] - pairs[2 * j + 1] / length) * share
        of_variance = of_square - 2.0 * mean[j] * of_mean
        total -= r * a[j] * of_mean + 0.5 * r * r * b[j] * of_variance
    return total


@njit(**_PLAIN)
def _forward_plane(
    job, x, base, rows, row_ends, columns, column_ends, weight, bias, out, table, line, sums,
    squares, pairs, share, mean, rstd,
):  # fmt: skip
    h, w = job.height, job.width
    size = 2 * (w + 1)
    shift = _shift_of(job, x, base)
    total = _build_table(job, x, base, shift, table, sums, squares)
    if not total < np.inf:
        return False
    for i in range(h):
        _line_of_table(
            table, size, np.int64(rows[2 * i]), np.int64(rows[2 * i + 1]), row_ends[4 * i],
            row_ends[4 * i + 1], line,
        )  # fmt: skip
        _columns_of_line(line, w, columns, column_ends, pairs)
        if _moments(pairs, share, w, total, job.eps, job.limit, mean, rstd):
            return False
        for c in range(job.per_group):
            at = base + (c * h + i) * w
            _normalize_row(
                x[at : at + w], w, shift, mean, rstd, weight[c], bias[c], out[at : at + w]
            )
    return True


@njit(**_PLAIN)
def _backward_plane(
    job, x, grad, base, p, q, rows, row_ends, columns, column_ends, weight, out, partial, of_window,
    table, terms, line, change, sums, squares, pairs, changes, share, mean, rstds,
):  # fmt: skip
    h, w = job.height, job.width
    size = 2 * (w + 1)
    shift = _shift_of(job, x, base)
    total = _build_table(job, x, base, shift, table, sums, squares)
    if not total < np.inf:
        return False
    terms[:] = 0.0
    partial[:] = 0.0
    of_window[0], of_window[1] = 0.0, 0.0
    least, most = rstds.dtype.type(np.inf), rstds.dtype.type(0.0)
    a, b = sums, squares
    for i in range(h):
        rstd = rstds[i * w : i * w + w]
        first, last = np.int64(rows[2 * i]), np.int64(rows[2 * i + 1])
        f, g = row_ends[4 * i], row_ends[4 * i + 1]
        _line_of_table(table, size, first, last, f, g, line)
        _columns_of_line(line, w, columns, column_ends, pairs)
        if _moments(pairs, share, w, total, job.eps, job.limit, mean, rstd):
            return False
        least, most = _extremes(rstd, w, least, most)
        a[:w] = 0.0
        b[:w] = 0.0
        for c in range(job.per_group):
            at = base + (c * h + i) * w
            of_weight, of_bias = _products_of_row(
                x[at : at + w], grad[at : at + w], w, shift, mean, rstd, np.float64(weight[c]), a, b
            )
            partial[0, c] += of_weight
            partial[1, c] += of_bias
        _change_of_columns(line, w, columns, column_ends, changes)
        of_window[1] += _window_gradient(a, b, mean, rstd, pairs, changes, share[0], q, w)
        _change_of_line(table, size, first, last, row_ends[4 * i + 2], row_ends[4 * i + 3], change)
        _columns_of_line(change, w, columns, column_ends, changes)
        of_window[0] += _window_gradient(a, b, mean, rstd, pairs, changes, share[0], p, w)
        _terms(a, b, share, mean, rstd, w, pairs)
        _columns_to_line(pairs, w, columns, column_ends, line)
        _line_to_table(line, size, first, last, f, g, terms)
    if not h * w * np.float64(most) < job.limit * np.float64(least):
        return False
    _spread_plane(job, x, grad, base, shift, weight, terms, rstds, sums, squares, out)
    finite = abs(of_window[0]) + abs(of_window[1])
    for c in range(job.per_group):
        finite += abs(partial[0, c]) + abs(partial[1, c])
    return finite < np.inf


def compile_forward(element: Any) -> Any:
    """``void body(void *job)`` for tensors of ``element``, float64 or float32."""

    def body(address):
        job = carray(address, 1, JOB)[0]
        x = carray(_pointer(job.x_ptr), _MANY, element)
        out = carray(_pointer(job.out_ptr), _MANY, element)
        weight = carray(_pointer(job.weight_ptr), job.channels, element)
        bias = carray(_pointer(job.bias_ptr), job.channels, element)
        windows = carray(_pointer(job.windows_ptr), _MANY, np.float64)
        flags = carray(_pointer(job.flags_ptr), _MANY, np.uint8)
        h, w, per_group = job.height, job.width, job.per_group
        table, line = _aligned(2 * (h + 1) * (w + 1)), _aligned(2 * (w + 1))
        sums, squares, share, mean = _aligned(w), _aligned(w), _aligned(w), _aligned(w)
        pairs, rstd = _aligned(2 * w), np.zeros(w, element)
        rows, row_ends = np.zeros(2 * h, np.uint32), _aligned(4 * h)
        columns, column_ends = np.zeros(2 * w, np.uint32), _aligned(4 * w)
        groups = job.channels // per_group
        while True:
            task = _take_task(address)
            if task >= job.samples * groups:
                return
            g = task % groups
            own = slice(g * per_group, (g + 1) * per_group)
            at = 2 * g if job.own_windows else 0
            p, q = windows[at], windows[at + 1]
            share[:] = 1.0 / (per_group * p * q)
            _place_intervals(p, h, rows, row_ends)
            _place_intervals(q, w, columns, column_ends)
            flags[task] = not _forward_plane(
                job, x, task * per_group * h * w, rows, row_ends, columns, column_ends, weight[own],
                bias[own], out, table, line, sums, squares, pairs, share, mean, rstd,
            )  # fmt: skip

    return _compiled(body)


def compile_backward(element: Any) -> Any:
    """As :func:`compile_forward`."""

    def body(address):
        job = carray(address, 1, JOB)[0]
        x = carray(_pointer(job.x_ptr), _MANY, element)
        grad = carray(_pointer(job.grad_ptr), _MANY, element)
        out = carray(_pointer(job.out_ptr), _MANY, element)
        weight = carray(_pointer(job.weight_ptr), job.channels, element)
        partial = carray(_pointer(job.partial_ptr), (job.samples, 2, job.channels), np.float64)
        windows = carray(_pointer(job.windows_ptr), _MANY, np.float64)
        window_grads = carray(_pointer(job.window_grads_ptr), _MANY, np.float64)
        flags = carray(_pointer(job.flags_ptr), _MANY, np.uint8)
        h, w, per_group = job.height, job.width, job.per_group
        table, terms = _aligned(2 * (h + 1) * (w + 1)), _aligned(2 * (h + 1) * (w + 1))
        line, change = _aligned(2 * (w + 1)), _aligned(2 * (w + 1))
        sums, squares, share, mean = _aligned(w), _aligned(w), _aligned(w), _aligned(w)
        pairs, changes, rstds = _aligned(2 * w), _aligned(2 * w), np.zeros(h * w, element)
        rows, row_ends = np.zeros(2 * h, np.uint32), _aligned(4 * h)
        columns, column_ends = np.zeros(2 * w, np.uint32), _aligned(4 * w)
        groups = job.channels // per_group
        while True:
            task = _take_task(address)
            if task >= job.samples * groups:
                return
            n, g = task // groups, task % groups
            own = slice(g * per_group, (g + 1) * per_group)
            at = 2 * g if job.own_windows else 0
            p, q = windows[at], windows[at + 1]
            share[:] = 1.0 / (per_group * p * q)
            _place_intervals(p, h, rows, row_ends)
            _place_intervals(q, w, columns, column_ends)
            flags[task] = not _backward_plane(
                job, x, grad, task * per_group * h * w, p, q, rows, row_ends, columns, column_ends,
                weight[own], out, partial[n, :, own], window_grads[2 * task : 2 * task + 2], table,
                terms, line, change, sums, squares, pairs, changes, share, mean, rstds,
            )  # fmt: skip

    return _compiled(body)
