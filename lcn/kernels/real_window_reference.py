"""Real windows in plain PyTorch: any device, differentiable any number of times, not fast.

Sums over windows are products with a matrix along each axis, whose rows say which share of each
cell lies in a window. Nothing is subtracted.
"""

import torch
from torch import Tensor

from .reference import centered_groups, moments, normalized


def shares(length: Tensor, size: int) -> Tensor:
    """``[..., size, size]``: of each cell's window, the share of each cell that lies inside.

    Args:
        length: of the windows, ``[...]``, from 1 to ``size``.
    """
    cell = torch.arange(size, dtype=length.dtype, device=length.device)
    length = length[..., None]
    begin = torch.minimum((cell + 0.5 - 0.5 * length).clamp(min=0.0), size - length)[..., None]
    end = begin + length[..., None]
    return (torch.minimum(end, cell + 1) - torch.maximum(begin, cell)).clamp(min=0.0)


def local_context_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    windows: Tensor,
    channels_per_group: int,
    eps: float,
) -> Tensor:
    """Normalize ``x`` ``[N, C, H, W]`` with windows ``[1 or G, 2]`` from 1 to the map's size."""
    h, w = x.shape[2:]
    grouped = centered_groups(x, channels_per_group)
    p, q = windows.to(grouped.dtype).unbind(dim=-1)
    planes = torch.stack((grouped.sum(dim=2), grouped.square().sum(dim=2)), dim=2)
    sums = shares(p, h)[:, None] @ planes @ shares(q, w)[:, None].transpose(-1, -2)
    mean, variance = moments(sums, (channels_per_group * p * q)[:, None, None, None])
    return normalized(grouped, mean, variance, weight, bias, eps, x)
