"""The layer against witnesses that share no code with the kernels."""

import functools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lcn import LocalContextNorm, ReleasedLocalContextNorm, TiledLocalContextNorm
from lcn.functional import local_context_norm
from lcn.kernels import huge_pages

RULES = ("centered", "released", "tiled")
BACKENDS = ("reference", "cpu")


def rows_of_window(rule: str, cell: int, size: int, window: int) -> range:
    """The definition of each layer, one cell at a time."""
    if rule == "tiled":
        first = cell // window * window
        return range(first, min(first + window, size))
    if rule == "released":
        first = min(max(cell - window // 2, 0), size - window - 1) + 1
        return range(first, first + window)
    window = min(window, size)
    first = min(max(cell - window // 2, 0), size - window)
    return range(first, first + window)


def brute_force(x, weight, bias, channels_per_group, window, eps, rule):
    """Loops over every cell; float64; plain indexing."""
    n, c, h, w = x.shape
    x, weight, bias = x.double(), weight.double(), bias.double()
    is_global = rule == "released" and (window[0] >= h or window[1] >= w)
    planes = []
    for sample in range(n):
        for channel in range(c):
            first = channel // channels_per_group * channels_per_group
            group = x[sample, first : first + channels_per_group]
            cells = []
            for i in range(h):
                for j in range(w):
                    if is_global:
                        values = group
                        variance = values.var(unbiased=True) if values.numel() > 1 else 0.0
                    else:
                        rows = rows_of_window(rule, i, h, window[0])
                        columns = rows_of_window(rule, j, w, window[1])
                        values = group[:, rows.start : rows.stop, columns.start : columns.stop]
                        if rule == "released":
                            values = values.detach()
                        variance = (values - values.mean()).square().mean()
                    std = (variance + torch.tensor(eps, dtype=torch.float64)).sqrt()
                    normed = (x[sample, channel, i, j] - values.mean()) / std
                    cells.append(normed * weight[channel] + bias[channel])
            planes.append(torch.stack(cells).reshape(h, w))
    return torch.stack(planes).reshape(n, c, h, w)


def tensors(n, c, h, w, dtype=torch.float64, offset=0.0):
    generator = torch.Generator().manual_seed(n + 10 * c + 100 * h + 1000 * w)
    x = (torch.randn(n, c, h, w, generator=generator, dtype=torch.float64) + offset).to(dtype)
    weight = torch.randn(c, generator=generator, dtype=torch.float64)
    bias = torch.randn(c, generator=generator, dtype=torch.float64)
    grad = torch.randn(n, c, h, w, generator=generator, dtype=torch.float64).to(dtype)
    return x, weight, bias, grad


def outputs(function, x, weight, bias, grad):
    """Output and the gradients of input, weight and bias."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (x, weight, bias)]
    y = function(*inputs)
    return y.detach(), *torch.autograd.grad(y, inputs, grad.to(y.dtype))


def by_backend(backend, options, x, weight, bias, grad):
    """The outputs of a backend."""
    layer = functools.partial(local_context_norm, **options, backend=backend)
    return outputs(layer, x, weight, bias, grad)


def assert_same(results, expected, tolerance):
    names = ("y", "dx", "dweight", "dbias")
    for name, result, witness in zip(names, results, expected, strict=True):
        scale = witness.abs().max().clamp(min=1.0)
        error = ((result.double() - witness.double()).abs().max() / scale).item()
        assert error <= tolerance, f"{name}: {error:.2e}"


# n, channels, channels per group, height, width, window
SHAPES = [
    (1, 1, 1, 1, 1, (1, 1)),
    (2, 4, 2, 1, 7, (3, 3)),
    (1, 2, 2, 7, 1, (3, 3)),
    (1, 3, 1, 5, 6, (1, 1)),
    (2, 4, 2, 6, 5, (2, 4)),
    (1, 6, 3, 5, 8, (4, 3)),
    (1, 2, 2, 5, 6, (5, 3)),
    (1, 2, 1, 5, 6, (3, 6)),
    (1, 4, 4, 4, 5, (9, 2)),
    (1, 4, 2, 4, 5, (2, 9)),
    (2, 4, 2, 4, 4, (4, 4)),
    (1, 2, 2, 4, 4, (99, 99)),
    (1, 2, 1, 9, 10, (8, 9)),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("n", "c", "per_group", "h", "w", "window"), SHAPES)
def test_forward_and_backward_equal_brute_force(backend, rule, n, c, per_group, h, w, window):
    x, weight, bias, grad = tensors(n, c, h, w)

    def layer(x, weight, bias):
        return local_context_norm(
            x,
            weight,
            bias,
            channels_per_group=per_group,
            window=window,
            eps=1e-2,
            rule=rule,
            backend=backend,
        )

    def witness(x, weight, bias):
        return brute_force(x, weight, bias, per_group, window, 1e-2, rule)

    expected = outputs(witness, x, weight, bias, grad)
    assert_same(outputs(layer, x, weight, bias, grad), expected, 1e-10)


@settings(max_examples=100, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    n=st.integers(1, 2),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    h=st.integers(1, 7),
    w=st.integers(1, 7),
    p=st.integers(1, 9),
    q=st.integers(1, 9),
    threads=st.sampled_from([1, 5]),
    offset=st.sampled_from([0.0, 50.0]),
)
def test_any_shape_equals_brute_force(
    rule, n, groups, per_group, h, w, p, q, threads, offset, every_thread
):
    every_thread(threads)
    x, weight, bias, _ = tensors(n, groups * per_group, h, w, offset=offset)
    witness = brute_force(x, weight, bias, per_group, (p, q), 1e-2, rule)
    for backend in BACKENDS:
        y = local_context_norm(
            x,
            weight,
            bias,
            channels_per_group=per_group,
            window=(p, q),
            eps=1e-2,
            rule=rule,
            backend=backend,
        )
        assert (y - witness).abs().max() <= 1e-9 * witness.abs().max().clamp(min=1)


@settings(max_examples=200, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    n=st.integers(0, 3),
    groups=st.integers(1, 4),
    per_group=st.integers(1, 5),
    h=st.integers(1, 40),
    w=st.integers(1, 70),
    p=st.integers(1, 45),
    q=st.integers(1, 75),
    threads=st.sampled_from([1, 2, 7]),
    memory=st.sampled_from(["contiguous", "channels_last", "cropped", "permuted"]),
)
def test_cpu_kernel_equals_reference_gradients_included(
    rule, dtype, n, groups, per_group, h, w, p, q, threads, memory, every_thread
):
    every_thread(threads)
    c = groups * per_group
    x, weight, bias, grad = tensors(n, c, h, w, dtype)
    x = in_memory(x, memory)
    options = {"channels_per_group": per_group, "window": (p, q), "rule": rule, "eps": 1e-2}
    results = by_backend("cpu", options, x, weight, bias, in_memory(grad, memory))
    expected = by_backend("reference", options, x.double(), weight, bias, grad)
    assert results[0].dtype == results[1].dtype == dtype
    if n:
        assert_same(results, expected, TOLERANCE[dtype])


TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 2e-4,  # of gradients that cancel to nearly 0, in windows of a few cells
    torch.bfloat16: 1e-2,
    torch.float16: 2e-3,
}


def in_memory(x, kind):
    """``x`` with the same values in another memory layout."""
    if kind == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if kind == "cropped":
        return nn.functional.pad(x, (2, 1, 1, 3))[:, :, 1 : 1 + x.shape[2], 2 : 2 + x.shape[3]]
    if kind == "permuted":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    return x


@pytest.fixture(scope="module")
def every_thread():
    """Sets the number of threads and lets even the smallest tensor use them all."""
    from lcn.kernels import cpu

    threads, grain = torch.get_num_threads(), cpu._GRAIN
    cpu._GRAIN = 1
    yield torch.set_num_threads
    torch.set_num_threads(threads)
    cpu._GRAIN = grain


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [3, 7, (40, 5), "all"])
def test_each_dtype_is_as_exact_as_its_rounding(dtype, window):
    x, weight, bias, grad = tensors(2, 4, 24, 40, dtype, offset=2.0)
    y, dx, dweight, _ = outputs(
        lambda x, *affine: local_context_norm(x, *affine, channels_per_group=2, window=window),
        x,
        weight.float(),
        bias.float(),
        grad,
    )
    exact, exact_dx, exact_dweight, _ = outputs(
        lambda x, *affine: local_context_norm(
            x, *affine, channels_per_group=2, window=window, backend="reference"
        ),
        x.double(),
        weight.float().double(),
        bias.float().double(),
        grad,
    )
    step = max(torch.finfo(dtype).eps, 1e-13)  # float64 sums are rounded in both
    assert y.dtype == dx.dtype == dtype
    assert dweight.dtype == torch.float32
    assert (y - exact).abs().max() <= 2 * step * exact.abs().max()
    assert (dx - exact_dx).abs().max() <= 8 * step * exact_dx.abs().max()
    assert (dweight - exact_dweight).abs().max() <= 1e-5 * exact_dweight.abs().max()


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("window", [(8, 12), (100, 100), "all"])
def test_window_covering_the_map_equals_group_layer_and_instance_norm(window, backend):
    x = torch.randn(3, 6, 8, 12) * 2 + 5
    for per_group, name in ((2, "group"), (6, "layer"), (1, "instance")):
        ours = local_context_norm(x, channels_per_group=per_group, window=window, backend=backend)
        theirs = {
            "group": nn.GroupNorm(3, 6),
            "layer": nn.LayerNorm([6, 8, 12]),
            "instance": nn.InstanceNorm2d(6),
        }[name]
        torch.testing.assert_close(ours, theirs(x), atol=2e-6, rtol=0)


# Dtype and group size. The loops are compiled for every dtype and, up to eight, every size.
CHANNELS_LAST = [
    *((torch.float32, per_group) for per_group in (1, 2, 4, 8, 16)),
    *((dtype, 2) for dtype in (torch.float64, torch.bfloat16, torch.float16)),
]


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(CHANNELS_LAST),
    n=st.integers(1, 2),
    groups=st.integers(8, 19),
    h=st.integers(1, 14),
    w=st.integers(1, 14),
    p=st.integers(1, 16),
    q=st.integers(1, 16),
    threads=st.sampled_from([1, 2, 40]),
)
def test_channels_last_as_it_lies_equals_reference(
    kind, n, groups, h, w, p, q, threads, every_thread
):
    """Eight groups and more, of sizes that divide or are divided by eight: loops of their own."""
    every_thread(threads)
    dtype, per_group = kind
    x, weight, bias, grad = tensors(n, groups * per_group, h, w, dtype, offset=2.0)
    options = {"channels_per_group": per_group, "window": (p, q), "eps": 1e-2}
    expected = by_backend("reference", options, x.double(), weight, bias, grad)
    x, grad = (in_memory(tensor, "channels_last") for tensor in (x, grad))
    ours = by_backend("cpu", options, x, weight, bias, grad)
    assert ours[0].dtype == ours[1].dtype == dtype
    for tensor in ours[:2]:
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert_same(ours, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(2, 12, 7, 19), (1, 3, 5, 40), (3, 64, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_channels_last_changes_no_bit_where_it_is_transposed(dtype, shape):
    x, weight, bias, grad = tensors(*shape, dtype, offset=1.0)
    options = {"channels_per_group": shape[1] // 4 or 3, "window": 5, "rule": "tiled"}
    plain = by_backend("cpu", options, x, weight, bias, grad)
    x, grad = (in_memory(tensor, "channels_last") for tensor in (x, grad))
    ours = by_backend("cpu", options, x, weight, bias, grad)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    assert ours[0].is_contiguous(memory_format=torch.channels_last)
    assert ours[1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("affine", [torch.float64, torch.float32, torch.bfloat16, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_window_covering_the_map_in_every_mixture_of_dtypes(dtype, affine, rule):
    """Where the window covers the map the layer is left to PyTorch's Group Normalization."""
    x, weight, bias, grad = tensors(2, 6, 4, 5, dtype, offset=1.0)
    x = x.contiguous(memory_format=torch.channels_last)
    options = {"channels_per_group": 3, "window": (4, 9), "rule": rule, "eps": 1e-2}
    vectors = [] if affine is None else [weight.to(affine), bias.to(affine)]
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (x, *vectors)]
    y = local_context_norm(*inputs, **options)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    gradients = torch.autograd.grad(y, inputs, grad)
    assert [gradient.dtype for gradient in gradients] == [tensor.dtype for tensor in inputs]
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    ones_and_zeros = (torch.ones(6), torch.zeros(6)) if affine is None else ()
    exact = brute_force(*exact_inputs, *ones_and_zeros, 3, (4, 9), 1e-2, rule)
    witnesses = torch.autograd.grad(exact, exact_inputs, grad.double())
    step = max(torch.finfo(tensor.dtype).eps for tensor in inputs)
    for ours, theirs in zip((y, *gradients), (exact, *witnesses), strict=True):
        assert (ours.double() - theirs).abs().max() <= 8 * step * theirs.abs().max()


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_group_norm_gradients_in_the_global_case(backend):
    x, weight, bias, grad = (t.float() for t in tensors(2, 6, 9, 11, offset=3.0))
    options = {"channels_per_group": 2, "window": "all", "backend": backend}
    ours = outputs(
        lambda x, *affine: local_context_norm(x, *affine, **options),
        x,
        weight,
        bias,
        grad,
    )
    theirs = outputs(lambda x, *a: nn.functional.group_norm(x, 3, *a), x, weight, bias, grad)
    assert_same(ours, theirs, 1e-5)


@pytest.mark.parametrize("shape", [(2, 6, 30, 30), (1, 6, 7, 7), (2, 6, 523, 2), (1, 6, 20, 64)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_group_norm_in_the_global_case_of_large_tensors(dtype, shape, monkeypatch):
    """Where huge pages are to be had the CPU kernel runs, on rows of another length."""
    x, weight, bias, grad = (t.to(dtype) for t in tensors(*shape, offset=3.0))
    monkeypatch.setattr(huge_pages, "would_help", lambda x: True)
    ours = outputs(
        lambda x, *a: local_context_norm(x, *a, channels_per_group=2, window=600),
        *(x, weight, bias, grad),
    )
    exact = [t.double() for t in (x, weight, bias, grad)]
    theirs = outputs(lambda x, *a: nn.functional.group_norm(x, 3, *a), *exact)
    assert ours[0].shape == shape
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == dtype
        step = max(8 * torch.finfo(dtype).eps, 1e-12)  # the witness itself is float64
        assert (one.double() - other).abs().max() <= step * other.abs().max()


@pytest.mark.parametrize("window", [3, "all"])
@pytest.mark.parametrize("large", [False, True])
def test_the_result_is_no_view(window, large, monkeypatch):
    """An in-place activation after the layer, as most networks have, would copy a view."""
    monkeypatch.setattr(huge_pages, "would_help", lambda x: large)
    x = torch.randn(1, 4, 16, 16, requires_grad=True)
    y = local_context_norm(x, channels_per_group=2, window=window)
    assert not y._is_view()


def huge_page_bytes(tensor):
    """By the system's own account: of the mapping that holds the middle of a tensor."""
    middle = tensor.data_ptr() + tensor.numel() * tensor.itemsize // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first:
            start, stop = (int(address, 16) for address in first.split("-"))
            inside = start <= middle < stop
        elif inside and first == "AnonHugePages:":
            return 1024 * int(rest.split()[0])
    return 0


@pytest.mark.parametrize("window", [63, "all"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_large_result_lies_on_huge_pages(window, channels_last):
    x = torch.randn(1, 16, 512, 1100)  # 36 MB
    if not huge_pages.would_help(x):
        pytest.skip("this system gives no huge pages to programs that ask for them")
    if channels_last:
        if window == "all":
            pytest.skip("left to PyTorch's Group Normalization")
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    y = local_context_norm(x, channels_per_group=2, window=window)
    (dx,) = torch.autograd.grad(y.sum(), x)
    for result in (y, dx):
        assert huge_page_bytes(result) >= 0.9 * 4 * x.numel()


@pytest.mark.parametrize(
    ("mode", "pytorch_asks"),
    [
        ("[always] madvise never", "0"),
        ("always madvise [never]", "0"),
        (None, "0"),
        ("always [madvise] never", "1"),
    ],
)
def test_results_where_there_are_no_huge_pages_to_ask_for(
    mode, pytorch_asks, tmp_path, monkeypatch
):
    monkeypatch.setattr(huge_pages, "_SYSTEM", tmp_path)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", pytorch_asks)
    if mode:
        (tmp_path / "enabled").write_text(mode)
        (tmp_path / "hpage_pmd_size").write_text("2097152")
    huge_pages._page_bytes.cache_clear()
    try:
        large = torch.empty(1, 1, 3000, 3000)
        assert not huge_pages.would_help(large)
        assert huge_pages.empty_like(large, torch.contiguous_format).shape == large.shape
    finally:
        huge_pages._page_bytes.cache_clear()


def test_window_moves_inside_at_a_border_instead_of_shrinking():
    x = torch.zeros(1, 1, 1, 6)
    x[..., 2] = 1.0  # in the windows of cells 0..3 for a window of 3, not of 4 and 5
    y = local_context_norm(x, channels_per_group=1, window=3, eps=0.0, backend="reference")
    assert y[0, 0, 0, 0] == pytest.approx(-1 / math.sqrt(2))
    moved = local_context_norm(x, channels_per_group=1, window=3, eps=1e-12)
    assert moved[0, 0, 0, 0] == pytest.approx(-1 / math.sqrt(2))
    assert moved[0, 0, 0, 4] == 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("window", [(3, 2), (9, 9)])
def test_gradcheck(rule, backend, window):
    if rule == "released" and window == (3, 2):
        pytest.skip("its statistics are constants by definition; see the brute force test")
    x, weight, bias, _ = tensors(1, 4, 5, 4)

    def function(x, weight, bias):
        return local_context_norm(
            x,
            weight,
            bias,
            channels_per_group=2,
            window=window,
            eps=1e-2,
            rule=rule,
            backend=backend,
        )

    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    assert torch.autograd.gradcheck(function, inputs)
    if backend == "reference":  # which the other backends take for a second derivative
        assert torch.autograd.gradgradcheck(function, inputs)


ACCURACY_INPUTS = {
    "offset 0": lambda noise: noise,
    "offset 10": lambda noise: noise + 10,
    "offset 100": lambda noise: noise + 100,
    "offset 1000": lambda noise: noise + 1000,
    "ramp": lambda noise: noise + torch.linspace(0, 1000, noise.shape[-1]),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ACCURACY_INPUTS)
def test_float32_error_is_at_most_twice_that_of_group_norm(kind, backend):
    torch.manual_seed(0)
    x = ACCURACY_INPUTS[kind](torch.randn(1, 4, 512, 1024))
    options = {"channels_per_group": 2, "window": 63}
    ours = local_context_norm(x, **options, backend=backend)
    exact = local_context_norm(x.double(), **options, backend="reference")
    group_norm = nn.functional.group_norm(x, 2)
    exact_group_norm = nn.functional.group_norm(x.double(), 2)
    error = (ours - exact).abs().max().item()
    allowed = 2 * (group_norm - exact_group_norm).abs().max().item()
    assert error <= allowed, f"{error:.1e} > {allowed:.1e}"


def test_a_constant_map_gives_the_bias():
    x = torch.full((1, 2, 20, 30), 1e4)
    y = local_context_norm(x, bias=torch.tensor([1.0, 2.0]), channels_per_group=1, window=5)
    assert torch.equal(y[0, 0], torch.full((20, 30), 1.0))
    assert torch.equal(y[0, 1], torch.full((20, 30), 2.0))


def test_nan_is_not_hidden():
    x = torch.randn(1, 2, 12, 12)
    x[0, 0, 6, 6] = float("nan")
    for window in (3, "all"):
        y = local_context_norm(x, channels_per_group=2, window=window)
        assert y[0, :, 5:8, 5:8].isnan().all()


def test_released_layer_ignores_statistics_in_its_gradient_only_when_windowed():
    x = torch.randn(1, 2, 8, 8, requires_grad=True)
    for window, through in ((3, False), (8, True)):
        layer = ReleasedLocalContextNorm(2, 2, window, eps=0.1)
        (gradient,) = torch.autograd.grad(layer(x).sum(), x)
        # Through the mean, a sum of normalized values would have no gradient at all.
        assert (gradient.abs().max() < 1e-5) == through


def test_tiles_are_independent_of_each_other_and_the_last_is_what_is_left():
    x = torch.randn(1, 2, 7, 10)
    y = TiledLocalContextNorm(2, 2, (4, 4))(x)
    for rows in (slice(0, 4), slice(4, 7)):
        for columns in (slice(0, 4), slice(4, 8), slice(8, 10)):
            tile = nn.functional.group_norm(x[:, :, rows, columns], 1)
            torch.testing.assert_close(y[:, :, rows, columns], tile, atol=1e-5, rtol=0)


def test_batch_of_none_and_gradients():
    x = torch.randn(0, 4, 5, 5, requires_grad=True)
    for backend in BACKENDS:
        weight = torch.ones(4, requires_grad=True)
        y = local_context_norm(x, weight, channels_per_group=2, window=3, backend=backend)
        y.sum().backward()
        assert y.shape == x.shape
        assert torch.equal(weight.grad, torch.zeros(4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.randn(5, 5)}, r"x must be \[N, C, H, W\] or \[C, H, W\].*\(5, 5\)"),
        ({"x": torch.ones(1, 4, 5, 5, dtype=torch.int64)}, r"x must be float64.*int64"),
        ({"x": torch.randn(1, 4, 0, 5)}, r"at least 1, got shape \(1, 4, 0, 5\)"),
        ({"channels_per_group": 3}, "channels_per_group must be a positive divisor of the 4.*3"),
        ({"channels_per_group": 0}, "channels_per_group must be a positive divisor.*got 0"),
        ({"channels_per_group": 2.0}, "channels_per_group must be a positive int, got 2.0"),
        ({"window": 0}, "window must be a positive int.*got 0"),
        ({"window": (3, -1)}, r"window must be.*got \(3, -1\)"),
        ({"window": "whole"}, "window must be.*'all', got 'whole'"),
        ({"window": (3, 3, 3)}, "window must be"),
        ({"eps": -1.0}, "eps must be at least 0, got -1.0"),
        ({"weight": torch.ones(3)}, r"weight must have shape \(4,\).*\(3,\)"),
        ({"rule": "center"}, "rule must be one of.*got 'center'"),
        ({"backend": "cuda"}, "backend must be one of.*got 'cuda'"),
    ],
)
def test_a_wrong_argument_is_named_with_its_value_and_what_is_allowed(changes, message):
    arguments = {"x": torch.randn(1, 4, 5, 5), "channels_per_group": 2, "window": 3, **changes}
    with pytest.raises(ValueError, match=message):
        local_context_norm(**arguments)


def test_a_number_of_groups_instead_of_channels_per_group():
    for layer in (LocalContextNorm, ReleasedLocalContextNorm, TiledLocalContextNorm):
        assert layer(12, num_groups=3).channels_per_group == 4
        assert layer(12).channels_per_group == 2
        assert layer(12).num_groups == 6
    x = torch.randn(2, 12, 5, 5)
    ours = LocalContextNorm(12, num_groups=3, window="all")
    torch.testing.assert_close(ours(x), nn.GroupNorm(3, 12)(x))
    with pytest.raises(ValueError, match="channels_per_group or num_groups, not both; got 2 and 6"):
        LocalContextNorm(12, 2, num_groups=6)
    with pytest.raises(ValueError, match="num_groups must divide num_channels = 12, got 5"):
        LocalContextNorm(12, num_groups=5)
    with pytest.raises(ValueError, match="num_groups must be a positive int, got 0"):
        LocalContextNorm(12, num_groups=0)


def test_layer_arguments_are_checked_when_it_is_made():
    with pytest.raises(ValueError, match="channels_per_group must divide num_channels = 18, got 4"):
        LocalContextNorm(18, 4)
    with pytest.raises(ValueError, match="num_channels must be a positive int, got 0"):
        LocalContextNorm(0)
    with pytest.raises(ValueError, match="window must be"):
        LocalContextNorm(4, 2, 0)
    with pytest.raises(ValueError, match="4 channels, as this layer, got 6"):
        LocalContextNorm(4)(torch.randn(1, 6, 3, 3))
    with pytest.raises(ValueError, match="4 channels, as this layer, got 6"):
        LocalContextNorm(4, affine=False)(torch.randn(6, 3, 3))
