"""Which cells of their inputs PyTorch's operators read, for :mod:`lcn.dependence`.

A rule gets a :class:`~lcn.dependence.Call` and returns the bounds of each result.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from torch.utils._python_dispatch import _disable_current_modes

from .dependence import (
    COPIES,
    NOTHING,
    Axes,
    Bounds,
    Call,
    Dependence,
    Rule,
    Unknown,
    contract,
)
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
    first, *others = (np.take(padded, cells[:, tap], axis=dim + 1) for tap in range(cells.shape[1]))
    for other in others:
        np.minimum(first, other, out=first)
    return first


def read_between(bounds: Bounds, dim: int, start: np.ndarray, stop: np.ndarray) -> Bounds:
    """Bounds of cells that read ``[start, stop)`` along a dimension, none of them empty."""
    if bounds.shape[dim + 1] == 1:
        return bounds
    # Minima over 1, 2, 4, ... cells; two of them, which may overlap, make up any interval.
    length = stop - start
    power = np.frexp(length.astype(np.float64))[1] - 1
    result = None
    minima, size = bounds, bounds.shape[dim + 1]
    column = (-1, *[1] * (bounds.ndim - dim - 2))
    for exponent in range(int(power.max()) + 1):
        if exponent:
            half = 1 << (exponent - 1)
            index = np.minimum(np.arange(size) + half, size - 1)
            minima = np.minimum(minima, np.take(minima, index, axis=dim + 1))
        here = power == exponent
        last = np.where(here, stop - (1 << exponent), 0)
        found = np.minimum(
            np.take(minima, np.where(here, start, 0), axis=dim + 1),
            np.take(minima, last, axis=dim + 1),
        )
        result = found if result is None else np.where(here.reshape(column), found, result)
    assert result is not None
    return result


def on_axes(axes: Axes, change: Callable[[Bounds], Bounds]) -> list[Axes]:
    """One result, whose bounds are those given, changed alike on both axes."""
    return [(change(axes[0]), change(axes[1]))]


def source_of(call: Call, name: str = "self") -> Dependence:
    """What the named argument depends on; others that the rule does not follow are constants."""
    source = call.source(call.values.get(name))
    others = [d for d in call.sources.values() if d is not source]
    if source is None or others:
        raise Unknown(f"{call.name} with a computed argument")
    return source


def pair(value: Any, count: int) -> list[int]:
    """A value per spatial dimension, of a list that may hold one for all."""
    values = list(value) if isinstance(value, Sequence) else [value]
    return [int(v) for v in (values * count if len(values) == 1 else values)]


# Cell by cell


@rule("hardswish hardswish_ hardtanh hardtanh_ native_dropout fill_ masked_fill masked_fill_")
def pointwise(call: Call) -> list[Axes | None]:
    return [call.merged(*(d.axes for d in call.sources.values()))] * (1 + isinstance(call.out, tuple))


RULES["pointwise"] = pointwise
RULES.update(dict.fromkeys(COPIES, pointwise))


@rule("zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty")
def constant(call: Call) -> list[Axes | None]:
    return [None]


RULES.update(dict.fromkeys(["aten.new_full", "aten.new_empty_strided", "prim.device"], constant))


@rule("copy_")
def overwrite(call: Call) -> list[Axes | None]:
    return [call.axes(call.values["src"])]


@rule("glu")
def glu(call: Call) -> list[Axes | None]:
    source = source_of(call)
    dim = call.values["dim"] % len(source.shape)
    half = source.shape[dim] // 2
    cells = np.stack([np.arange(half), np.arange(half) + half], axis=1)
    return [*on_axes(source.axes, lambda b: read(b, dim, cells))]


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
def convolution(call: Call) -> list[Axes | None]:
    v = call.values
    source = call.source(v["input"])
    if source is None:
        raise Unknown("convolution of a constant with computed weights")
    kernel = v["weight"].shape[2:]
    count = len(kernel)
    stride, padding, dilation = (pair(v[k], count) for k in ("stride", "padding", "dilation"))
    cells = transposed_taps if v["transposed"] else taps
    axes = call.contracted(source, [1])
    for k in range(count):
        dim = k + 2
        reads = cells(
            call.out.shape[dim], source.shape[dim], kernel[k], stride[k], padding[k], dilation[k]
        )
        [axes] = on_axes(axes, lambda b, dim=dim, reads=reads: read(b, dim, reads))
    return [call.merged(axes, call.whole(v["weight"]), call.whole(v["bias"]))]


@rule("max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d max_pool2d")
def pooling(call: Call) -> list[Axes | None]:
    v = call.values
    source = source_of(call)
    out = call.out[0] if isinstance(call.out, tuple) else call.out
    count = 2 if "2d" in call.name else 3 if "3d" in call.name else 1
    kernel = pair(v["kernel_size"], count)
    stride = pair(v["stride"] or kernel, count)
    padding, dilation = pair(v["padding"], count), pair(v.get("dilation", 1), count)
    axes = source.axes
    for k in range(count):
        dim = len(source.shape) - count + k
        reads = taps(
            out.shape[dim], source.shape[dim], kernel[k], stride[k], padding[k], dilation[k]
        )
        [axes] = on_axes(axes, lambda b, dim=dim, reads=reads: read(b, dim, reads))
    return [axes]


@rule("lcn.local_context_norm")
def local_context_norm(call: Call) -> list[Axes | None]:
    v = call.values
    source = call.source(v["x"])
    if source is None or not isinstance(v["p"], int) or len(source.shape) != 4:
        raise Unknown(f"{call.name} with a window per point")
    sizes, window = source.shape[2:], (v["p"], v["q"])
    if call.covers is None:
        rows, columns = (p >= size for p, size in zip(window, sizes, strict=True))
        either = v["rule"] == "released" and (rows or columns)
        call.covers = (rows or either, columns or either)
    axes = call.contracted(source, [1])
    affine = (call.whole(v["weight"]), call.whole(v["bias"]))
    released_global = v["rule"] == "released" and any(
        p >= size for p, size in zip(window, sizes, strict=True)
    )
    for k, dim in enumerate((2, 3)):
        if call.covers[k] or released_global:
            mine = [axis for axis in (0, 1) if axes[axis].shape[dim + 1] > 1]
            for axis in mine:
                call.unlimited[axis].add(call.layer)
            [axes] = on_axes(axes, lambda b, dim=dim: contract(b, [dim]))
            continue
        start, stop = axis_limits(sizes[k], window[k], v["rule"])
        [axes] = on_axes(
            axes, lambda b, dim=dim, start=start, stop=stop: read_between(b, dim, start, stop)
        )
        if v["rule"] == "tiled":
            stride = call.stride(source, k, dim)
            call.period[k] = (stride or Fraction(1)).numerator * window[k]
    return [call.merged(axes, *affine)]


def axis_limits(size: int, window: int, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """``start`` and ``stop`` of :func:`lcn.window.axis_bounds` as arrays."""
    with _disable_current_modes():
        start, stop = axis_bounds(size, window, rule)
        return start.numpy(), stop.numpy()


# Statistics and sums


@rule("native_group_norm")
def group_norm(call: Call) -> list[Axes | None]:
    source = call.source(call.values["input"])
    if source is None:
        raise Unknown(f"{call.name} of a constant")
    call.covers = call.covers or (True, True)
    statistics = call.contracted(source, range(1, len(source.shape)))
    affine = (call.whole(call.values["weight"]), call.whole(call.values["bias"]))
    return [call.merged(source.axes, statistics, *affine)]


@rule("native_layer_norm _fused_rms_norm")
def layer_norm(call: Call) -> list[Axes | None]:
    source = source_of(call, "input")
    dims = range(-len(call.values["normalized_shape"]), 0)
    return [call.merged(source.axes, call.contracted(source, dims))]


@rule(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
    "cudnn_batch_norm miopen_batch_norm _batch_norm_no_update _batch_norm_with_update"
)
def batch_norm(call: Call) -> list[Axes | None]:
    source = call.source(call.values["input"])
    if source is None:
        raise Unknown(f"{call.name} of a constant")
    axes = source.axes
    no_running = "running_mean" not in call.values
    if call.values.get("training") or no_running or call.name.endswith("with_update"):
        dims = [d for d in range(len(source.shape)) if d != 1]
        axes = call.merged(axes, call.contracted(source, dims))
    affine = (call.whole(call.values["weight"]), call.whole(call.values["bias"]))
    return [call.merged(axes, *affine)]


@rule(
    "mean sum amax amin var std prod any all logsumexp linalg_vector_norm norm argmax argmin "
    "max min var_mean std_mean median nanmean nansum"
)
def reduction(call: Call) -> list[Axes | None]:
    v, rank = call.values, None
    source = source_of(call, "self")
    if "other" in v:  # max and min of two tensors
        return pointwise(call)
    rank = len(source.shape)
    dims = v.get("dim")
    dims = list(range(rank)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    dims = sorted(d % rank for d in dims) or list(range(rank))
    axes = call.contracted(source, dims)
    if not v.get("keepdim", False):
        gone = tuple(d + 1 for d in dims)
        [axes] = on_axes(axes, lambda b: b.squeeze(gone))
    return [axes] * (len(call.out) if isinstance(call.out, tuple) else 1)


@rule("_softmax _log_softmax _safe_softmax cumsum cumprod sort topk")
def along_a_dimension(call: Call) -> list[Axes | None]:
    source = source_of(call)
    axes = call.contracted(source, [call.values["dim"]])
    return [axes] * (len(call.out) if isinstance(call.out, tuple) else 1)


@rule("_adaptive_avg_pool2d adaptive_max_pool2d _adaptive_avg_pool3d adaptive_max_pool3d")
def adaptive_pooling(call: Call) -> list[Axes | None]:
    source = source_of(call)
    out = call.out[0] if isinstance(call.out, tuple) else call.out
    axes = source.axes
    for dim in range(len(source.shape) - (3 if "3d" in call.name else 2), len(source.shape)):
        check_scale(call, source, dim, None)
        cell, size, count = np.arange(out.shape[dim]), source.shape[dim], out.shape[dim]
        start, stop = cell * size // count, -(-(cell + 1) * size // count)
        [axes] = on_axes(
            axes, lambda b, dim=dim, start=start, stop=stop: read_between(b, dim, start, stop)
        )
    return [axes]


# Products


_FACTORS = {"mm": "self mat2", "bmm": "self mat2", "addmm": "mat1 mat2", "baddbmm": "batch1 batch2"}


@rule(" ".join(_FACTORS))
def product(call: Call) -> list[Axes | None]:
    v, name = call.values, call.name.removeprefix("aten.")
    first, second = _FACTORS[name].split()
    added = call.axes(v["self"]) if "add" in name else None
    return [call.merged(added, _contracted(call, v[first], -1), _contracted(call, v[second], -2))]


@rule("linear")
def linear(call: Call) -> list[Axes | None]:
    v = call.values
    affine = (call.whole(v["weight"]), call.whole(v["bias"]))
    return [call.merged(_contracted(call, v["input"], -1), *affine)]


def _contracted(call: Call, tensor: Any, dim: int) -> Axes | None:
    source = call.source(tensor)
    return None if source is None else call.contracted(source, [dim])


@rule(
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_scaled_dot_product_fused_attention_overrideable"
)
def attention(call: Call) -> list[Axes | None]:
    v = call.values
    parts: list[Axes | None] = []
    for name, dims in (("query", [-1]), ("key", [-1, -2]), ("value", [-2])):
        source = call.source(v[name])
        parts.append(None if source is None else call.contracted(source, dims))
    for name in ("attn_mask", "attn_bias"):
        if call.source(v.get(name)) is not None:
            raise Unknown(f"{call.name} with a computed mask")
    return [call.merged(*parts)]


# Resizing


def check_scale(call: Call, source: Dependence, dim: int, fixed: Any) -> None:
    """Notes a resize to a fixed size as unlimited, by a factor that depends on the size as such."""
    out = call.out[0] if isinstance(call.out, tuple) else call.out
    if call.smaller is None:
        return
    grown, growth = out.shape[dim] - call.smaller[0][dim], source.growth(dim)
    for axis, bounds in enumerate(source.axes):
        if bounds.shape[dim + 1] == 1:
            continue
        if growth and not grown:
            call.unlimited[axis].add(call.layer)
        elif fixed is None and source.shape[dim] * grown != out.shape[dim] * growth:
            call.sized = True


def resize_scale(size: int, out: int, factor: float | None, align_corners: bool) -> Fraction:
    """Cells of the source per cell of the result."""
    if align_corners:
        return Fraction(size - 1, out - 1) if out > 1 else Fraction(0)
    if factor is not None and factor > 0:
        return 1 / Fraction(factor).limit_denominator(4096)
    return Fraction(size, out)


@rule(
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d "
    "upsample_trilinear3d upsample_bicubic2d"
)
def resize(call: Call) -> list[Axes | None]:
    v = call.values
    source = source_of(call, "self" if "self" in v else "input")
    count = len(source.shape) - 2
    align = bool(v.get("align_corners", False))
    if v.get("scale_factors") is not None:
        factors = list(v["scale_factors"])
    else:
        keys = ["scales"] if count == 1 else ["scales_d", "scales_h", "scales_w"][-count:]
        factors = [v.get(key) for key in keys]
    axes = source.axes
    for k in range(count):
        dim = k + 2
        size, out = source.shape[dim], call.out.shape[dim]
        check_scale(call, source, dim, factors[k])
        scale = resize_scale(size, out, factors[k], align)
        if align and scale != 1 and any(b.shape[dim + 1] > 1 for b in axes):
            call.sized = True
        reads = resize_taps(call.name, size, out, scale, align)
        [axes] = on_axes(axes, lambda b, dim=dim, reads=reads: read(b, dim, reads))
    return [axes]


def resize_taps(name: str, size: int, out: int, scale: Fraction, align: bool) -> np.ndarray:
    """Cells that each result reads with a weight other than zero; whole-number arithmetic."""
    cell = np.arange(out, dtype=np.int64)
    over, under = scale.numerator, scale.denominator
    if "nearest_exact" in name:
        return np.minimum((2 * cell + 1) * over // (2 * under), size - 1)[:, None]
    if "nearest" in name:
        return np.minimum(cell * over // under, size - 1)[:, None]
    # Where the middle of the cell lies in the source, in units of 1 / (2 * under) cells.
    place = 2 * cell * over if align else (2 * cell + 1) * over - under
    unit = 2 * under
    if "bicubic" not in name:
        place = np.maximum(place, 0)
    floor, between = place // unit, place % unit != 0
    reach = (-1, 0, 1, 2) if "bicubic" in name else (0, 1)
    reads = [np.where(between | (k == 0), np.clip(floor + k, 0, size - 1), -1) for k in reach]
    return np.stack(reads, axis=1)
