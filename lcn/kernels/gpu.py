"""The GPU kernel on tensors: launches the Triton kernels.

Where the window covers the map the layer is Group Normalization, and PyTorch's own kernels run it.
The tiled rule, the released layer's whole-map case and rows of more than 8,192 cells have no kernel
here and run in plain PyTorch.  Work is done on a few groups at a time, so that the planes between
the kernels stay small beside the input.
"""

from typing import Any

import torch
from torch import Tensor

from ..window import covers_map
from . import gpu_loops, reference_kernel

_WIDEST = 8192
_COLUMNS = 128  # columns of a program that slides down
# Cells (of all groups together) that are worked on at once: enough to fill a GPU.
_CELLS_AT_ONCE = 1 << 23


class _Plan:
    """Shapes and window of one call, for the kernels."""

    def __init__(
        self, x: Tensor, channels_per_group: int, window: tuple[int, int], eps: float, rule: str
    ) -> None:
        self.samples, channels, self.height, self.width = x.shape
        self.per_group = channels_per_group
        self.groups = channels // channels_per_group
        self.offset = int(rule == "released")
        self.row_size, self.col_size = min(window[0], self.height), min(window[1], self.width)
        self.row_count = self.height - self.row_size + 1 - self.offset
        self.col_count = self.width - self.col_size + 1 - self.offset
        self.eps = eps
        self.block = max(16, 1 << (self.width - 1).bit_length())
        self.warps = min(max(self.block // 256, 1), 16)

    def chunks(self) -> list[tuple[int, int]]:
        """``(first group, number of groups)`` of each part of the work."""
        every = self.samples * self.groups
        at_once = max(1, min(every, _CELLS_AT_ONCE // (self.height * self.width)))
        return [(first, min(at_once, every - first)) for first in range(0, every, at_once)]

    def column_moments(self, x: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
        means = x.new_empty(count, self.row_count, self.width, dtype=torch.float32)
        squares = torch.empty_like(means)
        # A band starts with a whole window: not many more rows than it then slides over.
        band = max(self.row_size, 32)
        grid = (count, -(-self.width // _COLUMNS), -(-self.row_count // band))
        gpu_loops.column_moments[grid](
            x, means, squares, first, self.groups, self.per_group, self.height, self.width,
            *x.stride(), self.row_count, self.row_size, self.offset, band, BLOCK=_COLUMNS,
        )  # fmt: skip
        return means, squares

    def launch(self, kernel: Any, count: int, *arguments: Any, **constants: Any) -> None:
        """One program per row of each group."""
        kernel[(count, self.height)](
            *arguments, BLOCK=self.block, num_warps=self.warps, **constants
        )


def has_kernel(x: Tensor, window: tuple[int, int], rule: str) -> bool:
    """Whether there is a Triton kernel for this call."""
    covered = covers_map(rule, window, x.shape[2], x.shape[3])
    extent = sum((size - 1) * step for size, step in zip(x.shape[1:], x.stride()[1:], strict=True))
    sizes_fit = x.shape[3] <= _WIDEST and x.numel() > 0 and extent < 2**31
    return not covered and rule != "tiled" and x.dtype != torch.float64 and sizes_fit


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    channels_per_group: int,
    window: tuple[int, int],
    eps: float,
    rule: str,
) -> Tensor:
    """See :func:`lcn.functional.local_context_norm`; the result has the memory format of ``x``."""
    if not has_kernel(x, window, rule):
        if _is_group_norm(x, weight, window, rule):
            n, c, h, w = x.shape
            groups = c // channels_per_group
            return torch.native_group_norm(x, weight, bias, n, c, h * w, groups, eps)[0]
        return reference_kernel.forward(x, weight, bias, channels_per_group, window, eps, rule)
    plan = _Plan(x, channels_per_group, window, eps, rule)
    y = torch.empty_like(x)
    weight, bias = _vector(weight, x, 1.0), _vector(bias, x, 0.0)
    for first, count in plan.chunks():
        means, squares = plan.column_moments(x, first, count)
        plan.launch(
            gpu_loops.normalize, count,
            x, y, weight, bias, means, squares, first, plan.groups, plan.per_group,
            plan.height, plan.width, *x.stride(), *y.stride(), plan.row_count, plan.row_size,
            plan.col_count, plan.col_size, plan.offset, plan.eps,
        )  # fmt: skip
    return y


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    channels_per_group: int,
    window: tuple[int, int],
    eps: float,
    rule: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias."""
    if not has_kernel(x, window, rule):
        if _is_group_norm(x, weight, window, rule):
            return _group_norm_backward(grad, x, weight, channels_per_group, eps)
        return reference_kernel.backward(grad, x, weight, channels_per_group, window, eps, rule)
    plan = _Plan(x, channels_per_group, window, eps, rule)
    detached = rule == "released"
    out = torch.empty_like(x)
    vector = _vector(weight, x, 1.0)
    rows = (plan.samples, x.shape[1], plan.height, 2)
    partial = torch.empty(rows, dtype=torch.float32, device=x.device)
    strides = (*x.stride(), *grad.stride(), *out.stride())
    for first, count in plan.chunks():
        means, squares = plan.column_moments(x, first, count)
        planes = (1, 1, 1) if detached else (count, plan.height, plan.width)
        terms = [x.new_empty(planes, dtype=torch.float32) for _ in range(2)]
        plan.launch(
            gpu_loops.gradient_terms, count,
            x, grad, out, vector, means, squares, *terms, partial,
            first, plan.groups, plan.per_group, plan.height, plan.width, *strides,
            plan.row_count, plan.row_size, plan.col_count, plan.col_size, plan.offset, plan.eps,
            DETACHED=detached,
        )  # fmt: skip
        if detached:
            continue
        sums = [torch.empty_like(terms[0]) for _ in range(2)]
        band = max(plan.row_size, 32)
        grid = (count, -(-plan.width // _COLUMNS), -(-plan.height // band))
        gpu_loops.sum_terms_down[grid](
            *terms, *sums, plan.height, plan.width, plan.row_count, plan.row_size, band,
            BLOCK=_COLUMNS,
        )  # fmt: skip
        plan.launch(
            gpu_loops.input_gradient, count,
            x, grad, out, vector, means, squares, *sums,
            first, plan.groups, plan.per_group, plan.height, plan.width, *strides,
            plan.row_count, plan.row_size, plan.col_count, plan.col_size, plan.eps,
        )  # fmt: skip
    weight_grad, bias_grad = partial.sum(dim=(0, 2), dtype=torch.float64).unbind(dim=1)
    return out, weight_grad, bias_grad


def _is_group_norm(x: Tensor, weight: Tensor | None, window: tuple[int, int], rule: str) -> bool:
    same_dtype = weight is None or weight.dtype == x.dtype
    covered = covers_map(rule, window, x.shape[2], x.shape[3])
    return rule != "released" and covered and same_dtype and x.numel() > 0


def _group_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, channels_per_group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    sizes = (n, c, h * w, c // channels_per_group)
    if weight is None:
        weight = torch.ones(c, dtype=x.dtype, device=x.device)
    _, mean, rstd = torch.native_group_norm(x, weight, None, *sizes, eps)
    gradients: Any = torch.ops.aten.native_group_norm_backward(
        grad, x, mean, rstd, weight, *sizes, [True, True, True]
    )
    return gradients


def _vector(vector: Tensor | None, x: Tensor, default: float) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if vector is None:
        return torch.full((x.shape[1],), default, dtype=dtype, device=x.device)
    return vector.detach().to(dtype).contiguous()
