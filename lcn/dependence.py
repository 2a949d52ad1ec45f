"""On which rows and columns of the input each cell of a tensor depends, operator by operator.

A dispatch mode watches a forward on fake tensors.  Every tensor that depends on the input carries,
for each axis, the first and the last input pixel that each of its cells can depend on.  These are
exact intervals at the size of the run, borders included; channels and samples are taken together,
and so are the pixels between the first and the last.  Rules per operator are in
:mod:`lcn.dependence_rules`; an operator without one makes its result unknown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

# int64 [2, *shape of the tensor], with 1 for every dimension along which all cells are alike:
# [0] is the first pixel and [1] minus the last, so that two dependences join as their minimum.
Bounds = np.ndarray
# Bounds of the input's rows, and of its columns.
Axes = tuple[Bounds, Bounds]

NOTHING = 2**40  # the first pixel of a cell that depends on no pixel at all
_MOST_CELLS = 2**23  # of one array; flattened maps would otherwise need gigabytes
_NO_NAMES: frozenset[str] = frozenset()
# The result is the tensor itself or a copy; such calls may come and go with the size of the input.
COPIES = frozenset(f"aten.{name}" for name in "clone _to_copy detach alias lift_fresh".split())
# Local Context Normalization becomes PyTorch's Group Normalization where the window covers the map.
_SAME_CALL = {"lcn.local_context_norm": "norm", "aten.native_group_norm": "norm"}


@dataclass(frozen=True, eq=False)
class Dependence:
    """What one tensor depends on.  Pairs are of rows and columns of the input."""

    axes: Axes
    shape: tuple[int, ...]
    # Of the same tensor in the run on a smaller input; None in the first run.
    smaller: tuple[int, ...] | None
    # Input pixels after which the grids of this tensor and all it was made from repeat.
    period: tuple[int, int] = (1, 1)
    # Layers that look at a whole axis, however long; at a map's size; whose rule is not known.
    unlimited: tuple[frozenset[str], frozenset[str]] = (_NO_NAMES, _NO_NAMES)
    sized: frozenset[str] = _NO_NAMES
    unknown: frozenset[str] = _NO_NAMES

    def growth(self, dim: int) -> int:
        """By how many cells the dimension is longer than in the run on the smaller input."""
        return 0 if self.smaller is None else self.shape[dim] - self.smaller[dim]


def join(bounds: Sequence[Bounds]) -> Bounds:
    """The bounds of what depends on all of these, which are broadcast as PyTorch does."""
    dims = max(b.ndim for b in bounds)
    joined = None
    for b in bounds:
        if b.ndim < dims:
            b = b.reshape(2, *[1] * (dims - b.ndim), *b.shape[1:])
        joined = b if joined is None or joined is b else np.minimum(joined, b)
    assert joined is not None
    return joined


def contract(bounds: Bounds, dims: Sequence[int]) -> Bounds:
    """The bounds of what depends on every cell along ``dims``; these get length 1."""
    along = tuple(d + 1 for d in dims if bounds.shape[d + 1] > 1)
    return bounds.min(axis=along, keepdims=True) if along else bounds


@dataclass
class Call:
    """One call of an operator, as its rule sees it."""

    name: str
    layer: str
    values: dict[str, Any]  # by name of argument
    out: Any
    sources: dict[int, Dependence]  # by id of tensor
    # In the second run: shapes of the results in the first, by how much the input is larger, and
    # whether a window covered the map's rows and columns.
    smaller: tuple[tuple[int, ...], ...] | None
    step: tuple[int, int]
    covers: tuple[bool, bool] | None = None
    # What the rule finds out, as in `Dependence`.
    unlimited: tuple[set[str], set[str]] = field(default_factory=lambda: (set(), set()))
    period: list[int] = field(default_factory=lambda: [1, 1])
    sized: bool = False

    def source(self, value: Any) -> Dependence | None:
        """What a tensor depends on; None for a constant, and for what is no tensor."""
        return self.sources.get(id(value))

    def stride(self, source: Dependence, axis: int, dim: int) -> Fraction | None:
        """Input pixels per cell along a dimension; None unless it grows with the input."""
        growth = source.growth(dim)
        return Fraction(self.step[axis], growth) if growth > 0 else None

    def contracted(self, source: Dependence, dims: Sequence[int]) -> Axes:
        """Bounds after a reduction over ``dims``, noting where these grow with the input."""
        dims = [d % len(source.shape) for d in dims]
        for axis, bounds in enumerate(source.axes):
            if any(bounds.shape[d + 1] > 1 and source.growth(d) for d in dims):
                self.unlimited[axis].add(self.layer)
        rows, columns = (contract(bounds, dims) for bounds in source.axes)
        return rows, columns

    def merged(self, *axes: Axes | None) -> Axes:
        """The bounds of what depends on all of these; None stands for a constant."""
        known = [pair for pair in axes if pair is not None]
        return join([rows for rows, _ in known]), join([columns for _, columns in known])

    def axes(self, value: Any) -> Axes | None:
        source = self.source(value)
        return None if source is None else source.axes

    def whole(self, value: Any) -> Axes | None:
        """Bounds of what depends on all of a tensor, if it is no constant."""
        source = self.source(value)
        if source is None:
            return None
        rows, columns = self.contracted(source, range(len(source.shape)))
        return rows.reshape(2), columns.reshape(2)


class Unknown(Exception):
    """A rule cannot say what its operator depends on."""


Rule = Callable[[Call], Sequence[Axes | None]]


class Watch(TorchDispatchMode):
    """Follows the dependences of one forward.

    Args:
        model: the model that runs, for the names of its layers.
        rules: a rule by name of operator; it returns the bounds of each result, None for a
            constant.
        smaller: the watch of a run on a smaller input, if this is the second run.
    """

    def __init__(
        self, model: nn.Module, rules: dict[str, Rule], smaller: "Watch | None" = None
    ) -> None:
        super().__init__()
        self.rules, self.smaller = rules, smaller
        self.calls: list[tuple[str, tuple[tuple[int, ...], ...]]] = []
        self.covered: list[tuple[bool, bool]] = []
        self.input_size = (0, 0)
        self._step = (0, 0)
        self._covered = iter(smaller.covered if smaller else ())
        self._names = {module: name for name, module in model.named_modules()}
        self._stack: list[str] = []
        self._hooks: list[Any] = []
        # Storages written through a view: what else looks at them is not followed.
        self._written: dict[int, Any] = {}

    def __enter__(self) -> "Watch":
        for module in self._names:
            self._hooks.append(module.register_forward_pre_hook(self._on_enter))
            self._hooks.append(module.register_forward_hook(self._on_leave, always_call=True))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _on_enter(self, module: nn.Module, args: Any) -> None:
        self._stack.append(self._names[module])

    def _on_leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._stack.pop()

    def set_input(self, x: Tensor) -> None:
        """Makes ``[N, C, H, W]`` the input, every cell of which depends on itself."""
        height, width = x.shape[-2:]
        self.input_size = (height, width)
        rows = _own_pixel(height).reshape(2, 1, 1, height, 1)
        columns = _own_pixel(width).reshape(2, 1, 1, 1, width)
        smaller = None
        if self.smaller:
            small_height, small_width = self.smaller.input_size
            self._step = (height - small_height, width - small_width)
            smaller = (*x.shape[:2], small_height, small_width)
        _attach(x, Dependence((rows, columns), tuple(x.shape), smaller))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sources = {}
        for tensor in _tensors((args, kwargs)):
            dependence = self.of(tensor)
            if dependence is not None:
                sources[id(tensor)] = dependence
        written = args[0] if func._schema.is_mutable and args else None
        out = func(*args, **kwargs)
        if sources and _tensors(out):
            self._follow(func, args, kwargs, out, sources, written)
        return out

    def of(self, tensor: Tensor) -> Dependence | None:
        """What a tensor depends on, None if it is a constant."""
        attached = getattr(tensor, "_lcn_dependence", None)
        if attached is not None and attached[1] == tensor._version:
            return attached[0]  # type: ignore[no-any-return]
        shared = bool(self._written) and tensor.untyped_storage()._cdata in self._written
        if attached is None and not shared:
            return None
        shape = tuple(tensor.shape)
        return _unknown(shape, f"{self._where()} (a tensor changed through a view of it)")

    def _where(self, operator: str = "") -> str:
        """The innermost layer that runs."""
        layer = next((name for name in reversed(self._stack) if name), "")
        return layer or f"the model's forward ({operator or 'result'})"

    def _follow(
        self, func: Any, args: Any, kwargs: Any, out: Any, sources: Any, written: Tensor | None
    ) -> None:
        operator = str(func.overloadpacket)
        outs = _tensors(out)
        smaller = self._same_call(operator, outs, sources)
        values = {
            argument.name: kwargs.get(argument.name, argument.default_value)
            for argument in func._schema.arguments
        }
        names = (argument.name for argument in func._schema.arguments)
        values.update(zip(names, args, strict=False))
        call = Call(
            operator,
            self._where(operator),
            values,
            out,
            sources,
            smaller,
            self._step,
        )
        rule = self.rules.get(operator)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = self.rules["pointwise"]
        if operator in _SAME_CALL and self.smaller:
            call.covers = next(self._covered, None)
        unknown = _NO_NAMES
        results: Sequence[Axes | None]
        try:
            if rule is None:
                raise Unknown(operator)
            results = rule(call)
        except Exception as reason:  # a rule that fails must not stop the model
            text = str(reason) if isinstance(reason, Unknown) else f"{operator}: {reason!r}"
            unknown = frozenset([f"{call.layer} ({text})"])
            results = []
        if operator in _SAME_CALL and call.covers is not None:
            self.covered.append(call.covers)
        for index, tensor in enumerate(outs):
            known = results[index] if index < len(results) else _everything(tensor.dim())
            if known is None:
                continue
            if index >= len(results) and not unknown:
                unknown = frozenset([f"{call.layer} (result {index} of {operator})"])
            shape = tuple(tensor.shape)
            before = smaller[index] if smaller and index < len(smaller) else None
            dependence = self._finished(call, known, shape, before, unknown)
            self._keep(tensor, dependence, written, call)

    def _same_call(
        self, operator: str, outs: list[Tensor], sources: dict[int, Dependence]
    ) -> tuple[tuple[int, ...], ...] | None:
        """The results' shapes in the run on the smaller input, call by call."""
        if operator in COPIES:
            if self.smaller is None:
                return None
            return tuple(dependence.smaller or () for dependence in sources.values())
        number = len(self.calls)
        name = _SAME_CALL.get(operator, operator)
        # Group Normalization also returns its statistics.
        compared = outs[:1] if operator in _SAME_CALL else outs
        self.calls.append((name, tuple(tuple(tensor.shape) for tensor in compared)))
        if self.smaller is None:
            return None
        calls = self.smaller.calls
        if number >= len(calls) or calls[number][0] != name:
            raise OtherPath
        shapes = calls[number][1]
        if [len(shape) for shape in shapes] != [tensor.dim() for tensor in compared]:
            raise OtherPath
        return shapes

    def _finished(
        self,
        call: Call,
        axes: Axes,
        shape: tuple[int, ...],
        smaller: tuple[int, ...] | None,
        unknown: frozenset[str],
    ) -> Dependence:
        sources = list(call.sources.values())
        first = sources[0]
        plain = not (unknown or call.sized or any(call.unlimited) or call.period != [1, 1])
        unmoved = all(b is a for b, a in zip(axes, first.axes, strict=True))
        if plain and len(sources) == 1 and unmoved and first.shape == shape:
            return first
        if any(bounds.size > 2 * _MOST_CELLS for bounds in axes):
            unknown |= {f"{call.layer} ({call.name} of a large flattened map)"}
            axes = _everything(len(shape))
        period = [lcm(call.period[a], *(source.period[a] for source in sources)) for a in (0, 1)]
        dependence = Dependence(axes, shape, smaller)
        if smaller is not None:
            for axis, other in ((0, 1), (1, 0)):
                for dim in range(len(shape)):
                    if axes[axis].shape[dim + 1] > 1 and axes[other].shape[dim + 1] == 1:
                        stride = call.stride(dependence, axis, dim)
                        period[axis] = lcm(period[axis], stride.numerator if stride else 1)
        rows, columns = (
            frozenset(call.unlimited[a]).union(*(source.unlimited[a] for source in sources))
            for a in (0, 1)
        )
        sized = frozenset([call.layer] if call.sized else ())
        return Dependence(
            axes,
            shape,
            smaller,
            (period[0], period[1]),
            (rows, columns),
            sized.union(*(source.sized for source in sources)),
            unknown.union(*(source.unknown for source in sources)),
        )

    def _keep(
        self, tensor: Tensor, dependence: Dependence, written: Tensor | None, call: Call
    ) -> None:
        if tensor is not written:
            # A view takes the count of changes over from what it is a view of.
            first = call.values.get("self")
            is_view = isinstance(first, Tensor) and _same_storage(first, tensor)
            _attach(tensor, dependence, first._version if is_view else tensor._version)
            return
        before = call.source(tensor)
        if before is not dependence and tensor._is_view():
            storage = tensor.untyped_storage()
            self._written[storage._cdata] = storage
        _attach(tensor, dependence, tensor._version + 1)


class OtherPath(Exception):
    """The model calls other operators when its input is larger."""


def _attach(tensor: Tensor, dependence: Dependence, version: int | None = None) -> None:
    tensor._lcn_dependence = (  # type: ignore[attr-defined]
        dependence,
        tensor._version if version is None else version,
    )


def _same_storage(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


def _own_pixel(size: int) -> Bounds:
    pixel = np.arange(size, dtype=np.int64)
    return np.stack([pixel, -pixel])


def _everything(dims: int) -> Axes:
    """Bounds that stand for an unknown dependence; never read as a distance."""
    bounds = np.full((2, *[1] * dims), -NOTHING, dtype=np.int64)
    return bounds, bounds


def _unknown(shape: tuple[int, ...], reason: str) -> Dependence:
    return Dependence(_everything(len(shape)), shape, shape, unknown=frozenset([reason]))


def _tensors(values: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, (tuple, list)):
        return []
    return [tensor for value in values for tensor in _tensors(value)]
