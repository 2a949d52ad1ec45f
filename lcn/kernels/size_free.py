"""The layer in plain PyTorch without a branch on sizes, for what records operators.

ONNX exporters and ``torch.jit.trace`` keep a branch as the example input took it. Here "the window
covers the map" is no branch but a clamp, and even the sizes are computed by operators. The
arithmetic is that of the reference: running sums in float64 of values near zero.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..window import bounds_of_cells
from .reference import moments, normalized


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
    height, rows = _axis(torch.arange(h, device=x.device), window[0], rule)
    width, columns = _axis(torch.arange(w, device=x.device), window[1], rule)
    source = grouped
    if rule == "released":
        is_global = (height <= window[0]) | (width <= window[1])
        rows, columns = _whole_if(is_global, rows, height), _whole_if(is_global, columns, width)
        source = torch.where(is_global, grouped, grouped.detach())
    count = channels_per_group * ((rows[1] - rows[0])[:, None] * (columns[1] - columns[0]))
    count = count.to(dtype)
    sums = torch.stack((source.sum(dim=2), source.square().sum(dim=2)), dim=2)
    mean, variance = moments(_window_sums(sums, rows, columns), count)
    if rule == "released":  # one value has no unbiased variance; 0 then, as in the reference
        variance = variance * torch.where(is_global, count / (count - 1).clamp(min=1), 1.0)
    return normalized(grouped, mean, variance, weight, bias, eps, x)


Bounds = tuple[Tensor, Tensor]


def _axis(cell: Tensor, window: int, rule: str) -> tuple[Tensor, Bounds]:
    """The size of one axis, and the bounds of the windows of its cells."""
    size = cell.max() + 1
    return size, bounds_of_cells(cell, size, window, rule)


def _whole_if(condition: Tensor, bounds: Bounds, size: Tensor) -> Bounds:
    start, stop = bounds
    return torch.where(condition, 0, start), torch.where(condition, size, stop)


def _window_sums(planes: Tensor, rows: Bounds, columns: Bounds) -> Tensor:
    """Sums of ``planes`` ``[..., H, W]`` over the window of each cell."""
    tall = F.pad(planes, (1, 0, 1, 0)).cumsum(dim=-2)
    planes = tall.index_select(-2, rows[1]) - tall.index_select(-2, rows[0])
    wide = planes.cumsum(dim=-1)
    return wide.index_select(-1, columns[1]) - wide.index_select(-1, columns[0])
