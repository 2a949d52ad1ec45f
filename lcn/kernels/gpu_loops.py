"""Triton kernels of the GPU kernel; :mod:`lcn.kernels.gpu` launches them, docs/kernels.md counts
the bytes they move.

All tensors are addressed by strides, so that NCHW and channels-last need no copy; offsets within
a sample are 32-bit.  Sums are
float64 and of ``x - shift``, with the first value of the group as shift.

A window sum along a row needs values of other columns, which a program cannot take from its own
registers.  Instead lane ``j`` loads what its window has more than that of lane ``j - 1``, and a
cumulative sum over the lanes gives every window.
"""

# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def _first_value(x, group, groups, per_group, x_n, x_c):
    start = (group // groups).to(tl.int64) * x_n + (group % groups).to(tl.int64) * per_group * x_c
    return tl.load(x + start).to(tl.float64)


@triton.jit
def column_moments(
    x, means, squares, first_group, groups, per_group, height, width,
    x_n, x_c, x_h, x_w, row_count, row_size, offset, band,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean (from the shift) and sum of squared deviations of each column, for each window row.

    A program takes ``BLOCK`` columns of a group and ``band`` window rows, and slides down them.
    ``means`` and ``squares`` are ``[groups of this launch, row_count, width]`` float32.
    """
    local = tl.program_id(0)
    group = first_group + local
    k_begin = tl.program_id(2) * band
    k_end = tl.minimum(k_begin + band, row_count)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    shift = _first_value(x, group, groups, per_group, x_n, x_c)
    base = (group // groups).to(tl.int64) * x_n + (group % groups).to(tl.int64) * per_group * x_c
    cells = x + base + column * x_w
    total = tl.zeros([BLOCK], tl.float64)
    square = tl.zeros([BLOCK], tl.float64)
    for i in range(k_begin + offset, k_begin + offset + row_size):
        for c in range(per_group):
            row = cells + i * x_h + c * x_c
            value = tl.load(row, mask=inside, other=0.0).to(tl.float64) - shift
            total += value
            square += value * value
    n = per_group * row_size
    for k in range(k_begin, k_end):
        mean = total / n
        deviation = tl.maximum(square - total * mean, 0.0, propagate_nan=tl.PropagateNan.ALL)
        at = (local.to(tl.int64) * row_count + k) * width + column
        tl.store(means + at, mean.to(tl.float32), mask=inside)
        tl.store(squares + at, deviation.to(tl.float32), mask=inside)
        if k + 1 < k_end:
            for c in range(per_group):
                old = cells + (k + offset) * x_h + c * x_c
                new = old + row_size * x_h
                a = tl.load(new, mask=inside, other=0.0).to(tl.float64) - shift
                b = tl.load(old, mask=inside, other=0.0).to(tl.float64) - shift
                total += a - b
                square += (a - b) * (a + b)


@triton.jit
def _moments_of_row(
    means, squares, column_base, width, per_group, row_size, col_count, col_size, offset, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean (from the shift) and rstd of the windows of the cells of a row, from column moments."""
    j = tl.arange(0, BLOCK)
    n = per_group * row_size
    # The first window as a whole ...
    starts = j < col_size
    mean = tl.load(means + column_base + j + offset, mask=starts, other=0.0).to(tl.float64)
    m2 = tl.load(squares + column_base + j + offset, mask=starts, other=0.0).to(tl.float64)
    first = tl.sum(mean)
    first_square = tl.sum(m2 + n * mean * mean)
    # ... and what each next one has more: a column on the right, minus one on the left.
    k = j - col_size // 2
    moves = (k >= 1) & (k < col_count)
    right = means + column_base + k + offset + col_size - 1
    a = tl.load(right, mask=moves, other=0.0).to(tl.float64)
    b = tl.load(means + column_base + k + offset - 1, mask=moves, other=0.0).to(tl.float64)
    right = squares + column_base + k + offset + col_size - 1
    a2 = tl.load(right, mask=moves, other=0.0).to(tl.float64)
    b2 = tl.load(squares + column_base + k + offset - 1, mask=moves, other=0.0).to(tl.float64)
    total = first + tl.cumsum(a - b)
    square = first_square + tl.cumsum(a2 - b2 + n * (a - b) * (a + b))
    mean = total / col_size
    variance = square / (n * col_size) - mean * mean
    variance = tl.maximum(variance, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return mean, 1.0 / tl.sqrt(variance + eps)


@triton.jit
def _window_row_of(i, row_count, row_size):
    return tl.minimum(tl.maximum(i - row_size // 2, 0), row_count - 1)


@triton.jit
def normalize(
    x, y, weight, bias, means, squares, first_group, groups, per_group, height, width,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w,
    row_count, row_size, col_count, col_size, offset, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One output row of a group."""
    local, i = tl.program_id(0), tl.program_id(1)
    group = first_group + local
    n, first_channel = (group // groups).to(tl.int64), (group % groups) * per_group
    k = _window_row_of(i, row_count, row_size)
    mean, rstd = _moments_of_row(
        means, squares, (local.to(tl.int64) * row_count + k) * width, width, per_group, row_size,
        col_count, col_size, offset, eps, BLOCK,
    )  # fmt: skip
    mean += _first_value(x, group, groups, per_group, x_n, x_c)
    j = tl.arange(0, BLOCK)
    inside = j < width
    for c in range(per_group):
        channel = first_channel + c
        at = n * x_n + channel * x_c + i * x_h + j * x_w
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float64)
        scale = tl.load(weight + channel).to(tl.float64)
        result = (value - mean) * rstd * scale + tl.load(bias + channel).to(tl.float64)
        at = n * y_n + channel * y_c + i * y_h + j * y_w
        tl.store(y + at, result.to(tl.float32).to(y.dtype.element_ty), mask=inside)


@triton.jit
def gradient_terms(
    x, grad, out, weight, means, squares, terms_p, terms_q, partial,
    first_group, groups, per_group, height, width,
    x_n, x_c, x_h, x_w, g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w,
    row_count, row_size, col_count, col_size, offset, eps,
    DETACHED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """P and Q (see :mod:`lcn.kernels.cpu_loops`) of the cells of one output row of a group, and the
    row's part of the gradients of weight and bias: ``partial`` ``[groups * per_group, height, 2]``.

    If no gradient flows through the statistics, the input's gradient at once.
    """
    local, i = tl.program_id(0), tl.program_id(1)
    group = first_group + local
    n, first_channel = (group // groups).to(tl.int64), (group % groups) * per_group
    k = _window_row_of(i, row_count, row_size)
    mean, rstd = _moments_of_row(
        means, squares, (local.to(tl.int64) * row_count + k) * width, width, per_group, row_size,
        col_count, col_size, offset, eps, BLOCK,
    )  # fmt: skip
    shift = _first_value(x, group, groups, per_group, x_n, x_c)
    j = tl.arange(0, BLOCK)
    inside = j < width
    a = tl.zeros([BLOCK], tl.float64)
    b = tl.zeros([BLOCK], tl.float64)
    for c in range(per_group):
        channel = first_channel + c
        at = n * x_n + channel * x_c + i * x_h + j * x_w
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float64) - shift - mean
        at = n * g_n + channel * g_c + i * g_h + j * g_w
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float64)
        scale = tl.load(weight + channel).to(tl.float64)
        product = tl.where(inside, g * value, 0.0)
        at = ((group.to(tl.int64) * per_group + c) * height + i) * 2
        tl.store(partial + at, tl.sum(product * rstd))
        tl.store(partial + at + 1, tl.sum(g))
        if DETACHED:
            at = n * y_n + channel * y_c + i * y_h + j * y_w
            result = (g * scale * rstd).to(tl.float32)
            tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)
        else:
            a += g * scale
            b += product * scale
    if not DETACHED:
        count = per_group * row_size * col_size
        q = rstd * rstd * rstd * b / count
        p = rstd * a / count - mean * q
        at = (local.to(tl.int64) * height + i) * width + j
        tl.store(terms_p + at, p.to(tl.float32), mask=inside)
        tl.store(terms_q + at, q.to(tl.float32), mask=inside)


@triton.jit
def _first_row_held(u, length, count, size):
    """First output row (or column) whose window holds ``u``."""
    k = u - size + 1
    return tl.where(k <= 0, 0, k + size // 2)


@triton.jit
def _stop_row_held(u, length, count, size):
    """One past the last output row (or column) whose window holds ``u``."""
    return tl.where(u >= count - 1, length, u + size // 2 + 1)


@triton.jit
def sum_terms_down(
    terms_p, terms_q, sums_p, sums_q, height, width, row_count, row_size, band,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """P and Q summed, for each input row, over the output rows whose windows hold it."""
    plane = tl.program_id(0).to(tl.int64) * height * width
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    u_begin = tl.program_id(2) * band
    u_end = tl.minimum(u_begin + band, height)
    first = _first_row_held(u_begin, height, row_count, row_size)
    stop = first
    total_p = tl.zeros([BLOCK], tl.float64)
    total_q = tl.zeros([BLOCK], tl.float64)
    for u in range(u_begin, u_end):
        new_first = _first_row_held(u, height, row_count, row_size)
        new_stop = _stop_row_held(u, height, row_count, row_size)
        for i in range(stop, new_stop):
            at = plane + i * width + column
            total_p += tl.load(terms_p + at, mask=inside, other=0.0).to(tl.float64)
            total_q += tl.load(terms_q + at, mask=inside, other=0.0).to(tl.float64)
        for i in range(first, new_first):
            at = plane + i * width + column
            total_p -= tl.load(terms_p + at, mask=inside, other=0.0).to(tl.float64)
            total_q -= tl.load(terms_q + at, mask=inside, other=0.0).to(tl.float64)
        first, stop = new_first, new_stop
        at = plane + u * width + column
        tl.store(sums_p + at, total_p.to(tl.float32), mask=inside)
        tl.store(sums_q + at, total_q.to(tl.float32), mask=inside)


@triton.jit
def _sum_terms_along(sums, base, width, col_count, col_size, BLOCK: tl.constexpr):
    """For each column the sum over the output columns whose windows hold it."""
    j = tl.arange(0, BLOCK)
    half = col_size // 2
    value = tl.load(sums + base + j, mask=j < width, other=0.0).to(tl.float64)
    # The cells at the left border share window 0, those at the right border the last.
    head = tl.sum(tl.where(j <= half, value, 0.0))
    tail = tl.sum(tl.where(j >= col_count - 1 + half, value, 0.0))
    enters = tl.load(sums + base + j + half, mask=(j >= 1) & (j < col_count - 1), other=0.0).to(
        tl.float64
    )
    enters = tl.where((j == 0) & (col_count > 1), head, enters)
    enters = tl.where((j == col_count - 1), tl.where(col_count > 1, tail, tl.sum(value)), enters)
    leaves = tl.load(
        sums + base + j - col_size + half, mask=(j > col_size) & (j < width), other=0.0
    ).to(tl.float64)
    leaves = tl.where(j == col_size, head, leaves)
    return tl.cumsum(enters - leaves)


@triton.jit
def input_gradient(
    x, grad, out, weight, means, squares, sums_p, sums_q,
    first_group, groups, per_group, height, width,
    x_n, x_c, x_h, x_w, g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w,
    row_count, row_size, col_count, col_size, eps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of one input row of a group."""
    local, u = tl.program_id(0), tl.program_id(1)
    group = first_group + local
    n, first_channel = (group // groups).to(tl.int64), (group % groups) * per_group
    k = _window_row_of(u, row_count, row_size)
    _, rstd = _moments_of_row(
        means, squares, (local.to(tl.int64) * row_count + k) * width, width, per_group, row_size,
        col_count, col_size, 0, eps, BLOCK,
    )  # fmt: skip
    row = (local.to(tl.int64) * height + u) * width
    p = _sum_terms_along(sums_p, row, width, col_count, col_size, BLOCK)
    q = _sum_terms_along(sums_q, row, width, col_count, col_size, BLOCK)
    shift = _first_value(x, group, groups, per_group, x_n, x_c)
    j = tl.arange(0, BLOCK)
    inside = j < width
    for c in range(per_group):
        channel = first_channel + c
        at = n * x_n + channel * x_c + u * x_h + j * x_w
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float64) - shift
        at = n * g_n + channel * g_c + u * g_h + j * g_w
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float64)
        result = g * tl.load(weight + channel).to(tl.float64) * rstd - p - value * q
        at = n * y_n + channel * y_c + u * y_h + j * y_w
        tl.store(out + at, result.to(tl.float32).to(out.dtype.element_ty), mask=inside)
