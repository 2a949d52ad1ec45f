"""The layer as one operator of PyTorch, ``torch.ops.lcn.local_context_norm``, and its backward.

So ``torch.compile``, export, autocast and fake tensors see one opaque call, whichever kernel runs.
"""

from typing import Any

import torch
from torch import Tensor

from .kernels import memory_format_of
from .kernels.select import select_kernel

_ARGUMENTS = "int channels_per_group, int p, int q, float eps, str rule, str backend"

torch.library.define(
    "lcn::local_context_norm",
    f"(Tensor x, Tensor? weight, Tensor? bias, {_ARGUMENTS}) -> Tensor",
    tags=(torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag),
)
torch.library.define(
    "lcn::local_context_norm_backward",
    f"(Tensor grad, Tensor x, Tensor? weight, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag),
)

local_context_norm = torch.ops.lcn.local_context_norm.default
_backward_operator = torch.ops.lcn.local_context_norm_backward.default


def _empty_output(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format_of(x))


@torch.library.impl("lcn::local_context_norm", ("CPU", "CUDA"))
def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    channels_per_group: int,
    p: int,
    q: int,
    eps: float,
    rule: str,
    backend: str,
) -> Tensor:
    kernel = select_kernel(x.device, backend)
    y = kernel.forward(x, weight, bias, channels_per_group, (p, q), eps, rule)
    return y.contiguous(memory_format=memory_format_of(x))


@torch.library.impl("lcn::local_context_norm_backward", ("CPU", "CUDA"))
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    channels_per_group: int,
    p: int,
    q: int,
    eps: float,
    rule: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    kernel = select_kernel(x.device, backend)
    dx, dweight, dbias = kernel.backward(grad, x, weight, channels_per_group, (p, q), eps, rule)
    dtype = x.dtype if weight is None else weight.dtype
    return dx.contiguous(memory_format=memory_format_of(x)), dweight.to(dtype), dbias.to(dtype)


@torch.library.register_fake("lcn::local_context_norm")
def _forward_fake(x: Tensor, *_: Any) -> Tensor:
    return _empty_output(x)


@torch.library.register_fake("lcn::local_context_norm_backward")
def _backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    vector = x.new_empty(x.shape[1], dtype=x.dtype if weight is None else weight.dtype)
    return _empty_output(x), vector, torch.empty_like(vector)


class _Function(torch.autograd.Function):
    """What ``torch.library.register_autograd`` would make, with less to do in every call."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, *arguments: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.arguments = arguments
        with torch._C._AutoDispatchBelowAutograd():
            return local_context_norm(x, weight, bias, *arguments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        dx, dweight, dbias = _backward_operator(grad, x, weight, *ctx.arguments)
        needed = zip(ctx.needs_input_grad, (dx, dweight, dbias), strict=False)
        return *(d if needs else None for needs, d in needed), *[None] * len(ctx.arguments)


@torch.library.impl("lcn::local_context_norm", "Autograd")
def _with_autograd(*inputs: Any) -> Tensor:
    result: Tensor = _Function.apply(*inputs)  # type: ignore[no-untyped-call]
    return result


class _BackwardFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            gradients: tuple[Tensor, Tensor, Tensor] = _backward_operator(*inputs)
        return gradients

    @staticmethod
    def backward(ctx: Any, *_: Any) -> None:
        raise RuntimeError(
            "this kernel of local_context_norm has no second derivative; "
            "use backend='reference', which can be differentiated any number of times"
        )


@torch.library.impl("lcn::local_context_norm_backward", "Autograd")
def _backward_with_autograd(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    if torch.is_grad_enabled():
        return _BackwardFunction.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]
    return _BackwardFunction.forward(None, *inputs)
