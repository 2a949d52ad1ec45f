"""The functional form of the layer: checks the arguments, picks a kernel."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import operator, per_point, real_window
from .arguments import check_arguments
from .kernels import direct, huge_pages, memory_format_of, reference, size_free
from .window import WHOLE_MAP, covers_map, window_pair


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

    It can be differentiated any number of times, in reverse and in forward mode, and taken through
    the transforms of ``torch.func``. What the kernels do not know, derivatives of derivatives and
    forward mode, runs in plain PyTorch.

    Args:
        x: ``[N, C, H, W]`` or ``[C, H, W]`` in float64, float32, bfloat16 or float16; any strides.
        weight, bias: ``[C]`` or None, in any floating dtype.
        channels_per_group: ``c_group`` of the paper; must divide ``C``.
        window: ``p x q`` in cells of ``x``: an int, a pair, or ``"all"`` for the whole map. Or a
            window per point: a pair of integer tensors ``[H, W]`` or ``[N, H, W]`` on the device of
            ``x``, at least 1 everywhere, with the rule ``"centered"``. Or a real window: a floating
            tensor ``[2]`` or ``[groups, 2]`` of p and q, which is bounded by 1 and the map and can
            be differentiated (see :class:`~lcn.learned.LearnedContextNorm`).
        eps: added to the variance; at least 0.
        rule: ``"centered"`` (the window follows the cell and stops at borders), ``"released"``
            (as the authors' published layer) or ``"tiled"`` (Equation 9 literally); see
            :mod:`lcn.window`.
        backend: ``"auto"``, or one kernel: ``"reference"`` (plain PyTorch, any device),
            ``"cpu"`` (Numba), ``"gpu"`` (Triton).

    Returns:
        The shape and the dtype of ``x``. Statistics are at least float32 in every kernel. Under
        autocast as ``nn.functional.group_norm``: float32 on a GPU; on a CPU still the dtype of
        ``x``.

    Raises:
        ValueError: for a wrong argument, naming it, its value and what is allowed.
    """
    if has_torch_function_variadic(x, weight, bias):  # such as torch.fx while it records
        return handle_torch_function(  # type: ignore[no-any-return]
            local_context_norm,
            (x, weight, bias),
            x,
            weight,
            bias,
            channels_per_group=channels_per_group,
            window=window,
            eps=eps,
            rule=rule,
            backend=backend,
        )
    per_cell, is_real = per_point.is_per_point(window), real_window.is_real(window)
    pair = (WHOLE_MAP, WHOLE_MAP) if per_cell or is_real else window_pair(window)
    if not torch.jit.is_tracing():  # which would record a size that is looked at as fixed
        check_arguments(x, weight, bias, channels_per_group, eps, rule, backend)
    if x.device.type in _AUTOCAST_TO_FLOAT32 and torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
    batch = x[None] if x.dim() == 3 else x
    if is_real:
        real_window.check_window(batch, window, channels_per_group, rule)
        settings = (window, channels_per_group, float(eps), backend)
        y = real_window.local_context_norm(batch, weight, bias, *settings)
        return y[0] if x.dim() == 3 else y
    if per_cell:
        p, q = per_point.check_windows(batch, window, rule)
        arguments = (p, q, channels_per_group, float(eps), backend)
        y = per_point.local_context_norm(batch, weight, bias, *arguments)
        return y[0] if x.dim() == 3 else y
    y = _normalize(batch, weight, bias, channels_per_group, pair, float(eps), rule, backend)
    return y[0] if x.dim() == 3 else y


# Where PyTorch's own Group Normalization does so; on a CPU autocast leaves it alone.
_AUTOCAST_TO_FLOAT32 = ("cuda", "xpu", "mps")


def _normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    channels_per_group: int,
    window: tuple[int, int],
    eps: float,
    rule: str,
    backend: str,
) -> Tensor:
    """Normalizes ``x`` ``[N, C, H, W]`` by the kernel that fits it."""
    has_kernel = backend != "reference" and x.device.type in ("cpu", "cuda", "meta")
    is_tracing = torch.jit.is_tracing()
    is_recorded = is_tracing or torch.compiler.is_compiling()
    # ONNX knows no such operator, and a trace keeps the branches that its example took.
    if is_recorded and (torch.onnx.is_in_onnx_export() or (is_tracing and not has_kernel)):
        return size_free.local_context_norm(x, weight, bias, channels_per_group, window, eps, rule)
    if not has_kernel:
        return reference.local_context_norm(x, weight, bias, channels_per_group, window, eps, rule)
    may_be_group_norm = backend == "auto" and not is_recorded
    if may_be_group_norm and _is_group_norm(x, channels_per_group, window, rule):
        return _group_norm(x, weight, bias, channels_per_group, eps, rule)
    is_direct = backend in ("auto", "cpu") and direct.is_possible(x, weight, bias)
    call = direct.local_context_norm if is_direct else operator.local_context_norm
    return call(x, weight, bias, channels_per_group, *window, eps, rule, backend)


def _is_group_norm(x: Tensor, channels_per_group: int, window: tuple[int, int], rule: str) -> bool:
    """Whether the window covers the map, so that PyTorch's own Group Normalization can run.

    Forward mode and the transforms of ``torch.func`` keep to the operator, because Group
    Normalization lacks some. On large tensors the CPU kernel is faster, where it can write to huge
    pages.
    """
    if operator.transforms_are_active() or operator.forward_mode_is_active():
        return False
    n, _, h, w = x.shape
    if n == 0 or channels_per_group * h * w == 1 or not covers_map(rule, window, h, w):
        return False
    return rule == "released" or not (x.is_contiguous() and huge_pages.would_help(x))


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
