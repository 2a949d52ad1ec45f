"""The reference with the interface of a kernel: forward and backward on plain tensors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import reference


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    channels_per_group: int,
    window: tuple[int, int],
    eps: float,
    rule: str,
) -> Tensor:
    with torch.no_grad():
        return reference.local_context_norm(x, weight, bias, channels_per_group, window, eps, rule)


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    channels_per_group: int,
    window: tuple[int, int],
    eps: float,
    rule: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias; the forward is computed again."""

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return reference.local_context_norm(x, weight, bias, channels_per_group, window, eps, rule)

    found: Any = gradients(function, grad, x, weight)
    return found


def gradients(
    function: Callable[..., Tensor], grad: Tensor, x: Tensor, weight: Tensor | None, *more: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of ``function(x, weight, bias, *more)`` by each of these, with derivatives of their
    own.

    Through ``torch.func``: inside an operator's own backward plain autograd records nothing.
    """
    ones = torch.ones(x.shape[1], device=x.device, dtype=torch.float32)
    vector = ones if weight is None else weight
    found: Any = torch.func.vjp(function, x, vector, torch.zeros_like(vector), *more)[1](grad)
    return found
