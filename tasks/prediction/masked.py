"""Norm layers whose statistics leave out cells without data.

Batch norms have none of their own in evaluation. LCN, GN, LN and IN take mean and variance over
those cells of a window that have data; a cell of a coarser map has data if the pixel nearest to its
middle does.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcn.layers import LocalContextNorm
from lcn.norm_layers import named_norm_layers
from lcn.window import WHOLE_MAP, axis_bounds, covers_map
from tasks.errors import InputError

_MASKED = LocalContextNorm | nn.GroupNorm | nn.InstanceNorm2d


@contextlib.contextmanager
def statistics_of(network: nn.Module, known: Tensor) -> Iterator[None]:
    """A context in which norm layers take their statistics where ``known`` [H, W] is true.

    Raises:
        InputError: a norm layer that cannot.
    """
    if (layer := refusing(network)) is not None:
        raise InputError(
            f"{type(layer).__name__} cannot leave out pixels without data: fill them in "
            "the raster first, or use another norm"
        )
    with contextlib.ExitStack() as stack:
        for _, layer in named_norm_layers(network):
            if isinstance(layer, _MASKED):
                hook = layer.register_forward_hook(_replacing(known))
                stack.callback(hook.remove)
        yield


def refusing(network: nn.Module) -> nn.Module | None:
    """A norm layer that cannot leave out cells, if there is one."""
    for _, layer in named_norm_layers(network):
        if not isinstance(layer, _MASKED) and not hasattr(layer, "running_mean"):
            return layer
    return None


def _replacing(known: Tensor) -> Any:
    def hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return masked_norm(layer, args[0], known)

    return hook


def masked_norm(layer: Any, x: Tensor, known: Tensor) -> Tensor:
    """A norm layer's result for ``x`` [N, C, H, W], with statistics over the known cells alone."""
    channels, height, width = x.shape[1:]
    mask = F.interpolate(known[None, None].double(), (height, width), mode="nearest-exact")[0, 0]
    per_group, window, rule = 1, (WHOLE_MAP, WHOLE_MAP), "centered"
    if isinstance(layer, LocalContextNorm):
        per_group, window, rule = layer.channels_per_group, layer.window, layer.rule
        if covers_map(rule, window, height, width):
            window, rule = (WHOLE_MAP, WHOLE_MAP), "centered"
    elif isinstance(layer, nn.GroupNorm):
        per_group = channels // layer.num_groups
    bounds = [
        axis_bounds(side, min(of, side), rule, x.device)
        for side, of in zip((height, width), window, strict=True)
    ]
    count = (_window_sums(mask, bounds) * per_group).clamp(min=1)
    result = torch.empty_like(x)
    for first in range(0, channels, per_group):  # one at a time: float64 is twice the memory
        group = slice(first, first + per_group)
        values = x[:, group].double()
        mean = _window_sums((values * mask).sum(1, keepdim=True), bounds) / count
        square = _window_sums((values.square() * mask).sum(1, keepdim=True), bounds) / count
        variance = (square - mean.square()).clamp(min=0)
        values = (values - mean) * (variance + layer.eps).rsqrt()
        if layer.weight is not None:
            weight, bias = (each[group].view(-1, 1, 1) for each in (layer.weight, layer.bias))
            values = values * weight + bias
        result[:, group] = values * mask
    return result


def _window_sums(values: Tensor, bounds: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Sums of [..., H, W] over every cell's window."""
    for axis, (start, stop) in zip((-2, -1), bounds, strict=True):
        sums = torch.cumsum(values, axis)
        sums = torch.cat([torch.zeros_like(sums.narrow(axis, 0, 1)), sums], axis)
        values = sums.index_select(axis, stop) - sums.index_select(axis, start)
    return values
