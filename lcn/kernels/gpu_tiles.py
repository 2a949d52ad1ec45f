"""Device functions of :mod:`lcn.kernels.gpu_loops`: what a program does with one tile."""

# mypy: ignore-errors

import triton
import triton.language as tl

from .gpu_sums import (
    lanes_split,
    moments_along,
    moments_down,
    moved,
    over_channels,
    product,
    running_sums,
    shift_at,
    split,
    sums_of_columns,
    take,
    terms_down,
    window_start,
)  # fmt: skip


@triton.jit
def _position(plane, groups, GROUPS: tl.constexpr):
    """Of a plane: sample, groups and which of these exist."""
    blocks = (groups + GROUPS - 1) // GROUPS
    g = plane % blocks * GROUPS + tl.arange(0, GROUPS)
    return (plane // blocks).to(tl.int64), g, g < groups


@triton.jit
def block_sums(
    x,  # [N, C, H, W]
    blocks,  # [slot, block of rows, 3, W, GROUPS]: mean, rests of the sums of x - mean and squares
    plane, slot, b, across, groups, per_group: tl.constexpr, height, width, x_n, x_c, x_h, x_w,
    LANES: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Sums of each column over ``BLOCK_ROWS`` rows, which larger windows are put together from."""
    n, group, exists = _position(plane, groups, GROUPS)
    column = across * LANES + tl.arange(0, LANES)
    inside = (column < width)[:, None] & exists[None, :]
    lanes = column[:, None] * x_w + (group * (per_group * x_c))[None, :]
    x += n * x_n
    i = b * BLOCK_ROWS
    near = tl.load(x + lanes + (i + BLOCK_ROWS // 2) * x_h, mask=inside, other=0.0).to(ACC)
    total = tl.zeros(near.shape, ACC)
    square = tl.zeros(near.shape, ACC)
    total, square = sums_of_columns(
        x, lanes, inside, near, i, i + BLOCK_ROWS, x_c, x_h, per_group, total, square, CHANNELS, ACC
    )
    count = tl.full((), per_group * BLOCK_ROWS, ACC)
    mean = near + total * (1 / count)
    size = width * GROUPS
    at = blocks + (tl.cast(slot, tl.int64) * (height // BLOCK_ROWS) + b) * (3 * size)
    at += column[:, None] * GROUPS + tl.arange(0, GROUPS)[None, :]
    tl.store(at, mean, mask=inside)
    total, square = moved(total, square, count, near - mean)
    tl.store(at + size, total, mask=inside)
    tl.store(at + 2 * size, square, mask=inside)


@triton.jit
def _tile_moments(
    x, blocks, slot, i, k, group, exists, per_group: tl.constexpr, height, width, x_c, x_h, x_w,
    row_count, row_size, col_count, col_size, offset, eps,
    ROWS: tl.constexpr, LANES: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr,
    SEGMENT: tl.constexpr, SUB: tl.constexpr, BLOCK_ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Of the cells at rows ``i ...`` and columns ``k ...``: the lane where the window begins
    and, of each lane, the value that the tile's windows there have in common; of each cell the
    window's shift, mean minus shift, rstd. All but the second are split (see
    :func:`gpu_sums.split`). ``x`` points at the sample."""
    lane = tl.arange(0, LANES)
    column = k + offset + lane
    inside = (column < width)[:, None] & exists[None, :]
    lanes = column[:, None] * x_w + (group * (per_group * x_c))[None, :]
    block_lanes = column[:, None] * GROUPS + tl.arange(0, GROUPS)[None, :]
    size = width * GROUPS
    if BLOCK_ROWS > 0:
        blocks += tl.cast(slot, tl.int64) * (height // BLOCK_ROWS) * (3 * size)
    near, total, square = moments_down(
        x, blocks, lanes, block_lanes, inside, x_c, x_h, size, per_group,
        i, row_count, row_size, offset, ROWS, CHANNELS, SUB, BLOCK_ROWS, ACC,
    )  # fmt: skip
    begin = window_start(k + lanes_split(LANES, SUB), col_count, col_size) - k
    begin = tl.minimum(tl.maximum(begin, 0), LANES - 1)
    n_column = tl.full((), per_group * row_size, ACC)
    shift, mean, rstd = moments_along(
        split(near, SUB), total, square, begin, n_column, col_size, eps, SEGMENT, SUB
    )
    return begin, near, shift, mean, rstd


@triton.jit
def _cells_of_tile(
    i, k, height, width, col_count, col_size, exists,
    ROWS: tl.constexpr, LANES: tl.constexpr, WINDOWS: tl.constexpr, SUB: tl.constexpr,
):  # fmt: skip
    """Row and column of the tile's cells, and which are its own: those of its windows.

    ``[ROWS, SUB, LANES / SUB, GROUPS]``, so that neighbouring columns are one thread's."""
    row = i + tl.arange(0, ROWS)[:, None, None, None]
    lane = tl.arange(0, LANES // SUB)[None, None, :, None] * SUB
    column = k + lane + tl.arange(0, SUB)[None, :, None, None]
    own = (row < height) & (column < width) & exists[None, None, None, :]
    if WINDOWS < LANES:
        window = window_start(column, col_count, col_size)
        own = own & (window >= k) & (window < k + WINDOWS)
    return row, column, own


@triton.jit
def _as_cells(values, SUB: tl.constexpr):
    """Split ``values`` [ROWS, LANES, GROUPS] in the shape of cells."""
    THREADS: tl.constexpr = values.shape[1] // SUB
    return tl.reshape(values, [values.shape[0], SUB, THREADS, values.shape[2]])


@triton.jit
def normalize(
    x,  # [N, C, H, W]
    y,  # as x
    weight,  # [C]
    bias,  # [C]
    blocks,  # [slot, block of rows, 3, W, GROUPS]
    plane, slot, tile, across, groups, per_group: tl.constexpr, height, width,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w,
    row_count, row_size, col_count, col_size, offset, eps: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, WINDOWS: tl.constexpr, GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr, SEGMENT: tl.constexpr, SUB: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """The layer, of one tile."""
    i, k = tile * ROWS, across * WINDOWS
    n, group, exists = _position(plane, groups, GROUPS)
    x += n * x_n
    y += n * y_n
    _, _, shift, mean, rstd = _tile_moments(
        x, blocks, slot, i, k, group, exists, per_group, height, width, x_c, x_h, x_w,
        row_count, row_size, col_count, col_size, offset, tl.full((), eps, ACC),
        ROWS, LANES, GROUPS, CHANNELS, SEGMENT, SUB, BLOCK_ROWS, ACC,
    )  # fmt: skip
    row, column, own = _cells_of_tile(
        i, k, height, width, col_count, col_size, exists, ROWS, LANES, WINDOWS, SUB
    )
    first_channel = (group * per_group)[None, None, None, :]
    x_at = (row * x_h + column * x_w + first_channel * x_c)[:, :, :, :, None]
    y_at = (row * y_h + column * y_w + first_channel * y_c)[:, :, :, :, None]
    # x - high is exact where x is near; what rounding took from the sum goes with the bias.
    high = shift + mean
    low = _as_cells((shift - high) + mean, SUB)[:, :, :, :, None]
    high = _as_cells(high, SUB)[:, :, :, :, None]
    rstd = _as_cells(rstd, SUB)[:, :, :, :, None]
    own = own[:, :, :, :, None]
    for c0 in range(0, per_group, CHANNELS):
        c = c0 + tl.arange(0, CHANNELS)[None, None, None, None, :]
        mask = own & (c < per_group)
        value = tl.load(x + x_at + c * x_c, mask=mask, other=0.0).to(ACC)
        of_channel = (c < per_group) & exists[None, None, None, :, None]
        scale = tl.load(weight + first_channel[:, :, :, :, None] + c, mask=of_channel, other=0.0)
        add = tl.load(bias + first_channel[:, :, :, :, None] + c, mask=of_channel, other=0.0)
        factor, rest = product(rstd, scale.to(ACC))
        distance = value - high
        result = tl.fma(distance, factor, tl.fma(distance, rest, add.to(ACC) - low * factor))
        tl.store(y + y_at + c * y_c, result.to(y.dtype.element_ty), mask=mask)


@triton.jit
def gradient_terms(
    x,  # [N, C, H, W]
    grad,  # as x
    out,  # as x; written if DETACHED
    weight,  # [C]
    blocks,  # [slot, block of rows, 3, W, GROUPS]
    terms,  # [slot, 2, H, col_count, GROUPS]: P and Q of each row of cells
    edges,  # [slot, tile of rows, 3, 2, col_count, GROUPS]: their sums, see below
    shifts,  # [slot, tile of rows, col_count, GROUPS]: which P is meant for
    rstds,  # [slot, H, W, GROUPS]
    partial,  # [N, C, tile of rows, tile of columns, 2]
    plane, slot, tile, across, tiles, columns, groups, per_group: tl.constexpr, height, width,
    x_n, x_c, x_h, x_w, g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w,
    row_count, row_size, col_count, col_size, offset, eps: tl.constexpr,
    DETACHED: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, WINDOWS: tl.constexpr,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, SEGMENT: tl.constexpr, SUB: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What the gradient of the input is put together from, and parts of those of weight and bias.

    The gradient is ``g w rstd`` of a cell minus the sum of ``A + (x - mean) Q`` over the cells
    whose windows hold it, with ``A = rstd sum(g w) / count`` and
    ``Q = rstd^3 sum(g w (x - mean)) / count``. Stored are ``P = A - (mean - shift) Q`` and ``Q``,
    cells of a row that share a window added up. ``edges`` has the sums over the tile's rows whose
    window is the uppermost, the lowest, and any other.
    If no gradient flows through the statistics, ``out`` is the gradient.
    """
    i, k = tile * ROWS, across * WINDOWS
    n, group, exists = _position(plane, groups, GROUPS)
    x += n * x_n
    grad += n * g_n
    begin, near, shift, mean, rstd = _tile_moments(
        x, blocks, slot, i, k, group, exists, per_group, height, width, x_c, x_h, x_w,
        row_count, row_size, col_count, col_size, offset, tl.full((), eps, ACC),
        ROWS, LANES, GROUPS, CHANNELS, SEGMENT, SUB, BLOCK_ROWS, ACC,
    )  # fmt: skip
    row, column, own = _cells_of_tile(
        i, k, height, width, col_count, col_size, exists, ROWS, LANES, WINDOWS, SUB
    )
    first_channel = (group * per_group)[None, None, None, :]
    x_at = (row * x_h + column * x_w + first_channel * x_c)[:, :, :, :, None]
    g_at = (row * g_h + column * g_w + first_channel * g_c)[:, :, :, :, None]
    y_at = (row * y_h + column * y_w + first_channel * y_c)[:, :, :, :, None]
    shift, mean, rstd = _as_cells(shift, SUB), _as_cells(mean, SUB), _as_cells(rstd, SUB)
    shape: tl.constexpr = [ROWS, SUB, LANES // SUB, GROUPS, CHANNELS]
    a = tl.zeros(shape, ACC)
    b = tl.zeros(shape, ACC)
    parts = tiles * columns
    partial += ((n * groups * per_group) * parts + tile * columns + across) * 2
    for c0 in range(0, per_group, CHANNELS):
        c = c0 + tl.arange(0, CHANNELS)[None, None, None, None, :]
        mask = own[:, :, :, :, None] & (c < per_group)
        value = tl.load(x + x_at + c * x_c, mask=mask, other=0.0).to(ACC)
        g = tl.load(grad + g_at + c * g_c, mask=mask, other=0.0).to(ACC)
        of_channel = (c < per_group) & exists[None, None, None, :, None]
        at = first_channel[:, :, :, :, None] + c
        scale = tl.load(weight + at, mask=of_channel, other=0.0).to(ACC)
        product = g * ((value - shift[:, :, :, :, None]) - mean[:, :, :, :, None])
        product = tl.where(mask, product, 0.0)
        normalized = product * tl.where(own, rstd, 0.0)[:, :, :, :, None]
        at = tl.reshape(partial + at * (parts * 2), [GROUPS, CHANNELS])
        of_channel = tl.reshape(of_channel, [GROUPS, CHANNELS])
        tl.store(at, tl.sum(tl.sum(tl.sum(normalized, 0), 0), 0), mask=of_channel)
        tl.store(at + 1, tl.sum(tl.sum(tl.sum(g, 0), 0), 0), mask=of_channel)
        if DETACHED:
            result = (g * scale * rstd[:, :, :, :, None]).to(out.dtype.element_ty)
            tl.store(out + n * y_n + y_at + c * y_c, result, mask=mask)
        else:
            a += g * scale
            b += product * scale
    if not DETACHED:
        _store_terms(
            over_channels(a), over_channels(b), begin, near, shift, mean, rstd, own, row, column,
            exists, terms, edges, shifts, rstds, slot, tile, k, tiles, per_group, height, width,
            row_count, row_size, col_count, col_size, WINDOWS, ACC,
        )  # fmt: skip


@triton.jit
def _store_terms(
    a, b, begin, near, shift, mean, rstd, own, row, column, exists, terms, edges, shifts, rstds,
    slot, tile, k, tiles, per_group: tl.constexpr, height, width,
    row_count, row_size, col_count, col_size, WINDOWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """P and Q from the sums of ``g w`` and ``g w (x - mean)`` over the channels."""
    SUB: tl.constexpr = a.shape[1]
    LANES: tl.constexpr = near.shape[0]
    GROUPS: tl.constexpr = a.shape[3]
    inverse = 1 / (tl.full((), per_group * row_size, ACC) * col_size)
    q = rstd * rstd * rstd * b * inverse
    of_window = _as_cells(take(near[None, :, :], begin, 1), SUB)
    p = rstd * a * inverse - ((shift - of_window) + mean) * q
    p = tl.where(own, p, 0.0)
    q = tl.where(own, q, 0.0)
    # Cells left and right of the middle of the outermost windows use these windows too.
    window = window_start(column, col_count, col_size)
    middle = column - col_size // 2
    if k == 0:
        p, q = _fold(p, q, window == 0, middle == 0)
    if (k + WINDOWS >= col_count) & (col_count > 1):
        p, q = _fold(p, q, window == col_count - 1, middle == col_count - 1)
    owned = (middle >= k) & (middle < tl.minimum(k + WINDOWS, col_count)) & exists
    g = tl.arange(0, GROUPS)
    size = col_count * GROUPS
    here = (tl.cast(slot, tl.int64) * tiles + tile) * size
    lane = tl.arange(0, LANES)[:, None]
    inside = (lane < tl.minimum(WINDOWS, col_count - k)) & exists[None, :]
    tl.store(shifts + here + (k + lane) * GROUPS + g[None, :], near, mask=inside)
    at = middle * GROUPS + g
    edges += 6 * here + tl.reshape(at, at.shape[1:])
    inside = tl.reshape(owned, owned.shape[1:])
    row_window = window_start(row, row_count, row_size)
    top = row_window == 0
    bottom = (row_window == row_count - 1) & (row_count > 1)
    if tl.sum(top.to(tl.int32)) > 0:
        _store_sums(edges, size, p, q, top, inside)
    if tl.sum(bottom.to(tl.int32)) > 0:
        _store_sums(edges + 2 * size, size, p, q, bottom, inside)
    _store_sums(edges + 4 * size, size, p, q, (top | bottom) == 0, inside)
    owned = owned & (row < height)
    here = tl.cast(slot, tl.int64) * (2 * height) * size + row * size + at
    tl.store(terms + here, p, mask=owned)
    tl.store(terms + here + height * size, q, mask=owned)
    here = (tl.cast(slot, tl.int64) * height + row) * (width * GROUPS) + column * GROUPS
    tl.store(rstds + here + g, rstd, mask=own)


@triton.jit
def _fold(p, q, uses, keeps):
    """Adds up a row's cells of one window, in the place of one of them."""
    sum_p = tl.sum(tl.sum(tl.where(uses, p, 0.0), 1), 1)[:, None, None, :]
    sum_q = tl.sum(tl.sum(tl.where(uses, q, 0.0), 1), 1)[:, None, None, :]
    return tl.where(keeps, sum_p, p), tl.where(keeps, sum_q, q)


@triton.jit
def _store_sums(edges, size, p, q, chosen, inside):
    """Sums over the chosen rows."""
    tl.store(edges, tl.sum(tl.where(chosen, p, 0.0), 0), mask=inside)
    tl.store(edges + size, tl.sum(tl.where(chosen, q, 0.0), 0), mask=inside)


@triton.jit
def input_gradient(
    x,  # [N, C, H, W]
    grad,  # as x
    out,  # as x
    weight,  # [C]
    terms,  # [slot, 2, H, col_count, GROUPS]
    edges,  # [slot, tile of rows, 3, 2, col_count, GROUPS]
    shifts,  # [slot, tile of rows, col_count, GROUPS]
    rstds,  # [slot, H, W, GROUPS]
    plane, slot, tile, across, tiles, groups, per_group: tl.constexpr, height, width,
    x_n, x_c, x_h, x_w, g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w,
    row_count, row_size, col_count, col_size,
    ROWS: tl.constexpr, LANES: tl.constexpr, HALO: tl.constexpr, GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr, SEGMENT: tl.constexpr, SUB: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of the input; a tile's first ``HALO`` lanes are those of its left neighbour."""
    k = across * (LANES - HALO) - HALO
    n, group, exists = _position(plane, groups, GROUPS)
    lane = tl.arange(0, LANES)
    window = k + lane
    inside = ((window >= 0) & (window < col_count))[:, None] & exists[None, :]
    g = tl.arange(0, GROUPS)[None, :]
    lanes = window[:, None] * GROUPS + g
    size = col_count * GROUPS
    terms += tl.cast(slot, tl.int64) * (2 * height) * size
    edges += tl.cast(slot, tl.int64) * tiles * (6 * size)
    shifts += tl.cast(slot, tl.int64) * tiles * size
    shift, p, q = terms_down(
        terms, edges, shifts, lanes, inside, size, height, tiles, tile, row_count, row_size,
        ROWS, SUB, ACC,
    )  # fmt: skip

    shifts += tile * size
    lane = lanes_split(LANES, SUB)
    head = lane // SEGMENT * SEGMENT
    begin = tl.maximum(lane - col_size + 1, 0)
    own_shift = shift_at(shifts, k + lane, col_count, g, exists, GROUPS)
    d = shift_at(shifts, k + head + SEGMENT - 1, col_count, g, exists, GROUPS) - own_shift
    suffix_p = take(running_sums(p + d[None, :, :] * q, True, SEGMENT, SUB), begin, SUB)
    suffix_q = take(running_sums(q, True, SEGMENT, SUB), begin, SUB)
    shift = shift_at(shifts, k + head, col_count, g, exists, GROUPS)
    p = running_sums(p + (shift - own_shift)[None, :, :] * q, False, SEGMENT, SUB)
    q = running_sums(q, False, SEGMENT, SUB)
    second = (begin // SEGMENT + 1) * SEGMENT
    end = tl.minimum(second + SEGMENT - 1, LANES - 1)
    d = shift - shift_at(shifts, k + second - 1, col_count, g, exists, GROUPS)
    has = (second <= head)[None, :, None]
    total_p = p + tl.where(has, suffix_p + d[None, :, :] * suffix_q, 0.0)
    total_q = q + tl.where(has, suffix_q, 0.0)
    d = shift - shift_at(shifts, k + second, col_count, g, exists, GROUPS)
    part_p, part_q = take(p, end, SUB), take(q, end, SUB)
    has = (second < head)[None, :, None]
    total_p += tl.where(has, part_p + d[None, :, :] * part_q, 0.0)
    total_q += tl.where(has, part_q, 0.0)

    row, column, own = _cells_of_tile(
        tile * ROWS, k, height, width, col_count, col_size, exists, ROWS, LANES, LANES, SUB
    )
    if HALO > 0:
        own = own & (column >= k + HALO)
    total_p = _as_cells(total_p, SUB)[:, :, :, :, None]
    total_q = _as_cells(total_q, SUB)[:, :, :, :, None]
    shift = _as_cells(shift[None, :, :], SUB)[:, :, :, :, None]
    here = (tl.cast(slot, tl.int64) * height + row) * (width * GROUPS) + column * GROUPS
    rstd = tl.load(rstds + here + tl.arange(0, GROUPS), mask=own, other=0.0)[:, :, :, :, None]
    first_channel = (group * per_group)[None, None, None, :]
    x_at = n * x_n + (row * x_h + column * x_w + first_channel * x_c)[:, :, :, :, None]
    g_at = n * g_n + (row * g_h + column * g_w + first_channel * g_c)[:, :, :, :, None]
    y_at = n * y_n + (row * y_h + column * y_w + first_channel * y_c)[:, :, :, :, None]
    for c0 in range(0, per_group, CHANNELS):
        c = c0 + tl.arange(0, CHANNELS)[None, None, None, None, :]
        mask = own[:, :, :, :, None] & (c < per_group)
        value = tl.load(x + x_at + c * x_c, mask=mask, other=0.0).to(ACC)
        of_cell = tl.load(grad + g_at + c * g_c, mask=mask, other=0.0).to(ACC)
        of_channel = (c < per_group) & exists[None, None, None, :, None]
        scale = tl.load(weight + first_channel[:, :, :, :, None] + c, mask=of_channel, other=0.0)
        flows = total_p + (value - shift) * total_q
        factor, rest = product(rstd, scale.to(ACC))
        result = tl.fma(of_cell, factor, tl.fma(of_cell, rest, -flows))
        tl.store(out + y_at + c * y_c, result.to(out.dtype.element_ty), mask=mask)
