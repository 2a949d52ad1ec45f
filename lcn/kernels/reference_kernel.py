"""The reference with the interface of a kernel: forward and backward on plain tensors."""

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
    """Gradients of input, weight and bias, through autograd; the forward is computed again."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        ones = torch.ones(x.shape[1], device=x.device, dtype=torch.float32)
        vector = (ones if weight is None else weight.detach()).clone().requires_grad_()
        bias = torch.zeros_like(vector, requires_grad=True)
        y = reference.local_context_norm(x, vector, bias, channels_per_group, window, eps, rule)
        gradients: Any = torch.autograd.grad(y, (x, vector, bias), grad)
    return gradients
