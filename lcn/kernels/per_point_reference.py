"""A window per point in plain PyTorch: any device, differentiable any number of times, not fast.

A window of ``p x q`` cells is put together from blocks of ``2^a x 2^b`` cells, one for each pair of
digits of ``p`` and ``q`` in base two. The sums over all such blocks come from those over half of
them. Nothing is subtracted, so what lies outside of a window leaves no trace in it, be it NaN.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .reference import centered_groups, moments, normalized


def bounds(size_of_window: Tensor, size: int, dim: int) -> tuple[Tensor, Tensor]:
    """Start and length of each cell's window along ``dim`` (-2 or -1), two int64 tensors."""
    length = size_of_window.to(torch.int64).clamp(max=size)
    cell = torch.arange(size, device=length.device)
    cell = cell[:, None] if dim == -2 else cell
    return (cell - length // 2).clamp(min=0).minimum(size - length), length


def local_context_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    p: Tensor,
    q: Tensor,
    channels_per_group: int,
    eps: float,
) -> Tensor:
    """Normalize ``x`` ``[N, C, H, W]`` with windows ``[H, W]`` or ``[N, H, W]``."""
    h, w = x.shape[2:]
    grouped = centered_groups(x, channels_per_group)
    planes = torch.stack((grouped.sum(dim=2), grouped.square().sum(dim=2)), dim=2)
    rows, columns = bounds(p, h, -2), bounds(q, w, -1)
    count = channels_per_group * (rows[1] * columns[1]).to(grouped.dtype)
    if count.dim() == 3:
        count = count[:, None, None]
    mean, variance = moments(window_sums(planes, rows, columns), count)
    return normalized(grouped, mean, variance, weight, bias, eps, x)


def window_sums(
    planes: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]
) -> Tensor:
    """Sums of ``planes`` ``[N, G, K, H, W]`` over the window of each cell.

    Args:
        rows, columns: start and length of the windows, ``[H, W]`` or ``[N, H, W]``.
    """
    h, w = planes.shape[-2:]
    total = torch.zeros_like(planes)
    for a in range(h.bit_length()):
        has_rows, row = _block(*rows, a)
        blocks = planes
        for b in range(w.bit_length()):
            has_columns, column = _block(*columns, b)
            has, place = has_rows & has_columns, row * w + column
            if has.dim() == 3:
                has, place = has[:, None, None], place[:, None, None]
            flat = blocks.flatten(-2)
            index = torch.where(has, place, 0).flatten(-2).expand(flat.shape)
            total = total + torch.where(has, flat.gather(-1, index).reshape(planes.shape), 0.0)
            blocks = _doubled(blocks, 1 << b)
        planes = _doubled(planes.transpose(-1, -2), 1 << a).transpose(-1, -2)
    return total


def _block(start: Tensor, length: Tensor, digit: int) -> tuple[Tensor, Tensor]:
    """Whether a window has the block of ``2^digit`` cells, and where it begins."""
    return (length >> digit) % 2 == 1, start + length % (1 << digit)


def _doubled(blocks: Tensor, size: int) -> Tensor:
    """Sums over twice as many cells of the last dimension; past the end lies nothing."""
    return blocks + F.pad(blocks[..., size:], (0, min(size, blocks.shape[-1])))
