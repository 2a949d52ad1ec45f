"""The layer in plain PyTorch: any device, differentiable any number of times, not fast.

Window sums come from a running sum along each axis (the one-dimensional form of the integral image
of Algorithm 1), in float64 and of values from which the mean of their group was taken first, so
that neither an offset nor a long sum costs digits.
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
    n, c, h, w = x.shape
    groups = c // channels_per_group
    # MPS has no float64.
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    grouped = x.to(dtype).reshape(n, groups, channels_per_group, h, w)
    # The shift cancels in mean and variance, hence also in every derivative.
    shift = grouped.detach().mean(dim=(2, 3, 4), keepdim=True)
    grouped = grouped - shift
    if covers_map(rule, window, h, w):
        mean, variance = _map_statistics(grouped, unbiased=rule == "released")
    else:
        source = grouped.detach() if rule == "released" else grouped
        mean, variance = _window_statistics(source, window, rule)
    y = ((grouped - mean) * torch.rsqrt(variance + eps)).reshape(n, c, h, w)
    if weight is not None:
        y = y * weight.to(dtype).reshape(1, c, 1, 1)
    if bias is not None:
        y = y + bias.to(dtype).reshape(1, c, 1, 1)
    return y.to(x.dtype)


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
    mean = _window_sums(grouped.sum(dim=2, keepdim=True), rows, columns) / count
    square = _window_sums(grouped.square().sum(dim=2, keepdim=True), rows, columns) / count
    return mean, (square - mean.square()).clamp(min=0)


def _window_sums(
    plane: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]
) -> Tensor:
    """Sum of ``plane`` ``[..., H, W]`` over the window of each cell."""
    tall = F.pad(plane.cumsum(dim=-2), (0, 0, 1, 0))
    plane = tall.index_select(-2, rows[1]) - tall.index_select(-2, rows[0])
    wide = F.pad(plane.cumsum(dim=-1), (1, 0))
    return wide.index_select(-1, columns[1]) - wide.index_select(-1, columns[0])
