"""Swaps the norm layers of any model."""

import fnmatch
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from .audit import measure_feature_maps
from .build import checked_options, factory_from_options
from .norm_layers import (
    fused_modules,
    has_own_forward,
    named_norm_layers,
    named_other_norms,
    norm_kind,
    num_channels,
)
from .sync_batch_norm import SyncBatchNorm
from .window import WHOLE_MAP, real_pair, window_pair

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
# Pixels by which the second input is larger, to measure strides; a multiple of every stride.
_STRIDE_STEP = 512
# Attributes that every module has; layers in these are its children.
_OF_MODULE = frozenset(vars(nn.Module()))
_WRAPPERS = frozenset({"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"})
# Most lines of the message that says why layers cannot be replaced.
_MOST_LINES = 9


class NormAct(nn.Module):
    """A norm layer, then what timm's fused layer applied after it (``drop``, ``act``)."""

    def __init__(self, norm: nn.Module, after: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.norm = norm
        self.after = tuple(after)
        for name, module in after.items():
            self.add_module(name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        for name in self.after:
            x = self.get_submodule(name)(x)
        return x


def convert_norm(
    model: nn.Module,
    norm: Mapping[str, Any] | Callable[[int], nn.Module],
    keep_affine: bool = True,
    *,
    input_shape: Sequence[int] | None = None,
) -> nn.Module:
    """Replace every norm layer over ``[N, C, H, W]`` in ``model``, in place; returns the model.

    Replaced are BatchNorm2d, SyncBatchNorm, FrozenBatchNorm2d, GroupNorm, InstanceNorm2d,
    LayerNorm2d-like layers, their fused norm-plus-activation forms in timm, and this package's own.
    If ``model`` is itself a norm layer, its replacement is returned.

    What stays is named in a warning: other norm layers (1-D, 3-D, token-wise), layers that add
    something of their own (a subclass with its own ``forward``, a parametrization), and layers that
    a module keeps in a plain list, tuple or dict, which PyTorch does not know as its children.

    Device, dtype, training mode and hooks are kept; a module used in several places stays shared.
    With ``{"name": "bn"}`` BatchNorm2d layers stay as they are; ``sync_bn`` keeps their momentum
    and running statistics; ``brn`` keeps the statistics and begins its schedule anew. Convert
    before the optimizer is made: the parameters are new.

    Args:
        norm: a factory ``num_channels -> Module``, or a config as for :func:`lcn.build_norm`, with
            ``window_unit: input`` (windows in input pixels, divided by each layer's stride),
            ``windows: {pattern: window}`` (by layer name, first match, as in ``fnmatch``) and
            ``groups: keep`` (each layer's own number of groups: of GroupNorm, of this package's
            layers, and of InstanceNorm2d, which has one per channel) besides.
        keep_affine: carry weight, bias and whether they are trained over; the weights of frozen
            layers become trainable. Otherwise the new layers keep their own initial values.
        input_shape: ``(N, C, H, W)`` or ``(C, H, W)``; needed for ``window_unit: input``.

    Raises:
        ValueError: before anything is changed: for a wrong config; for layers whose channels the
            groups do not divide, or that have no groups to keep, naming them; for a name pattern
            that matches no layer; for a model wrapped in DistributedDataParallel or FSDP.
    """
    _refuse_wrapped(model)
    options = None if callable(norm) else checked_options(norm)
    layers = {n: layer for n, layer in named_norm_layers(model) if not _stays(layer, options)}
    left = {name: why for name, layer in layers.items() if (why := _own_addition(layer))}
    layers = {name: layer for name, layer in layers.items() if name not in left}
    factories = _factories(model, layers, options, norm, input_shape)
    replacement: dict[nn.Module, nn.Module] = {}
    problems: dict[str, list[str]] = {}
    for name, layer in layers.items():
        try:
            fresh = _batch_norm_copy(layer, options) or factories[name](num_channels(layer) or 0)
        except ValueError as error:
            problems.setdefault(str(error), []).append(name or "(the model itself)")
            continue
        replacement[layer] = _take_over(layer, fresh, keep_affine)
    if problems:
        raise ValueError(_described(problems, layers, options))
    left.update(_other_norms(model, options))
    if left:
        names = ", ".join(f"{name or 'the model itself'} ({why})" for name, why in left.items())
        warnings.warn(f"convert_norm left in place: {names}", stacklevel=2)
    for old, new in replacement.items():
        _finish(old, new)
    for parent, child_name, child in _children(model):
        if child in replacement:
            parent._modules[child_name] = replacement[child]
    return replacement.get(model, model)


def _refuse_wrapped(model: nn.Module) -> None:
    for name, module in model.named_modules():
        classes = {base.__name__ for base in type(module).__mro__}
        for wrapper in classes & _WRAPPERS:
            raise ValueError(
                f"convert_norm changed nothing: {name or 'the model'} is a {wrapper}, which holds "
                "on to the parameters it was given; convert the model first, then wrap it"
            )


def _own_addition(layer: nn.Module) -> str | None:
    """What a norm layer does besides normalizing, which a replacement would lose; or None."""
    if has_own_forward(layer):
        return f"{type(layer).__name__}: has a forward of its own"
    if parametrize.is_parametrized(layer):
        return f"{type(layer).__name__}: has a parametrization"
    return None


def _other_norms(model: nn.Module, options: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Norm layers that are none of those to replace: where they are, and what they are."""
    for name, module in named_other_norms(model):
        if "parametrizations" not in name.split("."):  # of a weight, such as spectral norm
            yield name, type(module).__name__
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and "Norm" in module.original_name:
            yield name, f"{module.original_name}: compiled by torch.jit"
        for attribute, value in vars(module).items():
            for place, norm in () if attribute in _OF_MODULE else _modules_in(value):
                if norm_kind(norm) is not None and not _stays(norm, options):
                    path = f"{name}.{attribute}" if name else attribute
                    yield path + place, f"{type(norm).__name__}: kept outside the module's children"


def _modules_in(value: Any, depth: int = 3) -> Iterator[tuple[str, nn.Module]]:
    """Modules in nested plain containers, with the index at which each lies."""
    if isinstance(value, nn.Module):
        yield "", value
    elif isinstance(value, (list, tuple, dict)) and depth:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            for place, module in _modules_in(item, depth - 1):
                yield f"[{key!r}]{place}", module


def _described(
    problems: Mapping[str, Sequence[str]],
    layers: Mapping[str, nn.Module],
    options: Mapping[str, Any] | None,
) -> str:
    """What prevents a conversion: a line per reason, and what would work for all layers."""
    lines = ["convert_norm changed nothing, these layers cannot be replaced:"]
    for reason, names in problems.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"  {', '.join(names[:3])}{more}: {reason}")
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES - 1 :] = [f"  and {len(lines) - _MOST_LINES + 1} reasons more"]
    if options is not None and options.get("groups") != "keep":
        common = math.gcd(*(num_channels(layer) or 0 for layer in layers.values()))
        divisors = (str(d) for d in range(1, common + 1) if common % d == 0)
        lines.append(f"  possible for every layer: {', '.join(divisors)}")
    return "\n".join(lines)


def _factories(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    options: dict[str, Any] | None,
    norm: Any,
    input_shape: Sequence[int] | None,
) -> dict[str, Callable[[int], nn.Module]]:
    """The factory of each layer, with its own window and groups where the config asks for that."""
    if options is None:
        return dict.fromkeys(layers, norm)
    patterns = options.get("windows", {})
    by_input_pixels = options.get("window_unit", "feature") == "input"
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in layers):
            raise ValueError(f"norm.windows: no norm layer of the model matches {pattern!r}")
    strides = _strides(model, layers, input_shape) if by_input_pixels else {}
    factories = {}
    for name, layer in layers.items():
        own = dict(options)
        matches = [window for key, window in patterns.items() if fnmatch.fnmatchcase(name, key)]
        if matches:
            own["window"] = matches[0]
        if by_input_pixels:
            window = own.get("window", 227)
            if own["name"] == "lcn_learned":
                sides = zip(real_pair(window), strides[name], strict=True)
                own["window"] = tuple(max(1.0, side / step) for side, step in sides)
            else:
                own["window"] = _in_cells(window_pair(window), strides[name])
        keeps = own.get("groups") == "keep"
        factories[name] = _keeping_groups(layer, own) if keeps else factory_from_options(own)
    return factories


def _keeping_groups(layer: nn.Module, options: dict[str, Any]) -> Callable[[int], nn.Module]:
    def make(channels: int) -> nn.Module:
        groups = _groups_of(layer)
        if groups is None:
            raise ValueError(
                f"{type(layer).__name__} has no groups to keep; give norm.groups or norm.c_group"
            )
        return factory_from_options({**options, "groups": groups})(channels)

    return make


def _groups_of(layer: nn.Module) -> int | None:
    """The number of groups over which a norm layer computes its statistics, if it has groups."""
    if norm_kind(layer) == "in":
        return num_channels(layer)
    groups = getattr(layer, "num_groups", None)
    return groups if isinstance(groups, int) else None


def _in_cells(window: tuple[int, int], stride: tuple[float, float]) -> tuple[int, int]:
    """A window in input pixels as one in cells, at least 1; the whole map stays the whole map."""
    p, q = (
        side if side == WHOLE_MAP else max(1, round(side / step))
        for side, step in zip(window, stride, strict=True)
    )
    return p, q


def _strides(
    model: nn.Module, layers: Mapping[str, nn.Module], input_shape: Sequence[int] | None
) -> dict[str, tuple[float, float]]:
    """Input pixels per cell of each layer, on both axes.

    From the growth of the map as the input grows, so that unpadded convolutions, which cut a
    constant from it, do not count; from the sizes themselves where the map does not grow.
    """
    if input_shape is None:
        raise ValueError("window_unit: input needs input_shape, got None; give (C, H, W)")
    *front, height, width = input_shape
    small = measure_feature_maps(model, input_shape)
    missing = [name for name in layers if name not in small]
    if missing:
        raise ValueError(
            f"window_unit: input needs each layer's stride, but the forward does not reach "
            f"{', '.join(missing)}"
        )
    try:
        larger = (*front, height + _STRIDE_STEP, width + _STRIDE_STEP)
        large = measure_feature_maps(model, larger)
    except ValueError:  # a model that takes one input size only
        large = small

    def stride(name: str, axis: int, side: int) -> float:
        growth = large.get(name, small[name])[axis] - small[name][axis]
        return _STRIDE_STEP / growth if growth > 0 else side / small[name][axis]

    return {name: (stride(name, 0, height), stride(name, 1, width)) for name in layers}


def _stays(layer: nn.Module, options: Mapping[str, Any] | None) -> bool:
    name = None if options is None else options["name"]
    return name in ("bn", "sync_bn") and norm_kind(layer) == name


def _batch_norm_copy(layer: nn.Module, options: Mapping[str, Any] | None) -> nn.Module | None:
    """A batch norm of another class with the same statistics, if the config asks for one."""
    classes = {"bn": nn.BatchNorm2d, "sync_bn": SyncBatchNorm}
    if options is None or options["name"] not in (*classes, "brn"):
        return None
    if norm_kind(layer) not in ("bn", "sync_bn", "brn", "frozen_bn"):
        return None
    running_mean = getattr(layer, "running_mean", None)
    kept = ["running_mean", "running_var", "num_batches_tracked"]
    copy: Any
    if options["name"] != "brn":
        copy = classes[options["name"]](
            num_channels(layer) or 0,
            eps=float(getattr(layer, "eps", 1e-5)),
            momentum=getattr(layer, "momentum", options.get("momentum", 0.1)),
            affine=layer.weight is not None,
            track_running_stats=running_mean is not None,
        )
    else:
        copy = factory_from_options(options)(num_channels(layer) or 0)
        copy.eps = float(getattr(layer, "eps", 1e-5))
        kept.remove("num_batches_tracked")  # its schedule begins with the first step of its own
    for name in kept if running_mean is not None else ():
        value = getattr(layer, name, None)
        if value is not None:
            setattr(copy, name, value.detach().clone())
    return copy


def _take_over(old: nn.Module, new: nn.Module, keep_affine: bool) -> nn.Module:
    """``new`` on the device and in the dtype of ``old``, with its weights if these are kept."""
    tensors = [*old.parameters(recurse=False), *old.buffers(recurse=False)]
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    if floating:
        new = new.to(device=floating[0].device, dtype=floating[0].dtype)
    for name in ("weight", "bias") if keep_affine else ():
        source, target = getattr(old, name, None), getattr(new, name, None)
        if isinstance(source, torch.Tensor) and isinstance(target, nn.Parameter):
            with torch.no_grad():
                target.copy_(source.reshape(target.shape))
            if isinstance(source, nn.Parameter):
                target.requires_grad_(source.requires_grad)
    new.train(old.training)
    after = fused_modules(old)
    return NormAct(new, after).train(old.training) if after else new


def _finish(old: nn.Module, new: nn.Module) -> None:
    """Moves the hooks: the same dicts, so that handles that users hold still remove them."""
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None:
                yield parent, name, child
