"""On which rows, or columns, of its input each cell of a tensor depends, operator by operator.

A dispatch mode watches a forward on fake tensors. Every tensor that depends on the input carries
the first and the last pixel, along one axis of the input, that each of its cells can depend on.
These are exact at the size of the run, borders included; channels and samples are taken together,
and so are the pixels between the first and the last. The rules per operator are in
:mod:`lcn.dependence_rules`; an operator without one makes its result unknown.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .learned import LearnedContextNorm

# int64 [2, *shape of the tensor], with 1 for every dimension along which all cells are alike:
# [0] is the first pixel and [1] minus the last, so that two dependences join as their minimum.
Bounds = np.ndarray
Shape = tuple[int, ...]

NOTHING = 2**40  # the first pixel of a cell that depends on no pixel at all
_LARGEST_PERIOD, _SMALL = 4096, 16
MOST_CELLS = 2**22  # of one array: a flattened map has as many as the map
_NONE: frozenset[str] = frozenset()
# The result is the tensor itself or a copy; such calls may come and go with the size of the input.
COPIES = frozenset(
    f"aten.{name}" for name in ("clone", "_to_copy", "detach", "alias", "lift_fresh")
)
# The result takes nothing but the shape.
CONSTANTS = frozenset(
    f"aten.{stem}_like" for stem in ("zeros", "ones", "empty", "full", "rand", "randn")
) | frozenset(f"aten.new_{stem}" for stem in ("zeros", "ones", "empty", "full", "empty_strided"))
# Local Context Normalization becomes PyTorch's Group Normalization where the window covers the map.
_NORMS = frozenset(
    [
        "lcn.local_context_norm",
        "lcn.local_context_norm_per_point",
        "lcn.local_context_norm_real_window",
        "aten.native_group_norm",
    ]
)


class Unknown(Exception):
    """A rule cannot say what its operator depends on."""


class OtherPath(Exception):
    """The model calls other operators when its input is larger."""


@dataclass(frozen=True, eq=False)
class Dependence:
    """What one tensor depends on, along one axis of the input."""

    bounds: Bounds
    shape: Shape
    smaller: Shape  # of the same tensor in the run on the smaller input; the same if there is none
    # Input pixels after which this grid and all that it was made from repeat; 0 if they never do.
    period: int = 1
    unlimited: frozenset[str] = _NONE  # layers that look at the whole axis, however long
    sized: frozenset[str] = _NONE  # layers whose result depends on the size of the map as such
    unknown: frozenset[str] = _NONE  # layers with an operator that no rule follows

    def growth(self, dim: int) -> int:
        """By how many cells the dimension is longer than in the run on the smaller input."""
        return self.shape[dim] - self.smaller[dim]

    def varies(self, dim: int) -> bool:
        """Whether cells along the dimension depend on different pixels."""
        return self.bounds.shape[dim + 1] > 1


def join(bounds: Sequence[Bounds]) -> Bounds:
    """The bounds of what depends on all of these, which are broadcast as PyTorch does."""
    dims = max(b.ndim for b in bounds)
    result, *others = (b.reshape(2, *[1] * (dims - b.ndim), *b.shape[1:]) for b in bounds)
    if all(b is bounds[0] for b in bounds):
        return bounds[0]
    for other in others:
        result = np.minimum(result, other)
    return result


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
    outs: list[Tensor]
    sources: dict[int, Dependence]  # by id of tensor
    # In a second run: shapes of the results in the first, and by how much the input is larger.
    smaller: tuple[Shape, ...]
    step: int
    # A window's p and q, if they are known without values, and whether it covers the map's rows and
    # columns, in the first run if there was one.
    window: tuple[float, float] | None = None
    covers: tuple[bool, bool] = (True, True)
    # What the rule finds out, as in `Dependence`.
    period: int = 1
    unlimited: bool = False
    sized: bool = False
    moves_cells: bool = False  # of a view, which may flatten maps

    def source(self, value: Any) -> Dependence | None:
        """What a tensor depends on; None for a constant and for other objects."""
        return self.sources.get(id(value))

    def only_source(self, name: str = "self") -> Dependence:
        """What the named argument depends on, if all other arguments are constants."""
        source = self.source(self.values.get(name))
        if source is None or any(other is not source for other in self.sources.values()):
            raise Unknown(f"{self.name} with computed arguments")
        return source

    def stride(self, source: Dependence, dim: int) -> Fraction | None:
        """Input pixels per cell along a dimension; None unless it grows with the input."""
        growth = source.growth(dim)
        return Fraction(self.step, growth) if growth > 0 else None

    def contracted(self, value: Any, dims: Iterable[int]) -> list[Bounds]:
        """Bounds after a reduction over ``dims``, noting if one grows; none for a constant."""
        source = value if isinstance(value, Dependence) else self.source(value)
        if source is None:
            return []
        dims = [d % len(source.shape) for d in dims]
        self.unlimited |= any(source.varies(d) and source.growth(d) for d in dims)
        return [contract(source.bounds, dims)]

    def whole(self, *values: Any) -> list[Bounds]:
        """Bounds of what depends on all of these tensors; constants have none."""
        found = []
        for source in map(self.source, values):
            if source is not None:
                [bounds] = self.contracted(source, range(len(source.shape)))
                found.append(bounds.reshape(2))
        return found


# Returns the bounds of each result; a result beyond these is unknown.
Rule = Callable[[Call], Sequence[Bounds]]


class Watch(TorchDispatchMode):
    """Follows the dependences of one forward.

    Args:
        model: the model that runs, for the names of its layers.
        rules: a rule by name of operator.
        axis: 0 for the rows of the input, 1 for its columns; None to note down only what a second
            run compares with.
        smaller: the watch of a run on a smaller input, if this is the second run.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: dict[str, Rule],
        axis: int | None = None,
        smaller: "Watch | None" = None,
    ) -> None:
        super().__init__()
        self.input_size = (0, 0)
        self.calls: list[tuple[str, tuple[Shape, ...]]] = []
        self.covered: list[tuple[bool, bool]] = []
        self._rules, self._axis, self._smaller = rules, axis, smaller
        self._step = 0
        self._names = {module: name for name, module in model.named_modules()}
        # The sizes that layers have learned, while there are values: the largest of their groups.
        self._learned = {
            self._names[module]: tuple(
                module.real_windows().detach().clamp(min=1.0).amax(0).tolist()
            )
            for module in self._names
            if isinstance(module, LearnedContextNorm) and not module.start.is_meta
        }
        self._running: list[str] = []
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
        self._running.append(self._names[module])

    def _on_leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()

    def _layer(self, operator: str) -> str:
        """The innermost layer that runs."""
        name = next((name for name in reversed(self._running) if name), "")
        return name or f"the model's forward ({operator.removeprefix('aten.')})"

    def set_input(self, x: Tensor) -> None:
        """Makes ``[N, C, H, W]`` the input, every cell of which depends on its own pixel."""
        self.input_size = (x.shape[2], x.shape[3])
        shape = smaller = tuple(x.shape)
        if self._smaller:
            smaller = (*shape[:2], *self._smaller.input_size)
        axis = self._axis or 0
        self._step = shape[axis + 2] - smaller[axis + 2]
        pixel = np.arange(shape[axis + 2])
        along = [1, 1, -1, 1] if axis == 0 else [1, 1, 1, -1]
        self._attach(x, Dependence(np.stack([pixel, -pixel]).reshape(2, *along), shape, smaller))

    def of(self, tensor: Tensor) -> Dependence | None:
        """What a tensor depends on, None if it is a constant."""
        found = getattr(tensor, "_lcn_dependence", None)
        if found is not None and found[0] is self and found[2] == tensor._version:
            return found[1]  # type: ignore[no-any-return]
        shared = bool(self._written) and _storage(tensor) in self._written
        if (found is None or found[0] is not self) and not shared:
            return None
        shape = tuple(tensor.shape)
        reason = f"{self._layer('result')} (a tensor changed through a view of it)"
        return Dependence(_anything(tensor), shape, shape, unknown=frozenset([reason]))

    def _attach(self, tensor: Tensor, dependence: Dependence, version: int | None = None) -> None:
        version = tensor._version if version is None else version
        tensor._lcn_dependence = (self, dependence, version)  # type: ignore[attr-defined]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sources = {}
        for tensor in tensors_in((args, kwargs)):
            dependence = self.of(tensor)
            if dependence is not None:
                sources[id(tensor)] = dependence
        out = func(*args, **kwargs)
        operator = str(func.overloadpacket)
        outs = tensors_in(out)
        if sources and outs and operator not in CONSTANTS:
            call = self._call(operator, func, args, kwargs, outs, sources)
            self._follow(call, func, args[0] if func._schema.is_mutable else None)
        return out

    def _call(
        self,
        operator: str,
        func: Any,
        args: Any,
        kwargs: Any,
        outs: list[Tensor],
        sources: dict[int, Dependence],
    ) -> Call:
        values = {
            argument.name: kwargs.get(argument.name, argument.default_value)
            for argument in func._schema.arguments
        }
        values.update(zip(list(values), args, strict=False))
        smaller = self._in_first_run(operator, outs, sources)
        call = Call(operator, self._layer(operator), values, outs, sources, smaller, self._step)
        if operator in _NORMS:
            call.window = self._window(operator, values)
            if call.window:
                rows, columns = (
                    length >= size
                    for length, size in zip(call.window, outs[0].shape[2:], strict=True)
                )
                either = values.get("rule") == "released" and (rows or columns)
                call.covers = (rows or either, columns or either)
            self.covered.append(call.covers)
            if self._smaller:
                call.covers = self._smaller.covered[len(self.covered) - 1]
        return call

    def _window(self, operator: str, values: dict[str, Any]) -> tuple[float, float] | None:
        if operator == "lcn.local_context_norm" and isinstance(values["p"], int):
            return values["p"], values["q"]
        if operator == "lcn.local_context_norm_real_window" and self._running:
            return self._learned.get(self._running[-1])
        return None

    def _in_first_run(
        self, operator: str, outs: list[Tensor], sources: dict[int, Dependence]
    ) -> tuple[Shape, ...]:
        """The results' shapes in the run on the smaller input, call by call."""
        if operator in COPIES:
            return tuple(dependence.smaller for dependence in sources.values())
        # Group Normalization returns its statistics as well.
        shapes = tuple(tuple(t.shape) for t in (outs[:1] if operator in _NORMS else outs))
        name = "norm" if operator in _NORMS else operator
        self.calls.append((name, shapes))
        if self._smaller is None:
            return shapes
        number = len(self.calls) - 1
        if number >= len(self._smaller.calls):
            raise OtherPath
        earlier, earlier_shapes = self._smaller.calls[number]
        if earlier != name or [*map(len, earlier_shapes)] != [*map(len, shapes)]:
            raise OtherPath
        return earlier_shapes

    def _follow(self, call: Call, func: Any, written: Tensor | None) -> None:
        rule = self._rules.get(call.name)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = self._rules["pointwise"]
        results: Sequence[Bounds] = ()
        reason = f"{call.layer} ({call.name})"
        if self._axis is not None and rule is not None:
            try:
                results = rule(call)
                if any(bounds.size > 2 * MOST_CELLS for bounds in results):
                    raise Unknown(f"{call.name} of a large flattened map")
            except Exception as error:  # a rule that fails must not stop the model
                results = ()
                reason = f"{call.layer} ({error if isinstance(error, Unknown) else call.name})"
        for index, tensor in enumerate(call.outs):
            unknown = _NONE if index < len(results) else frozenset([reason])
            bounds = results[index] if index < len(results) else _anything(tensor)
            shape = tuple(tensor.shape)
            smaller = call.smaller[index] if index < len(call.smaller) else shape
            self._keep(call, tensor, _finished(call, bounds, shape, smaller, unknown), written)

    def _keep(
        self, call: Call, tensor: Tensor, dependence: Dependence, written: Tensor | None
    ) -> None:
        """Attaches a dependence, valid until the tensor is changed."""
        if tensor is written:
            if call.source(tensor) is not dependence and tensor._is_view():
                self._written[_storage(tensor)] = tensor
            self._attach(tensor, dependence, tensor._version + 1)
            return
        # A view takes the count of changes over from what it is a view of.
        viewed, version = call.values.get("self"), tensor._version
        if isinstance(viewed, Tensor) and _storage(viewed) == _storage(tensor):
            version = viewed._version
        self._attach(tensor, dependence, version)


def _finished(
    call: Call, bounds: Bounds, shape: Shape, smaller: Shape, unknown: frozenset[str]
) -> Dependence:
    """The dependence of a result, with all that holds for what it was made from."""
    sources = list(call.sources.values())
    first = sources[0]
    news = unknown or call.unlimited or call.sized or call.period > 1
    if not news and len(sources) == 1 and bounds is first.bounds and shape == first.shape:
        return first
    here = frozenset([call.layer])
    dependence = Dependence(
        bounds,
        shape,
        smaller,
        lcm(call.period, *(source.period for source in sources)),
        (here if call.unlimited else _NONE).union(*(source.unlimited for source in sources)),
        (here if call.sized else _NONE).union(*(source.sized for source in sources)),
        unknown.union(*(source.unknown for source in sources)),
    )
    return replace(dependence, period=_period(call, dependence))


def _period(call: Call, dependence: Dependence) -> int:
    """The period, combined with the periods of grids that are new in a result."""
    known = {
        (source.shape[d], source.smaller[d])
        for source in call.sources.values()
        for d in range(len(source.shape))
    }
    period = dependence.period
    for dim, sizes in enumerate(zip(dependence.shape, dependence.smaller, strict=True)):
        stride = call.stride(dependence, dim)
        if sizes in known or not dependence.varies(dim) or not stride:
            continue
        # Growth gives the stride but for rounding, so that it has to hold from cell to cell.
        candidate = lcm(period, stride.numerator)
        if _repeats(dependence, dim, candidate, candidate / stride):
            period = candidate
        elif not call.moves_cells:  # a flattened map has no stride, and needs none
            return 0
    return period


def _repeats(dependence: Dependence, dim: int, pixels: int, cells: Fraction) -> bool:
    """Whether dependences move by ``pixels`` every so many ``cells``, far from the borders."""
    if not pixels or cells.denominator > 1 or pixels > _LARGEST_PERIOD:
        return False
    along = np.moveaxis(dependence.bounds, dim + 1, 1).reshape(2, dependence.shape[dim], -1)
    third = dependence.shape[dim] // 3
    first, last = along[:, third : 2 * third, 0] * [[1], [-1]]
    inside = (first > 0) & (last < -along[1].min()) & (first < NOTHING)
    step = int(cells)
    both = inside[step:] & inside[:-step]
    if not both.any():  # all cells depend on the border: a common fraction will do
        return Fraction(pixels, step).denominator <= _SMALL
    return bool((first[step:] - first[:-step] == pixels)[both].all())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _anything(tensor: Tensor) -> Bounds:
    """Bounds that stand for an unknown dependence; never read as a distance."""
    return np.full((2, *[1] * tensor.dim()), -NOTHING)


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, (tuple, list)):
        return []
    return [tensor for value in values for tensor in tensors_in(value)]
