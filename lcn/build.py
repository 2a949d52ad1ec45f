"""From a norm config, such as ``{"name": "lcn", "c_group": 2, "window": 227}``, to a factory."""

import difflib
import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from .batch_renorm import BatchRenorm2d
from .layers import LocalContextNorm, ReleasedLocalContextNorm, TiledLocalContextNorm
from .learned import LearnedContextNorm
from .siblings import LocalContrastNorm, LocalResponseNorm, PositionalNorm
from .sync_batch_norm import SyncBatchNorm
from .window import real_pair, window_pair

NormFactory = Callable[[int], nn.Module]

_LCN_LAYERS: dict[str, Any] = {
    "lcn": LocalContextNorm,
    "lcn_released": ReleasedLocalContextNorm,
    "lcn_tiled": TiledLocalContextNorm,
    "lcn_learned": LearnedContextNorm,
}
# Their keys are the keyword arguments of their classes.
_SIBLINGS: dict[str, Callable[..., nn.Module]] = {
    "brn": BatchRenorm2d,
    "pn": PositionalNorm,
    "lrn": LocalResponseNorm,
    "contrast": LocalContrastNorm,
}
_LCN_KEYS = ("c_group", "groups", "window", "window_unit", "windows", "eps")
KEYS_OF_NAME: dict[str, tuple[str, ...]] = {
    "bn": ("eps", "momentum"),
    "sync_bn": ("eps", "momentum"),
    "brn": ("r_max", "d_max", "warmup_steps", "r_steps", "d_steps", "eps", "momentum"),
    "gn": ("groups", "eps"),
    "in": ("eps",),
    "ln": ("eps",),
    "pn": ("eps",),
    "lrn": ("size", "alpha", "beta", "k"),
    "contrast": ("size", "sigma", "eps"),
    **dict.fromkeys(_LCN_LAYERS, _LCN_KEYS),
    "lcn_learned": (*_LCN_KEYS, "window_per_group", "window_lr_factor"),
}
WINDOW_UNITS = ("feature", "input")


def build_norm(norm: Mapping[str, Any]) -> NormFactory:
    """A function ``num_channels -> nn.Module`` that makes the layer ``norm`` describes.

    Keys (an absent key or None means the default):
        name: ``bn``, ``sync_bn``, ``brn``, ``gn``, ``in``, ``ln``, ``pn``, ``lrn``, ``contrast``,
            ``lcn``, ``lcn_released``, ``lcn_tiled``, ``lcn_learned``.
        groups: number of groups (``gn``; default 32; ``lcn*`` instead of ``c_group``), or ``"C"``
            for one per channel.
        c_group: channels per group (``lcn*``; default 2), or ``"C"`` for all in one group.
        window: cells of the feature map (``lcn*``; default 227): int, ``[p, q]`` or ``"all"``.
        window_per_group: whether each group learns a window of its own (``lcn_learned``; default
            false); window_lr_factor is for whoever makes the optimizer, and does nothing here.
        eps: added to the variance; default 1e-5.
        momentum: of the running statistics (``bn``, ``sync_bn``; default 0.1; ``brn``: 0.01).
        r_max, d_max, warmup_steps, r_steps, d_steps (``brn``), size, alpha, beta, k (``lrn``),
            size, sigma (``contrast``): as in the classes :class:`~lcn.batch_renorm.BatchRenorm2d`,
            :class:`~lcn.siblings.LocalResponseNorm` and :class:`~lcn.siblings.LocalContrastNorm`.
        window_unit, windows, groups: keep: windows in input pixels, windows by layer name, the
            groups that each layer has. They need to know the model: :func:`lcn.convert_norm` takes
            them, here only ``window_unit: feature`` is possible.

    ``ln`` runs over channels, rows and columns (``nn.GroupNorm`` with one group), ``in`` is
    ``nn.GroupNorm`` with one group per channel, both with weight and bias.

    Raises:
        ValueError: for an unknown name or key (naming the nearest valid one), or a value that is
            not allowed; the factory, for a group count that does not divide ``num_channels``.
    """
    options = checked_options(norm)
    by_input_pixels = options.get("window_unit", "feature") == "input"
    if options.get("windows") or by_input_pixels or options.get("groups") == "keep":
        raise ValueError(
            "window_unit: input, windows: {...} and groups: keep need the model's layers; "
            "use lcn.convert_norm(model, norm, input_shape=...) instead of build_norm"
        )
    return factory_from_options(options)


def factory_from_options(options: Mapping[str, Any]) -> NormFactory:
    """The factory for options that :func:`checked_options` returned, whatever the window unit."""
    name = options["name"]
    eps = options.get("eps", 1e-5)
    if name in ("bn", "sync_bn"):
        layer = nn.BatchNorm2d if name == "bn" else SyncBatchNorm
        momentum = options.get("momentum", 0.1)
        return lambda num_channels: layer(num_channels, eps=eps, momentum=momentum)
    if name in _SIBLINGS:
        keywords = {key: value for key, value in options.items() if key != "name"}
        return lambda num_channels: _SIBLINGS[name](num_channels, **keywords)
    if name in _LCN_LAYERS:
        lcn_layer, window = _LCN_LAYERS[name], options.get("window", 227)
        if options.get("window_per_group"):
            lcn_layer = functools.partial(lcn_layer, window_per_group=True)

        def make_lcn(num_channels: int) -> nn.Module:
            if "groups" in options:
                groups = _divisor("groups", options["groups"], num_channels)
                return lcn_layer(num_channels, window=window, eps=eps, num_groups=groups)
            c_group = _divisor("c_group", options.get("c_group", 2), num_channels)
            return lcn_layer(num_channels, c_group, window, eps=eps)

        return make_lcn
    groups = {"ln": 1, "in": "C"}.get(name, options.get("groups", 32))

    def make_group_norm(num_channels: int) -> nn.Module:
        return nn.GroupNorm(_divisor("groups", groups, num_channels), num_channels, eps=eps)

    return make_group_norm


def checked_options(norm: Mapping[str, Any]) -> dict[str, Any]:
    """``norm`` as a plain dict without its None values, every name, key and value checked."""
    if not isinstance(norm, Mapping):
        raise ValueError(f"norm must be a mapping with a key name, got {norm!r}")
    options = {str(key): norm[key] for key in norm if norm[key] is not None}
    name = options.get("name")
    if name not in KEYS_OF_NAME:
        raise ValueError(f"norm.name {_not_one_of(name, KEYS_OF_NAME)}")
    every_key = {"name", *(key for keys in KEYS_OF_NAME.values() for key in keys)}
    for key, value in norm.items():
        if key not in every_key:
            raise ValueError(f"norm key {_not_one_of(key, sorted(every_key))}")
        if key != "name" and key not in KEYS_OF_NAME[name] and value is not None:
            allowed = ", ".join(KEYS_OF_NAME[name])
            raise ValueError(f"norm key {key!r} does nothing for {name!r}; it takes {allowed}")
    for key, words in (("groups", ("C", "keep")), ("c_group", ("C",))):
        if key in options:
            _check_count(key, options[key], words)
    if "groups" in options and "c_group" in options:
        raise ValueError(
            f"give norm.groups or norm.c_group, not both; got {options['groups']!r} "
            f"and {options['c_group']!r}"
        )
    checked_window = real_pair if name == "lcn_learned" else window_pair
    if "window" in options:
        checked_window(options["window"])
    if options.get("window_unit", "feature") not in WINDOW_UNITS:
        raise ValueError(f"norm.window_unit {_not_one_of(options['window_unit'], WINDOW_UNITS)}")
    for key in ("size", "warmup_steps", "r_steps", "d_steps"):
        value, least = options.get(key, 1), int(key == "size")
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"norm.{key} must be an int of at least {least}, got {value!r}")
    for key in (
        "eps",
        "momentum",
        "alpha",
        "beta",
        "k",
        "sigma",
        "r_max",
        "d_max",
        "window_lr_factor",
    ):
        value = options.get(key, 0.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
            raise ValueError(f"norm.{key} must be a number of at least 0, got {value!r}")
    if not isinstance(options.get("window_per_group", False), bool):
        raise ValueError(
            f"norm.window_per_group must be true or false, got {options['window_per_group']!r}"
        )
    if "windows" in options:
        if not isinstance(options["windows"], Mapping):
            raise ValueError(
                f"norm.windows must map name patterns to windows, got {options['windows']!r}"
            )
        for window in options["windows"].values():
            checked_window(window)
    return options


def _divisor(name: str, value: Any, num_channels: int) -> int:
    """``value`` as a count that divides ``num_channels``; ``"C"`` is ``num_channels`` itself."""
    count = num_channels if value == "C" else int(value)
    if num_channels % count:
        allowed = ", ".join(str(d) for d in range(1, num_channels + 1) if num_channels % d == 0)
        raise ValueError(
            f"{name} must divide the {num_channels} channels, got {value}; possible: {allowed}"
        )
    return count


def _check_count(name: str, value: Any, words: tuple[str, ...]) -> None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not is_count and value not in words:
        allowed = " or ".join(map(repr, words))
        raise ValueError(f"norm.{name} must be a positive int, {allowed}, got {value!r}")


def _not_one_of(value: Any, allowed: Any) -> str:
    names = list(allowed)
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.0)
    return f"must be one of {', '.join(names)}, got {value!r}; did you mean {near[0]!r}?"
