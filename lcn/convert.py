"""Swaps the norm layers of any model."""

import fnmatch
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .audit import measure_feature_maps
from .build import checked_options, factory_from_options
from .norm_layers import (
    fused_modules,
    named_norm_layers,
    named_other_norms,
    norm_kind,
    num_channels,
)
from .sync_batch_norm import SyncBatchNorm
from .window import WHOLE_MAP, window_pair

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
# How much larger the second input is from which a stride is measured; a multiple of every stride.
_STRIDE_STEP = 512


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
    Other norm layers (1-D, 3-D, token-wise) stay, and a warning names them.  If ``model`` is itself
    a norm layer, its replacement is returned.

    Device, dtype, training mode and hooks are kept; a module used in several places stays shared.
    With ``{"name": "bn"}`` BatchNorm2d layers stay as they are; ``sync_bn`` keeps their momentum
    and running statistics; ``brn`` keeps the statistics and begins its schedule anew.

    Args:
        norm: a factory ``num_channels -> Module``, or a config as for :func:`lcn.build_norm`, with
            ``window_unit: input`` (windows in input pixels, divided by each layer's stride) and
            ``windows: {pattern: window}`` (by layer name, first match, as in ``fnmatch``) besides.
        keep_affine: carry weight, bias and whether they are trained over; the weights of frozen
            layers become trainable.  Otherwise the new layers keep their own initial values.
        input_shape: ``(N, C, H, W)`` or ``(C, H, W)``; needed for ``window_unit: input``.

    Raises:
        ValueError: before anything is changed: for a wrong config; listing every layer whose
            channels the groups do not divide; for a name pattern that matches no layer.
    """
    layers = dict(named_norm_layers(model))
    options = None if callable(norm) else checked_options(norm)
    factories = _factories(model, layers, options, norm, input_shape)
    replacement: dict[nn.Module, nn.Module] = {}
    problems = []
    for name, layer in layers.items():
        if options is not None and _stays(layer, options["name"]):
            continue
        try:
            fresh = _batch_norm_copy(layer, options) or factories[name](num_channels(layer) or 0)
        except ValueError as error:
            problems.append(f"  {name or '(the model itself)'}: {error}")
            continue
        replacement[layer] = _take_over(layer, fresh, keep_affine)
    if problems:
        raise ValueError(
            "convert_norm changed nothing, these layers cannot be replaced:\n" + "\n".join(problems)
        )
    others = [f"{name} ({type(module).__name__})" for name, module in named_other_norms(model)]
    if others:
        warnings.warn(f"convert_norm left in place: {', '.join(others)}", stacklevel=2)
    for old, new in replacement.items():
        _finish(old, new)
    for parent, child_name, child in _children(model):
        if child in replacement:
            parent._modules[child_name] = replacement[child]
    return replacement.get(model, model)


def _factories(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    options: dict[str, Any] | None,
    norm: Any,
    input_shape: Sequence[int] | None,
) -> dict[str, Callable[[int], nn.Module]]:
    """The factory of each layer, with its own window where the config asks for that."""
    if options is None:
        return dict.fromkeys(layers, norm)
    patterns = options.get("windows", {})
    by_input_pixels = options.get("window_unit", "feature") == "input"
    if not patterns and not by_input_pixels:
        return dict.fromkeys(layers, factory_from_options(options))
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in layers):
            raise ValueError(f"norm.windows: no norm layer of the model matches {pattern!r}")
    strides = _strides(model, layers, input_shape) if by_input_pixels else {}
    factories = {}
    for name in layers:
        matches = [window for key, window in patterns.items() if fnmatch.fnmatchcase(name, key)]
        window = window_pair([*matches, options.get("window", 227)][0])
        if by_input_pixels:
            window = _in_cells(window, strides[name])
        factories[name] = factory_from_options({**options, "window": window})
    return factories


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


def _stays(layer: nn.Module, name: str) -> bool:
    return name in ("bn", "sync_bn") and norm_kind(layer) == name


def _batch_norm_copy(layer: nn.Module, options: Mapping[str, Any] | None) -> nn.Module | None:
    """A batch norm of another class with the same statistics, if this is what is asked for."""
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
    """Move the hooks over: the same dicts, so that the handles users hold still remove them."""
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None:
                yield parent, name, child
