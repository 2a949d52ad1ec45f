"""Triton kernels of the GPU kernel; :mod:`lcn.kernels.gpu` launches them, docs/gpu.md explains them
and counts what they move and compute.

A program takes a tile: ``ROWS`` rows by ``LANES`` columns of ``GROUPS`` neighbouring groups (one in
NCHW; in channels-last as many as fill a sector of memory).  Tensors of a tile are
``[ROWS, LANES, GROUPS]``, in loops over channels with ``CHANNELS`` of them as a fourth axis.

No sum slides and nothing is subtracted from a sum: a window is put together from blocks, so that a
NaN or a very large value reaches the windows that hold it and no other.  Sums are of ``x - shift``
in float32, where the shift is a value (or the mean of a column) that lies inside each window it is
used for: near, so that an offset or a ramp costs no digits, and harmless, since what it spoils
holds it anyway.  ``ACC`` is float32, or float64 for float64 inputs.
"""

# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def _window_start(cell, count, size):
    return tl.minimum(tl.maximum(cell - size // 2, 0), count - 1)


@triton.jit
def _larger_or_nan(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _rsqrt(v):
    """The hardware's ``rsqrt`` is off by some units in the last place: one step of Newton's."""
    r = tl.rsqrt(v)
    half = 0.5 * r
    product = v * r
    # 1 - v r^2, with what rounding took from the product.
    error = tl.fma(-product, r, tl.full(v.shape, 1.0, v.dtype))
    error = tl.fma(-tl.fma(v, r, -product), r, error)
    # Neither 0 nor infinity (whose product is NaN) gets closer.
    return tl.where(tl.abs(error) < 1, tl.fma(half, error, r), r)


@triton.jit
def _product(a, b):
    """And what rounding takes from it."""
    product = a * b
    return product, tl.fma(a, b, -product)


@triton.jit
def _split(values, SUB: tl.constexpr):
    """[..., LANES, GROUPS] with lane ``SUB b + s`` at ``s LANES / SUB + b``, which Triton's layouts
    give to one thread for all s: sums along the lanes then need few exchanges between threads."""
    if len(values.shape) == 2:
        LANES: tl.constexpr = values.shape[0]
        parts = tl.reshape(values, [LANES // SUB, SUB, values.shape[1]])
        parts = tl.permute(parts, (1, 0, 2))
    else:
        ROWS: tl.constexpr = values.shape[0]
        THREADS: tl.constexpr = values.shape[1] // SUB
        parts = tl.reshape(values, [ROWS, THREADS, SUB, values.shape[2]])
        parts = tl.permute(parts, (0, 2, 1, 3))
    return tl.reshape(parts, values.shape)


@triton.jit
def _lanes_split(LANES: tl.constexpr, SUB: tl.constexpr):
    """The lane at each place."""
    place = tl.arange(0, LANES)
    return place % (LANES // SUB) * SUB + place // (LANES // SUB)


@triton.jit
def _take(values, lanes, SUB: tl.constexpr):
    """Split ``values`` [ROWS, LANES, GROUPS] at ``lanes`` [LANES].

    As one long axis: along an axis that fits a warp Triton gathers by shuffles, dozens a value.
    """
    ROWS: tl.constexpr = values.shape[0]
    LANES: tl.constexpr = values.shape[1]
    GROUPS: tl.constexpr = values.shape[2]
    r = tl.arange(0, ROWS)[:, None, None]
    place = lanes % SUB * (LANES // SUB) + lanes // SUB
    index = (r * LANES + place[None, :, None]) * GROUPS + tl.arange(0, GROUPS)[None, None, :]
    size: tl.constexpr = ROWS * LANES * GROUPS
    taken = tl.gather(tl.reshape(values, [size]), tl.reshape(index, [size]), 0)
    return tl.reshape(taken, values.shape)


@triton.jit
def _sums_to_the_last(values):
    """[A, N, ...] -> for each of N the sum of it and those after it.

    ``cumsum(reverse=True)`` would turn the whole tile around by shuffles.  Where one thread has all
    N the conditions are known when this is compiled, and adding -0 is no instruction.
    """
    N: tl.constexpr = values.shape[1]
    n = tl.arange(0, N)
    after = n[:, None] <= n[None, :]
    return tl.sum(tl.where(after[None, :, :, None, None], values[:, None, :, :, :], -0.0), 2)


@triton.jit
def _running_sums(values, reverse: tl.constexpr, SEGMENT: tl.constexpr, SUB: tl.constexpr):
    """Of split ``values`` within segments of lanes: from the first, or from the last if reverse."""
    ROWS: tl.constexpr = values.shape[0]
    THREADS: tl.constexpr = values.shape[1] // SUB
    GROUPS: tl.constexpr = values.shape[2]
    if SEGMENT == 1:
        sums = values
    elif SEGMENT <= SUB:
        sums = tl.reshape(values, [ROWS * (SUB // SEGMENT), SEGMENT, THREADS, GROUPS])
        if reverse:
            sums = _sums_to_the_last(sums)
        else:
            sums = tl.cumsum(sums, 1)
    else:
        ACROSS: tl.constexpr = SEGMENT // SUB
        sums = tl.reshape(values, [ROWS, SUB, THREADS, GROUPS])
        whole = tl.sum(sums, 1)
        thread = tl.arange(0, THREADS)
        if reverse:
            whole = _take(whole, thread * -1 + (THREADS - 1), 1)
            sums = _sums_to_the_last(sums)
            previous = tl.maximum(thread * -1 + (THREADS - 2), 0)
            has = thread % ACROSS < ACROSS - 1
        else:
            sums = tl.cumsum(sums, 1)
            previous = tl.maximum(thread - 1, 0)
            has = thread % ACROSS > 0
        before = tl.cumsum(tl.reshape(whole, [ROWS, THREADS // ACROSS, ACROSS, GROUPS]), 2)
        before = _take(tl.reshape(before, whole.shape), previous, 1)
        sums += tl.where(has[None, :, None], before, 0.0)[:, None, :, :]
    return tl.reshape(sums, values.shape)


@triton.jit
def _down_and_up(fixed, leaving, entering):
    """Sums over the rows of each window of a tile from those of its rows.

    ``fixed`` [1, LANES, GROUPS] is of the rows that all windows hold; row r of ``leaving`` is held
    by windows 0 to r, row r of ``entering`` by window r and those below.
    """
    leaving = tl.reshape(_sums_to_the_last(leaving[None, :, :, :]), leaving.shape)
    return fixed + (leaving + tl.cumsum(entering, 0))


@triton.jit
def _deviations(x, at, inside, near, CHANNELS: tl.constexpr, ACC: tl.constexpr):
    """``x - near``, zero where there is no cell."""
    value = tl.load(x + at, mask=inside, other=0.0).to(ACC) - near
    if CHANNELS > 1:  # else near is zero where nothing is inside
        value = tl.where(inside, value, 0.0)
    return value


@triton.jit
def _over_channels(values):
    """Sum over the last axis."""
    return tl.sum(values, len(values.shape) - 1)


@triton.jit
def _sums_of_rows(
    x, lanes, inside, near, rows, valid, x_c, x_h, per_group: tl.constexpr,
    CHANNELS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Of each of ``rows`` [ROWS] that is ``valid``: sums of deviations and of their squares."""
    ROWS: tl.constexpr = rows.shape[0]
    channel = tl.arange(0, CHANNELS)[None, None, None, :]
    at = rows[:, None, None, None] * x_h + lanes[None, :, :, None] + channel * x_c
    valid = valid[:, None, None, None] & inside[None, :, :, None]
    shift = tl.where(valid, near[None, :, :, None], 0.0)
    shape: tl.constexpr = [ROWS, near.shape[0], near.shape[1], CHANNELS]
    total = tl.zeros(shape, ACC)
    square = tl.zeros(shape, ACC)
    for c in range(0, per_group, CHANNELS):
        value = _deviations(
            x, at + c * x_c, valid & (c + channel < per_group), shift, CHANNELS, ACC
        )
        total += value
        square += value * value
    return _over_channels(total), _over_channels(square)


@triton.jit
def _sums_of_columns(
    x, lanes, inside, near, first, stop, x_c, x_h, per_group: tl.constexpr, total, square,
    CHANNELS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Adds rows ``first`` to ``stop`` to ``total`` and ``square`` [LANES, GROUPS]."""
    channel = tl.arange(0, CHANNELS)[None, None, :]
    at = lanes[:, :, None] + channel * x_c
    inside = inside[:, :, None]
    shift = tl.where(inside, near[:, :, None], 0.0)
    shape: tl.constexpr = [near.shape[0], near.shape[1], CHANNELS]
    more = tl.zeros(shape, ACC)
    more_square = tl.zeros(shape, ACC)
    for i in range(first, stop):
        for c in range(0, per_group, CHANNELS):
            value = _deviations(
                x, at + i * x_h + c * x_c, inside & (c + channel < per_group), shift, CHANNELS, ACC
            )
            more += value
            more_square += value * value
    return total + _over_channels(more), square + _over_channels(more_square)


@triton.jit
def _moments_down(
    x, blocks, lanes, block_lanes, inside, x_c, x_h, block_size, per_group: tl.constexpr,
    i, row_count, row_size, offset,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, SUB: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Sums over the window's rows of each column, for the windows of output rows ``i ...``.

    Returns the shift [LANES, GROUPS] and, split, the sums of ``x - shift`` and of squares
    [ROWS, LANES, GROUPS].
    """
    r = tl.arange(0, ROWS)
    start = _window_start(i + r, row_count, row_size) + offset
    following = _window_start(i + r + 1, row_count, row_size) + offset
    previous = _window_start(i + r - 1, row_count, row_size) + offset
    first = _window_start(i + ROWS - 1, row_count, row_size) + offset
    stop = _window_start(i, row_count, row_size) + offset + row_size
    middle = (first + stop - 1) // 2
    near = tl.load(x + lanes + middle * x_h, mask=inside, other=0.0).to(ACC)
    total = tl.zeros(near.shape, ACC)
    square = tl.zeros(near.shape, ACC)
    until = stop
    if BLOCK_ROWS > 0:
        first_block = (first + BLOCK_ROWS - 1) // BLOCK_ROWS
        stop_block = tl.maximum(stop // BLOCK_ROWS, first_block)
        until = tl.minimum(stop, first_block * BLOCK_ROWS)
    total, square = _sums_of_columns(
        x, lanes, inside, near, first, until, x_c, x_h, per_group, total, square, CHANNELS, ACC
    )
    if BLOCK_ROWS > 0:
        n = tl.full((), per_group * BLOCK_ROWS, ACC)
        for b in range(first_block, stop_block):
            at = blocks + b * (3 * block_size) + block_lanes
            mean = tl.load(at, mask=inside, other=0.0)
            rest = tl.load(at + block_size, mask=inside, other=0.0)
            rest_square = tl.load(at + 2 * block_size, mask=inside, other=0.0)
            d = mean - near
            total += rest + n * d
            square += rest_square + d * (2 * rest + n * d)
        total, square = _sums_of_columns(
            x, lanes, inside, near, tl.maximum(stop_block * BLOCK_ROWS, until), stop, x_c, x_h,
            per_group, total, square, CHANNELS, ACC,
        )  # fmt: skip
    total, square = _split(total, SUB)[None, :, :], _split(square, SUB)[None, :, :]
    if ROWS > 1:
        leaves, leaves_square = _sums_of_rows(
            x, lanes, inside, near, start, (start < following) & (r < ROWS - 1), x_c, x_h,
            per_group, CHANNELS, ACC,
        )  # fmt: skip
        enters, enters_square = _sums_of_rows(
            x, lanes, inside, near, previous + row_size, (previous < start) & (r > 0), x_c, x_h,
            per_group, CHANNELS, ACC,
        )  # fmt: skip
        total = _down_and_up(total, _split(leaves, SUB), _split(enters, SUB))
        square = _down_and_up(square, _split(leaves_square, SUB), _split(enters_square, SUB))
    return near, total, square


@triton.jit
def _merge(n, shift, mean, m2, part_n, part_total, part_square, part_shift):
    """Adds a part, given by its sums of ``x - part_shift``, to a mean (``x - shift``) and M2."""
    part_mean = part_total * (1 / tl.maximum(part_n, 1))
    part_m2 = _larger_or_nan(part_square - part_total * part_mean, 0.0)
    share = part_n / (n + part_n)
    d = (part_shift - shift) + (part_mean - mean)
    # Where the window has no such part its values are of other windows, perhaps NaN.
    has = part_n > 0
    mean = tl.where(has, mean + d * share, mean)
    return mean, tl.where(has, (m2 + part_m2) + d * d * (n * share), m2)


@triton.jit
def _moments_along(
    near, total, square, begin, n_column, col_size, eps,
    SEGMENT: tl.constexpr, SUB: tl.constexpr,
):  # fmt: skip
    """Shift, mean minus shift, and rstd of windows that begin at lanes ``begin`` [LANES].

    ``near``, ``total``, ``square`` are split.  A window is the end of one segment of lanes, perhaps
    a second segment, and the beginning of one.
    """
    LANES: tl.constexpr = near.shape[0]
    lane = _lanes_split(LANES, SUB)
    near = near[None, :, :]
    mean = near + total * (1 / n_column)
    head = lane // SEGMENT * SEGMENT
    # As the end of a segment a lane's shift is the mean of the last column, else of the first.
    d = near - _take(mean, head + SEGMENT - 1, SUB)
    suffix = _running_sums(total + n_column * d, True, SEGMENT, SUB)
    suffix_square = _running_sums(square + d * (2 * total + n_column * d), True, SEGMENT, SUB)
    d = near - _take(mean, head, SUB)
    prefix = _running_sums(total + n_column * d, False, SEGMENT, SUB)
    prefix_square = _running_sums(square + d * (2 * total + n_column * d), False, SEGMENT, SUB)

    last = tl.minimum(begin + col_size - 1, LANES - 1)
    head = last // SEGMENT * SEGMENT
    second = (begin // SEGMENT + 1) * SEGMENT
    n = ((last - head + 1) * n_column)[None, :, None]
    shift = _take(mean, head, SUB)
    part = _take(prefix, last, SUB)
    window_mean = part * (1 / n)
    m2 = _larger_or_nan(_take(prefix_square, last, SUB) - part * window_mean, 0.0)
    part_n = (tl.where(second <= head, second - begin, 0) * n_column)[None, :, None]
    window_mean, m2 = _merge(
        n, shift, window_mean, m2, part_n, _take(suffix, begin, SUB),
        _take(suffix_square, begin, SUB), _take(mean, tl.minimum(second - 1, LANES - 1), SUB),
    )  # fmt: skip
    n += part_n
    part_n = (tl.where(second < head, SEGMENT, 0) * n_column)[None, :, None]
    end = tl.minimum(second + SEGMENT - 1, LANES - 1)
    window_mean, m2 = _merge(
        n, shift, window_mean, m2, part_n, _take(prefix, end, SUB), _take(prefix_square, end, SUB),
        _take(mean, tl.minimum(second, LANES - 1), SUB),
    )  # fmt: skip
    # The quotient by the count with what rounding takes from its inverse.
    count = n_column * col_size
    inverse = 1 / count
    rest = tl.fma(-inverse, count, tl.full(count.shape, 1.0, count.dtype)) * inverse
    return shift, window_mean, _rsqrt(tl.fma(m2, tl.broadcast_to(inverse, m2.shape), m2 * rest + eps))


@triton.jit
def _position(first, groups, GROUPS: tl.constexpr):
    """Of a program: sample and groups (``first`` and later) and which of these exist."""
    blocks = (groups + GROUPS - 1) // GROUPS
    g = first % blocks * GROUPS + tl.arange(0, GROUPS)
    return (first // blocks).to(tl.int64), g, g < groups


@triton.jit
def block_sums(
    x,  # [N, C, H, W]
    blocks,  # [plane, block of rows, 3, W, GROUPS]: mean, rests of the sums of x - mean and squares
    first, groups, per_group: tl.constexpr, height, width, x_n, x_c, x_h, x_w,
    LANES: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Sums of each column over ``BLOCK_ROWS`` rows, which larger windows are put together from."""
    plane, b = tl.program_id(0), tl.program_id(1)
    n, group, exists = _position(first + plane, groups, GROUPS)
    column = tl.program_id(2) * LANES + tl.arange(0, LANES)
    inside = (column < width)[:, None] & exists[None, :]
    lanes = column[:, None] * x_w + (group * (per_group * x_c))[None, :]
    x += n * x_n
    i = b * BLOCK_ROWS
    near = tl.load(x + lanes + (i + BLOCK_ROWS // 2) * x_h, mask=inside, other=0.0).to(ACC)
    total = tl.zeros(near.shape, ACC)
    square = tl.zeros(near.shape, ACC)
    total, square = _sums_of_columns(
        x, lanes, inside, near, i, i + BLOCK_ROWS, x_c, x_h, per_group, total, square, CHANNELS, ACC
    )
    count = tl.full((), per_group * BLOCK_ROWS, ACC)
    mean = near + total / count
    d = near - mean
    size = width * GROUPS
    at = blocks + (plane.to(tl.int64) * (height // BLOCK_ROWS) + b) * (3 * size)
    at += column[:, None] * GROUPS + tl.arange(0, GROUPS)[None, :]
    tl.store(at, mean, mask=inside)
    tl.store(at + size, total + count * d, mask=inside)
    tl.store(at + 2 * size, square + d * (2 * total + count * d), mask=inside)


@triton.jit
def _tile_moments(
    x, blocks, plane, i, k, group, exists, per_group: tl.constexpr, height, width, x_c, x_h, x_w,
    row_count, row_size, col_count, col_size, offset, eps,
    ROWS: tl.constexpr, LANES: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr,
    SEGMENT: tl.constexpr, SUB: tl.constexpr, BLOCK_ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Of the cells at rows ``i ...`` and columns ``k ...``: the lane where the window begins,
    the value there that the tile's windows have in common, and the window's shift, mean minus
    shift, rstd.  ``x`` points at the sample."""
    lane = tl.arange(0, LANES)
    column = k + offset + lane
    inside = (column < width)[:, None] & exists[None, :]
    lanes = column[:, None] * x_w + (group * (per_group * x_c))[None, :]
    block_lanes = column[:, None] * GROUPS + tl.arange(0, GROUPS)[None, :]
    size = width * GROUPS
    if BLOCK_ROWS > 0:
        blocks += plane.to(tl.int64) * (height // BLOCK_ROWS) * (3 * size)
    near, total, square = _moments_down(
        x, blocks, lanes, block_lanes, inside, x_c, x_h, size, per_group,
        i, row_count, row_size, offset, ROWS, CHANNELS, SUB, BLOCK_ROWS, ACC,
    )  # fmt: skip
    begin = _window_start(k + lane, col_count, col_size) - k
    begin = tl.minimum(tl.maximum(begin, 0), LANES - 1)
    n_column = tl.full((), per_group * row_size, ACC)
    shift, mean, rstd = _moments_along(
        _split(near, SUB), total, square, begin, n_column, col_size, eps, SEGMENT, SUB
    )
    return begin, near, shift, mean, rstd


@triton.jit
def _cells_of_tile(
    i, k, height, width, col_count, col_size, exists,
    ROWS: tl.constexpr, LANES: tl.constexpr, WINDOWS: tl.constexpr,
):  # fmt: skip
    """Row and column of the tile's cells, and which are its own: those of its ``WINDOWS`` windows."""
    row = i + tl.arange(0, ROWS)
    column = k + tl.arange(0, LANES)
    window = _window_start(column, col_count, col_size)
    own = (column < width) & (window >= k) & (window < k + WINDOWS)
    own = (row < height)[:, None, None] & own[None, :, None] & exists[None, None, :]
    return row[:, None, None], column[None, :, None], own


@triton.jit
def normalize(
    x,  # [N, C, H, W]
    y,  # as x
    weight,  # [C]
    bias,  # [C]
    blocks,  # [plane, block of rows, 3, W, GROUPS]
    first, groups, per_group: tl.constexpr, height, width, x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w,
    row_count, row_size, col_count, col_size, offset, eps: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, WINDOWS: tl.constexpr, GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr, SEGMENT: tl.constexpr, SUB: tl.constexpr, BLOCK_ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The layer."""
    plane, i, k = tl.program_id(0), tl.program_id(1) * ROWS, tl.program_id(2) * WINDOWS
    n, group, exists = _position(first + plane, groups, GROUPS)
    x += n * x_n
    y += n * y_n
    _, _, shift, mean, rstd = _tile_moments(
        x, blocks, plane, i, k, group, exists, per_group, height, width, x_c, x_h, x_w,
        row_count, row_size, col_count, col_size, offset, tl.full((), eps, ACC),
        ROWS, LANES, GROUPS, CHANNELS, SEGMENT, SUB, BLOCK_ROWS, ACC,
    )  # fmt: skip
    row, column, own = _cells_of_tile(
        i, k, height, width, col_count, col_size, exists, ROWS, LANES, WINDOWS
    )
    first_channel = group[None, None, :] * per_group
    x_at = (row * x_h + column * x_w + first_channel * x_c)[:, :, :, None]
    y_at = (row * y_h + column * y_w + first_channel * y_c)[:, :, :, None]
    # x - high is exact where x is near; what rounding took from the sum goes with the bias.
    high = shift + mean
    low = ((shift - high) + mean)[:, :, :, None]
    high, rstd, own = high[:, :, :, None], rstd[:, :, :, None], own[:, :, :, None]
    for c0 in range(0, per_group, CHANNELS):
        c = c0 + tl.arange(0, CHANNELS)[None, None, None, :]
        mask = own & (c < per_group)
        value = tl.load(x + x_at + c * x_c, mask=mask, other=0.0).to(ACC)
        of_channel = (c < per_group) & exists[None, None, :, None]
        scale = tl.load(weight + first_channel[:, :, :, None] + c, mask=of_channel, other=0.0)
        add = tl.load(bias + first_channel[:, :, :, None] + c, mask=of_channel, other=0.0)
        factor, rest = _product(rstd, scale.to(ACC))
        distance = value - high
        result = tl.fma(distance, factor, tl.fma(distance, rest, add.to(ACC) - low * factor))
        tl.store(y + y_at + c * y_c, result.to(y.dtype.element_ty), mask=mask)


@triton.jit
def gradient_terms(
    x,  # [N, C, H, W]
    grad,  # as x
    out,  # as x; written if DETACHED
    weight,  # [C]
    blocks,  # [plane, block of rows, 3, W, GROUPS]
    terms,  # [plane, 2, H, col_count, GROUPS]: P and Q of each row of cells
    edges,  # [plane, tile of rows, 3, 2, col_count, GROUPS]: their sums, see below
    shifts,  # [plane, tile of rows, col_count, GROUPS]: which P is meant for
    rstds,  # [plane, H, W, GROUPS]
    partial,  # [N, C, tile of rows, tile of columns, 2]
    first, groups, per_group: tl.constexpr, height, width,
    x_n, x_c, x_h, x_w, g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w,
    row_count, row_size, col_count, col_size, offset, eps: tl.constexpr,
    DETACHED: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, WINDOWS: tl.constexpr,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, SEGMENT: tl.constexpr, SUB: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What the gradient of the input is put together from, and parts of those of weight and bias.

    The gradient is ``g w rstd`` of a cell minus the sum of ``A + (x - mean) Q`` over the cells
    whose windows hold it, with ``A = rstd sum(g w) / count`` and
    ``Q = rstd^3 sum(g w (x - mean)) / count``.  Stored are ``P = A - (mean - shift) Q`` and ``Q``,
    cells of a row that share a window added up.  ``edges`` has the sums over the tile's rows whose
    window is the uppermost, the lowest, and any other.
    If no gradient flows through the statistics, ``out`` is the gradient.
    """
    plane, tile, k = tl.program_id(0), tl.program_id(1), tl.program_id(2) * WINDOWS
    i = tile * ROWS
    n, group, exists = _position(first + plane, groups, GROUPS)
    x += n * x_n
    grad += n * g_n
    begin, near, shift, mean, rstd = _tile_moments(
        x, blocks, plane, i, k, group, exists, per_group, height, width, x_c, x_h, x_w,
        row_count, row_size, col_count, col_size, offset, tl.full((), eps, ACC),
        ROWS, LANES, GROUPS, CHANNELS, SEGMENT, SUB, BLOCK_ROWS, ACC,
    )  # fmt: skip
    row, column, own = _cells_of_tile(
        i, k, height, width, col_count, col_size, exists, ROWS, LANES, WINDOWS
    )
    first_channel = group[None, None, :] * per_group
    x_at = (row * x_h + column * x_w + first_channel * x_c)[:, :, :, None]
    g_at = (row * g_h + column * g_w + first_channel * g_c)[:, :, :, None]
    y_at = (row * y_h + column * y_w + first_channel * y_c)[:, :, :, None]
    shape: tl.constexpr = [ROWS, LANES, GROUPS, CHANNELS]
    a = tl.zeros(shape, ACC)
    b = tl.zeros(shape, ACC)
    tiles = tl.num_programs(1) * tl.num_programs(2)
    partial += ((n * groups * per_group) * tiles + tile * tl.num_programs(2) + tl.program_id(2)) * 2
    for c0 in range(0, per_group, CHANNELS):
        c = c0 + tl.arange(0, CHANNELS)[None, None, None, :]
        mask = own[:, :, :, None] & (c < per_group)
        value = tl.load(x + x_at + c * x_c, mask=mask, other=0.0).to(ACC)
        g = tl.load(grad + g_at + c * g_c, mask=mask, other=0.0).to(ACC)
        of_channel = (c < per_group) & exists[None, None, :, None]
        at = first_channel[:, :, :, None] + c
        scale = tl.load(weight + at, mask=of_channel, other=0.0).to(ACC)
        product = g * ((value - shift[:, :, :, None]) - mean[:, :, :, None])
        product = tl.where(mask, product, 0.0)
        normalized = product * tl.where(own, rstd, 0.0)[:, :, :, None]
        at = tl.reshape(partial + at * tiles * 2, [GROUPS, CHANNELS])
        of_channel = tl.reshape(of_channel, [GROUPS, CHANNELS])
        tl.store(at, tl.sum(tl.sum(normalized, 0), 0), mask=of_channel)
        tl.store(at + 1, tl.sum(tl.sum(g, 0), 0), mask=of_channel)
        if DETACHED:
            result = (g * scale * rstd[:, :, :, None]).to(out.dtype.element_ty)
            tl.store(out + n * y_n + y_at + c * y_c, result, mask=mask)
        else:
            a += g * scale
            b += product * scale
    if not DETACHED:
        count = tl.full((), per_group * row_size, ACC) * col_size
        lane = tl.arange(0, LANES)
        of_window = _take(near[None, :, :], begin, 1)
        q = rstd * rstd * rstd * _over_channels(b) * (1 / count)
        p = rstd * _over_channels(a) * (1 / count) - ((shift - of_window) + mean) * q
        p = tl.where(own, p, 0.0)
        q = tl.where(own, q, 0.0)
        # Cells left and right of the middle of the outermost windows use these windows too.
        window = k + begin
        middle = k + lane - col_size // 2
        if k == 0:
            is_first = (window == 0)[None, :, None]
            at_first = (middle == 0)[None, :, None]
            p = tl.where(at_first, tl.sum(tl.where(is_first, p, 0.0), 1)[:, None, :], p)
            q = tl.where(at_first, tl.sum(tl.where(is_first, q, 0.0), 1)[:, None, :], q)
        if k + WINDOWS >= col_count:
            is_last = (window == col_count - 1)[None, :, None] & (col_count > 1)
            at_last = (middle == col_count - 1)[None, :, None] & (col_count > 1)
            p = tl.where(at_last, tl.sum(tl.where(is_last, p, 0.0), 1)[:, None, :], p)
            q = tl.where(at_last, tl.sum(tl.where(is_last, q, 0.0), 1)[:, None, :], q)
        owned = (middle >= k) & (middle < tl.minimum(k + WINDOWS, col_count))
        owned = owned[:, None] & exists[None, :]
        g = tl.arange(0, GROUPS)[None, :]
        size = col_count * GROUPS
        at = middle[:, None] * GROUPS + g
        tl.store(
            shifts + (plane.to(tl.int64) * tl.num_programs(1) + tile) * size
            + (k + lane)[:, None] * GROUPS + g,
            near,
            mask=(lane < tl.minimum(WINDOWS, col_count - k))[:, None] & exists[None, :],
        )  # fmt: skip
        here = (plane.to(tl.int64) * tl.num_programs(1) + tile) * (6 * size) + at
        top = _window_start(row, row_count, row_size) == 0
        bottom = _window_start(row, row_count, row_size) == row_count - 1
        for part in tl.static_range(3):
            if part == 0:
                chosen = top
            elif part == 1:
                chosen = bottom & (row_count > 1)
            else:
                chosen = (top | bottom) == 0
            if (tl.sum(chosen.to(tl.int32)) > 0) | (part == 2):
                sums = edges + here + part * 2 * size
                tl.store(sums, tl.sum(tl.where(chosen, p, 0.0), 0), mask=owned)
                tl.store(sums + size, tl.sum(tl.where(chosen, q, 0.0), 0), mask=owned)
        owned = owned[None, :, :] & (row < height)
        here = plane.to(tl.int64) * (2 * height) * size + row * size + at[None, :, :]
        tl.store(terms + here, p, mask=owned)
        tl.store(terms + here + height * size, q, mask=owned)
        here = (plane.to(tl.int64) * height + row) * (width * GROUPS) + column * GROUPS
        tl.store(rstds + here + g[None, :, :], rstd, mask=own)


@triton.jit
def _add_terms(p, q, terms, distance, shifts, at, mask, shift):
    """Adds P, meant for another shift, and Q (``distance`` behind P) to sums."""
    more_p = tl.load(terms, mask=mask, other=0.0)
    more_q = tl.load(terms + distance, mask=mask, other=0.0)
    of = tl.load(shifts + at, mask=mask, other=0.0)
    return p + tl.where(mask, more_p + (shift - of) * more_q, 0.0), q + more_q


@triton.jit
def _terms_down(
    terms, edges, shifts, lanes, inside, size, height, tiles, tile, row_count, row_size,
    ROWS: tl.constexpr, SUB: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """P and Q [ROWS, LANES, GROUPS] summed over the rows of cells whose windows hold the tile's.

    ``terms``, ``edges``, ``shifts`` point at the plane, ``lanes`` are offsets within a row of
    ``size``.
    """
    r = tl.arange(0, ROWS)
    u = tile * ROWS + r
    half = row_size // 2
    shift = tl.load(shifts + tile * size + lanes, mask=inside, other=0.0)
    p = tl.zeros(lanes.shape, ACC)
    q = tl.zeros(lanes.shape, ACC)
    # Rows of cells whose window is neither the uppermost nor the lowest: [begin, end) for each u.
    top = tl.maximum(row_count - 1, 1)
    begin = tl.minimum(tl.maximum(u - row_size + 1, 1), top) + half
    following = tl.minimum(tl.maximum(u - row_size + 2, 1), top) + half
    end = tl.maximum(tl.minimum(u, row_count - 2), 0) + 1 + half
    previous = tl.maximum(tl.minimum(u - 1, row_count - 2), 0) + 1 + half
    first = tl.minimum(tl.maximum(tile * ROWS + ROWS - row_size, 1), top) + half
    stop = tl.maximum(tl.minimum(tile * ROWS, row_count - 2), 0) + 1 + half
    # Those that all rows of the tile have in common; whole tiles of them are summed already.
    first_tile = (first + ROWS - 1) // ROWS
    stop_tile = tl.maximum(stop // ROWS, first_tile)
    until = tl.minimum(stop, first_tile * ROWS)
    for i in range(first, until):
        p, q = _add_terms(
            p, q, terms + i * size + lanes, height * size, shifts, i // ROWS * size + lanes,
            inside, shift,
        )  # fmt: skip
    for t in range(first_tile, stop_tile):
        p, q = _add_terms(
            p, q, edges + (t * 6 + 4) * size + lanes, size, shifts, t * size + lanes, inside, shift
        )
    for i in range(tl.maximum(stop_tile * ROWS, until), stop):
        p, q = _add_terms(
            p, q, terms + i * size + lanes, height * size, shifts, i // ROWS * size + lanes,
            inside, shift,
        )  # fmt: skip
    p, q = _split(p, SUB)[None, :, :], _split(q, SUB)[None, :, :]
    zero = tl.zeros([ROWS, lanes.shape[0], lanes.shape[1]], ACC)
    if ROWS > 1:
        lanes3, inside3, shift3 = lanes[None, :, :], inside[None, :, :], shift[None, :, :]
        leaves = ((begin < following) & (r < ROWS - 1))[:, None, None] & inside3
        i = begin[:, None, None]
        leaves_p, leaves_q = _add_terms(
            zero, zero, terms + i * size + lanes3, height * size, shifts, i // ROWS * size + lanes3,
            leaves, shift3,
        )  # fmt: skip
        enters = ((previous < end) & (r > 0))[:, None, None] & inside3
        i = previous[:, None, None]
        enters_p, enters_q = _add_terms(
            zero, zero, terms + i * size + lanes3, height * size, shifts, i // ROWS * size + lanes3,
            enters, shift3,
        )  # fmt: skip
        p = _down_and_up(p, _split(leaves_p, SUB), _split(enters_p, SUB))
        q = _down_and_up(q, _split(leaves_q, SUB), _split(enters_q, SUB))
    edge_p = tl.zeros(lanes.shape, ACC)
    edge_q = tl.zeros(lanes.shape, ACC)
    if tile * ROWS < row_size:
        last = tl.where(row_count > 1, half, height - 1)
        for t in range(0, last // ROWS + 1):
            edge_p, edge_q = _add_terms(
                edge_p, edge_q, edges + t * 6 * size + lanes, size, shifts, t * size + lanes,
                inside, shift,
            )  # fmt: skip
        holds = (u < row_size)[:, None, None]
        p += tl.where(holds, _split(edge_p, SUB)[None, :, :], zero)
        q += tl.where(holds, _split(edge_q, SUB)[None, :, :], zero)
    if (tile * ROWS + ROWS >= row_count) & (row_count > 1):
        edge_p = tl.zeros(lanes.shape, ACC)
        edge_q = tl.zeros(lanes.shape, ACC)
        for t in range((row_count - 1 + half) // ROWS, tiles):
            edge_p, edge_q = _add_terms(
                edge_p, edge_q, edges + (t * 6 + 2) * size + lanes, size, shifts, t * size + lanes,
                inside, shift,
            )  # fmt: skip
        holds = (u >= row_count - 1)[:, None, None]
        p += tl.where(holds, _split(edge_p, SUB)[None, :, :], zero)
        q += tl.where(holds, _split(edge_q, SUB)[None, :, :], zero)
    return shift, p, q


@triton.jit
def input_gradient(
    x,  # [N, C, H, W]
    grad,  # as x
    out,  # as x
    weight,  # [C]
    terms,  # [plane, 2, H, col_count, GROUPS]
    edges,  # [plane, tile of rows, 3, 2, col_count, GROUPS]
    shifts,  # [plane, tile of rows, col_count, GROUPS]
    rstds,  # [plane, H, W, GROUPS]
    first, groups, per_group: tl.constexpr, height, width,
    x_n, x_c, x_h, x_w, g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w,
    row_count, row_size, col_count, col_size,
    ROWS: tl.constexpr, LANES: tl.constexpr, HALO: tl.constexpr, GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr, SEGMENT: tl.constexpr, SUB: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of the input; a tile's first ``HALO`` lanes are those of its left neighbour."""
    plane, tile = tl.program_id(0), tl.program_id(1)
    k = tl.program_id(2) * (LANES - HALO) - HALO
    n, group, exists = _position(first + plane, groups, GROUPS)
    lane = tl.arange(0, LANES)
    window = k + lane
    inside = ((window >= 0) & (window < col_count))[:, None] & exists[None, :]
    g = tl.arange(0, GROUPS)[None, :]
    lanes = window[:, None] * GROUPS + g
    size = col_count * GROUPS
    tiles = tl.num_programs(1)
    terms += plane.to(tl.int64) * (2 * height) * size
    edges += plane.to(tl.int64) * tiles * (6 * size)
    shifts += plane.to(tl.int64) * tiles * size
    shift, p, q = _terms_down(
        terms, edges, shifts, lanes, inside, size, height, tiles, tile, row_count, row_size,
        ROWS, SUB, ACC,
    )  # fmt: skip

    shifts += tile * size
    head = lane // SEGMENT * SEGMENT
    shift = _shift_at(shifts, k + lane, col_count, g, exists, GROUPS)
    d = _shift_at(shifts, k + head + SEGMENT - 1, col_count, g, exists, GROUPS) - shift
    suffix_p = _running_sums(p + _split(d, SUB)[None, :, :] * q, True, SEGMENT, SUB)
    suffix_q = _running_sums(q, True, SEGMENT, SUB)
    d = _shift_at(shifts, k + head, col_count, g, exists, GROUPS) - shift
    p = _running_sums(p + _split(d, SUB)[None, :, :] * q, False, SEGMENT, SUB)
    q = _running_sums(q, False, SEGMENT, SUB)
    begin = tl.maximum(lane - col_size + 1, 0)
    second = (begin // SEGMENT + 1) * SEGMENT
    end = tl.minimum(second + SEGMENT - 1, LANES - 1)
    shift = _shift_at(shifts, k + head, col_count, g, exists, GROUPS)
    d = shift - _shift_at(shifts, k + second - 1, col_count, g, exists, GROUPS)
    part_p, part_q = _take(suffix_p, begin, SUB), _take(suffix_q, begin, SUB)
    has = (second <= head)[None, :, None]
    total_p = _take(p, lane, SUB) + tl.where(has, part_p + d[None, :, :] * part_q, 0.0)
    total_q = _take(q, lane, SUB) + tl.where(has, part_q, 0.0)
    d = shift - _shift_at(shifts, k + second, col_count, g, exists, GROUPS)
    part_p, part_q = _take(p, end, SUB), _take(q, end, SUB)
    has = (second < head)[None, :, None]
    total_p += tl.where(has, part_p + d[None, :, :] * part_q, 0.0)
    total_q += tl.where(has, part_q, 0.0)

    row = (tile * ROWS + tl.arange(0, ROWS))[:, None, None]
    column = window[None, :, None]
    own = (row < height) & (lane >= HALO)[None, :, None] & (column < width) & exists[None, None, :]
    here = (plane.to(tl.int64) * height + row) * (width * GROUPS) + column * GROUPS
    rstd = tl.load(rstds + here + g[None, :, :], mask=own, other=0.0)[:, :, :, None]
    first_channel = group[None, None, :] * per_group
    x_at = n * x_n + (row * x_h + column * x_w + first_channel * x_c)[:, :, :, None]
    g_at = n * g_n + (row * g_h + column * g_w + first_channel * g_c)[:, :, :, None]
    y_at = n * y_n + (row * y_h + column * y_w + first_channel * y_c)[:, :, :, None]
    total_p, total_q = total_p[:, :, :, None], total_q[:, :, :, None]
    for c0 in range(0, per_group, CHANNELS):
        c = c0 + tl.arange(0, CHANNELS)[None, None, None, :]
        mask = own[:, :, :, None] & (c < per_group)
        value = tl.load(x + x_at + c * x_c, mask=mask, other=0.0).to(ACC)
        of_cell = tl.load(grad + g_at + c * g_c, mask=mask, other=0.0).to(ACC)
        of_channel = (c < per_group) & exists[None, None, :, None]
        scale = tl.load(weight + first_channel[:, :, :, None] + c, mask=of_channel, other=0.0)
        flows = total_p + (value - shift[None, :, :, None]) * total_q
        factor, rest = _product(rstd, scale.to(ACC))
        result = tl.fma(of_cell, factor, tl.fma(of_cell, rest, -flows))
        tl.store(out + y_at + c * y_c, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _shift_at(shifts, window, col_count, g, exists, GROUPS: tl.constexpr):
    """Of windows [LANES]; of the nearest where there is none."""
    window = tl.minimum(tl.maximum(window, 0), col_count - 1)
    return tl.load(shifts + window[:, None] * GROUPS + g, mask=exists[None, :], other=0.0)
