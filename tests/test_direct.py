"""The way past PyTorch's dispatcher: taken by plain tensors, by nothing that looks at operators."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from lcn import LocalContextNorm
from lcn.functional import local_context_norm
from lcn.kernels import direct


class Recorder(TorchDispatchMode):
    """Names of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


class Named(torch.Tensor):
    pass


def test_plain_tensors_and_parameters_go_directly():
    layer = LocalContextNorm(4, 2, 3)
    x = torch.randn(1, 4, 6, 7)
    assert direct.is_possible(x, layer.weight, layer.bias)
    with torch.inference_mode():
        assert direct.is_possible(x * 1, layer.weight, None)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(1, 4, 6, 7).as_subclass(Named),
        torch.randn(1, 4, 6, 7, dtype=torch.complex64).conj().imag,  # negated when it is read
        torch.empty(1, 4, 6, 7, device="meta"),
        torch.randn(1, 4, 6, 7).to_sparse(),
    ],
    ids=["subclass", "negated", "meta", "sparse"],
)
def test_other_tensors_do_not(x):
    assert not direct.is_possible(x, None, None)


def test_what_looks_at_operators_sees_this_one():
    x = torch.randn(1, 4, 6, 7, requires_grad=True)
    with Recorder() as recorder:
        local_context_norm(x, channels_per_group=2, window=3).sum().backward()
    assert "lcn::local_context_norm" in recorder.names
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        local_context_norm(x, channels_per_group=2, window=3)
    assert "lcn::local_context_norm" in {event.key for event in profiler.key_averages()}


def test_both_ways_give_the_same_bits():
    x = torch.randn(2, 4, 9, 11, dtype=torch.complex64).conj().imag
    grad = torch.randn(2, 4, 9, 11)
    weight = torch.randn(4)
    results = []
    for values in (x, x.resolve_neg().clone()):
        inputs = [t.detach().requires_grad_() for t in (values, weight)]
        y = local_context_norm(*inputs, channels_per_group=2, window=(3, 5))
        results.append((y.detach(), *torch.autograd.grad(y, inputs, grad)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
