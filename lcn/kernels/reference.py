"""The layer in plain PyTorch: any device, differentiable any number of times, not fast.

Window sums come from running sums along each axis, in float64 and of values from which the median
of their group was taken first, so that an offset does not cost digits. The running sums begin anew
after every ``p`` rows and ``q`` columns, and nothing is subtracted from them: so what lies outside
of a window leaves no trace in it, be it NaN.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..window import axis_bounds, covers_map


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
    h, w = x.shape[2:]
    grouped = centered_groups(x, channels_per_group)
    if covers_map(rule, window, h, w):
        mean, variance = _map_statistics(grouped, unbiased=rule == "released")
    else:
        source = grouped.detach() if rule == "released" else grouped
        mean, variance = _window_statistics(source, window, rule)
    return normalized(grouped, mean, variance, weight, bias, eps, x)


def centered_groups(x: Tensor, channels_per_group: int) -> Tensor:
    """``x`` ``[N, C, H, W]`` as ``[N, G, c, H, W]`` in float64, less the median of each group.

    The shift cancels in mean and variance, hence also in every derivative.
    """
    n, c, h, w = x.shape
    dtype = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
    grouped = x.to(dtype).reshape(n, c // channels_per_group, channels_per_group, h, w)
    return grouped - grouped.detach().flatten(2).nanmedian(dim=2).values[..., None, None, None]


def moments(sums: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance from sums of values and of squares ``[N, G, 2, H, W]``, each over
    ``count`` values: two ``[N, G, 1, H, W]``."""
    mean, square = (sums / count).split(1, dim=2)
    return mean, (square - mean.square()).clamp(min=0)


def normalized(
    grouped: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    like: Tensor,
) -> Tensor:
    """``grouped`` with these statistics, scale and shift, in the shape and dtype of ``like``."""
    y = ((grouped - mean) * torch.rsqrt(variance + eps)).reshape(like.shape)
    if weight is not None:
        y = y * weight.to(y.dtype)[:, None, None]
    if bias is not None:
        y = y + bias.to(y.dtype)[:, None, None]
    return y.to(like.dtype)


def _map_statistics(grouped: Tensor, unbiased: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group of ``[N, G, c, H, W]``: two ``[N, G, 1, 1, 1]``."""
    count = grouped.shape[2] * grouped.shape[3] * grouped.shape[4]
    mean = grouped.mean(dim=(2, 3, 4), keepdim=True)
    squares = (grouped - mean).square().sum(dim=(2, 3, 4), keepdim=True)
    # One value has no unbiased variance; 0 keeps the output at the bias instead of NaN.
    return mean, squares / max(count - unbiased, 1)


def _window_statistics(
    grouped: Tensor, window: tuple[int, int], rule: str
) -> tuple[Tensor, Tensor]:
    """Mean and variance of each cell's window in ``[N, G, c, H, W]``: two ``[N, G, 1, H, W]``."""
    h, w = grouped.shape[3:]
    rows = axis_bounds(h, window[0], rule, grouped.device)
    columns = axis_bounds(w, window[1], rule, grouped.device)
    row_count = (rows[1] - rows[0]).to(grouped.dtype)
    column_count = (columns[1] - columns[0]).to(grouped.dtype)
    count = grouped.shape[2] * row_count[:, None] * column_count[None, :]
    sizes = min(window[0], h), min(window[1], w)
    mean = _window_sums(grouped.sum(dim=2, keepdim=True), sizes, rows, columns) / count
    square = _window_sums(grouped.square().sum(dim=2, keepdim=True), sizes, rows, columns) / count
    return mean, (square - mean.square()).clamp(min=0)


def _window_sums(
    plane: Tensor,
    sizes: tuple[int, int],
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor],
) -> Tensor:
    """Sum of ``plane`` ``[..., H, W]`` over the window of each cell, of at most ``sizes`` cells."""
    plane = _sums_along_last(plane, sizes[1], *columns)
    return _sums_along_last(plane.transpose(-1, -2), sizes[0], *rows).transpose(-1, -2)


def _sums_along_last(line: Tensor, size: int, start: Tensor, stop: Tensor) -> Tensor:
    """Sums of ``line[..., start:stop]``, intervals of ``size`` cells, or of fewer at the end.

    Of the blocks of ``size`` cells an interval holds the end of one and, unless it is that block,
    the beginning of the next.
    """
    length = line.shape[-1]
    blocks = F.pad(line, (0, -length % size)).unflatten(-1, (-1, size))
    to_the_end = blocks.flip(-1).cumsum(dim=-1).flip(-1).flatten(-2).index_select(-1, start)
    from_the_start = blocks.cumsum(dim=-1).flatten(-2).index_select(-1, stop - 1)
    return to_the_end + torch.where(start % size == 0, 0.0, from_the_start)
