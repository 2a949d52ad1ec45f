"""Real windows on a CPU: as :mod:`lcn.kernels.per_point_cpu`, with windows per layer or group."""

import functools
from typing import Any

import torch
from torch import Tensor

from . import huge_pages, real_window_loops, real_window_reference
from .per_point_cpu import ELEMENTS, contiguous, in_format_of, planes_of, run_loops, vector
from .real_window_loops import JOB_FIELDS


@functools.cache
def _forward_body(dtype: torch.dtype) -> Any:
    return real_window_loops.compile_forward(*ELEMENTS[dtype][:2])


@functools.cache
def _backward_body(dtype: torch.dtype) -> Any:
    return real_window_loops.compile_backward(*ELEMENTS[dtype][:2])


def _run(
    body: Any,
    x: Tensor,
    windows: Tensor,
    channels_per_group: int,
    eps: float,
    **given: Tensor,
) -> Tensor:
    return run_loops(
        body, JOB_FIELDS, x, channels_per_group, eps, windows=windows, **given,
        own_windows=int(windows.shape[0] > 1),
        slots=min(x.shape[2], int(windows[:, 0].max()) + 4),
    )  # fmt: skip


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    windows: Tensor,
    channels_per_group: int,
    eps: float,
) -> Tensor:
    """``windows`` float64 ``[1 or G, 2]``, from 1 to the map's size."""
    values = contiguous(x)
    weight, bias = vector(weight, x, 1.0), vector(bias, x, 0.0)
    out = huge_pages.empty_like(values, torch.contiguous_format)
    if not x.numel():
        return in_format_of(x, out)
    windows = windows.contiguous()
    given_up = _run(
        _forward_body(x.dtype), values, windows, channels_per_group, eps,
        weight=weight, bias=bias, out=out,
    )  # fmt: skip
    groups = x.shape[1] // channels_per_group
    for plane in given_up.tolist():
        own = slice(plane % groups * channels_per_group, (plane % groups + 1) * channels_per_group)
        normed = real_window_reference.local_context_norm(
            planes_of(values, channels_per_group)[plane][None].to(weight.dtype), weight[own],
            bias[own], _of_group(windows, plane % groups), channels_per_group, eps,
        )  # fmt: skip
        planes_of(out, channels_per_group)[plane] = normed[0].to(x.dtype)
    return in_format_of(x, out)


def _of_group(windows: Tensor, group: int) -> Tensor:
    return windows[group : group + 1] if windows.shape[0] > 1 else windows


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    windows: Tensor,
    channels_per_group: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of input, weight, bias and windows (these float64)."""
    values, grad = contiguous(x), contiguous(grad.to(x.dtype))
    weight, windows = vector(weight, x, 1.0), windows.contiguous()
    n, c = x.shape[:2]
    groups = c // channels_per_group
    out = huge_pages.empty_like(values, torch.contiguous_format)
    partial = torch.zeros(n, 2, c, dtype=torch.float64)
    of_windows = torch.zeros(n, groups, 2, dtype=torch.float64)
    if x.numel():
        given_up = _run(
            _backward_body(x.dtype), values, windows, channels_per_group, eps,
            weight=weight, grad=grad, out=out, partial=partial, window_grads=of_windows,
        )  # fmt: skip
        for plane in given_up.tolist():
            g = plane % groups
            own = slice(g * channels_per_group, (g + 1) * channels_per_group)

            def normalize(x: Tensor, weight: Tensor, bias: Tensor, windows: Tensor) -> Tensor:
                return real_window_reference.local_context_norm(
                    x, weight, bias, windows, channels_per_group, eps
                )

            planes = planes_of(values, channels_per_group)[plane][None].to(weight.dtype)
            inputs = planes, weight[own].double()
            zeros = torch.zeros_like(inputs[1])
            vjp = torch.func.vjp(normalize, *inputs, zeros, _of_group(windows, g))[1]
            found = vjp(planes_of(grad, channels_per_group)[plane][None].to(weight.dtype))
            planes_of(out, channels_per_group)[plane] = found[0][0].to(x.dtype)
            partial[plane // groups, 0, own], partial[plane // groups, 1, own] = found[1:3]
            of_windows[plane // groups, g] = found[3][0]
    total = partial.sum(dim=0)
    window_grad = of_windows.sum(dim=0)
    if windows.shape[0] == 1:
        window_grad = window_grad.sum(dim=0, keepdim=True)
    return in_format_of(x, out), total[0], total[1], window_grad
