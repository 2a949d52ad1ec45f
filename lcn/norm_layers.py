"""Recognizes the norm layers of a model, whichever library they come from.

By class name along the inheritance, so that neither timm nor torchvision has to be imported.
"""

from collections.abc import Iterator

from torch import nn
from torch.nn.parameter import is_lazy

# Class -> kind; the kinds are the names of norm configs, plus what only other libraries have.
_KIND_OF_CLASS = {
    "LocalContextNorm": "lcn",
    "ReleasedLocalContextNorm": "lcn_released",
    "TiledLocalContextNorm": "lcn_tiled",
    "LearnedContextNorm": "lcn_learned",
    "BatchRenorm2d": "brn",
    "PositionalNorm": "pn",
    "LocalResponseNorm": "lrn",
    "LocalContrastNorm": "contrast",
    "SyncBatchNorm": "sync_bn",
    "BatchNorm2d": "bn",
    "FrozenBatchNorm2d": "frozen_bn",
    "FrozenBatchNormAct2d": "frozen_bn",
    "GroupNorm": "gn",
    "InstanceNorm2d": "in",
    "LayerNorm2d": "ln2d",
    "LayerNorm2dFp32": "ln2d",
    "LayerNormExp2d": "ln2d",
    "LayerNormAct2d": "ln2d",
    "LayerNormAct2dFp32": "ln2d",
    "RmsNorm2d": "rms2d",
    "RmsNorm2dFp32": "rms2d",
    "RmsNormAct2d": "rms2d",
    "RmsNormAct2dFp32": "rms2d",
}
_KNOWN_LIBRARIES = ("torch", "torchvision", "timm", "lcn")


def norm_kind(module: nn.Module) -> str | None:
    """The kind of a norm layer over ``[N, C, H, W]``, or None for anything else."""
    for base in type(module).__mro__:
        kind = _KIND_OF_CLASS.get(base.__name__)
        if kind is not None:
            return kind if num_channels(module) else None
    return None


def num_channels(module: nn.Module) -> int | None:
    """The number of channels a norm layer was made for; None while it does not know it yet."""
    if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
        return None
    for attribute in ("num_features", "num_channels"):
        if isinstance(getattr(module, attribute, None), int):
            return int(getattr(module, attribute))
    shape = getattr(module, "normalized_shape", None)
    if shape is not None:
        return int(shape[0])
    weight = getattr(module, "weight", None)
    return None if weight is None else int(weight.numel())


def fused_modules(module: nn.Module) -> dict[str, nn.Module]:
    """What a norm layer of timm applies after normalizing: ``drop`` and ``act``, if it has them."""
    children = dict(module.named_children())
    return {name: children[name] for name in ("drop", "act") if name in children}


def has_own_forward(module: nn.Module) -> bool:
    """Whether a subclass of a norm layer, or one instance, has a ``forward`` of its own.

    Those of PyTorch and timm are known: they normalize, then apply :func:`fused_modules`. A class
    that is known by its name and derives from no other norm layer normalizes too.
    """
    if "forward" in vars(module):
        return True
    classes = type(module).__mro__
    owner = next(index for index, base in enumerate(classes) if "forward" in vars(base))
    if classes[owner].__module__.partition(".")[0] in _KNOWN_LIBRARIES:
        return False
    known = [base.__name__ in _KIND_OF_CLASS for base in classes[owner:]]
    return not known[0] or any(known[1:])


def named_norm_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every norm layer over ``[N, C, H, W]``, each module once."""
    for name, module in model.named_modules():
        if norm_kind(module) is not None:
            yield name, module


def named_other_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules whose class name looks like a norm layer, but whose kind is not known here."""
    for name, module in model.named_modules():
        class_name = type(module).__name__.lower()
        looks_like_norm = "norm" in class_name or class_name.endswith(("abn", "frn"))
        is_leaf = len(list(module.children())) == len(fused_modules(module))
        if looks_like_norm and is_leaf and norm_kind(module) is None:
            yield name, module
