"""The layer in plain PyTorch without a branch on sizes, for what records operators.

ONNX exporters and ``torch.jit.trace`` keep a branch as the example input took it. Here "the window
covers the map" is no branch but a clamp, and even the sizes are computed by operators. The
arithmetic is that of the reference: running sums in float64 of values near zero.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..window import bounds_of_cells


def local_context_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    channels_per_group: int,
    window: tuple[int, int],
    eps: float,
    rule: str,
) -> Tensor:
    """Normalize ``x`` ``[N, C, H, W]``; see :func:`lcn.functional.local_context_norm`."""
    n, _, h, w = x.shape
    dtype = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
    grouped = x.to(dtype).reshape(n, -1, channels_per_group, h, w)
    grouped = grouped - grouped.detach().mean(dim=(2, 3, 4), keepdim=True)
    height, rows = _axis(x[0, 0, :, 0], window[0], rule)
    width, columns = _axis(x[0, 0, 0, :], window[1], rule)
    source, unbiased = grouped, torch.zeros((), dtype=dtype, device=x.device)
    if rule == "released":
        is_global = (height <= window[0]) | (width <= window[1])
        rows, columns = _whole_if(is_global, rows, height), _whole_if(is_global, columns, width)
        source = torch.where(is_global, grouped, grouped.detach())
        unbiased = is_global.to(dtype)
    row_count, column_count = (rows[1] - rows[0]).to(dtype), (columns[1] - columns[0]).to(dtype)
    count = channels_per_group * row_count[:, None] * column_count
    mean = _window_sums(source.sum(dim=2, keepdim=True), rows, columns) / count
    square = _window_sums(source.square().sum(dim=2, keepdim=True), rows, columns)
    squares = (square - count * mean.square()).clamp(min=0)
    variance = squares / (count - unbiased).clamp(min=1)
    y = ((grouped - mean) * torch.rsqrt(variance + eps)).reshape(x.shape)
    if weight is not None:
        y = y * weight.to(dtype)[:, None, None]
    if bias is not None:
        y = y + bias.to(dtype)[:, None, None]
    return y.to(x.dtype)


Bounds = tuple[Tensor, Tensor]


def _axis(line: Tensor, window: int, rule: str) -> tuple[Tensor, Bounds]:
    """The size of one axis, and the bounds of its windows, from the cells of one line of it."""
    ones = torch.ones_like(line, dtype=torch.int64)
    size = ones.sum()
    return size, bounds_of_cells(ones.cumsum(0) - 1, size, window, rule)


def _whole_if(condition: Tensor, bounds: Bounds, size: Tensor) -> Bounds:
    start, stop = bounds
    return torch.where(condition, 0, start), torch.where(condition, size, stop)


def _window_sums(plane: Tensor, rows: Bounds, columns: Bounds) -> Tensor:
    """Sum of ``plane`` ``[..., H, W]`` over the window of each cell."""
    tall = F.pad(plane.cumsum(dim=-2), (0, 0, 1, 0))
    plane = tall.index_select(-2, rows[1]) - tall.index_select(-2, rows[0])
    wide = F.pad(plane.cumsum(dim=-1), (1, 0))
    return wide.index_select(-1, columns[1]) - wide.index_select(-1, columns[0])
