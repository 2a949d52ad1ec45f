"""Rules of :mod:`lcn.dependence` for operators that move cells: views, joins, padding."""

from collections.abc import Sequence
from math import prod

import numpy as np

from .dependence import MOST_CELLS, NOTHING, Bounds, Call, Unknown, join
from .dependence_rules import read, rule


def reshaped(bounds: Bounds, old: Sequence[int], new: Sequence[int]) -> Bounds:
    """The bounds of a tensor of shape ``old`` once it is viewed as ``new``."""
    full: list[int] = []
    result: list[int] = []
    i = j = 0
    while i < len(old) or j < len(new):
        # The shortest runs of dimensions with the same number of cells.
        i_end, j_end = min(i + 1, len(old)), min(j + 1, len(new))
        while prod(old[i:i_end]) != prod(new[j:j_end]):
            if prod(old[i:i_end]) < prod(new[j:j_end]):
                i_end += 1
            else:
                j_end += 1
        varies = any(bounds.shape[d + 1] > 1 for d in range(i, i_end))
        full += old[i:i_end] if varies else [1] * (i_end - i)
        result += new[j:j_end] if varies else [1] * (j_end - j)
        i, j = i_end, j_end
    if prod(full) > MOST_CELLS:
        raise Unknown("view of a large flattened map")
    return np.broadcast_to(bounds, (2, *full)).reshape(2, *result)


@rule("view _unsafe_view reshape _reshape_alias squeeze unsqueeze squeeze_ unsqueeze_")
def view(call: Call) -> list[Bounds]:
    source = call.only_source()
    call.moves_cells = True
    return [reshaped(source.bounds, source.shape, call.outs[0].shape)]


@rule("permute transpose t")
def permute(call: Call) -> list[Bounds]:
    source, v = call.only_source(), call.values
    order = list(range(len(source.shape)))
    if "dims" in v:
        order = [d % len(order) for d in v["dims"]]
    elif len(order) > 1:
        one, other = v.get("dim0", 0), v.get("dim1", 1)
        order[one], order[other] = order[other], order[one]
    return [source.bounds.transpose(0, *(d + 1 for d in order))]


@rule("expand")
def expand(call: Call) -> list[Bounds]:
    bounds = call.only_source().bounds
    added = call.outs[0].dim() - bounds.ndim + 1
    return [bounds.reshape(2, *[1] * added, *bounds.shape[1:])]


def picked(bounds: Bounds, dim: int, part: slice) -> Bounds:
    return bounds if bounds.shape[dim + 1] == 1 else bounds[(slice(None),) * (dim + 1) + (part,)]


@rule("slice")
def cut(call: Call) -> list[Bounds]:
    source, v = call.only_source(), call.values
    part = slice(v["start"], v["end"], v["step"])
    return [picked(source.bounds, v["dim"] % len(source.shape), part)]


@rule("select unbind")
def select(call: Call) -> list[Bounds]:
    source, v = call.only_source(), call.values
    dim = v["dim"] % len(source.shape)
    indices = range(source.shape[dim])
    if "index" in v:
        indices = indices[v["index"] :][:1]
    return [picked(source.bounds, dim, slice(i, i + 1)).squeeze(dim + 1) for i in indices]


@rule("split split_with_sizes")
def split(call: Call) -> list[Bounds]:
    source = call.only_source()
    dim = call.values["dim"] % len(source.shape)
    ends = np.cumsum([part.shape[dim] for part in call.outs])
    parts = [slice(end - out.shape[dim], end) for end, out in zip(ends, call.outs, strict=True)]
    return [picked(source.bounds, dim, part) for part in parts]


@rule("flip")
def flip(call: Call) -> list[Bounds]:
    source = call.only_source()
    dims = tuple(d % len(source.shape) + 1 for d in call.values["dims"])
    return [np.flip(source.bounds, dims)]


@rule("repeat")
def repeat(call: Call) -> list[Bounds]:
    bounds, times = call.only_source().bounds, call.values["repeats"]
    bounds = bounds.reshape(2, *[1] * (len(times) + 1 - bounds.ndim), *bounds.shape[1:])
    copies = [t if n > 1 else 1 for t, n in zip(times, bounds.shape[1:], strict=True)]
    return [np.tile(bounds, (1, *copies))]


@rule("roll")
def roll(call: Call) -> list[Bounds]:
    source = call.only_source()
    dims = call.values["dims"] or range(len(source.shape))
    if any(source.varies(d % len(source.shape)) for d in dims):
        raise Unknown("roll: a mask may keep the ends of the map apart")
    return [source.bounds]


@rule("cat")
def cat(call: Call) -> list[Bounds]:
    """Along a dimension that varies cells are kept apart, along any other they are joined."""
    rank = call.outs[0].dim()
    dim = call.values["dim"] % rank
    tensors = [t for t in call.values["tensors"] if t.dim() == rank]  # an empty [0] may be there
    sources = [call.source(tensor) for tensor in tensors]
    nothing = np.full((2, *[1] * rank), NOTHING)
    parts = [nothing if source is None else source.bounds for source in sources]
    if all(part.shape[dim + 1] == 1 for part in parts):
        return [join(parts)]
    common = np.broadcast_shapes(*(part.take([0], axis=dim + 1).shape for part in parts))
    lengths = [tensor.shape[dim] for tensor in tensors]
    shapes = [(*common[: dim + 1], length, *common[dim + 2 :]) for length in lengths]
    pieces = [np.broadcast_to(part, shape) for part, shape in zip(parts, shapes, strict=True)]
    return [np.concatenate(pieces, axis=dim + 1)]


@rule("stack")
def stack(call: Call) -> list[Bounds]:
    """What is stacked is taken together."""
    joined = join([source.bounds for source in call.sources.values()])
    return [np.expand_dims(joined, call.values["dim"] % call.outs[0].dim() + 1)]


@rule("constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d")
def pad(call: Call) -> list[Bounds]:
    source = call.only_source()
    amounts = call.values["pad" if "constant" in call.name else "padding"]
    bounds = source.bounds
    for k, before in enumerate(amounts[::2]):
        dim = len(source.shape) - 1 - k
        size = source.shape[dim]
        cells = np.arange(call.outs[0].shape[dim]) - before
        if "replication" in call.name:
            cells = np.clip(cells, 0, size - 1)
        elif "reflection" in call.name:
            cells = size - 1 - np.abs(size - 1 - np.abs(cells))
        cells = np.where((cells >= 0) & (cells < size), cells, -1)
        bounds = read(bounds, dim, cells[:, None])
    return [bounds]


@rule("pixel_shuffle pixel_unshuffle")
def pixel_shuffle(call: Call) -> list[Bounds]:
    source, v = call.only_source(), call.values
    *front, channels, height, width = source.shape
    f = len(front)
    if "upscale_factor" in v:
        r = v["upscale_factor"]
        apart = [*front, channels // r**2, r, r, height, width]
        order = [*range(f), f, f + 3, f + 1, f + 4, f + 2]
    else:
        r = v["downscale_factor"]
        apart = [*front, channels, height // r, r, width // r, r]
        order = [*range(f), f, f + 2, f + 4, f + 1, f + 3]
    moved = reshaped(source.bounds, source.shape, apart).transpose(0, *(d + 1 for d in order))
    return [reshaped(moved, [apart[d] for d in order], call.outs[0].shape)]


@rule("channel_shuffle as_strided_")
def unchanged(call: Call) -> list[Bounds]:
    """Channels change places; or pooling to one cell gives its result another memory format."""
    source = call.only_source()
    one_cell = all(not source.varies(d) for d in range(len(source.shape)))
    if call.name == "aten.channel_shuffle":
        movable = not source.varies(len(source.shape) - 3)
    else:
        movable = one_cell and tuple(call.values["size"]) == source.shape
    if not movable:
        raise Unknown(call.name)
    return [source.bounds]
