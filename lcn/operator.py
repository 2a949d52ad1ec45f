"""The layer as one operator of PyTorch, ``torch.ops.lcn.local_context_norm``, and its backward.

``torch.compile``, export and fake tensors see one opaque call, whichever kernel runs. The kernels
know the first derivative; derivatives of derivatives and forward mode go through the reference,
which is plain PyTorch. ``vmap`` folds its batch into samples or channels: one call of a kernel
serves it.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from .arguments import check_arguments
from .kernels import memory_format_of, reference, reference_kernel
from .kernels.select import select_kernel

_ARGUMENTS = "int channels_per_group, int p, int q, float eps, str rule, str backend"
_TAGS = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)
_Gradients = tuple[Tensor, Tensor, Tensor]

torch.library.define(
    "lcn::local_context_norm",
    f"(Tensor x, Tensor? weight, Tensor? bias, {_ARGUMENTS}) -> Tensor",
    tags=_TAGS,
)
torch.library.define(
    "lcn::local_context_norm_backward",
    f"(Tensor grad, Tensor x, Tensor? weight, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)

_operator = torch.ops.lcn.local_context_norm.default
_backward_operator = torch.ops.lcn.local_context_norm_backward.default

transforms_are_active = torch._C._are_functorch_transforms_active


def local_context_norm(*inputs: Any) -> Tensor:
    """The operator; see its schema for the arguments."""
    y: Tensor = _call(_operator, _forward_with_autograd, inputs)
    return y


def _call(operator: Any, with_autograd: Any, inputs: tuple[Any, ...]) -> Any:
    """Calls the kernel without the dispatcher, which takes time, where it is not needed."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or transforms_are_active():
        return operator(*inputs)
    return with_autograd(*inputs)


def forward_mode_is_active() -> bool:
    """Whether some level of forward-mode differentiation is open, of ``torch.func`` or plain."""
    if forward_ad._current_level >= 0:
        return True
    if not transforms_are_active():
        return False
    # A compiled program opens its levels without telling the module above.
    levels = get_interpreter_stack() or ()
    return any(level.key() == TransformType.Jvp for level in levels)


def takes_plain_torch(x: Tensor, backend: str) -> bool:
    """Whether ``x`` goes through plain PyTorch, because the operator alone would not do."""
    return (
        backend == "reference"
        or x.device.type not in ("cpu", "cuda", "meta")
        or transforms_are_active()
        or forward_mode_is_active()
        or torch.onnx.is_in_onnx_export()
    )


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
    # Traced programs come here without the checks of the functional form.
    check_arguments(x, weight, bias, channels_per_group, eps, rule, backend)
    kernel = select_kernel(x.device, backend)
    y = kernel.forward(x, weight, bias, channels_per_group, (p, q), eps, rule)
    return y.contiguous(memory_format=memory_format_of(x))


@torch.library.impl("lcn::local_context_norm_backward", ("CPU", "CUDA"))
def _backward(grad: Tensor, x: Tensor, weight: Tensor | None, *arguments: Any) -> _Gradients:
    kernel = select_kernel(x.device, backend=arguments[-1])
    dx, dweight, dbias = _gradients(kernel, grad, x, weight, *arguments)
    return dx.contiguous(memory_format=memory_format_of(x)), dweight, dbias


def _gradients(
    kernel: ModuleType,
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    channels_per_group: int,
    p: int,
    q: int,
    eps: float,
    rule: str,
    backend: str,
) -> _Gradients:
    dx, dweight, dbias = kernel.backward(grad, x, weight, channels_per_group, (p, q), eps, rule)
    dtype = x.dtype if weight is None else weight.dtype
    return dx, dweight.to(dtype), dbias.to(dtype)


@torch.library.register_fake("lcn::local_context_norm")
def forward_fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format_of(x))


@torch.library.register_fake("lcn::local_context_norm_backward")
def backward_fake(grad: Tensor, x: Tensor, weight: Tensor | None, *_: Any) -> _Gradients:
    vector = x.new_empty(x.shape[1], dtype=x.dtype if weight is None else weight.dtype)
    return forward_fake(x), vector, torch.empty_like(vector)


class _Forward(_SingleLevelFunction):
    """What ``torch.library.register_autograd`` would make, with less to do in every call, and for
    one level of ``torch.func`` at a time, as PyTorch's own operators."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, *arguments: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.arguments = arguments
        y: Tensor = _one_level_below(_operator, x, weight, bias, *arguments)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        inputs = (grad, x, weight, *ctx.arguments)
        dx, dweight, dbias = _call(_backward_operator, _backward_with_autograd, inputs)
        needed = zip(ctx.needs_input_grad, (dx, dweight, dbias), strict=False)
        return *(d if needs else None for needs, d in needed), *[None] * len(ctx.arguments)


class _Backward(_SingleLevelFunction):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor | None, *arguments: Any) -> Any:
        ctx.save_for_backward(grad, x, weight)
        ctx.arguments = arguments
        return _one_level_below(_backward_operator, grad, x, weight, *arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        grad, x, weight = ctx.saved_tensors
        tensors = (grad, x) if weight is None else (grad, x, weight)

        def gradients(grad: Tensor, x: Tensor, weight: Tensor | None = None) -> _Gradients:
            return _gradients(reference_kernel, grad, x, weight, *ctx.arguments)

        second = torch.func.vjp(gradients, *tensors)[1](grads)
        return *second, *[None] * (3 - len(second) + len(ctx.arguments))


def _forward_with_autograd(*inputs: Any) -> Any:
    if forward_mode_is_active():
        x, weight, bias, channels_per_group, p, q, *rest = inputs
        return reference.local_context_norm(x, weight, bias, channels_per_group, (p, q), *rest[:-1])
    return _at_this_level(_Forward, *inputs)


torch.library.impl("lcn::local_context_norm", "Autograd", _forward_with_autograd)


def _backward_with_autograd(*inputs: Any) -> Any:
    if forward_mode_is_active():
        return _gradients(reference_kernel, *inputs)
    if torch.is_grad_enabled():
        return _at_this_level(_Backward, *inputs)
    return _one_level_below(_backward_operator, *inputs)


torch.library.impl("lcn::local_context_norm_backward", "Autograd", _backward_with_autograd)


def _at_this_level(function: Any, *inputs: Any) -> Any:
    if not transforms_are_active():
        return function.apply(*inputs)
    with enable_single_level_autograd_function():
        return function.apply(*inputs)


def _one_level_below(operator: Any, *inputs: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        if not transforms_are_active():
            return operator(*inputs)
        # The forward of a Function records nothing, but the levels below have to.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return operator(*inputs)


@torch.library.register_vmap("lcn::local_context_norm")
def _forward_vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, int]:
    batch = info.batch_size
    if in_dims[1] is None and in_dims[2] is None:
        samples = x.movedim(in_dims[0], 0)
        y = _operator(samples.flatten(0, 1), weight, bias, *arguments)
        return y.unflatten(0, samples.shape[:2]), 0
    folded = _into_channels(batch, in_dims, x, weight, bias)
    return _operator(*folded, *arguments).unflatten(1, (batch, -1)), 1


@torch.library.register_vmap("lcn::local_context_norm_backward")
def _backward_vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    *arguments: Any,
) -> tuple[_Gradients, tuple[int, int, int]]:
    """Moves the batch into channels: weight and bias have a gradient per member of the batch."""
    batch = info.batch_size
    folded = _into_channels(batch, in_dims, grad, x, weight)
    dx, dweight, dbias = _backward_operator(*folded, *arguments)
    vectors = (vector.unflatten(0, (batch, -1)) for vector in (dweight, dbias))
    return (dx.unflatten(1, (batch, -1)), *vectors), (1, 0, 0)  # type: ignore[return-value]


def _into_channels(
    batch: int, in_dims: tuple[Any, ...], *tensors: Tensor | None
) -> list[Tensor | None]:
    """Maps ``[N, C, H, W]`` and vectors ``[C]``, each once per member of the batch or once for all,
    as ``[N, batch * C, H, W]`` and ``[batch * C]``."""
    folded: list[Tensor | None] = []
    for tensor, dim in zip(tensors, in_dims, strict=False):
        if tensor is None:
            folded.append(None)
            continue
        is_vector = tensor.dim() - (dim is not None) == 1
        channels = 0 if is_vector else 1
        if dim is None:
            shape = (*tensor.shape[:channels], batch, *tensor.shape[channels:])
            tensor = tensor.unsqueeze(channels).expand(shape)
        else:
            tensor = tensor.movedim(dim, channels)
        folded.append(tensor.flatten(channels, channels + 1))
    return folded
