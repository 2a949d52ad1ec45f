"""The Triton kernels: interpreted on CPU tensors, and compiled for two generations of GPUs.

The interpreter is chosen when Triton is imported, so these tests run in a process of their own.
"""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

KERNELS = (
    "column_moments",
    "normalize",
    "gradient_terms",
    "sum_terms_down",
    "input_gradient",
)
POINTERS = ("x", "y", "grad", "out")

INTERPRETED = """
import random, sys, torch
from lcn.kernels import gpu, reference_kernel
from lcn.functional import local_context_norm

random.seed(0)
tolerance = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
gpu._COLUMNS = 16
launched = 0
for case in range(50):
    per_group, groups, n = random.choice([1, 2, 3]), random.choice([1, 2]), random.choice([1, 2])
    h, w = random.randint(1, 10), random.randint(1, 18)
    window = random.randint(1, 11), random.randint(1, 20)
    rule = random.choice(["centered", "centered", "released", "tiled"])
    dtype = random.choice(list(tolerance))
    gpu._CELLS_AT_ONCE = random.choice([1, 2 * h * w, 1 << 20])
    torch.manual_seed(case)
    x = (torch.randn(n, groups * per_group, h, w) + 3).to(dtype)
    weight, bias = torch.randn(2, groups * per_group)
    grad = torch.randn(x.shape).to(dtype)
    if case % 2:
        x = x.contiguous(memory_format=torch.channels_last)
    arguments = per_group, window, 1e-2, rule
    launched += gpu.has_kernel(x, window, rule)
    ours = gpu.forward(x, weight, bias, *arguments), *gpu.backward(grad, x, weight, *arguments)
    exact = (
        reference_kernel.forward(x.double(), weight.double(), bias.double(), *arguments),
        *reference_kernel.backward(grad.double(), x.double(), weight.double(), *arguments),
    )
    for name, a, b in zip(("y", "dx", "dweight", "dbias"), ours, exact):
        error = ((a.double() - b).abs().max() / b.abs().max().clamp(min=1)).item()
        assert error <= tolerance[dtype], (case, name, error, rule, x.shape, window)

x = torch.randn(1, 4, 6, 9, requires_grad=True)
for backend in ("gpu", "reference"):
    y = local_context_norm(x, channels_per_group=2, window=3, backend=backend)
    y.square().sum().backward()
    gradient, x.grad = x.grad, None
    if backend == "gpu":
        first = y.detach(), gradient
torch.testing.assert_close(first, (y.detach(), gradient))

# What has no Triton kernel runs in plain PyTorch inside the operator, its backward too.
for rule, window in (("tiled", 4), ("released", 99)):
    gradients = []
    for backend in ("gpu", "reference"):
        y = local_context_norm(x, channels_per_group=2, window=window, rule=rule, backend=backend)
        gradients += torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(*gradients)
print("launched", launched)
"""


def test_interpreted_kernels_equal_the_reference():
    result = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout.split()[-1]) >= 15


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("element", "ones"),
    [("fp32", ()), ("bf16", ("x_w", "per_group", "row_count", "col_count", "row_size")),
     ("fp16", ("col_size", "x_w", "g_w", "y_w"))],
)  # fmt: skip
def test_kernels_compile_to_machine_code_without_a_gpu(kernel, capability, element, ones):
    """``ones`` are arguments that the launcher turns into constants because they are 1."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lcn.kernels import gpu_loops

    function = getattr(gpu_loops, kernel)
    signature, constants = {}, {}
    for name in function.arg_names:
        signature[name] = "i32"
        if name in ("BLOCK", "DETACHED") or name in ones:
            signature[name] = "constexpr"
            constants[name] = {"BLOCK": 256, "DETACHED": element == "fp16"}.get(name, 1)
        elif name in POINTERS:
            signature[name] = f"*{element}"
        elif name == "eps":
            signature[name] = "fp32"
        elif name in ("weight", "bias", "partial") or name.split("_")[0] in (
            "means", "squares", "terms", "sums",
        ):  # fmt: skip
            signature[name] = "*fp32"
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert len(compiled.asm["cubin"]) > 1000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_real_gpu():
    from lcn.functional import local_context_norm
    from lcn.kernels.select import _gpu_kernel_is_right

    assert _gpu_kernel_is_right(torch.device("cuda", 0))
    x = torch.randn(2, 8, 64, 96, device="cuda")
    for window in (7, (3, 50), "all"):
        ours = local_context_norm(x, channels_per_group=2, window=window)
        exact = local_context_norm(x, channels_per_group=2, window=window, backend="reference")
        torch.testing.assert_close(ours, exact, atol=1e-5, rtol=1e-5)


def test_a_gpu_kernel_that_is_wrong_is_not_used_and_warned_of_once(monkeypatch):
    """On the CPU the kernels cannot be launched at all, which is as wrong as it gets."""
    from lcn.kernels import select

    select._gpu_kernel_is_right.cache_clear()
    with pytest.warns(UserWarning, match="plain PyTorch runs instead"):
        assert not select._gpu_kernel_is_right(torch.device("cpu"))
    assert not select._gpu_kernel_is_right(torch.device("cpu"))
    select._gpu_kernel_is_right.cache_clear()
