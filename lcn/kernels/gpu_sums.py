"""Device functions of :mod:`lcn.kernels.gpu_loops`: sums over windows, of tiles
``[ROWS, LANES, GROUPS]``.

No sum slides and nothing is subtracted from a sum: a window is put together from blocks, so that a
NaN or a very large value reaches the windows that hold it and no other. Sums are of ``x - shift``
in float32, where the shift is a value (or the mean of a column) that lies inside each window it is
used for: near, so that an offset or a ramp costs no digits, and harmless, since what it spoils
holds it anyway.
"""

# mypy: ignore-errors
# ruff: noqa: SIM108

import triton
import triton.language as tl


@triton.jit
def window_start(cell, count, size):
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
def product(a, b):
    """And what rounding takes from it."""
    product = a * b
    return product, tl.fma(a, b, -product)


@triton.jit
def split(values, SUB: tl.constexpr):
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
def lanes_split(LANES: tl.constexpr, SUB: tl.constexpr):
    """The lane at each place."""
    place = tl.arange(0, LANES)
    return place % (LANES // SUB) * SUB + place // (LANES // SUB)


@triton.jit
def take(values, lanes, SUB: tl.constexpr):
    """Split ``values`` [ROWS, LANES, GROUPS] at ``lanes`` [LANES], in the order of these.

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

    ``cumsum(reverse=True)`` would turn the whole tile around by shuffles. Where one thread has all
    N the conditions are known when this is compiled, and adding -0 is no instruction.
    """
    N: tl.constexpr = values.shape[1]
    n = tl.arange(0, N)
    after = n[:, None] <= n[None, :]
    return tl.sum(tl.where(after[None, :, :, None, None], values[:, None, :, :, :], -0.0), 2)


@triton.jit
def running_sums(values, reverse: tl.constexpr, SEGMENT: tl.constexpr, SUB: tl.constexpr):
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
            whole = take(whole, thread * -1 + (THREADS - 1), 1)
            sums = _sums_to_the_last(sums)
            previous = tl.maximum(thread * -1 + (THREADS - 2), 0)
            has = thread % ACROSS < ACROSS - 1
        else:
            sums = tl.cumsum(sums, 1)
            previous = tl.maximum(thread - 1, 0)
            has = thread % ACROSS > 0
        before = tl.cumsum(tl.reshape(whole, [ROWS, THREADS // ACROSS, ACROSS, GROUPS]), 2)
        before = take(tl.reshape(before, whole.shape), previous, 1)
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
def over_channels(values):
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
    return over_channels(total), over_channels(square)


@triton.jit
def sums_of_columns(
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
    return total + over_channels(more), square + over_channels(more_square)


@triton.jit
def moments_down(
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
    start = window_start(i + r, row_count, row_size) + offset
    following = window_start(i + r + 1, row_count, row_size) + offset
    previous = window_start(i + r - 1, row_count, row_size) + offset
    first = window_start(i + ROWS - 1, row_count, row_size) + offset
    stop = window_start(i, row_count, row_size) + offset + row_size
    middle = (first + stop - 1) // 2
    near = tl.load(x + lanes + middle * x_h, mask=inside, other=0.0).to(ACC)
    total = tl.zeros(near.shape, ACC)
    square = tl.zeros(near.shape, ACC)
    until = stop
    if BLOCK_ROWS > 0:
        first_block = (first + BLOCK_ROWS - 1) // BLOCK_ROWS
        stop_block = tl.maximum(stop // BLOCK_ROWS, first_block)
        until = tl.minimum(stop, first_block * BLOCK_ROWS)
    total, square = sums_of_columns(
        x, lanes, inside, near, first, until, x_c, x_h, per_group, total, square, CHANNELS, ACC
    )
    if BLOCK_ROWS > 0:
        n = tl.full((), per_group * BLOCK_ROWS, ACC)
        for b in range(first_block, stop_block):
            at = blocks + b * (3 * block_size) + block_lanes
            mean = tl.load(at, mask=inside, other=0.0)
            rest = tl.load(at + block_size, mask=inside, other=0.0)
            rest_square = tl.load(at + 2 * block_size, mask=inside, other=0.0)
            rest, rest_square = moved(rest, rest_square, n, mean - near)
            total += rest
            square += rest_square
        total, square = sums_of_columns(
            x, lanes, inside, near, tl.maximum(stop_block * BLOCK_ROWS, until), stop, x_c, x_h,
            per_group, total, square, CHANNELS, ACC,
        )  # fmt: skip
    total, square = split(total, SUB)[None, :, :], split(square, SUB)[None, :, :]
    if ROWS > 1:
        leaves, leaves_square = _sums_of_rows(
            x, lanes, inside, near, start, (start < following) & (r < ROWS - 1), x_c, x_h,
            per_group, CHANNELS, ACC,
        )  # fmt: skip
        enters, enters_square = _sums_of_rows(
            x, lanes, inside, near, previous + row_size, (previous < start) & (r > 0), x_c, x_h,
            per_group, CHANNELS, ACC,
        )  # fmt: skip
        total = _down_and_up(total, split(leaves, SUB), split(enters, SUB))
        square = _down_and_up(square, split(leaves_square, SUB), split(enters_square, SUB))
    return near, total, square


@triton.jit
def moved(total, square, n, d):
    """Sums of ``x - shift`` and of squares of n values, for a shift that is smaller by ``d``."""
    moved_total = tl.fma(n, d, total)
    return moved_total, tl.fma(d, total + moved_total, square)


@triton.jit
def _mean_and_m2(n, total, square):
    """Rounded once: the inverse of n alone would cost a digit."""
    inverse = 1 / tl.maximum(n, 1)
    mean = total * inverse
    mean = tl.fma(tl.fma(-mean, n, total), inverse, mean)
    return mean, _larger_or_nan(tl.fma(-total, mean, square), 0.0)


@triton.jit
def _merge(n, shift, mean, m2, part_n, part_total, part_square, part_shift):
    """Adds a part, given by its sums of ``x - part_shift``, to a mean (``x - shift``) and M2."""
    part_mean, part_m2 = _mean_and_m2(part_n, part_total, part_square)
    share = part_n / (n + part_n)
    d = (part_shift - shift) + (part_mean - mean)
    # Where the window has no such part its values are of other windows, perhaps NaN.
    has = part_n > 0
    mean = tl.where(has, tl.fma(d, share, mean), mean)
    return mean, tl.where(has, tl.fma(d * d, n * share, m2 + part_m2), m2)


@triton.jit
def moments_along(
    near, total, square, begin, n_column, col_size, eps,
    SEGMENT: tl.constexpr, SUB: tl.constexpr,
):  # fmt: skip
    """Shift, mean minus shift, and rstd of windows that begin at lanes ``begin`` [LANES].

    ``near``, ``total``, ``square`` are split. A window is the end of one segment of lanes, perhaps
    a second segment, and the beginning of one.
    """
    LANES: tl.constexpr = near.shape[0]
    lane = lanes_split(LANES, SUB)
    near = near[None, :, :]
    mean = near + total * (1 / n_column)
    # As the end of a segment a lane's shift is the mean of the last column, else of the first.
    head = lane // SEGMENT * SEGMENT
    d = near - take(mean, head + SEGMENT - 1, SUB)
    suffix, suffix_square = moved(total, square, n_column, d)
    suffix = take(running_sums(suffix, True, SEGMENT, SUB), begin, SUB)
    suffix_square = take(running_sums(suffix_square, True, SEGMENT, SUB), begin, SUB)
    total, square = moved(total, square, n_column, near - take(mean, head, SUB))
    total = running_sums(total, False, SEGMENT, SUB)
    square = running_sums(square, False, SEGMENT, SUB)

    last = tl.minimum(begin + col_size - 1, LANES - 1)
    head = last // SEGMENT * SEGMENT
    second = (begin // SEGMENT + 1) * SEGMENT
    n = ((last - head + 1) * n_column)[None, :, None]
    window_mean, m2 = _mean_and_m2(n, take(total, last, SUB), take(square, last, SUB))
    # From here on the shift is the mean of the middle column, the nearest to the result.
    shift = take(mean, (begin + last) // 2, SUB)
    window_mean += take(mean, head, SUB) - shift
    part_n = (tl.where(second <= head, second - begin, 0) * n_column)[None, :, None]
    part_shift = take(mean, tl.minimum(second - 1, LANES - 1), SUB)
    window_mean, m2 = _merge(n, shift, window_mean, m2, part_n, suffix, suffix_square, part_shift)
    n += part_n
    part_n = (tl.where(second < head, SEGMENT, 0) * n_column)[None, :, None]
    end = tl.minimum(second + SEGMENT - 1, LANES - 1)
    window_mean, m2 = _merge(
        n, shift, window_mean, m2, part_n, take(total, end, SUB), take(square, end, SUB),
        take(mean, tl.minimum(second, LANES - 1), SUB),
    )  # fmt: skip
    # The quotient by the count with what rounding takes from its inverse.
    count = n_column * col_size
    inverse = 1 / count
    rest = tl.fma(-inverse, count, tl.full(count.shape, 1.0, count.dtype)) * inverse
    return (
        shift,
        window_mean,
        _rsqrt(tl.fma(m2, tl.broadcast_to(inverse, m2.shape), m2 * rest + eps)),
    )


@triton.jit
def shift_at(shifts, window, col_count, g, exists, GROUPS: tl.constexpr):
    """Of windows [LANES]; of the nearest where there is none."""
    window = tl.minimum(tl.maximum(window, 0), col_count - 1)
    return tl.load(shifts + window[:, None] * GROUPS + g, mask=exists[None, :], other=0.0)


@triton.jit
def _add_terms(p, q, terms, distance, shifts, at, mask, shift):
    """Adds P, meant for another shift, and Q (``distance`` behind P) to sums."""
    more_p = tl.load(terms, mask=mask, other=0.0)
    more_q = tl.load(terms + distance, mask=mask, other=0.0)
    of = tl.load(shifts + at, mask=mask, other=0.0)
    return p + tl.where(mask, more_p + (shift - of) * more_q, 0.0), q + more_q


@triton.jit
def terms_down(
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
    p, q = split(p, SUB)[None, :, :], split(q, SUB)[None, :, :]
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
        p = _down_and_up(p, split(leaves_p, SUB), split(enters_p, SUB))
        q = _down_and_up(q, split(leaves_q, SUB), split(enters_q, SUB))
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
        p += tl.where(holds, split(edge_p, SUB)[None, :, :], zero)
        q += tl.where(holds, split(edge_q, SUB)[None, :, :], zero)
    if (tile * ROWS + ROWS >= row_count) & (row_count > 1):
        edge_p = tl.zeros(lanes.shape, ACC)
        edge_q = tl.zeros(lanes.shape, ACC)
        for t in range((row_count - 1 + half) // ROWS, tiles):
            edge_p, edge_q = _add_terms(
                edge_p, edge_q, edges + (t * 6 + 2) * size + lanes, size, shifts, t * size + lanes,
                inside, shift,
            )  # fmt: skip
        holds = (u >= row_count - 1)[:, None, None]
        p += tl.where(holds, split(edge_p, SUB)[None, :, :], zero)
        q += tl.where(holds, split(edge_q, SUB)[None, :, :], zero)
    return shift, p, q
