"""The functional form of the layer: checks the arguments, picks a kernel."""

import math
from typing import Any

import torch
from torch import Tensor

from . import operator
from .kernels import huge_pages, memory_format_of, reference
from .window import RULES, covers_map, window_pair

BACKENDS = ("auto", "reference", "cpu", "gpu")


def local_context_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    channels_per_group: int,
    window: Any,
    eps: float = 1e-5,
    rule: str = "centered",
    backend: str = "auto",
) -> Tensor:
    """Local Context Normalization (paper, section 3.1): each cell over its group and its window.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` where mean and biased variance run over the
    ``channels_per_group`` consecutive channels of the cell's group and the window around it.

    Args:
        x: ``[N, C, H, W]`` in float64, float32, bfloat16 or float16; any strides.
        weight, bias: ``[C]`` or None.
        channels_per_group: ``c_group`` of the paper; must divide ``C``.
        window: ``p x q`` in cells of ``x``: an int, a pair, or ``"all"`` for the whole map.
        rule: ``"centered"`` (the window follows the cell and stops at borders), ``"released"``
            (as the authors' published layer) or ``"tiled"`` (Equation 9 literally); see
            :mod:`lcn.window`.
        backend: ``"auto"``, or one kernel: ``"reference"`` (plain PyTorch, any device),
            ``"cpu"`` (Numba), ``"gpu"`` (Triton).

    Returns:
        ``[N, C, H, W]`` in the dtype of ``x``.  Statistics are at least float32 in every kernel.

    Raises:
        ValueError: for a wrong argument, naming it, its value and what is allowed.
    """
    check_arguments(x, weight, bias, channels_per_group, eps, rule, backend)
    p, q = window_pair(window)
    if backend == "reference" or _needs_plain_torch(x, backend):
        return reference.local_context_norm(x, weight, bias, channels_per_group, (p, q), eps, rule)
    if backend == "auto" and _is_group_norm(x, channels_per_group, (p, q), rule):
        return _group_norm(x, weight, bias, channels_per_group, eps, rule)
    return operator.local_context_norm(
        x, weight, bias, channels_per_group, p, q, float(eps), rule, backend
    )


def _is_group_norm(x: Tensor, channels_per_group: int, window: tuple[int, int], rule: str) -> bool:
    """Whether the window covers the map, so that PyTorch's own Group Normalization can run.

    Compiled graphs keep the operator, which does not ask how large the map is.  On large tensors
    the CPU kernel is faster, where it can write to huge pages; it has no second derivative.
    """
    n, _, h, w = x.shape
    if torch.compiler.is_compiling() or n == 0 or channels_per_group * h * w == 1:
        return False
    if not covers_map(rule, window, h, w):
        return False
    return rule == "released" or not (x.is_contiguous() and huge_pages.pay(x))


def _group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    channels_per_group: int,
    eps: float,
    rule: str,
) -> Tensor:
    n, c, h, w = x.shape
    if rule == "released":
        # Its variance over m cells is the unbiased one, m / (m - 1) times that of GroupNorm.
        share = 1 - 1 / (channels_per_group * h * w)
        eps *= share
        ones = torch.ones(c, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        weight = (ones if weight is None else weight) * ones * math.sqrt(share)
    affine = {vector.dtype for vector in (weight, bias) if vector is not None}
    values = x
    # On a CPU PyTorch mixes low precision with float32 weights; otherwise all must be of one dtype.
    mixed_on_cpu = x.device.type == "cpu" and x.dtype.itemsize == 2 and affine == {torch.float32}
    if affine - {x.dtype} and not mixed_on_cpu:
        widest = torch.float64 if torch.float64 in affine | {x.dtype} else torch.float32
        values = x.to(widest)
        weight = None if weight is None else weight.to(widest)
        bias = None if bias is None else bias.to(widest)
    memory_format = memory_format_of(x)
    values = values.contiguous(memory_format=memory_format)
    groups = c // channels_per_group
    y = torch.native_group_norm(values, weight, bias, n, c, h * w, groups, eps)[0]
    return y.to(x.dtype).contiguous(memory_format=memory_format)


def _needs_plain_torch(x: Tensor, backend: str) -> bool:
    """ONNX knows no such operator, and on other devices there is no kernel for it."""
    if backend == "auto" and torch.onnx.is_in_onnx_export():
        return True
    return x.device.type not in ("cpu", "cuda", "meta")


def check_arguments(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    channels_per_group: int,
    eps: float,
    rule: str,
    backend: str,
) -> None:
    if x.dim() != 4:
        raise ValueError(f"x must have 4 dimensions [N, C, H, W], got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be float64, float32, bfloat16 or float16, got dtype {x.dtype}")
    channels = x.shape[1]
    if x.shape[2] < 1 or x.shape[3] < 1 or channels < 1:
        raise ValueError(f"x must have C, H and W of at least 1, got shape {tuple(x.shape)}")
    if isinstance(channels_per_group, bool) or not isinstance(channels_per_group, int):
        raise ValueError(f"channels_per_group must be a positive int, got {channels_per_group!r}")
    if channels_per_group < 1 or channels % channels_per_group:
        raise ValueError(
            f"channels_per_group must be a positive divisor of the {channels} channels of x, "
            f"got {channels_per_group}"
        )
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and tuple(vector.shape) != (channels,):
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
