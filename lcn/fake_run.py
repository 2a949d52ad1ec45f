"""Runs a model on fake tensors, which have shapes and no values."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

_LOG = logging.getLogger("torch._subclasses.fake_tensor")
Forward = Callable[[nn.Module, torch.Tensor], Any]


class FakeModel:
    """A model that can be called on fake inputs of any size, in eval mode, without gradients.

    Its parameters, buffers and training modes stay as they are.

    Args:
        forward: how to call the model, if not as ``model(x)``.
    """

    def __init__(self, model: nn.Module, forward: Forward | None = None) -> None:
        self.model = model
        self._called = _Called(model, forward)
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        parameters = [p for p in model.parameters() if p.is_floating_point()]
        self._device = parameters[0].device if parameters else torch.device("cpu")
        self._dtype = parameters[0].dtype if parameters else torch.float32
        state = [*self._called.named_parameters(), *self._called.named_buffers()]
        with torch.no_grad():
            self._state: dict[str, torch.Tensor] = {
                name: self._mode.from_tensor(tensor.detach()) for name, tensor in state
            }

    def __call__(
        self,
        shape: tuple[int, ...],
        watch: AbstractContextManager[Any] | None = None,
        on_input: Callable[[torch.Tensor], None] = lambda x: None,
    ) -> Any:
        """What the model returns for a fake input of ``shape``.

        Args:
            watch: a context around the forward, such as a dispatch mode.
            on_input: called with the fake input before the forward.
        """
        training = {module: module.training for module in self.model.modules()}
        silenced = _LOG.disabled  # what an operator refuses is raised as well as logged
        try:
            _LOG.disabled = True
            self.model.eval()
            with self._mode, torch.no_grad():
                x = torch.empty(shape, device=self._device, dtype=self._dtype)
                on_input(x)
                with watch or nullcontext():
                    return torch.func.functional_call(self._called, self._state, (x,))
        finally:
            _LOG.disabled = silenced
            for module, was_training in training.items():
                module.training = was_training


class _Called(nn.Module):
    """A model together with the way to call it, for ``functional_call``."""

    def __init__(self, model: nn.Module, forward: Forward | None) -> None:
        super().__init__()
        self.model = model
        self.call = forward or (lambda module, x: module(x))

    def forward(self, x: torch.Tensor) -> Any:
        return self.call(self.model, x)


def first_line(error: Exception) -> str:
    """Kind and first line of an error, for a sentence that says why a forward stopped."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
