"""Calls of the CPU kernel that need not go through PyTorch's dispatcher.

The way through an operator written in Python takes longer than the layer itself on small maps. It
is there for what looks at operators: transforms, tracing, compiling, profiling. Where nothing looks
and the tensors are plain, the kernel is called at once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter


def _keys(x: Tensor) -> int:
    bits: int = torch._C._dispatch_keys(x).raw_repr()  # not every release compares sets of keys
    return bits


def _plain_keys() -> tuple[int, int]:
    """What the dispatcher sees in a dense tensor in main memory, made in inference mode or not."""
    with torch.inference_mode():
        inference = torch.empty(0)
    return _keys(torch.empty(0)), _keys(inference)


_PLAIN, _PLAIN_INFERENCE = _plain_keys()


def is_possible(*tensors: Tensor | None) -> bool:
    """Whether nothing but the values matters to a call with these tensors."""
    if torch.compiler.is_compiling():
        return False
    return (
        all(tensor is None or _is_plain(tensor) for tensor in tensors)
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and not torch.autograd._profiler_enabled()
    )


def _is_plain(x: Tensor) -> bool:
    """Dense, in main memory, no subclass, no pending negation."""
    if type(x) is not Tensor and type(x) is not Parameter:
        return False
    keys = _keys(x)
    return keys in (_PLAIN, _PLAIN_INFERENCE)


def function_of(
    run: Callable[..., Tensor],
    setup: Callable[..., None],
    gradients: Callable[..., tuple[Any, ...]],
) -> Any:
    """An operator of ``register_autograd(gradients, setup_context=setup)``, without the dispatcher.

    Takes what ``run`` takes, and is differentiated as the operator is.
    """

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensor:
            setup(ctx, inputs, None)
            return run(*inputs)

        backward = staticmethod(gradients)

    return Direct.apply


def local_context_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *arguments: Any
) -> Tensor:
    """As the operator: ``arguments`` are channels per group, p, q, eps, rule and backend."""
    wanted = torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
    )
    if wanted:
        result: Tensor = _Function.apply(x, weight, bias, *arguments)  # type: ignore[no-untyped-call]
        return result
    return _forward(x, weight, bias, *arguments)


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    channels_per_group: int,
    p: int,
    q: int,
    eps: float,
    rule: str,
    _: str,
) -> Tensor:
    from . import cpu  # when first needed: Numba takes a while to import

    return cpu.forward(x, weight, bias, channels_per_group, (p, q), eps, rule)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, *arguments: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.arguments = arguments
        return _forward(x, weight, bias, *arguments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled() or not is_possible(grad):
            operator = torch.ops.lcn.local_context_norm_backward.default
            gradients = operator(grad, x, weight, *ctx.arguments)
        else:
            from . import cpu

            channels_per_group, p, q, eps, rule, _ = ctx.arguments
            dx, *vectors = cpu.backward(grad, x, weight, channels_per_group, (p, q), eps, rule)
            dtype = x.dtype if weight is None else weight.dtype
            gradients = dx, *(vector.to(dtype) for vector in vectors)
        needed = zip(ctx.needs_input_grad, gradients, strict=False)
        return *(d if needs else None for needs, d in needed), *[None] * len(ctx.arguments)
