"""Real windows in plain PyTorch: any device, differentiable any number of times, not fast.

Sums over windows are products with a matrix along each axis, whose rows say which share of each
cell lies in a window. Nothing is subtracted.
"""

import torch
from torch import Tensor


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
    n, c, h, w = x.shape
    dtype = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
    grouped = x.to(dtype).reshape(n, c // channels_per_group, channels_per_group, h, w)
    # The shift cancels in mean and variance, hence also in every derivative.
    grouped = grouped - grouped.detach().flatten(2).nanmedian(dim=2).values[..., None, None, None]
    p, q = windows.to(dtype).unbind(dim=-1)
    planes = torch.stack((grouped.sum(dim=2), grouped.square().sum(dim=2)), dim=2)
    sums = shares(p, h)[:, None] @ planes @ shares(q, w)[:, None].transpose(-1, -2)
    means = sums / (channels_per_group * p * q)[:, None, None, None]
    mean, square = means.split(1, dim=2)
    variance = (square - mean.square()).clamp(min=0)
    y = ((grouped - mean) * torch.rsqrt(variance + eps)).reshape(n, c, h, w)
    if weight is not None:
        y = y * weight.to(dtype)[:, None, None]
    if bias is not None:
        y = y + bias.to(dtype)[:, None, None]
    return y.to(x.dtype)
