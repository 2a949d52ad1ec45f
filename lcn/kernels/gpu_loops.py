"""Triton kernels of the GPU kernel; :mod:`lcn.kernels.gpu` launches them, docs/gpu.md explains them
and counts what they move and compute.

A program takes a tile: ``ROWS`` rows by ``LANES`` columns of ``GROUPS`` neighbouring groups (one in
NCHW; in channels-last as many as fill a sector of memory). Tensors of a tile are
``[ROWS, LANES, GROUPS]``, in loops over channels with ``CHANNELS`` of them as a fourth axis. A
*plane* is what the tiles of ``GROUPS`` groups of one sample make up. ``ACC`` is the precision of
all arithmetic: float32, or float64 for float64 inputs.

Where one pass needs results of another there is still one launch. Programs draw numbers, and work
comes in the order of the numbers: the first pass of some planes, then the second pass of the planes
before them, which finds both their inputs and the results of its first pass in the level-2 cache.
A program waits only for programs with smaller numbers, which are all running or done.
"""

# mypy: ignore-errors
# ruff: noqa: SIM102 (a condition known when this is compiled is a statement of its own)

import triton
import triton.language as tl

from .gpu_tiles import block_sums, gradient_terms, input_gradient, normalize

# Chunks of planes that have room in the planes between the passes.
RING = tl.constexpr(4)


@triton.jit
def _wait_for(count, target):
    """Until ``count`` programs of an earlier pass are done, and sees what they wrote."""
    while tl.atomic_add(count, 0, sem="acquire") < target:
        pass
    tl.debug_barrier()


@triton.jit
def _done(count):
    tl.debug_barrier()
    tl.atomic_add(count, 1, sem="release")


@triton.jit
def forward(
    x,  # [N, C, H, W]
    y,  # as x
    weight,  # [C]
    bias,  # [C]
    blocks,  # [slot, block of rows, 3, W, GROUPS]
    turns,  # [1 + 2 chunks]: zeros
    planes, at_once, groups, per_group: tl.constexpr, height, width,
    x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w,
    row_count, row_size, col_count, col_size, offset, eps: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, WINDOWS: tl.constexpr, GROUPS: tl.constexpr,
    CHANNELS: tl.constexpr, SEGMENT: tl.constexpr, SUB: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """The layer: in one pass, or (``BLOCK_ROWS``) two: sums over blocks of rows, and the rest."""
    tiles, columns = tl.cdiv(height, ROWS), tl.cdiv(col_count, WINDOWS)
    of_tiles = at_once * tiles * columns
    slot = 0
    if BLOCK_ROWS == 0:
        item = tl.program_id(0)
        chunk = 0
        ready = True
    else:
        bands, across = height // BLOCK_ROWS, tl.cdiv(width, LANES)
        of_blocks = at_once * bands * across
        turn = tl.atomic_add(turns, 1)
        chunk, item = turn // (of_blocks + of_tiles), turn % (of_blocks + of_tiles)
        if (item < of_blocks) & (chunk * at_once < planes):
            if chunk >= RING:
                _wait_for(turns + 2 * (chunk - RING) + 2, of_tiles)
            local = item // (bands * across)
            if chunk * at_once + local < planes:
                block_sums(
                    x, blocks, chunk * at_once + local, chunk % RING * at_once + local,
                    item // across % bands, item % across, groups, per_group, height, width,
                    x_n, x_c, x_h, x_w, LANES, GROUPS, CHANNELS, BLOCK_ROWS, ACC,
                )  # fmt: skip
            _done(turns + 2 * chunk + 1)
        ready = (item >= of_blocks) & (chunk > 0)
        item -= of_blocks
        chunk -= 1
        if ready:
            _wait_for(turns + 2 * chunk + 1, of_blocks)
        slot = chunk % RING * at_once
    local = item // (tiles * columns)
    if ready & (chunk * at_once + local < planes):
        normalize(
            x, y, weight, bias, blocks, chunk * at_once + local, slot + local,
            item // columns % tiles, item % columns, groups, per_group, height, width,
            x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w,
            row_count, row_size, col_count, col_size, offset, eps,
            ROWS, LANES, WINDOWS, GROUPS, CHANNELS, SEGMENT, SUB, BLOCK_ROWS, ACC,
        )  # fmt: skip
    if BLOCK_ROWS > 0:
        if ready:
            _done(turns + 2 * chunk + 2)


@triton.jit
def backward(
    x,  # [N, C, H, W]
    grad,  # as x
    out,  # as x
    weight,  # [C]
    blocks,  # [slot, block of rows, 3, W, GROUPS]
    terms,  # [slot, 2, H, col_count, GROUPS]
    edges,  # [slot, tile of rows, 3, 2, col_count, GROUPS]
    shifts,  # [slot, tile of rows, col_count, GROUPS]
    rstds,  # [slot, H, W, GROUPS]
    partial,  # [N, C, tile of rows, tile of columns, 2]
    turns,  # [1 + 3 chunks]: zeros
    planes, at_once, groups, per_group: tl.constexpr, height, width,
    x_n, x_c, x_h, x_w, g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w,
    row_count, row_size, col_count, col_size, offset, eps: tl.constexpr,
    DETACHED: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, WINDOWS: tl.constexpr,
    HALO: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, SEGMENT: tl.constexpr,
    SUB: tl.constexpr, BLOCK_ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradients: sums over blocks of rows (if ``BLOCK_ROWS``), terms, and (unless ``DETACHED``)
    the gradient of the input from these."""
    tiles, columns = tl.cdiv(height, ROWS), tl.cdiv(col_count, WINDOWS)
    of_terms = at_once * tiles * columns
    of_blocks = 0
    lag = 0
    if BLOCK_ROWS > 0:
        bands, across = height // BLOCK_ROWS, tl.cdiv(width, LANES)
        of_blocks = at_once * bands * across
        lag = 1
    inputs = tl.cdiv(width, LANES - HALO)
    of_inputs = at_once * tiles * inputs
    if DETACHED:
        of_inputs = 0
    last = turns + 3  # of a chunk: the count of its last pass
    of_last = of_inputs
    if DETACHED:
        last = turns + 2
        of_last = of_terms
    turn = tl.atomic_add(turns, 1)
    chunk = turn // (of_blocks + of_terms + of_inputs)
    item = turn % (of_blocks + of_terms + of_inputs)
    if BLOCK_ROWS > 0:
        if (item < of_blocks) & (chunk * at_once < planes):
            if chunk >= RING:
                _wait_for(last + 3 * (chunk - RING), of_last)
            local = item // (bands * across)
            if chunk * at_once + local < planes:
                block_sums(
                    x, blocks, chunk * at_once + local, chunk % RING * at_once + local,
                    item // across % bands, item % across, groups, per_group, height, width,
                    x_n, x_c, x_h, x_w, LANES, GROUPS, CHANNELS, BLOCK_ROWS, ACC,
                )  # fmt: skip
            _done(turns + 3 * chunk + 1)
    item -= of_blocks
    chunk -= lag
    if (item >= 0) & (item < of_terms) & (chunk >= 0) & (chunk * at_once < planes):
        if BLOCK_ROWS > 0:
            _wait_for(turns + 3 * chunk + 1, of_blocks)
        elif not DETACHED:
            if chunk >= RING:
                _wait_for(last + 3 * (chunk - RING), of_last)
        local = item // (tiles * columns)
        if chunk * at_once + local < planes:
            gradient_terms(
                x, grad, out, weight, blocks, terms, edges, shifts, rstds, partial,
                chunk * at_once + local, chunk % RING * at_once + local,
                item // columns % tiles, item % columns, tiles, columns, groups, per_group,
                height, width, x_n, x_c, x_h, x_w, g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w,
                row_count, row_size, col_count, col_size, offset, eps,
                DETACHED, ROWS, LANES, WINDOWS, GROUPS, CHANNELS, SEGMENT, SUB, BLOCK_ROWS, ACC,
            )  # fmt: skip
        _done(turns + 3 * chunk + 2)
    if not DETACHED:
        item -= of_terms
        chunk -= 1
        if (item >= 0) & (chunk >= 0) & (chunk * at_once < planes):
            _wait_for(turns + 3 * chunk + 2, of_terms)
            local = item // (tiles * inputs)
            if chunk * at_once + local < planes:
                input_gradient(
                    x, grad, out, weight, terms, edges, shifts, rstds,
                    chunk * at_once + local, chunk % RING * at_once + local,
                    item // inputs % tiles, item % inputs, tiles, groups, per_group, height, width,
                    x_n, x_c, x_h, x_w, g_n, g_c, g_h, g_w, y_n, y_c, y_h, y_w,
                    row_count, row_size, col_count, col_size,
                    ROWS, LANES, HALO, GROUPS, CHANNELS, SEGMENT, SUB, ACC,
                )  # fmt: skip
            _done(last + 3 * chunk)
