"""The kernels behind the operator: reference, CPU and GPU."""

import torch
from torch import Tensor


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Of the result for ``x``: channels-last if ``x`` is, else contiguous."""
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last)
    if is_channels_last and not x.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format
