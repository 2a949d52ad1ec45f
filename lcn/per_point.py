"""A window per point: its checks, its operator, its derivatives.

The operator ``torch.ops.lcn.local_context_norm_per_point`` has a kernel for CPUs. Other devices,
forward mode, derivatives of derivatives and the transforms of ``torch.func`` take the reference,
which is plain PyTorch.
"""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from . import operator
from .kernels import direct, memory_format_of
from .kernels.per_point_reference import local_context_norm as reference
from .kernels.reference_kernel import gradients

_WHOLE_NUMBERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def is_per_point(window: Any) -> bool:
    """Whether ``window`` is a pair with a tensor in it."""
    is_pair = isinstance(window, (tuple, list)) and len(window) == 2
    return is_pair and any(isinstance(side, Tensor) for side in window)


def check_windows(x: Tensor, window: Any, rule: str) -> tuple[Tensor, Tensor]:
    """Returns ``p`` and ``q`` if they are windows for ``x`` ``[N, C, H, W]``.

    Raises:
        ValueError: naming which of the two is wrong, how, and what is allowed.
    """
    if rule != "centered":
        raise ValueError(f"a window per point needs the rule 'centered', got {rule!r}")
    n, _, h, w = x.shape
    for name, side in zip("pq", window, strict=True):
        if not isinstance(side, Tensor) or side.dtype not in _WHOLE_NUMBERS:
            given = side.dtype if isinstance(side, Tensor) else type(side).__name__
            raise ValueError(f"window: {name} must be a tensor of whole numbers, got {given}")
        if tuple(side.shape) not in ((h, w), (n, h, w)):
            raise ValueError(
                f"window: {name} must be [H, W] or [N, H, W] of x, ({h}, {w}) or ({n}, {h}, {w}), "
                f"got shape {tuple(side.shape)}"
            )
        if side.device != x.device:
            raise ValueError(
                f"window: {name} must be on the device of x, {x.device}, got {side.device}"
            )
    return window[0], window[1]


def _check_values(p: Tensor, q: Tensor) -> None:
    for name, side in (("p", p), ("q", q)):
        if side.numel() and int(side.min()) < 1:
            raise ValueError(f"window: {name} must be at least 1 everywhere, got {int(side.min())}")


def local_context_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    p: Tensor,
    q: Tensor,
    channels_per_group: int,
    eps: float,
    backend: str,
) -> Tensor:
    """``x`` ``[N, C, H, W]`` in windows of ``p`` rows and ``q`` columns, each ``[H, W]`` or
    ``[N, H, W]``."""
    if not operator.takes_plain_torch(x, backend):
        is_direct = backend in ("auto", "cpu") and direct.is_possible(x, weight, bias, p, q)
        call: Any = _direct if is_direct else _operator
        y: Tensor = call(x, weight, bias, p, q, channels_per_group, eps, backend)
        return y
    is_known = not torch.compiler.is_compiling() and p.device.type != "meta"
    if is_known and not any(_has_no_values(side) for side in (p, q)):
        _check_values(p, q)
    return reference(x, weight, bias, p, q, channels_per_group, eps)


def _has_no_values(side: Tensor) -> bool:
    return isinstance(side, FakeTensor) or torch._C._functorch.is_functorch_wrapped_tensor(side)


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    p: Tensor,
    q: Tensor,
    channels_per_group: int,
    eps: float,
    backend: str,
) -> Tensor:
    _check_values(p, q)
    if _has_kernel(x, backend):
        from .kernels import per_point_cpu  # Numba takes a while to import

        y = per_point_cpu.forward(x, weight, bias, p, q, channels_per_group, eps)
    else:
        y = reference(x, weight, bias, p, q, channels_per_group, eps)
    return y.contiguous(memory_format=memory_format_of(x))


_operator = torch.library.custom_op("lcn::local_context_norm_per_point", _forward, mutates_args=())


def _has_kernel(x: Tensor, backend: str) -> bool:
    if x.device.type != "cpu" and backend == "cpu":
        raise ValueError(f"backend must be 'auto' or 'reference' on {x.device}, got 'cpu'")
    if backend == "gpu":
        raise ValueError(
            "backend must be 'auto', 'reference' or 'cpu' with a window per point, got 'gpu'"
        )
    return x.device.type == "cpu"


_operator.register_fake(operator.forward_fake)


def _once(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    p: Tensor,
    q: Tensor,
    channels_per_group: int,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if _has_kernel(x, backend):
        from .kernels import per_point_cpu

        dx, *vectors = per_point_cpu.backward(grad, x, weight, p, q, channels_per_group, eps)
    else:
        dx, *vectors = _gradients(grad, x, weight, p, q, channels_per_group, eps)
    dtype = x.dtype if weight is None else weight.dtype
    # Copies: results of an operator may not share memory.
    dweight, dbias = (vector.to(dtype, copy=True) for vector in vectors)
    return dx.contiguous(memory_format=memory_format_of(x)), dweight, dbias


_backward_operator = torch.library.custom_op(
    "lcn::local_context_norm_per_point_backward", _once, mutates_args=()
)
_backward_operator.register_fake(operator.backward_fake)


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor | None, *arguments: Any
) -> tuple[Tensor, ...]:
    """The gradients in plain PyTorch, so that they can be differentiated again."""
    return gradients(lambda *inputs: reference(*inputs, *arguments), grad, x, weight)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None) -> None:
    x, weight, _, p, q, *ctx.arguments = inputs
    ctx.save_for_backward(x, weight, p, q)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, p, q = ctx.saved_tensors
    if torch.is_grad_enabled() or operator.forward_mode_is_active():
        dx, dweight, dbias = _gradients(grad, x, weight, p, q, *ctx.arguments[:2])
    else:
        call: Any = _once if direct.is_possible(grad, x, weight, p, q) else _backward_operator
        dx, dweight, dbias = call(grad, x, weight, p, q, *ctx.arguments)
    needed = zip(ctx.needs_input_grad, (dx, dweight, dbias), strict=False)
    return *(d if needs else None for needs, d in needed), *[None] * 5


_operator.register_autograd(_backward, setup_context=_setup)
_direct = direct.function_of(_forward, _setup, _backward)
