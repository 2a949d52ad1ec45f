"""Checks of the arguments that the layers, the functional form and the operator share."""

from typing import Any

from torch import Tensor

from .window import RULES

BACKENDS = ("auto", "reference", "cpu", "gpu")


def channels_of_group(num_channels: Any, channels_per_group: Any, num_groups: Any) -> int:
    """Channels per group, from that number or from a number of groups; 2 if neither is given.

    Raises:
        ValueError: if both are given, if one is no positive int, if it does not divide.
    """
    if channels_per_group is not None and num_groups is not None:
        raise ValueError(
            f"give channels_per_group or num_groups, not both; got {channels_per_group!r} "
            f"and {num_groups!r}"
        )
    name, count = "channels_per_group", 2 if channels_per_group is None else channels_per_group
    if num_groups is not None:
        name, count = "num_groups", num_groups
    for argument, value in (("num_channels", num_channels), (name, count)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{argument} must be a positive int, got {value!r}")
    if num_channels % count:
        raise ValueError(f"{name} must divide num_channels = {num_channels}, got {count}")
    return count if num_groups is None else num_channels // count


def check_arguments(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    channels_per_group: int,
    eps: float,
    rule: str,
    backend: str,
) -> None:
    """Raises ``ValueError`` for a wrong argument, naming it, its value and what is allowed."""
    if x.dim() not in (3, 4):
        raise ValueError(f"x must be [N, C, H, W] or [C, H, W], got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be float64, float32, bfloat16 or float16, got dtype {x.dtype}")
    channels, height, width = x.shape[-3:]
    if height < 1 or width < 1 or channels < 1:
        raise ValueError(f"x must have C, H and W of at least 1, got shape {tuple(x.shape)}")
    if isinstance(channels_per_group, bool) or not isinstance(channels_per_group, int):
        raise ValueError(f"channels_per_group must be a positive int, got {channels_per_group!r}")
    if channels_per_group < 1 or channels % channels_per_group:
        raise ValueError(
            f"channels_per_group must be a positive divisor of the {channels} channels of x, "
            f"got {channels_per_group}"
        )
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and vector.shape != (channels,):
            raise ValueError(
                f"{name} must have shape ({channels},), one value per channel of x, "
                f"got {tuple(vector.shape)}"
            )
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
