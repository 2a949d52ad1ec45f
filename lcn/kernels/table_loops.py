"""Numba loops on summed-area tables: windows of a size of their own at each point.

All groups of a map have the same windows. So one task is two groups, side by side in one table: for
every corner between cells it holds four float64 numbers, the sums of ``x - shift`` of both groups
over all that lies above and left, and the sums of squares. The sums over a window are four of these
quadruples. The backward adds what each window contributes to the same four corners, and running
sums over both axes spread it over the window. (Four groups would need fewer instructions, but their
tables displace each other from the cache.)

Only as many lines of a table are kept as the windows of a row reach: a ring. Vectors are those of
:mod:`lcn.kernels.cpu_loops`. Rows of the map become quadruples, and these rows, in blocks of
``BLOCK`` cells that are transposed in registers: vector ``k`` has the quadruples of the cells ``k``
and ``k + LANES`` of the block.

Nothing can leave a table, so it is checked: where the whole sum of squares is so large beside a
window's own that digits are lost, the window is summed again cell by cell if it is small; otherwise
the group is only flagged, and plain PyTorch does it. So it is with NaN and infinities.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from .cpu_loops import (
    _DOUBLE,
    _FLAGS,
    _I32,
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
from .cpu_loops import Vector as _Vector

# What a task reads; fields that end in _ptr are addresses.
JOB_FIELDS = (
    "next_task",
    *("x_ptr", "grad_ptr", "out_ptr", "weight_ptr", "bias_ptr", "partial_ptr", "flags_ptr"),
    # The windows, [1 or samples, height, line]: where in the table the left corners are, upper and
    # lower, and how far from them the right ones, uint32; one over their number of values, float64.
    # A line is the width rounded up to whole blocks; its last cells repeat the one before.
    *("tops_ptr", "bottoms_ptr", "rights_ptr", "shares_ptr"),
    # int64 [1 or samples, 2 height + 1]: the first line of a table that a row of cells or a later
    # one needs, the last that this or an earlier one needs, and how many are kept: the ring.
    "lines_ptr",
    "largest_ptr",  # float64 [1 or samples, height]: the largest share in a row
    "own_windows",  # 1 if there are windows for each sample
    *("samples", "channels", "height", "width", "per_group"),
    "planes",  # groups that a task takes
    *("eps", "limit"),
)
_REAL = ("eps", "limit")
JOB = np.dtype([(name, np.float64 if name in _REAL else np.int64) for name in JOB_FIELDS])

PLANES = 2  # groups in a table
QUAD = 2 * PLANES
BLOCK = 2 * LANES
_FEW_CHANNELS = 4  # of a group, whose rows are read side by side
_SMALL_WINDOW = 256  # cells of a window that is worth summing again cell by cell


@njit(error_model="numpy", forceinline=True)
def _memory(count):
    """``count`` float64 numbers, from a multiple of 64 bytes."""
    memory = np.empty(count + LANES)
    first = -memory.ctypes.data % 64 // 8
    return memory[first : first + count]


# ---------------------------------------------------------------- two quadruples as a vector

_QUAD = ir.VectorType(_DOUBLE, QUAD)


def _quad_pointer(context, builder, array_type, array, at):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), _QUAD.as_pointer())


def _half_of(builder, value, half):
    lanes = ir.Constant(ir.VectorType(_I32, QUAD), [half * QUAD + k for k in range(QUAD)])
    return builder.shuffle_vector(value, value, lanes)


@intrinsic
def _load_pair(typing_context, array, first, second):
    def codegen(context, builder, signature, args):
        quads = [
            builder.load(_quad_pointer(context, builder, array, args[0], at), align=32)
            for at in args[1:]
        ]
        lanes = ir.Constant(ir.VectorType(_I32, LANES), list(range(LANES)))
        return builder.shuffle_vector(*quads, lanes)

    return _Vector(types.float64)(array, types.int64, types.int64), codegen


@intrinsic
def _store_pair(typing_context, array, first, second, value):
    def codegen(context, builder, signature, args):
        for half in range(2):
            pointer = _quad_pointer(context, builder, array, args[0], args[1 + half])
            builder.store(_half_of(builder, args[3], half), pointer, align=32)
        return context.get_dummy_value()

    return types.none(array, types.int64, types.int64, value), codegen


@intrinsic
def _halves(typing_context, value):
    """Each half of a vector, twice."""

    def codegen(context, builder, signature, args):
        vectors = []
        for half in range(2):
            lanes = [half * QUAD + k % QUAD for k in range(LANES)]
            lanes = ir.Constant(ir.VectorType(_I32, LANES), lanes)
            vectors.append(builder.shuffle_vector(args[0], args[0], lanes))
        return context.make_tuple(builder, signature.return_type, vectors)

    return types.UniTuple(value, 2)(value), codegen


@intrinsic
def _after(typing_context, first, second):
    """The first half of one vector, then that of another."""

    def codegen(context, builder, signature, args):
        lanes = [k if k < QUAD else LANES + k - QUAD for k in range(LANES)]
        lanes = ir.Constant(ir.VectorType(_I32, LANES), lanes)
        return builder.shuffle_vector(args[0], args[1], lanes)

    return first(first, second), codegen


def _add_half(half):
    @intrinsic
    def add(typing_context, table, top, bottom, right, value):
        """Adds half of a vector to two corners, and takes it from the other two."""

        def codegen(context, builder, signature, args):
            corner, below, right = args[1:4]
            quad = _half_of(builder, args[4], half)
            for at, apply in (
                (corner, builder.fadd),
                (builder.add(corner, right), builder.fsub),
                (below, builder.fsub),
                (builder.add(below, right), builder.fadd),
            ):
                pointer = _quad_pointer(context, builder, table, args[0], at)
                sum_ = apply(builder.load(pointer, align=32), quad, flags=_FLAGS)
                builder.store(sum_, pointer, align=32)
            return context.get_dummy_value()

        integer = types.int64
        return types.none(table, integer, integer, integer, value), codegen

    return add


_add_first, _add_second = _add_half(0), _add_half(1)


@njit(**_INLINE)
def _running_sums(run, eight):
    """Sums over the cells of a block up to each of them, and all before; the new ``run``, which has
    both halves alike."""
    a = eight[0]
    b = a + eight[1]
    c = b + eight[2]
    d = c + eight[3]
    e = d + eight[4]
    f = e + eight[5]
    g = f + eight[6]
    h = g + eight[7]
    first, second = _halves(h)
    before = _after(run, run + first)
    sums = (
        a + before, b + before, c + before, d + before, e + before, f + before, g + before,
        h + before,
    )  # fmt: skip
    return sums, run + first + second


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
    ring = 0
    for i in range(h):
        ring = max(ring, last[i] - first[i] + 1)
    return ring


@njit(**_PLAIN)
def _upper_left(p, q, i, h, w, ring, start, line, tops):
    slot = start % ring
    for j in range(w):
        rows, columns = min(p[j], h), min(q[j], w)
        left = min(max(j - columns // 2, 0), w - columns)
        upper = slot + min(max(i - rows // 2, 0), h - rows) - start
        upper = upper - ring if upper >= ring else upper
        tops[j] = (upper * line + left) * QUAD


@njit(**_PLAIN)
def _lower_left(p, h, w, ring, line, tops, bottoms):
    size = ring * line * QUAD
    for j in range(w):
        lower = np.int64(tops[j]) + min(p[j], h) * (line * QUAD)
        bottoms[j] = lower - size if lower >= size else lower


@njit(**_PLAIN)
def _steps_right(q, w, rights):
    for j in range(w):
        rights[j] = min(q[j], w) * QUAD


@njit(**_PLAIN)
def _shares(p, q, h, w, scale, shares):
    fewest = h * w
    for j in range(w):
        cells = min(p[j], h) * min(q[j], w)
        fewest = min(fewest, cells)
        shares[j] = scale / cells
    return scale / fewest


@njit(**_INLINE)
def _windows_of_row(p, q, i, h, w, ring, start, scale, tops, bottoms, rights, shares):
    # Loops with few arrays each, which compilers turn into vectors.
    line = tops.size + 1
    _upper_left(p, q, i, h, w, ring, start, line, tops)
    _lower_left(p, h, w, ring, line, tops, bottoms)
    _steps_right(q, w, rights)
    largest = _shares(p, q, h, w, scale, shares)
    for j in range(w, tops.size):
        tops[j], bottoms[j], rights[j] = tops[w - 1], bottoms[w - 1], rights[w - 1]
        shares[j] = shares[w - 1]
    return largest


def compile_windows() -> Any:
    """The windows from p and q, int64 ``[samples, height, width]`` at ``x_ptr``, ``grad_ptr``."""

    def body(address):
        job = carray(address, 1, JOB)[0]
        h, w = job.height, job.width
        line = (w + BLOCK - 1) // BLOCK * BLOCK
        p = carray(_pointer(job.x_ptr), _MANY, np.int64)
        q = carray(_pointer(job.grad_ptr), _MANY, np.int64)
        tops = carray(_pointer(job.tops_ptr), _MANY, np.uint32)
        bottoms = carray(_pointer(job.bottoms_ptr), _MANY, np.uint32)
        rights = carray(_pointer(job.rights_ptr), _MANY, np.uint32)
        shares = carray(_pointer(job.shares_ptr), _MANY, np.float64)
        largest = carray(_pointer(job.largest_ptr), _MANY, np.float64)
        lines = carray(_pointer(job.lines_ptr), _MANY, np.int64)
        while True:
            n = _take_task(address)
            if n >= job.samples:
                return
            own = lines[n * (2 * h + 1) : (n + 1) * (2 * h + 1)]
            ring = _lines(p[n * h * w : (n + 1) * h * w], h, w, own[:h], own[h : 2 * h])
            own[2 * h] = ring
            for i in range(h):
                of, to = (n * h + i) * w, (n * h + i) * line
                largest[n * h + i] = _windows_of_row(
                    p[of : of + w], q[of : of + w], i, h, w, ring, own[i], 1.0 / job.per_group,
                    tops[to : to + line], bottoms[to : to + line], rights[to : to + line],
                    shares[to : to + line],
                )  # fmt: skip

    return _compiled(body)


@njit(**_INLINE)
def _largest_ring(job, lines):
    ring, size = 0, 2 * job.height + 1
    for n in range(job.samples if job.own_windows else 1):
        ring = max(ring, lines[(n + 1) * size - 1])
    return ring


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

    Returns the larger of ``most`` and the largest rstd.
    """
    mean = total * share
    variance = _as(square * share - mean * mean, eps)
    mean = mean + shift
    top = _truncated(mean)
    _store(high, at, None, _as(top, eps))
    _store(low, at, None, _as(mean - top, eps))
    root = _rsqrt(_larger(eps - eps, variance) + eps)
    _store(rstd, at, None, root)
    return _larger(most, root)


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
    before_a, before_b = _load(a, to + j, None), _load(b, to + j, None)
    _store(a, to + j, None, before_a + _as(g * w, before_a))
    _store(b, to + j, None, before_b + _as(gd * w, before_b))
    return of_bias + g, of_weight + gd * _load(rstd, at + j, None)


@njit(**_INLINE)
def _add_products(x, grad, base, width, high, low, rstd, at, weight, a, b, to, totals, totals_at):
    """Adds ``grad w`` and ``grad w (x - mean)`` of a channel to ``a`` and ``b``, and the sums of
    grad and ``grad (x - mean) rstd`` to ``totals``, two vectors."""
    whole = width - width % LANES
    w = _splat(weight)
    of_bias = of_weight = _splat(high.dtype.type(0))
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
def _terms_at(a, b, high, low, rstd, at, share, shift):
    """What each window adds to the gradient of its cells: ``first + second * (x - shift)``."""
    mean = _wide(_load(high, at, None)) - shift + _wide(_load(low, at, None))
    r = _wide(_load(rstd, at, None))
    scaled = r * share
    second = r * (r * scaled) * _wide(_load(b, at, None))
    return scaled * _wide(_load(a, at, None)) - mean * second, second


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
def _block_of(firsts, seconds, line, j):
    """``firsts`` and ``seconds`` ``[PLANES, line]`` at the cells of a block."""
    k = j + LANES
    return (
        _load(firsts, j, None), _load(firsts, line + j, None),
        _load(seconds, j, None), _load(seconds, line + j, None),
        _load(firsts, k, None), _load(firsts, line + k, None),
        _load(seconds, k, None), _load(seconds, line + k, None),
    )  # fmt: skip


@njit(**_INLINE)
def _values_at(x, base, job, shift, j, cells):
    """Sums over the channels of a group, and of squares, at eight cells."""
    total = square = _splat(0.0)
    for c in range(job.per_group):
        value = _wide(_load(x, base + c * job.height * job.width + j, cells)) - shift
        total, square = total + value, square + value * value
    return total, square


@njit(**_INLINE)
def _block_at(x, base_0, base_1, job, shift_0, shift_1, j, cells, more_cells):
    """The same for the groups of a task at the cells of a block, as ``_block_of``."""
    k = j + LANES
    total_0, square_0 = _values_at(x, base_0, job, shift_0, j, cells)
    total_1, square_1 = _values_at(x, base_1, job, shift_1, j, cells)
    total_2, square_2 = _values_at(x, base_0, job, shift_0, k, more_cells)
    total_3, square_3 = _values_at(x, base_1, job, shift_1, k, more_cells)
    return total_0, total_1, square_0, square_1, total_2, total_3, square_2, square_3


@njit(**_INLINE)
def _add_pair(table, above, here, sums):
    further = LANES * QUAD
    before = _load_pair(table, above, above + further)
    _store_pair(table, here, here + further, before + sums)


@njit(**_INLINE)
def _next_block(table, above, here, run, block):
    """A block of a line of the table, from the sums in a row of cells."""
    sums, run = _running_sums(run, _transposed(block))
    _add_pair(table, above, here, sums[0])
    _add_pair(table, above + QUAD, here + QUAD, sums[1])
    _add_pair(table, above + 2 * QUAD, here + 2 * QUAD, sums[2])
    _add_pair(table, above + 3 * QUAD, here + 3 * QUAD, sums[3])
    _add_pair(table, above + 4 * QUAD, here + 4 * QUAD, sums[4])
    _add_pair(table, above + 5 * QUAD, here + 5 * QUAD, sums[5])
    _add_pair(table, above + 6 * QUAD, here + 6 * QUAD, sums[6])
    _add_pair(table, above + 7 * QUAD, here + 7 * QUAD, sums[7])
    return run


@njit(**_PLAIN)
def _add_line(job, x, bases, shifts, row, ring, table, sums, squares, line):
    """The line of the table below a row, from the line above it; returns where the row ends."""
    h, w = job.height, job.width
    above, here = row % ring * (line + 1) * QUAD, (row + 1) % ring * (line + 1) * QUAD
    end = here + w * QUAD
    _fill(table, here, here + QUAD, 0.0)
    above, here = above + QUAD, here + QUAD
    run = _splat(0.0)
    if job.per_group <= _FEW_CHANNELS:
        shift_0, shift_1 = _splat(shifts[0]), _splat(shifts[1])
        base_0, base_1 = bases[0] + row * w, bases[1] + row * w
        whole = w - w % BLOCK
        for j in range(0, whole, BLOCK):
            block = _block_at(x, base_0, base_1, job, shift_0, shift_1, j, None, None)
            run = _next_block(table, above + j * QUAD, here + j * QUAD, run, block)
        if whole < w:
            block = _block_at(
                x, base_0, base_1, job, shift_0, shift_1, whole, w - whole, w - whole - LANES
            )
            run = _next_block(table, above + whole * QUAD, here + whole * QUAD, run, block)
        return end
    # One channel after the other: the rows of many channels at once displace each other.
    _fill(sums, 0, sums.size, 0.0)
    _fill(squares, 0, squares.size, 0.0)
    for plane in range(PLANES):
        for c in range(job.per_group):
            base = bases[plane] + (c * h + row) * w
            _add_values(sums, squares, plane * line, x, base, w, shifts[plane])
    for j in range(0, line, BLOCK):
        block = _block_of(sums, squares, line, j)
        run = _next_block(table, above + j * QUAD, here + j * QUAD, run, block)
    return end


@njit(**_INLINE)
def _corners_of(tops, bottoms, rights, j):
    k = np.uint64(j)  # an index without a sign needs no check for one
    return np.int64(tops[k]), np.int64(bottoms[k]), np.int64(rights[k])


@njit(**_INLINE)
def _windows_at(table, tops, bottoms, rights, j):
    """The sums over the windows of two cells."""
    top, bottom, right = _corners_of(tops, bottoms, rights, j)
    top_2, bottom_2, right_2 = _corners_of(tops, bottoms, rights, j + LANES)
    below = _load_pair(table, bottom + right, bottom_2 + right_2)
    above = _load_pair(table, top + right, top_2 + right_2)
    below = below - _load_pair(table, bottom, bottom_2)
    return below - (above - _load_pair(table, top, top_2))


@njit(**_INLINE)
def _statistics(table, tops, bottoms, rights, shares, at, shifts, eps, high, low, rstd, line, most):
    """Mean and rstd of a row of cells, ``[PLANES, line]``."""
    epses = _splat(high.dtype.type(eps))
    most_0 = most_1 = _splat(high.dtype.type(0))
    shift_0, shift_1 = _splat(shifts[0]), _splat(shifts[1])
    for j in range(0, line, BLOCK):
        k = at + j
        sums = _transposed(
            (
                _windows_at(table, tops, bottoms, rights, k),
                _windows_at(table, tops, bottoms, rights, k + 1),
                _windows_at(table, tops, bottoms, rights, k + 2),
                _windows_at(table, tops, bottoms, rights, k + 3),
                _windows_at(table, tops, bottoms, rights, k + 4),
                _windows_at(table, tops, bottoms, rights, k + 5),
                _windows_at(table, tops, bottoms, rights, k + 6),
                _windows_at(table, tops, bottoms, rights, k + 7),
            )
        )
        share, share_2, j_2 = _load(shares, k, None), _load(shares, k + LANES, None), j + LANES
        most_0 = _moments_at(sums[0], sums[2], share, shift_0, epses, high, low, rstd, j, most_0)
        most_0 = _moments_at(
            sums[4], sums[6], share_2, shift_0, epses, high, low, rstd, j_2, most_0
        )
        j, j_2 = line + j, line + j_2
        most_1 = _moments_at(sums[1], sums[3], share, shift_1, epses, high, low, rstd, j, most_1)
        most_1 = _moments_at(
            sums[5], sums[7], share_2, shift_1, epses, high, low, rstd, j_2, most_1
        )
    most[0], most[1] = _maximum(most_0), _maximum(most_1)


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
    job, x, base, shift, first_line, ring, tops, bottoms, rights, shares, windows_at, total, high,
    low, rstd, at,
):  # fmt: skip
    """Where digits were lost; False if a window is too large for that."""
    line = (job.width + BLOCK - 1) // BLOCK * BLOCK + 1  # cells in a line of the table
    for j in range(job.width):
        k, r = windows_at + j, np.float64(rstd[at + j])
        if total * shares[k] * r * r <= 0.99 * job.limit:
            continue
        top, bottom, q = _corners_of(tops, bottoms, rights, k)
        q, slot, left = q // QUAD, top // QUAD // line, top // QUAD % line
        p = (bottom // QUAD // line - slot) % ring
        if p * q > _SMALL_WINDOW:
            return False
        top = first_line + (slot - first_line) % ring
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
    job, x, bases, shifts, i, lines, largest, ring, table, end, tops, bottoms, rights, shares,
    windows_at, high, low, rstd, rstd_at, line, most, given_up,
):  # fmt: skip
    """Mean and rstd of a row of cells; flags the groups that plain PyTorch has to do."""
    own_rstd = rstd[rstd_at : rstd_at + PLANES * line]
    _statistics(
        table, tops, bottoms, rights, shares, windows_at, shifts, job.eps, high, low, own_rstd,
        line, most,
    )  # fmt: skip
    for plane in range(PLANES):
        total = table[end + PLANES + plane]
        if given_up[plane] or total * largest * most[plane] * most[plane] <= job.limit:
            continue
        given_up[plane] = not total < np.inf or not _statistics_again(
            job, x, bases[plane], shifts[plane], lines[i], ring, tops, bottoms, rights, shares,
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
    job, x, first_plane, tops, bottoms, rights, shares, lines, largest, weight, bias, out, flags,
    table, sums, squares, high, low, rstd, bases, shifts, given_up, most,
):  # fmt: skip
    h, w = job.height, job.width
    line = sums.size // PLANES
    own = _start(job, x, first_plane, bases, shifts, given_up)
    windows, lines = own * h * line, lines[own * (2 * h + 1) : (own + 1) * (2 * h + 1)]
    ring = lines[2 * h]
    _fill(table, 0, (line + 1) * QUAD, 0.0)
    done, end = 0, 0
    for i in range(h):
        while done < lines[h + i]:
            end = _add_line(job, x, bases, shifts, done, ring, table, sums, squares, line)
            done += 1
        _statistics_of_row(
            job, x, bases, shifts, i, lines, largest[own * h + i], ring, table, end, tops, bottoms,
            rights, shares, windows + i * line, high, low, rstd, 0, line, most, given_up,
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
    """Adds what the windows of two cells contribute to their corners."""
    top, bottom, right = _corners_of(tops, bottoms, rights, j)
    _add_first(table, top, bottom, right, terms)
    top, bottom, right = _corners_of(tops, bottoms, rights, j + LANES)
    _add_second(table, top, bottom, right, terms)


@njit(**_PLAIN)
def _scatter(
    table, tops, bottoms, rights, shares, at, shifts, a, b, high, low, rstd, line, extremes
):
    """Adds what the windows of a row contribute to their corners.

    ``extremes`` keeps the largest rstd of each group and minus the smallest.
    """
    zeros = _splat(high.dtype.type(0))
    most_0 = most_1 = zeros
    least_0 = least_1 = _splat(high.dtype.type(-np.inf))
    shift_0, shift_1 = _splat(shifts[0]), _splat(shifts[1])
    for j in range(0, line, BLOCK):
        k = at + j
        share, share_2 = _load(shares, k, None), _load(shares, k + LANES, None)
        first_0, second_0 = _terms_at(a, b, high, low, rstd, j, share, shift_0)
        first_2, second_2 = _terms_at(a, b, high, low, rstd, j + LANES, share_2, shift_0)
        to = line + j
        first_1, second_1 = _terms_at(a, b, high, low, rstd, to, share, shift_1)
        first_3, second_3 = _terms_at(a, b, high, low, rstd, to + LANES, share_2, shift_1)
        r_0, r_2 = _load(rstd, j, None), _load(rstd, j + LANES, None)
        r_1, r_3 = _load(rstd, to, None), _load(rstd, to + LANES, None)
        most_0, most_1 = _larger(_larger(most_0, r_0), r_2), _larger(_larger(most_1, r_1), r_3)
        least_0 = _larger(_larger(least_0, zeros - r_0), zeros - r_2)
        least_1 = _larger(_larger(least_1, zeros - r_1), zeros - r_3)
        cells = _transposed(
            (first_0, first_1, second_0, second_1, first_2, first_3, second_2, second_3)
        )
        _add_to_corners(table, tops, bottoms, rights, k, cells[0])
        _add_to_corners(table, tops, bottoms, rights, k + 1, cells[1])
        _add_to_corners(table, tops, bottoms, rights, k + 2, cells[2])
        _add_to_corners(table, tops, bottoms, rights, k + 3, cells[3])
        _add_to_corners(table, tops, bottoms, rights, k + 4, cells[4])
        _add_to_corners(table, tops, bottoms, rights, k + 5, cells[5])
        _add_to_corners(table, tops, bottoms, rights, k + 6, cells[6])
        _add_to_corners(table, tops, bottoms, rights, k + 7, cells[7])
    for at, found in ((0, most_0), (1, least_0), (2, most_1), (3, least_1)):
        extremes[at] = max(extremes[at], np.float64(_maximum(found)))


@njit(**_INLINE)
def _taken_pair(table, at):
    """What lies there; zeros stay."""
    further = LANES * QUAD
    value = _load_pair(table, at, at + further)
    _store_pair(table, at, at + further, _splat(0.0))
    return value


@njit(**_INLINE)
def _added_pair(columns, at, sums):
    further = LANES * QUAD
    value = _load_pair(columns, at, at + further) + sums
    _store_pair(columns, at, at + further, value)
    return value


@njit(**_PLAIN)
def _spread_row(table, at, columns, line, firsts, seconds):
    """What the windows add to a row of cells, ``[PLANES, line]``: sums along the line of the table,
    added to those down the columns. Empties the line."""
    run = _splat(0.0)
    for j in range(0, line, BLOCK):
        k, to = at + j * QUAD, j * QUAD
        cells = (
            _taken_pair(table, k), _taken_pair(table, k + QUAD),
            _taken_pair(table, k + 2 * QUAD), _taken_pair(table, k + 3 * QUAD),
            _taken_pair(table, k + 4 * QUAD), _taken_pair(table, k + 5 * QUAD),
            _taken_pair(table, k + 6 * QUAD), _taken_pair(table, k + 7 * QUAD),
        )  # fmt: skip
        sums, run = _running_sums(run, cells)
        rows = _transposed(
            (
                _added_pair(columns, to, sums[0]),
                _added_pair(columns, to + QUAD, sums[1]),
                _added_pair(columns, to + 2 * QUAD, sums[2]),
                _added_pair(columns, to + 3 * QUAD, sums[3]),
                _added_pair(columns, to + 4 * QUAD, sums[4]),
                _added_pair(columns, to + 5 * QUAD, sums[5]),
                _added_pair(columns, to + 6 * QUAD, sums[6]),
                _added_pair(columns, to + 7 * QUAD, sums[7]),
            )
        )
        _store(firsts, j, None, rows[0])
        _store(firsts, line + j, None, rows[1])
        _store(seconds, j, None, rows[2])
        _store(seconds, line + j, None, rows[3])
        j += LANES
        _store(firsts, j, None, rows[4])
        _store(firsts, line + j, None, rows[5])
        _store(seconds, j, None, rows[6])
        _store(seconds, line + j, None, rows[7])


@njit(**_PLAIN)
def _backward_task(
    job, x, grad, first_plane, tops, bottoms, rights, shares, lines, largest, weight, out, partial,
    flags, table, terms, sums, squares, high, low, rstd, a, b, columns, totals, extremes, bases,
    shifts, given_up, most,
):  # fmt: skip
    h, w = job.height, job.width
    line = sums.size // PLANES
    per_group = job.per_group
    own = _start(job, x, first_plane, bases, shifts, given_up)
    windows, lines = own * h * line, lines[own * (2 * h + 1) : (own + 1) * (2 * h + 1)]
    ring = lines[2 * h]
    _fill(table, 0, (line + 1) * QUAD, 0.0)
    _fill(columns, 0, columns.size, 0.0)
    _fill(totals, 0, totals.size, 0.0)
    for plane in range(PLANES):
        extremes[2 * plane], extremes[2 * plane + 1] = 0.0, -np.inf
    done, end, ready = 0, 0, 0
    for i in range(h):
        while done < lines[h + i]:
            end = _add_line(job, x, bases, shifts, done, ring, table, sums, squares, line)
            done += 1
        rstd_at = i % ring * PLANES * line
        _statistics_of_row(
            job, x, bases, shifts, i, lines, largest[own * h + i], ring, table, end, tops, bottoms,
            rights, shares, windows + i * line, high, low, rstd, rstd_at, line, most, given_up,
        )  # fmt: skip
        _fill(a, 0, a.size, a.dtype.type(0))
        _fill(b, 0, b.size, b.dtype.type(0))
        own_rstd = rstd[rstd_at : rstd_at + PLANES * line]
        for plane in range(PLANES):
            channel = bases[plane] // (h * w) % job.channels
            for c in range(per_group):
                _add_products(
                    x, grad, bases[plane] + (c * h + i) * w, w, high, low, own_rstd, plane * line,
                    weight[channel + c], a, b, plane * line, totals,
                    2 * (plane * per_group + c) * LANES,
                )  # fmt: skip
        _scatter(
            terms, tops, bottoms, rights, shares, windows + i * line, shifts, a, b, high, low,
            own_rstd, line, extremes,
        )  # fmt: skip
        # A row of cells is finished as soon as no later window begins in or above it.
        while ready < (h if i == h - 1 else lines[i + 1]):
            _spread_row(terms, ready % ring * (line + 1) * QUAD, columns, line, sums, squares)
            for plane in range(PLANES):
                channel = bases[plane] // (h * w) % job.channels
                for c in range(per_group):
                    _input_gradient(
                        x, grad, bases[plane] + (c * h + ready) * w, out, w, rstd,
                        (ready % ring * PLANES + plane) * line, weight[channel + c],
                        shifts[plane], sums, squares, plane * line,
                    )  # fmt: skip
            ready += 1
    at = h % ring * (line + 1) * QUAD
    _fill(terms, at, at + (line + 1) * QUAD, 0.0)
    for plane in range(PLANES):
        # What windows of steep gradients add leaves its rounding everywhere else.
        if not h * w * extremes[2 * plane] < job.limit * -extremes[2 * plane + 1]:
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
        largest = carray(_pointer(job.largest_ptr), _MANY, np.float64)
        ring = _largest_ring(job, lines)
        flags = carray(_pointer(job.flags_ptr), _MANY, np.uint8)
        line = (job.width + BLOCK - 1) // BLOCK * BLOCK
        wide, narrow = np.empty(0, np.float64), np.empty(0, working)
        table = _memory(ring * (line + 1) * QUAD)
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
                job, x, first, tops, bottoms, rights, shares, lines, largest, weight, bias, out,
                flags, table, sums, squares, high, low, rstd, bases, shifts, given_up, most,
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
        largest = carray(_pointer(job.largest_ptr), _MANY, np.float64)
        ring = _largest_ring(job, lines)
        flags = carray(_pointer(job.flags_ptr), _MANY, np.uint8)
        line = (job.width + BLOCK - 1) // BLOCK * BLOCK
        wide, narrow = np.empty(0, np.float64), np.empty(0, working)
        table = _memory(ring * (line + 1) * QUAD)
        terms = _zeros(ring * (line + 1) * QUAD, wide)
        sums, squares = _zeros(PLANES * line, wide), _zeros(PLANES * line, wide)
        high, low = _zeros(PLANES * line, narrow), _zeros(PLANES * line, narrow)
        a, b = _zeros(PLANES * line, narrow), _zeros(PLANES * line, narrow)
        rstd = _zeros(ring * PLANES * line, narrow)
        columns, totals = _zeros(line * QUAD, wide), np.zeros(2 * PLANES * job.per_group * LANES)
        bases, shifts = np.zeros(PLANES, np.int64), np.zeros(PLANES)
        given_up, most = np.zeros(PLANES, np.uint8), np.zeros(PLANES)
        extremes = np.zeros(2 * PLANES)
        while True:
            first = _first_plane(_take_task(address), job)
            if first < 0:
                return
            _backward_task(
                job, x, grad, first, tops, bottoms, rights, shares, lines, largest, weight, out,
                partial, flags, table, terms, sums, squares, high, low, rstd, a, b, columns, totals,
                extremes, bases, shifts, given_up, most,
            )  # fmt: skip

    return _compiled(body)
