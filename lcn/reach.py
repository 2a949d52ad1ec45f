"""How far from a pixel of the input a network's result can depend, and where its grid repeats."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import nn

from . import dependence_views  # noqa: F401  registers its rules
from .dependence import NOTHING, Dependence, OtherPath, Watch
from .dependence_rules import RULES
from .fake_run import Forward, first_line, run_fake

# How much larger the second input is. A multiple of every total stride that is told from it, and
# of the windows that transformers divide their maps into; the next one if the reach does not fit.
_STEPS = (6720, 26880, 107520, 430080)
_LARGEST_PERIOD = 4096


@dataclass(frozen=True)
class Reach:
    """What a result depends on; pairs are of rows and columns, in pixels of the input.

    Attributes:
        reach: the largest distance between a pixel and a result that depends on it; infinite
            where a layer looks at a whole axis.  None where it is not known, see ``unknown``.
        inner_reach: the same for results whose pixels are not at the border of the image, where
            windows move inside and so look further to the other side.
        total_stride: pixels after which the grids of all feature maps repeat; None if not known.
        unlimited_by: layers that look at a whole row or column, however long it is.
        sized_by: layers that resize by a factor which depends on the size of the map.  With one,
            no tile gives what the whole image gives.
        unknown: why reach or total stride is not known.
    """

    reach: tuple[float, float] | None
    inner_reach: tuple[float, float] | None
    total_stride: tuple[int, int] | None
    unlimited_by: tuple[str, ...] = ()
    sized_by: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"reach: {_pixels(self.reach)}, inside the image {_pixels(self.inner_reach)}; "
            f"total stride: {_pixels(self.total_stride)}"
        ]
        for label, names in (
            ("unlimited by", self.unlimited_by),
            ("resizes by a factor that depends on the size", self.sized_by),
            ("unknown because of", self.unknown),
        ):
            if names:
                more = f" and {len(names) - 4} more" if len(names) > 4 else ""
                lines.append(f"{label}: {', '.join(names[:4])}{more}")
        return "\n".join(lines)


def unknown_reach(reason: str) -> Reach:
    return Reach(None, None, None, unknown=(reason,))


def measure_reach(
    model: nn.Module, shape: tuple[int, ...], forward: Forward | None, first: Watch
) -> Reach:
    """The reach of a model, from runs on inputs larger than that of a first one.

    Args:
        first: the watch of a run on ``shape``.  A window that covers its map there counts as
            unlimited, and what it shows to grow with the input as well.
    """
    found = unknown_reach("the model was not run")
    for step in _STEPS:
        larger = (*shape[:2], shape[2] + step, shape[3] + step)
        try:
            watch, outputs = follow(model, larger, forward, first)
        except OtherPath:
            return unknown_reach(f"the forward takes another path at {larger[2]} x {larger[3]}")
        except Exception as error:  # what a model's forward may raise is not ours to know
            return unknown_reach(
                f"the forward stopped at {larger[2]} x {larger[3]} ({first_line(error)})"
            )
        found = _reach(outputs, watch.input_size, step)
        if found.unknown or not any(math.isnan(r) for r in found.reach or ()):
            return found
    return Reach(None, None, found.total_stride, unknown=(f"more than {_STEPS[-1] // 4} pixels",))


def follow(
    model: nn.Module,
    shape: tuple[int, ...],
    forward: Forward | None = None,
    smaller: Watch | None = None,
) -> tuple[Watch, list[Dependence]]:
    """Runs a model on fake tensors; returns the watch, and what each result depends on."""
    watch = Watch(model, RULES, smaller)
    result = run_fake(model, shape, forward, watch, watch.set_input)
    return watch, [d for d in map(watch.of, _results(result)) if d is not None]


def _results(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return [] if value is None else _results(getattr(value, "__dict__", None))
    return [tensor for item in value for tensor in _results(item)]


def _reach(outputs: list[Dependence], size: tuple[int, int], step: int) -> Reach:
    if not outputs:
        return unknown_reach("the forward returns nothing that depends on its input")
    unknown = _sorted(d.unknown for d in outputs)
    sized = _sorted(d.sized for d in outputs)
    unlimited = _sorted(names for d in outputs for names in d.unlimited)
    period = tuple(math.lcm(*(d.period[axis] for d in outputs)) for axis in (0, 1))
    total_stride = None if unknown or max(period) > _LARGEST_PERIOD else (period[0], period[1])
    if all(any(output.unlimited[axis] for output in outputs) for axis in (0, 1)):
        everywhere = (math.inf, math.inf)
        return Reach(everywhere, everywhere, total_stride, unlimited, sized, unknown)
    if unknown:
        return Reach(None, None, total_stride, unlimited, sized, unknown)
    for output in outputs:
        for axis, kind in enumerate(("rows", "columns")):
            if not output.unlimited[axis] and len(_spatial(output, axis)) != 1:
                reason = f"a result of shape {output.shape} without {kind} of its own"
                return Reach(None, None, total_stride, unlimited, sized, (reason,))
    anywhere, inside = [], []
    for axis in (0, 1):
        found = [_distances(output, axis, size[axis], step) for output in outputs]
        anywhere.append(max((a for a, _ in found), key=_nan_last))
        inside.append(max((i for _, i in found), key=_nan_last))
    return Reach(
        (anywhere[0], anywhere[1]), (inside[0], inside[1]), total_stride, unlimited, sized
    )


def _nan_last(value: float) -> tuple[bool, float]:
    return math.isnan(value), value


def _distances(output: Dependence, axis: int, size: int, step: int) -> tuple[float, float]:
    """Largest distance between result and pixel, anywhere and inside; nan if the input is small."""
    if output.unlimited[axis]:
        return math.inf, math.inf
    bounds = output.axes[axis]
    [along] = _spatial(output, axis)
    others = tuple(d for d in range(bounds.ndim) if d not in (0, along + 1))
    first, last = bounds.min(axis=others) * [[1], [-1]]
    cell = np.arange(output.shape[along])[first < NOTHING]
    first, last = first[cell], last[cell]
    # The pixels of a cell; a result smaller than the input, for want of padding, is its middle.
    stride = Fraction(step, output.growth(along))
    missing = size - stride * output.shape[along]
    margin = 0 if abs(missing) < stride else math.floor(missing / 2)
    own_first = cell * stride.numerator // stride.denominator + margin
    own_last = -(-(cell + 1) * stride.numerator // stride.denominator) - 1 + margin
    distance = np.maximum(0, np.maximum(own_first - first, last - own_last))
    inside = (first > 0) & (last < size - 1)
    from_end_to_end = ((first <= 0) & (last >= size - 1)).any()
    if from_end_to_end or inside.sum() * stride < 2 * output.period[axis]:
        return math.nan, math.nan
    return float(distance.max()), float(distance[inside].max())


def _spatial(output: Dependence, axis: int) -> list[int]:
    """The dimensions along which a result grows with the input and its cells differ."""
    bounds = output.axes[axis]
    dims = range(len(output.shape))
    return [d for d in dims if bounds.shape[d + 1] > 1 and output.growth(d) > 0]


def _sorted(groups: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in sorted(group)))


def _pixels(values: tuple[float, float] | None) -> str:
    if values is None:
        return "unknown"
    texts = ["unlimited" if math.isinf(value) else f"{value:.0f}" for value in values]
    return texts[0] if texts[0] == texts[1] else " x ".join(texts)
