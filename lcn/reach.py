"""How far from a pixel of the input a network's result can depend, and where its grid repeats."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from . import dependence_views  # noqa: F401  registers its rules
from .dependence import NOTHING, Dependence, OtherPath, Watch, tensors_in
from .dependence_rules import RULES
from .fake_run import FakeModel, first_line

# How much larger the second input is: a multiple of nearly every total stride, and of the windows
# that transformers divide their maps into. The next one is for a larger reach or other strides.
_STEPS = (6720, 80640, 483840)


@dataclass(frozen=True)
class Reach:
    """What a result depends on; pairs are of rows and columns, in pixels of the input.

    Attributes:
        reach: the largest distance between a pixel and a result that depends on it; infinite
            where a layer looks at a whole axis. None where it is not known, see ``unknown``.
        total_stride: pixels after which the grids of all feature maps repeat; None if not known.
        unlimited_by: layers that look at a whole row or column, however long it is.
        sized_by: layers that resize by a factor which is another at another size of the map. With
            one, a tile of another size does not give what the whole image gives.
        unknown: why reach or total stride is not known.
    """

    reach: tuple[float, float] | None
    total_stride: tuple[int, int] | None
    unlimited_by: tuple[str, ...] = ()
    sized_by: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        reach, stride = _pixels(self.reach), _pixels(self.total_stride)
        lines = [f"reach in pixels: {reach}; total stride: {stride}"]
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
    return Reach(None, None, unknown=(reason,))


@dataclass(frozen=True)
class _Axis:
    """The same along one axis."""

    reach: float = math.nan
    total_stride: int | None = None
    unlimited_by: tuple[str, ...] = ()
    sized_by: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def measure_reach(model: FakeModel, shape: tuple[int, ...], first: Watch) -> Reach:
    """The reach of a model, from runs on larger inputs than that of a first run.

    Args:
        first: the watch of a run on ``shape``. A window that covers its map there counts as
            unlimited.
    """
    rows, columns = (_measure_axis(model, shape, first, axis) for axis in (0, 1))
    unknown = _unique(rows.unknown, columns.unknown)
    endless = all(math.isinf(axis.reach) for axis in (rows, columns))
    known = endless or not any(math.isnan(axis.reach) for axis in (rows, columns))
    strides = (rows.total_stride, columns.total_stride)
    return Reach(
        (rows.reach, columns.reach) if known else None,
        None if strides[0] is None or strides[1] is None else (strides[0], strides[1]),
        _unique(rows.unlimited_by, columns.unlimited_by),
        _unique(rows.sized_by, columns.sized_by),
        unknown,
    )


def _measure_axis(model: FakeModel, shape: tuple[int, ...], first: Watch, axis: int) -> _Axis:
    for step in _STEPS:
        larger = list(shape)
        larger[axis + 2] += step
        try:
            outputs = follow(model, tuple(larger), axis, first)
        except OtherPath:
            why = f"the forward takes another path at {larger[2]} x {larger[3]}"
            return _Axis(unknown=(why,))
        except Exception as error:  # what a model's forward may raise is not ours to know
            why = f"the forward stopped at {larger[2]} x {larger[3]} ({first_line(error)})"
            return _Axis(unknown=(why,))
        found = _summary(outputs, larger[axis + 2], step)
        settled = not math.isnan(found.reach) and found.total_stride is not None
        if found.unknown or settled:
            return found
    if not math.isnan(found.reach):
        return replace(found, unknown=("a feature map whose stride is no common number",))
    return replace(found, unknown=(f"a reach of more than {_STEPS[-1] // 4} pixels",))


def follow(
    model: FakeModel, shape: tuple[int, ...], axis: int, smaller: Watch | None = None
) -> list[Dependence]:
    """Runs a model on fake tensors; returns what each of its results depends on along an axis."""
    watch = Watch(model.model, RULES, axis, smaller)
    result = model(shape, watch, watch.set_input)
    return [d for d in map(watch.of, _results(result)) if d is not None]


def _results(value: Any) -> list[torch.Tensor]:
    """Tensors in what a forward returned, which may be an object with attributes."""
    if value is None or isinstance(value, (torch.Tensor, dict, tuple, list)):
        return tensors_in(value)
    return tensors_in(getattr(value, "__dict__", None))


def _summary(outputs: list[Dependence], size: int, step: int) -> _Axis:
    if not outputs:
        return _Axis(unknown=("the forward returns nothing that depends on its input",))
    period = math.lcm(*(output.period for output in outputs))
    unknown = _unique(*(output.unknown for output in outputs))
    total_stride = period if period and not unknown else None
    unlimited = _unique(*(output.unlimited for output in outputs))
    sized = _unique(*(output.sized for output in outputs))
    if unlimited:
        return _Axis(math.inf, total_stride, unlimited, sized, unknown)
    shapeless = [output.shape for output in outputs if len(_grown(output)) != 1]
    if shapeless and not unknown:
        unknown = (f"a result of shape {shapeless[0]} that has no place in the input",)
    if unknown:
        return _Axis(math.nan, total_stride, unlimited, sized, unknown)
    distances = [_distance(output, size, step, period) for output in outputs]
    return _Axis(float(np.max(distances)), total_stride, unlimited, sized)  # nan if one is


def _distance(output: Dependence, size: int, step: int, period: int) -> float:
    """Largest distance between a result and a pixel; nan if the input is too small to tell."""
    bounds = output.bounds
    [along] = _grown(output)
    others = tuple(d for d in range(1, bounds.ndim) if d != along + 1)
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
    if from_end_to_end or inside.sum() * stride < 2 * period:
        return math.nan
    return float(distance.max())


def _grown(output: Dependence) -> list[int]:
    """The dimensions along which a result grows with the input and its cells differ."""
    dims = range(len(output.shape))
    return [d for d in dims if output.varies(d) and output.growth(d) > 0]


def _unique(*groups: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in sorted(group)))


def _pixels(values: tuple[float, float] | None) -> str:
    if values is None:
        return "unknown"
    texts = ["unlimited" if math.isinf(value) else f"{value:.0f}" for value in values]
    return texts[0] if texts[0] == texts[1] else " x ".join(texts)
