"""Real windows, which can be differentiated: their checks, their operator, their derivatives.

The interval of length ``p`` around a cell's middle, moved inside at a border; each cell counts with
the share of it that lies inside. As :mod:`lcn.per_point`, with a kernel for CPUs and plain PyTorch
for everything else.
"""

from typing import Any

import torch
from torch import Tensor

from . import operator
from .kernels import direct, memory_format_of
from .kernels.real_window_reference import local_context_norm as reference
from .kernels.reference_kernel import gradients


def is_real(window: Any) -> bool:
    return isinstance(window, Tensor)


def check_window(x: Tensor, window: Tensor, channels_per_group: int, rule: str) -> None:
    """Raises ``ValueError`` if ``window`` is no floating tensor ``[2]`` or ``[groups, 2]``."""
    groups = x.shape[1] // channels_per_group
    if rule != "centered":
        raise ValueError(f"a real window needs the rule 'centered', got {rule!r}")
    if not window.is_floating_point():
        raise ValueError(f"window: a tensor must be of real numbers, got {window.dtype}")
    if tuple(window.shape) not in ((2,), (groups, 2)):
        raise ValueError(
            f"window: a tensor must be [2] or [groups, 2], (2,) or ({groups}, 2), "
            f"got shape {tuple(window.shape)}"
        )
    if window.device != x.device:
        raise ValueError(f"window must be on the device of x, {x.device}, got {window.device}")


class _Bounded(torch.autograd.Function):
    """Clamps; at a bound and beyond it, a gradient passes only if it leads back inside."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, most: Tensor) -> Tensor:
        return value.clamp(min=1.0).minimum(most)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        value, most = ctx.saved_tensors
        blocked = ((value >= most) & (grad < 0)) | ((value <= 1.0) & (grad > 0))
        return torch.where(blocked, 0.0, grad), None


def local_context_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    window: Tensor,
    channels_per_group: int,
    eps: float,
    backend: str,
) -> Tensor:
    """``x`` ``[N, C, H, W]`` in windows ``[2]`` or ``[groups, 2]``, bounded by 1 and the map."""
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    most = torch.tensor([x.shape[2], x.shape[3]], dtype=dtype, device=x.device)
    windows = window.to(dtype).reshape(-1, 2)
    if operator.forward_mode_is_active():  # where a tangent has no side that it comes from
        windows = windows.clamp(min=1.0).minimum(most)
    else:
        windows = _Bounded.apply(windows, most)  # type: ignore[no-untyped-call]
    if operator.takes_plain_torch(x, backend):
        return reference(x, weight, bias, windows, channels_per_group, eps)
    is_direct = backend in ("auto", "cpu") and direct.is_possible(x, weight, bias, windows)
    call: Any = _direct if is_direct else _operator
    y: Tensor = call(x, weight, bias, windows, channels_per_group, eps, backend)
    return y


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    windows: Tensor,
    channels_per_group: int,
    eps: float,
    backend: str,
) -> Tensor:
    if _has_kernel(x, backend):
        from .kernels import real_window_cpu  # Numba takes a while to import

        y = real_window_cpu.forward(x, weight, bias, windows, channels_per_group, eps)
    else:
        y = reference(x, weight, bias, windows, channels_per_group, eps)
    return y.contiguous(memory_format=memory_format_of(x))


_operator = torch.library.custom_op(
    "lcn::local_context_norm_real_window", _forward, mutates_args=()
)


def _has_kernel(x: Tensor, backend: str) -> bool:
    if backend == "gpu" or (backend == "cpu" and x.device.type != "cpu"):
        raise ValueError(
            f"backend must be 'auto' or 'reference' with a real window on {x.device}, "
            f"got {backend!r}"
        )
    return x.device.type == "cpu"


_operator.register_fake(operator.forward_fake)


def _once(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    windows: Tensor,
    channels_per_group: int,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if _has_kernel(x, backend):
        from .kernels import real_window_cpu

        backward: Any = real_window_cpu.backward
    else:
        backward = _gradients
    dx, *vectors, of_windows = backward(grad, x, weight, windows, channels_per_group, eps)
    dtype = x.dtype if weight is None else weight.dtype
    # Copies: results of an operator may not share memory.
    dweight, dbias = (vector.to(dtype, copy=True) for vector in vectors)
    dx = dx.contiguous(memory_format=memory_format_of(x))
    return dx, dweight, dbias, of_windows.to(windows.dtype, copy=True)


_backward_operator = torch.library.custom_op(
    "lcn::local_context_norm_real_window_backward", _once, mutates_args=()
)


@_backward_operator.register_fake
def _backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor | None, windows: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *operator.backward_fake(grad, x, weight), torch.empty_like(windows)


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor | None, windows: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    """The gradients in plain PyTorch, so that they can be differentiated again."""
    return gradients(lambda *inputs: reference(*inputs, *arguments), grad, x, weight, windows)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None) -> None:
    x, weight, _, windows, *ctx.arguments = inputs
    ctx.save_for_backward(x, weight, windows)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, windows = ctx.saved_tensors
    if torch.is_grad_enabled() or operator.forward_mode_is_active():
        found = _gradients(grad, x, weight, windows, *ctx.arguments[:2])
    else:
        call: Any = _once if direct.is_possible(grad, x, weight, windows) else _backward_operator
        found = call(grad, x, weight, windows, *ctx.arguments)
    needed = zip(ctx.needs_input_grad, found, strict=False)
    return *(d if needs else None for needs, d in needed), None, None, None


_operator.register_autograd(_backward, setup_context=_setup)
_direct = direct.function_of(_forward, _setup, _backward)
