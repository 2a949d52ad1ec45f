"""Runs a model on fake tensors, which have shapes and no values."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

Forward = Callable[[nn.Module, torch.Tensor], Any]


def run_fake(
    model: nn.Module,
    shape: tuple[int, ...],
    forward: Forward | None = None,
    watch: AbstractContextManager[Any] | None = None,
    on_input: Callable[[torch.Tensor], None] = lambda x: None,
) -> Any:
    """What the model returns for a fake input of ``shape``, in eval mode and without gradients.

    Parameters, buffers and training modes stay as they are.

    Args:
        forward: how to call the model, if not as ``model(x)``.
        watch: a context around the forward, such as a dispatch mode.
        on_input: called with the fake input before the forward.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    device = parameters[0].device if parameters else torch.device("cpu")
    dtype = parameters[0].dtype if parameters else torch.float32
    training = {module: module.training for module in model.modules()}
    called = _Called(model, forward)
    state = {**dict(called.named_parameters()), **dict(called.named_buffers())}
    try:
        model.eval()
        with mode, torch.no_grad():
            fakes: dict[str, torch.Tensor] = {
                name: mode.from_tensor(tensor.detach()) for name, tensor in state.items()
            }
            x = torch.empty(shape, device=device, dtype=dtype)
            on_input(x)
            with watch or nullcontext():
                return torch.func.functional_call(called, fakes, (x,))
    finally:
        for module, was_training in training.items():
            module.training = was_training


def first_line(error: Exception) -> str:
    """Kind and first line of an error, for a sentence that says why a forward stopped."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


class _Called(nn.Module):
    """A model together with the way to call it, for ``functional_call``."""

    def __init__(self, model: nn.Module, forward: Forward | None) -> None:
        super().__init__()
        self.model = model
        self.call = forward or (lambda module, x: module(x))

    def forward(self, x: torch.Tensor) -> Any:
        return self.call(self.model, x)
