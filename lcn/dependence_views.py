"""Rules of :mod:`lcn.dependence` for operators that move cells: views, joins, padding."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from .dependence import NOTHING, Axes, Bounds, Call, Unknown, join
from .dependence_rules import on_axes, read, rule, source_of


def reshaped(bounds: Bounds, old: Sequence[int], new: Sequence[int]) -> Bounds:
    """The bounds of a tensor of shape ``old`` once it is viewed as ``new``."""
    result: list[int] = []
    full: list[int] = []
    i = j = 0
    while i < len(old) or j < len(new):
        # The shortest runs of dimensions with the same number of cells.
        i_end, j_end = i + (i < len(old)), j + (j < len(new))
        cells, others = int(np.prod(old[i:i_end])), int(np.prod(new[j:j_end]))
        while cells != others:
            if cells < others:
                cells *= old[i_end]
                i_end += 1
            else:
                others *= new[j_end]
                j_end += 1
        varies = any(bounds.shape[d + 1] > 1 for d in range(i, i_end))
        full += old[i:i_end] if varies else [1] * (i_end - i)
        result += new[j:j_end] if varies else [1] * (j_end - j)
        i, j = i_end, j_end
    if int(np.prod(full)) > 2**25:
        raise Unknown("view of a large flattened map")
    return np.broadcast_to(bounds, (2, *full)).reshape(2, *result)


@rule("view _unsafe_view reshape _reshape_alias")
def view(call: Call) -> list[Axes | None]:
    source = source_of(call)
    return [*on_axes(source.axes, lambda b: reshaped(b, source.shape, call.out.shape))]


@rule("squeeze unsqueeze squeeze_ unsqueeze_")
def singletons(call: Call) -> list[Axes | None]:
    return view(call)


@rule("permute transpose t")
def permute(call: Call) -> list[Axes | None]:
    source, v = source_of(call), call.values
    order = list(range(len(source.shape)))
    if "dims" in v:
        order = [d % len(order) for d in v["dims"]]
    elif order[1:]:
        one, other = (v["dim0"], v["dim1"]) if "dim0" in v else (0, 1)
        order[one], order[other] = order[other], order[one]
    return [*on_axes(source.axes, lambda b: b.transpose(0, *(d + 1 for d in order)))]


@rule("expand")
def expand(call: Call) -> list[Axes | None]:
    added = call.out.dim() - len(source_of(call).shape)
    return [
        *on_axes(source_of(call).axes, lambda b: b.reshape(2, *[1] * added, *b.shape[1:])),
    ]


@rule("slice")
def cut(call: Call) -> list[Axes | None]:
    source, v = source_of(call), call.values
    dim = v["dim"] % len(source.shape)
    part = slice(v["start"], v["end"], v["step"])
    return [*on_axes(source.axes, lambda b: picked(b, dim, part))]


def picked(bounds: Bounds, dim: int, part: slice | np.ndarray) -> Bounds:
    if bounds.shape[dim + 1] == 1:
        return bounds
    return bounds[(slice(None),) * (dim + 1) + (part,)]


@rule("select unbind")
def select(call: Call) -> list[Axes | None]:
    source, v = source_of(call), call.values
    dim = v["dim"] % len(source.shape)
    indices = [v["index"]] if "index" in v else range(source.shape[dim])

    def at(index: int) -> Axes:
        cell = np.array([index])
        return on_axes(source.axes, lambda b: picked(b, dim, cell).squeeze(dim + 1))[0]

    return [at(index) for index in indices]


@rule("split split_with_sizes")
def split(call: Call) -> list[Axes | None]:
    source, v = source_of(call), call.values
    dim, start, parts = v["dim"] % len(source.shape), 0, []
    for piece in call.out:
        stop = start + piece.shape[dim]
        part = slice(start, stop)
        parts += on_axes(source.axes, lambda b, part=part: picked(b, dim, part))
        start = stop
    return [*parts]


@rule("flip")
def flip(call: Call) -> list[Axes | None]:
    source = source_of(call)
    dims = tuple(d % len(source.shape) + 1 for d in call.values["dims"])
    return [*on_axes(source.axes, lambda b: np.flip(b, dims))]


@rule("repeat")
def repeat(call: Call) -> list[Axes | None]:
    source, times = source_of(call), call.values["repeats"]
    added = len(times) - len(source.shape)

    def tiled(bounds: Bounds) -> Bounds:
        bounds = bounds.reshape(2, *[1] * added, *bounds.shape[1:])
        copies = (t if n > 1 else 1 for t, n in zip(times, bounds.shape[1:], strict=True))
        return np.tile(bounds, (1, *copies))

    return [*on_axes(source.axes, tiled)]


@rule("roll")
def roll(call: Call) -> list[Axes | None]:
    source = source_of(call)
    for d in call.values["dims"]:
        if any(bounds.shape[d % len(source.shape) + 1] > 1 for bounds in source.axes):
            raise Unknown("roll: whether a mask keeps the ends of the map apart is not known")
    return [source.axes]


@rule("cat")
def cat(call: Call) -> list[Axes | None]:
    tensors, dim = call.values["tensors"], call.values["dim"] % call.out.dim()
    tensors = [t for t in tensors if t.dim() == call.out.dim()]  # an empty [0] may be among them
    return [(concatenated(call, 0, tensors, dim), concatenated(call, 1, tensors, dim))]


@rule("stack")
def stack(call: Call) -> list[Axes | None]:
    """All that is stacked is taken together."""
    dim = call.values["dim"] % call.out.dim()
    axes = call.merged(*(call.axes(tensor) for tensor in call.values["tensors"]))
    return [*on_axes(axes, lambda b: np.expand_dims(b, dim + 1))]


def concatenated(call: Call, axis: int, tensors: Sequence[Tensor], dim: int) -> Bounds:
    """Along a dimension that varies cells are kept apart, along any other they are joined."""
    nothing = np.full((2, *[1] * call.out.dim()), NOTHING, dtype=np.int64)
    sources = [call.source(tensor) for tensor in tensors]
    parts = [nothing if source is None else source.axes[axis] for source in sources]
    if all(part.shape[dim + 1] == 1 for part in parts):
        return join(parts)
    common = np.broadcast_shapes(*(part.take([0], axis=dim + 1).shape for part in parts))
    lengths = [tensor.shape[dim] for tensor in tensors]
    shapes = [(*common[: dim + 1], length, *common[dim + 2 :]) for length in lengths]
    pieces = [np.broadcast_to(part, shape) for part, shape in zip(parts, shapes, strict=True)]
    return np.concatenate(pieces, axis=dim + 1)


@rule("constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d")
def pad(call: Call) -> list[Axes | None]:
    source, name = source_of(call), call.name
    amounts = call.values["pad" if "constant" in name else "padding"]
    axes = source.axes
    for k in range(len(amounts) // 2):
        dim = len(source.shape) - 1 - k
        size = source.shape[dim]
        cells = np.arange(call.out.shape[dim]) - amounts[2 * k]
        if "replication" in name:
            cells = np.clip(cells, 0, size - 1)
        elif "reflection" in name:
            cells = np.abs(cells)
            cells = size - 1 - np.abs(size - 1 - cells)
        cells = np.where((cells >= 0) & (cells < size), cells, -1)[:, None]
        [axes] = on_axes(axes, lambda b, dim=dim, cells=cells: read(b, dim, cells))
    return [axes]


@rule("pixel_shuffle pixel_unshuffle")
def pixel_shuffle(call: Call) -> list[Axes | None]:
    source, v = source_of(call), call.values
    *front, channels, height, width = source.shape
    f = len(front)
    if call.name == "aten.pixel_shuffle":
        r = v["upscale_factor"]
        apart = [*front, channels // r**2, r, r, height, width]
        order = [*range(f), f, f + 3, f + 1, f + 4, f + 2]
    else:
        r = v["downscale_factor"]
        apart = [*front, channels, height // r, r, width // r, r]
        order = [*range(f), f, f + 2, f + 4, f + 1, f + 3]
    moved = [apart[d] for d in order]

    def change(bounds: Bounds) -> Bounds:
        bounds = reshaped(bounds, source.shape, apart).transpose(0, *(d + 1 for d in order))
        return reshaped(bounds, moved, call.out.shape)

    return [*on_axes(source.axes, change)]


@rule("as_strided_")
def restride(call: Call) -> list[Axes | None]:
    """Pooling to one cell so gives its result another memory format."""
    source = source_of(call)
    varies = any(bounds.size > 2 for bounds in source.axes)
    if varies or tuple(call.values["size"]) != source.shape:
        raise Unknown(call.name)
    return [source.axes]


@rule("channel_shuffle")
def channel_shuffle(call: Call) -> list[Axes | None]:
    source = source_of(call)
    if any(bounds.shape[-3] > 1 for bounds in source.axes):
        raise Unknown(call.name)
    return [source.axes]
