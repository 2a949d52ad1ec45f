"""Which cells of their inputs PyTorch's operators read, for :mod:`lcn.dependence`.

A rule gets a :class:`~lcn.dependence.Call` and returns the bounds of each result.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from torch.utils._python_dispatch import _disable_current_modes

from .dependence import COPIES, NOTHING, Bounds, Call, Dependence, Rule, Unknown, contract, join
from .window import axis_bounds

RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for operators of PyTorch, given by name and divided by spaces."""

    def register(function: Rule) -> Rule:
        for name in names.split():
            RULES[name if "." in name else f"aten.{name}"] = function
        return function

    return register


def read(bounds: Bounds, dim: int, cells: np.ndarray) -> Bounds:
    """Bounds of cells that read ``cells`` ``[size, taps]`` along a dimension; -1 reads nothing."""
    if bounds.shape[dim + 1] == 1:
        return bounds
    padding = [(0, 0)] * bounds.ndim
    padding[dim + 1] = (0, 1)
    padded = np.pad(bounds, padding, constant_values=NOTHING)
    result = np.take(padded, cells[:, 0], axis=dim + 1)
    for tap in range(1, cells.shape[1]):
        np.minimum(result, np.take(padded, cells[:, tap], axis=dim + 1), out=result)
    return result


def read_between(bounds: Bounds, dim: int, start: np.ndarray, stop: np.ndarray) -> Bounds:
    """Bounds of cells that read ``[start, stop)`` along a dimension, none of them empty."""
    size = bounds.shape[dim + 1]
    if size == 1:
        return bounds
    # Minima over 1, 2, 4, ... cells; two of them, which may overlap, make up any interval.
    power = np.frexp((stop - start).astype(np.float64))[1] - 1
    result = np.full((*bounds.shape[: dim + 1], len(start), *bounds.shape[dim + 2 :]), NOTHING)
    minima = bounds
    for exponent in range(int(power.max()) + 1):
        if exponent:
            further = np.minimum(np.arange(size) + (1 << (exponent - 1)), size - 1)
            minima = np.minimum(minima, np.take(minima, further, axis=dim + 1))
        [here] = np.nonzero(power == exponent)
        ends = (start[here], stop[here] - (1 << exponent))
        result[(slice(None),) * (dim + 1) + (here,)] = np.minimum(
            *(np.take(minima, end, axis=dim + 1) for end in ends)
        )
    return result


def each(value: Any, count: int) -> list[int]:
    """A value per spatial dimension, of a list that may hold one for all."""
    values = list(value) if isinstance(value, Sequence) else [value]
    return [int(v) for v in (values * count if len(values) == 1 else values)]


# Cell by cell


@rule("hardswish hardswish_ hardtanh hardtanh_ native_dropout fill_ masked_fill masked_fill_")
def pointwise(call: Call) -> list[Bounds]:
    joined = join([source.bounds for source in call.sources.values()])
    return [joined] * len(call.outs)


RULES["pointwise"] = pointwise
RULES.update(dict.fromkeys(COPIES, pointwise))


@rule("copy_")
def overwrite(call: Call) -> Sequence[Bounds]:
    source = call.source(call.values["src"])
    return pointwise(call) if source is None else [source.bounds]


@rule("glu")
def glu(call: Call) -> list[Bounds]:
    source = call.only_source()
    dim = call.values["dim"] % len(source.shape)
    half = source.shape[dim] // 2
    cells = np.stack([np.arange(half), np.arange(half) + half], axis=1)
    return [read(source.bounds, dim, cells)]


# Sliding windows


def taps(out: int, size: int, kernel: int, stride: int, padding: int, dilation: int) -> np.ndarray:
    """Cells that each result of a convolution or pooling reads, -1 for padding."""
    cells = np.arange(out)[:, None] * stride - padding + np.arange(kernel) * dilation
    return np.where((cells >= 0) & (cells < size), cells, -1)


def transposed_taps(
    out: int, size: int, kernel: int, stride: int, padding: int, dilation: int
) -> np.ndarray:
    """Cells that each result of a transposed convolution reads, -1 for none."""
    position = np.arange(out)[:, None] + padding - np.arange(kernel) * dilation
    cells = position // stride
    return np.where((position % stride == 0) & (cells >= 0) & (cells < size), cells, -1)


@rule("convolution")
def convolution(call: Call) -> list[Bounds]:
    v = call.values
    affine = call.whole(v["weight"], v["bias"])
    source = call.source(v["input"])
    if source is None:
        return [join(affine).reshape(2, *[1] * call.outs[0].dim())]
    kernel = v["weight"].shape[2:]
    keys = ("stride", "padding", "dilation")
    geometry = zip(kernel, *(each(v[key], len(kernel)) for key in keys), strict=True)
    [bounds] = call.contracted(source, [1])
    for dim, parts in enumerate(geometry, start=2):
        sizes = (call.outs[0].shape[dim], source.shape[dim])
        cells = (transposed_taps if v["transposed"] else taps)(*sizes, *parts)
        bounds = read(bounds, dim, cells)
    return [join([bounds, *affine])]


@rule("max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d max_pool2d")
def pooling(call: Call) -> list[Bounds]:
    v, source = call.values, call.only_source()
    count = next(n for n in (1, 2, 3) if f"pool{n}d" in call.name)
    kernel = each(v["kernel_size"], count)
    others = (v["stride"] or kernel, v["padding"], v.get("dilation", 1))
    geometry = zip(kernel, *(each(value, count) for value in others), strict=True)
    bounds = source.bounds
    for dim, parts in enumerate(geometry, start=len(source.shape) - count):
        cells = taps(call.outs[0].shape[dim], source.shape[dim], *parts)
        bounds = read(bounds, dim, cells)
    return [bounds]


@rule("lcn.local_context_norm lcn.local_context_norm_per_point lcn.local_context_norm_real_window")
def local_context_norm(call: Call) -> list[Bounds]:
    """A window whose size is not known before the call may be as large as the map."""
    v = call.values
    source = call.source(v["x"])
    if source is None:
        raise Unknown(f"{call.name} of a constant")
    [bounds] = call.contracted(source, [1])
    for dim, window, covers in zip((2, 3), call.window or (None, None), call.covers, strict=True):
        size = source.shape[dim]
        if covers or window is None:
            call.unlimited |= source.varies(dim)
            bounds = contract(bounds, [dim])
        elif call.name == "lcn.local_context_norm_real_window":
            bounds = read_between(bounds, dim, *real_window_limits(size, window))
        elif source.varies(dim):
            bounds = read_between(bounds, dim, *window_limits(size, int(window), v["rule"]))
            stride = call.stride(source, dim)
            if v["rule"] == "tiled" and stride:
                call.period = stride.numerator * int(window)
    affine = call.whole(v["weight"], v["bias"], v.get("windows"))
    if call.window is None:
        affine += call.whole(v.get("p"), v.get("q"))
    # The cell itself need not be in its window (rule released, at a border).
    return [join([source.bounds, bounds, *affine])]


def window_limits(size: int, window: int, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """``start`` and ``stop`` of :func:`lcn.window.axis_bounds` as arrays."""
    with _disable_current_modes():
        start, stop = axis_bounds(size, window, rule)
        return start.numpy(), stop.numpy()


def real_window_limits(size: int, window: float) -> tuple[np.ndarray, np.ndarray]:
    """``start`` and ``stop`` of the cells that lie in a real window, at least in part."""
    window = min(window, size)
    begin = np.clip(np.arange(size) + 0.5 - 0.5 * window, 0.0, size - window)
    begin, end = begin.round(9), (begin + window).round(9)  # sums may be off by rounding
    return np.floor(begin).astype(np.int64), np.ceil(end).astype(np.int64)


# Statistics and sums


@rule("native_group_norm")
def group_norm(call: Call) -> list[Bounds]:
    source = call.source(call.values["input"])
    dims = range(1, call.outs[0].dim())
    statistics = call.contracted(source, dims)
    affine = call.whole(call.values["weight"], call.values["bias"])
    return [join([*([source.bounds] if source else []), *statistics, *affine])]


@rule("native_layer_norm _fused_rms_norm")
def layer_norm(call: Call) -> list[Bounds]:
    source = call.only_source("input")
    dims = range(-len(call.values["normalized_shape"]), 0)
    return [join([source.bounds, *call.contracted(source, dims)])]


@rule(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
    "cudnn_batch_norm miopen_batch_norm _batch_norm_no_update _batch_norm_with_update"
)
def batch_norm(call: Call) -> list[Bounds]:
    v = call.values
    source = call.source(v["input"])
    parts = [] if source is None else [source.bounds]
    of_batch = "running_mean" not in v or call.name.endswith("with_update")
    if source and (v.get("training") or v.get("train") or of_batch):
        parts += call.contracted(source, [d for d in range(len(source.shape)) if d != 1])
    return [join([*parts, *call.whole(v["weight"], v["bias"])])]


@rule(
    "mean sum amax amin var std prod any all logsumexp linalg_vector_norm norm argmax argmin "
    "max min var_mean std_mean nansum"
)
def reduction(call: Call) -> Sequence[Bounds]:
    v = call.values
    if "other" in v:  # the larger of two tensors, cell by cell
        return pointwise(call)
    source = call.only_source()
    rank = len(source.shape)
    given = v.get("dim")
    dims = [given] if isinstance(given, int) else list(given or range(rank))
    dims = [d % rank for d in dims]
    [bounds] = call.contracted(source, dims)
    if not v.get("keepdim", False):
        bounds = bounds.squeeze(tuple(d + 1 for d in dims))
    return [bounds] * len(call.outs)


@rule("_softmax _log_softmax _safe_softmax cumsum cumprod sort topk")
def along_a_dimension(call: Call) -> list[Bounds]:
    [bounds] = call.contracted(call.only_source(), [call.values["dim"]])
    return [bounds] * len(call.outs)


@rule("_adaptive_avg_pool2d adaptive_max_pool2d _adaptive_avg_pool3d adaptive_max_pool3d")
def adaptive_pooling(call: Call) -> list[Bounds]:
    source, out = call.only_source(), call.outs[0]
    bounds = source.bounds
    for dim in range(-3 if "3d" in call.name else -2, 0):
        dim %= len(source.shape)
        note_scale(call, source, dim)
        cell, size, count = np.arange(out.shape[dim]), source.shape[dim], out.shape[dim]
        bounds = read_between(bounds, dim, cell * size // count, -(-(cell + 1) * size // count))
    return [bounds]


# Products

_FACTORS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
}


@rule(" ".join(_FACTORS))
def product(call: Call) -> list[Bounds]:
    v, name = call.values, call.name.removeprefix("aten.")
    one, other = (call.source(v[factor]) for factor in _FACTORS[name])
    added = call.source(v["self"]) if "add" in name else None
    if one and other and _grows(one, -2) and _grows(other, -1):
        # Attention scores, of every place with every other.
        rows, columns = call.contracted(one, [-1, -2]), call.contracted(other, [-1, -2])
    else:
        rows, columns = call.contracted(one, [-1]), call.contracted(other, [-2])
    return [join([*rows, *columns, *([added.bounds] if added else [])])]


def _grows(source: Dependence, dim: int) -> bool:
    dim %= len(source.shape)
    return source.varies(dim) and source.growth(dim) > 0


@rule("linear")
def linear(call: Call) -> list[Bounds]:
    v = call.values
    return [join([*call.contracted(v["input"], [-1]), *call.whole(v["weight"], v["bias"])])]


@rule(
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention"
)
def attention(call: Call) -> list[Bounds]:
    v = call.values
    if any(call.source(v.get(name)) for name in ("attn_mask", "attn_bias")):
        raise Unknown(f"{call.name} with a computed mask")
    query = call.contracted(v["query"], [-1])
    others = (call.contracted(v[name], [-1, -2]) for name in ("key", "value"))
    return [join([*query, *(bounds for other in others for bounds in other)])]


# Resizing


def note_scale(call: Call, source: Dependence, dim: int) -> None:
    """A resize to a fixed size is unlimited; one by another factor at another size is noted."""
    if not source.varies(dim) or not source.growth(dim):
        return
    size, grown = call.outs[0].shape[dim], call.outs[0].shape[dim] - call.smaller[0][dim]
    if not grown:
        call.unlimited = True
    elif source.shape[dim] * grown != size * source.growth(dim):
        call.sized = True


@rule(
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d "
    "upsample_trilinear3d upsample_bicubic2d"
)
def resize(call: Call) -> list[Bounds]:
    v = call.values
    source = call.only_source("self" if "self" in v else "input")
    count = len(source.shape) - 2
    align_corners = bool(v.get("align_corners", False))
    keys = ["scales"] if count == 1 else ["scales_d", "scales_h", "scales_w"][-count:]
    factors = list(v.get("scale_factors") or (v.get(key) for key in keys))
    bounds = source.bounds
    for dim, factor in enumerate(factors, start=2):
        size, out = source.shape[dim], call.outs[0].shape[dim]
        scale = source_cells_per_cell(size, out, factor, align_corners)
        if not factor or align_corners:
            note_scale(call, source, dim)
        if align_corners and size != out and source.varies(dim):
            call.sized = True  # (size - 1) / (out - 1) is the same for no two sizes
        bounds = read(bounds, dim, resize_taps(call.name, size, out, scale, align_corners))
    return [bounds]


def source_cells_per_cell(
    size: int, out: int, factor: float | None, align_corners: bool
) -> Fraction:
    if align_corners:
        return Fraction(size - 1, out - 1) if out > 1 else Fraction(0)
    return 1 / Fraction(factor).limit_denominator(4096) if factor else Fraction(size, out)


def resize_taps(name: str, size: int, out: int, scale: Fraction, align_corners: bool) -> np.ndarray:
    """Cells that each result reads with a weight other than zero, in whole-number arithmetic."""
    cell = np.arange(out)
    over, under = scale.numerator, scale.denominator
    if "nearest_exact" in name:
        return np.minimum((2 * cell + 1) * over // (2 * under), size - 1)[:, None]
    if "nearest" in name:
        return np.minimum(cell * over // under, size - 1)[:, None]
    # Where the middle of the cell lies in the source, in units of 1 / (2 * under) cells.
    place = 2 * cell * over if align_corners else (2 * cell + 1) * over - under
    if "bicubic" not in name:
        place = np.maximum(place, 0)
    floor, between = place // (2 * under), place % (2 * under) != 0
    offsets = (-1, 0, 1, 2) if "bicubic" in name else (0, 1)
    reads = [np.where(between | (k == 0), np.clip(floor + k, 0, size - 1), -1) for k in offsets]
    return np.stack(reads, axis=1)
