"""Numba loops on summed-area tables: windows of a size of their own at each point.

One task is one group of one sample. Its table holds, for every corner between cells, the sum of
``x - shift`` and of its square over all that lies above and left of it, as a pair of float64; the
sums over any window are four of these pairs. The backward adds what each window contributes to the
same four corners, and running sums over both axes spread it over the window.

Nothing can leave a table, so it is checked: where the whole sum of squares is so large beside a
window's own that digits are lost, the window is summed again cell by cell if it is small; otherwise
the task only sets its flag, and plain PyTorch does its plane. So it is with NaN and infinities.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from .cpu_loops import _DOUBLE, _FLAGS, _INLINE, _PLAIN, _compiled, _pointer, _take_task

# What a task reads; fields that end in _ptr are addresses.
JOB_FIELDS = (
    "next_task",
    *("x_ptr", "grad_ptr", "out_ptr", "weight_ptr", "bias_ptr", "partial_ptr", "flags_ptr"),
    # A window per point: uint32 [1 or samples, height * width, 3], upper left corner, p, q.
    # Real windows: float64 [1 or groups, 2], p and q, from 1 to the map's.
    "windows_ptr",
    "window_grads_ptr",  # of real windows, float64 [samples, groups, 2]
    "own_windows",  # 1 if there is more than one
    *("samples", "channels", "height", "width", "per_group"),
    *("eps", "limit"),
)
_REAL = ("eps", "limit")
JOB = np.dtype([(name, np.float64 if name in _REAL else np.int64) for name in JOB_FIELDS])

# Cells of a window that is worth summing again cell by cell.
_SMALL_WINDOW = 256
_MANY = 1 << 48  # length of arrays that come as an address
_PAIR = ir.VectorType(_DOUBLE, 2)
_REDUCTION: dict[str, Any] = {**_PLAIN, "fastmath": {"reassoc", "contract", "nsz"}}


# ---------------------------------------------------------------- pairs of float64, by address


def _load_pair(builder, address):
    return builder.load(builder.inttoptr(address, _PAIR.as_pointer()), align=16)


def _store_pair(builder, pair, address):
    builder.store(pair, builder.inttoptr(address, _PAIR.as_pointer()), align=16)


@intrinsic
def _corner_difference(typing_context, upper_left, down, right, out):
    """``out = t[c] - t[c + right] - t[c + down] + t[c + down + right]``, steps in bytes."""

    def codegen(context, builder, signature, args):
        corner, down, right, out = args
        below = builder.add(corner, down)
        a, b = _load_pair(builder, corner), _load_pair(builder, builder.add(corner, right))
        c, d = _load_pair(builder, below), _load_pair(builder, builder.add(below, right))
        lower, upper = builder.fsub(d, c, flags=_FLAGS), builder.fsub(b, a, flags=_FLAGS)
        _store_pair(builder, builder.fsub(lower, upper, flags=_FLAGS), out)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def _add_to_corners(typing_context, upper_left, down, right, source):
    """The adjoint: ``source`` is added to two corners and taken from the other two."""

    def codegen(context, builder, signature, args):
        corner, down, right, source = args
        pair = _load_pair(builder, source)
        below = builder.add(corner, down)
        for address, sign in (
            (corner, 1),
            (builder.add(corner, right), -1),
            (below, -1),
            (builder.add(below, right), 1),
        ):
            apply = builder.fadd if sign == 1 else builder.fsub
            _store_pair(builder, apply(_load_pair(builder, address), pair), address)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@njit(error_model="numpy", forceinline=True)
def _aligned(count):
    """``count`` zeros in float64, from a multiple of 64 bytes."""
    memory = np.zeros(count + 8)
    first = -memory.ctypes.data % 64 // 8
    return memory[first : first + count]


# ---------------------------------------------------------------- tables and statistics


@njit(**_INLINE)
def _shift_of(job, x, base):
    """The smallest of three values of a group; not one that is NaN or infinite."""
    shift = np.inf
    w = job.width
    for at in (0, w // 2, (job.height // 2) * w + w - 1):
        value = np.float64(x[base + at])
        if abs(value) < abs(shift):
            shift = value
    return shift if abs(shift) < np.inf else 0.0


@njit(**_PLAIN)
def _add_row(x, cells, shift, sums, squares):
    for j in range(cells):
        value = np.float64(x[j]) - shift
        sums[j] += value
        squares[j] += value * value


@njit(**_PLAIN)
def _build_table(job, x, base, shift, table, sums, squares):
    """Returns the whole sum of squares."""
    h, w = job.height, job.width
    line = 2 * (w + 1)
    table[:line] = 0.0
    for i in range(h):
        sums[:w] = 0.0
        squares[:w] = 0.0
        for c in range(job.per_group):
            at = base + (c * h + i) * w
            _add_row(x[at : at + w], w, shift, sums, squares)
        here = (i + 1) * line
        table[here] = 0.0
        table[here + 1] = 0.0
        above, row = table[here - line + 2 : here], table[here + 2 : here + line]
        total, total_square = 0.0, 0.0
        for j in range(w):
            total += sums[j]
            total_square += squares[j]
            row[2 * j] = above[2 * j] + total
            row[2 * j + 1] = above[2 * j + 1] + total_square
    return table[(h + 1) * line - 1]


@njit(**_PLAIN)
def _window_sums(table_at, corners, cells, line, by_p, by_q, pairs_at, share):
    """Sums over the windows of a row of cells as pairs, and one over their numbers of values."""
    for j in range(cells):
        corner = np.int64(corners[3 * j])
        p, q = corners[3 * j + 1], corners[3 * j + 2]
        _corner_difference(
            table_at + 16 * corner, 8 * line * np.int64(p), 16 * np.int64(q), pairs_at + 16 * j
        )
        share[j] = by_p[p] * by_q[q]


@njit(**_PLAIN)
def _moments(pairs, share, cells, total, eps, limit, mean, rstd):
    """Mean, less the shift, and rstd of a row; returns how many cells have too few digits."""
    one = rstd.dtype.type(1.0)
    lost = 0
    for j in range(cells):
        average = pairs[2 * j] * share[j]
        variance = max(pairs[2 * j + 1] * share[j] - average * average, 0.0) + eps
        mean[j] = average
        rstd[j] = one / np.sqrt(rstd.dtype.type(variance))
        lost += total * share[j] > limit * variance
    return lost


@njit(**_PLAIN)
def _moments_again(job, x, base, shift, corners, total, share, mean, rstd):
    """Where digits were lost; False if a window is too large for that."""
    h, w = job.height, job.width
    for j in range(w):
        variance = 1.0 / (np.float64(rstd[j]) * np.float64(rstd[j]))
        if not total * share[j] > 0.99 * job.limit * variance:
            continue
        corner = np.int64(corners[3 * j])
        p, q = np.int64(corners[3 * j + 1]), np.int64(corners[3 * j + 2])
        if p * q > _SMALL_WINDOW:
            return False
        top, left = corner // (w + 1), corner % (w + 1)
        average = 0.0
        for c in range(job.per_group):
            for i in range(top, top + p):
                for k in range(left, left + q):
                    average += np.float64(x[base + (c * h + i) * w + k]) - shift
        average *= share[j]
        square = 0.0
        for c in range(job.per_group):
            for i in range(top, top + p):
                for k in range(left, left + q):
                    value = np.float64(x[base + (c * h + i) * w + k]) - shift - average
                    square += value * value
        mean[j] = average
        rstd[j] = rstd.dtype.type(1.0 / np.sqrt(square * share[j] + job.eps))
    return True


@njit(**_PLAIN)
def _normalize_row(x, cells, shift, mean, rstd, weight, bias, out):
    for j in range(cells):
        centered = rstd.dtype.type((np.float64(x[j]) - shift) - mean[j])
        out[j] = centered * rstd[j] * weight + bias


# ---------------------------------------------------------------- gradients


@njit(**_REDUCTION)
def _products_of_row(x, grad, cells, shift, mean, rstd, weight, a, b):
    """Adds a channel's gradient, and its product with what was normalized, to ``a`` and ``b``.

    Returns the channel's share of the gradients of weight and bias.
    """
    of_weight, of_bias = 0.0, 0.0
    for j in range(cells):
        g = np.float64(grad[j])
        product = g * (((np.float64(x[j]) - shift) - mean[j]) * np.float64(rstd[j]))
        of_weight += product
        of_bias += g
        a[j] += g * weight
        b[j] += product * weight
    return of_weight, of_bias


@njit(error_model="numpy", fastmath={"reassoc", "nnan", "nsz"})
def _extremes(rstd, cells, least, most):
    for j in range(cells):
        least, most = min(least, rstd[j]), max(most, rstd[j])
    return least, most


@njit(**_PLAIN)
def _terms(a, b, share, mean, rstd, cells, pairs):
    """What each window adds to the gradient of its cells: ``pair[0] + pair[1] * (x - shift)``."""
    for j in range(cells):
        r = np.float64(rstd[j])
        slope = r * r * b[j] * share[j]
        pairs[2 * j] = r * a[j] * share[j] - slope * mean[j]
        pairs[2 * j + 1] = slope


@njit(**_PLAIN)
def _scatter(table_at, corners, cells, line, pairs_at):
    for j in range(cells):
        corner = np.int64(corners[3 * j])
        p, q = corners[3 * j + 1], corners[3 * j + 2]
        _add_to_corners(
            table_at + 16 * corner, 8 * line * np.int64(p), 16 * np.int64(q), pairs_at + 16 * j
        )


@njit(**_PLAIN)
def _spread_row(row, cells, column_0, column_1):
    """Running sums along a row of the table, added to those down the columns."""
    first, second = 0.0, 0.0
    for j in range(cells):
        first += row[2 * j]
        second += row[2 * j + 1]
        column_0[j] += first
        column_1[j] += second


@njit(**_PLAIN)
def _input_gradient_row(x, grad, cells, shift, rstd, weight, column_0, column_1, out):
    for j in range(cells):
        own = np.float64(grad[j]) * weight * np.float64(rstd[j])
        value = np.float64(x[j]) - shift
        out[j] = out.dtype.type(own - (column_0[j] + column_1[j] * value))


# ---------------------------------------------------------------- a window per point


@njit(**_PLAIN)
def _statistics_of_row(
    job, x, base, shift, table_at, corners, total, by_p, by_q, pairs, share, mean, rstd
):
    """``mean`` and ``rstd`` of a row; False if plain PyTorch has to do this plane."""
    w = job.width
    _window_sums(table_at, corners, w, 2 * (w + 1), by_p, by_q, pairs.ctypes.data, share)
    if _moments(pairs, share, w, total, job.eps, job.limit, mean, rstd) == 0:
        return True
    return _moments_again(job, x, base, shift, corners, total, share, mean, rstd)


@njit(**_PLAIN)
def _forward_plane(
    job, x, base, corners, first, weight, bias, out, table, sums, squares, by_p, by_q, pairs, share,
    mean, rstd,
):  # fmt: skip
    h, w = job.height, job.width
    shift = _shift_of(job, x, base)
    total = _build_table(job, x, base, shift, table, sums, squares)
    if not total < np.inf:
        return False
    for i in range(h):
        row = corners[3 * (first + i * w) : 3 * (first + i * w + w)]
        if not _statistics_of_row(
            job, x, base, shift, table.ctypes.data, row, total, by_p, by_q, pairs,
            share, mean, rstd,
        ):  # fmt: skip
            return False
        for c in range(job.per_group):
            at = base + (c * h + i) * w
            _normalize_row(
                x[at : at + w], w, shift, mean, rstd, weight[c], bias[c], out[at : at + w]
            )
    return True


@njit(**_PLAIN)
def _backward_plane(
    job, x, grad, base, corners, first, weight, out, partial, table, sums, squares, by_p, by_q,
    pairs, share, means, rstds,
):  # fmt: skip
    h, w = job.height, job.width
    shift = _shift_of(job, x, base)
    total = _build_table(job, x, base, shift, table, sums, squares)
    if not total < np.inf:
        return False
    least, most = rstds.dtype.type(np.inf), rstds.dtype.type(0.0)
    for i in range(h):
        mean, rstd = means[i * w : i * w + w], rstds[i * w : i * w + w]
        row = corners[3 * (first + i * w) : 3 * (first + i * w + w)]
        if not _statistics_of_row(
            job, x, base, shift, table.ctypes.data, row, total, by_p, by_q, pairs,
            share, mean, rstd,
        ):  # fmt: skip
            return False
        least, most = _extremes(rstd, w, least, most)
    # What windows of steep gradients add leaves its rounding everywhere else.
    if not h * w * np.float64(most) < job.limit * np.float64(least):
        return False
    table[:] = 0.0
    partial[:] = 0.0
    a, b = sums, squares
    for i in range(h):
        mean, rstd = means[i * w : i * w + w], rstds[i * w : i * w + w]
        a[:w] = 0.0
        b[:w] = 0.0
        for c in range(job.per_group):
            at = base + (c * h + i) * w
            of_weight, of_bias = _products_of_row(
                x[at : at + w], grad[at : at + w], w, shift, mean, rstd, np.float64(weight[c]), a, b
            )
            partial[0, c] += of_weight
            partial[1, c] += of_bias
        row = corners[3 * (first + i * w) : 3 * (first + i * w + w)]
        for j in range(w):
            share[j] = by_p[row[3 * j + 1]] * by_q[row[3 * j + 2]]
        _terms(a, b, share, mean, rstd, w, pairs)
        _scatter(table.ctypes.data, row, w, 2 * (w + 1), pairs.ctypes.data)
    _spread_plane(job, x, grad, base, shift, weight, table, rstds, sums, squares, out)
    total = 0.0
    for c in range(job.per_group):
        total += abs(partial[0, c]) + abs(partial[1, c])
    return total < np.inf


@njit(**_PLAIN)
def _spread_plane(job, x, grad, base, shift, weight, table, rstds, column_0, column_1, out):
    """The gradient of the input from the table of what windows add."""
    h, w = job.height, job.width
    column_0[:w] = 0.0
    column_1[:w] = 0.0
    for i in range(h):
        start = i * 2 * (w + 1)
        _spread_row(table[start : start + 2 * w], w, column_0, column_1)
        rstd = rstds[i * w : i * w + w]
        for c in range(job.per_group):
            at = base + (c * h + i) * w
            scale = np.float64(weight[c])
            _input_gradient_row(
                x[at : at + w], grad[at : at + w], w, shift, rstd, scale, column_0, column_1,
                out[at : at + w],
            )  # fmt: skip


@njit(error_model="numpy", forceinline=True)
def _shares(size, factor):
    """``factor / k`` at ``k``, for windows of 1 to ``size`` cells."""
    shares = _aligned(size + 1)
    for k in range(1, size + 1):
        shares[k] = factor / k
    return shares


@njit(**_INLINE)
def _corners_of_row(p, q, i, h, w, corners):
    for j in range(w):
        rows, columns = min(p[j], h), min(q[j], w)
        top = min(max(i - rows // 2, 0), h - rows)
        left = min(max(j - columns // 2, 0), w - columns)
        corners[3 * j] = top * (w + 1) + left
        corners[3 * j + 1] = rows
        corners[3 * j + 2] = columns


def compile_corners() -> Any:
    """Corners from p and q, int64 ``[samples, height, width]`` at ``x_ptr`` and ``grad_ptr``."""

    def body(address):
        job = carray(address, 1, JOB)[0]
        h, w = job.height, job.width
        p = carray(_pointer(job.x_ptr), _MANY, np.int64)
        q = carray(_pointer(job.grad_ptr), _MANY, np.int64)
        corners = carray(_pointer(job.windows_ptr), _MANY, np.uint32)
        while True:
            task = _take_task(address)
            if task >= job.samples:
                return
            for i in range(h):
                at = (task * h + i) * w
                _corners_of_row(
                    p[at : at + w], q[at : at + w], i, h, w, corners[3 * at : 3 * (at + w)]
                )

    return _compiled(body)


def compile_forward(element: Any) -> Any:
    """``void body(void *job)`` for tensors of ``element``, float64 or float32."""

    def body(address):
        job = carray(address, 1, JOB)[0]
        x = carray(_pointer(job.x_ptr), _MANY, element)
        out = carray(_pointer(job.out_ptr), _MANY, element)
        weight = carray(_pointer(job.weight_ptr), job.channels, element)
        bias = carray(_pointer(job.bias_ptr), job.channels, element)
        corners = carray(_pointer(job.windows_ptr), _MANY, np.uint32)
        flags = carray(_pointer(job.flags_ptr), _MANY, np.uint8)
        cells, per_group = job.height * job.width, job.per_group
        table = _aligned(2 * (job.height + 1) * (job.width + 1))
        sums, squares, share, mean = (
            _aligned(job.width), _aligned(job.width), _aligned(job.width), _aligned(job.width)
        )  # fmt: skip
        pairs, rstd = _aligned(2 * job.width), np.zeros(job.width, element)
        by_p, by_q = _shares(job.height, 1.0 / per_group), _shares(job.width, 1.0)
        groups = job.channels // per_group
        while True:
            task = _take_task(address)
            if task >= job.samples * groups:
                return
            n, g = task // groups, task % groups
            own = slice(g * per_group, (g + 1) * per_group)
            flags[task] = not _forward_plane(
                job, x, task * per_group * cells, corners, n * cells if job.own_windows else 0,
                weight[own], bias[own], out, table, sums, squares, by_p, by_q, pairs, share, mean,
                rstd,
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
        corners = carray(_pointer(job.windows_ptr), _MANY, np.uint32)
        flags = carray(_pointer(job.flags_ptr), _MANY, np.uint8)
        cells, per_group = job.height * job.width, job.per_group
        table = _aligned(2 * (job.height + 1) * (job.width + 1))
        sums, squares, share = _aligned(job.width), _aligned(job.width), _aligned(job.width)
        pairs, means, rstds = _aligned(2 * job.width), _aligned(cells), np.zeros(cells, element)
        by_p, by_q = _shares(job.height, 1.0 / per_group), _shares(job.width, 1.0)
        groups = job.channels // per_group
        while True:
            task = _take_task(address)
            if task >= job.samples * groups:
                return
            n, g = task // groups, task % groups
            own = slice(g * per_group, (g + 1) * per_group)
            flags[task] = not _backward_plane(
                job, x, grad, task * per_group * cells, corners,
                n * cells if job.own_windows else 0, weight[own], out, partial[n, :, own], table,
                sums, squares, by_p, by_q, pairs, share, means, rstds,
            )  # fmt: skip

    return _compiled(body)
