"""The layer against witnesses that share no code with the kernels."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lcn import ReleasedLocalContextNorm, TiledLocalContextNorm
from lcn.functional import local_context_norm

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

    options = {"channels_per_group": per_group, "window": window, "eps": 1e-2, "rule": rule}

    def witness(x, weight, bias):
        return brute_force(x, weight, bias, per_group, window, 1e-2, rule)

    expected = outputs(witness, x, weight, bias, grad)
    assert_same(by_backend(backend, options, x, weight, bias, grad), expected, 1e-10)


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
    options = {"channels_per_group": per_group, "window": (p, q), "eps": 1e-2, "rule": rule}
    for backend in BACKENDS:
        y = local_context_norm(x, weight, bias, **options, backend=backend)
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
    weight, bias = weight.float(), bias.float()
    options = {"channels_per_group": 2, "window": window}
    y, dx, dweight, _ = by_backend("auto", options, x, weight, bias, grad)
    exact, exact_dx, exact_dweight, _ = by_backend(
        "reference", options, *(tensor.double() for tensor in (x, weight, bias)), grad
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
    ours = by_backend(backend, {"channels_per_group": 2, "window": "all"}, x, weight, bias, grad)
    theirs = outputs(lambda x, *a: nn.functional.group_norm(x, 3, *a), x, weight, bias, grad)
    assert_same(ours, theirs, 1e-5)


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

    function = functools.partial(
        local_context_norm,
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
