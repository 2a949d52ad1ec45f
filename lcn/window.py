"""Where the window of a cell lies: three rules, one per reading of the paper.

Along one axis of length ``size`` and with window ``w``, cell ``i`` is normalized over
``[start, stop)``:

centered   ``start = clamp(i - w' // 2, 0, size - w')`` with ``w' = min(w, size)``: at a border the
           window moves inside instead of shrinking. Each axis is treated by itself.
released   the authors' published layer, whose integral image has no zero row: one cell further,
           ``start = clamp(i - w // 2, 0, size - w - 1) + 1``; the whole map as soon as the window
           reaches the map's size on *either* axis.
tiled      Equation 9 read literally: fixed tiles that do not overlap, ``start = (i // w) * w``;
           the last tile is what is left of the axis.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

RULES = ("centered", "released", "tiled")
# Larger than any feature map; an int, so that an operator can take it as an argument.
WHOLE_MAP = 2**31 - 1


def window_pair(window: Any) -> tuple[int, int]:
    """``window`` as ``(p, q)``: an int is square, ``"all"`` is the whole map on both axes.

    Raises ``ValueError`` for anything but a positive int, a pair of them, or ``"all"``.
    """
    if isinstance(window, str) and window == "all":
        return WHOLE_MAP, WHOLE_MAP
    sides = window
    if not isinstance(window, Sequence) or isinstance(window, str):
        sides = (window, window)
    if len(sides) != 2 or not all(_is_count(side) for side in sides):
        raise ValueError(
            f"window must be a positive int, a pair of positive ints or 'all', got {window!r}"
        )
    return min(int(sides[0]), WHOLE_MAP), min(int(sides[1]), WHOLE_MAP)


def real_pair(window: Any) -> tuple[float, float]:
    """``window`` as real ``(p, q)``: one number is square.

    Raises ``ValueError`` for anything but a number of at least 1 or a pair of them.
    """
    sides = tuple(window) if isinstance(window, Sequence) else (window, window)
    if len(sides) != 2 or not all(
        isinstance(side, (int, float)) and not isinstance(side, bool) and 1 <= side < math.inf
        for side in sides
    ):
        raise ValueError(f"window must be a number of at least 1 or a pair of them, got {window!r}")
    return float(sides[0]), float(sides[1])


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def covers_map(rule: str, window: tuple[int, int], height: int, width: int) -> bool:
    """Whether every cell of a ``height x width`` map is normalized over the whole map."""
    if rule == "released":
        return window[0] >= height or window[1] >= width
    return window[0] >= height and window[1] >= width


def axis_bounds(
    size: int, window: int, rule: str, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """``start`` and ``stop`` of every cell's window along one axis: two int64 ``[size]``."""
    return bounds_of_cells(torch.arange(size, device=device), size, window, rule)


def bounds_of_cells(
    cell: Tensor, size: int | Tensor, window: int, rule: str
) -> tuple[Tensor, Tensor]:
    """``start`` and ``stop`` of the window of each ``cell`` (int64) on an axis of ``size`` cells.

    If ``size`` is a tensor (int64, no dimensions) these are operators alone, so that a trace is
    right at every size. Where the released layer is global its bounds mean nothing.
    """
    if rule == "tiled":
        start = cell - cell % window
    elif rule == "released":
        start = (cell - window // 2).clamp(min=0).clamp(max=size - window - 1) + 1
    else:
        space = (size - window).clamp(min=0) if isinstance(size, Tensor) else max(size - window, 0)
        start = (cell - window // 2).clamp(min=0).clamp(max=space)
    return start, (start + window).clamp(max=size)
