"""A NaN, an infinity or a huge value stays within the windows that hold it, backward too."""

import functools
import math

import pytest
import torch
from test_layer import brute_force, rows_of_window, tensors

from lcn.functional import local_context_norm

HEIGHT, WIDTH, EPS = 13, 19, 1e-2
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
}


@functools.cache
def clean(dtype, window, rule):
    """A map without the value, and its exact output and input gradient."""
    x, weight, bias, grad = tensors(1, 2, HEIGHT, WIDTH, dtype)
    inputs = x.double().requires_grad_()
    y = brute_force(inputs, weight, bias, 2, window, EPS, rule)
    (dx,) = torch.autograd.grad(y, inputs, grad.double())
    return x, weight, bias, grad, y.detach(), dx


def holders(place, window, rule):
    """Cells whose window holds ``place``, and cells that lie in a window which holds it."""
    hold = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    touched = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    for i in range(HEIGHT):
        rows = rows_of_window(rule, i, HEIGHT, window[0])
        for j in range(WIDTH):
            columns = rows_of_window(rule, j, WIDTH, window[1])
            if place[0] in rows and place[1] in columns:
                hold[i, j] = touched[i, j] = True
                if rule != "released":  # whose gradient does not go through the statistics
                    touched[rows.start : rows.stop, columns.start : columns.stop] = True
    return hold, touched


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize(
    ("rule", "window"),
    [("centered", (3, 5)), ("centered", (2, 30)), ("released", (4, 3)), ("tiled", (4, 3))],
)
def test_a_value_stays_within_the_windows_that_hold_it(backend, dtype, value, rule, window):
    if dtype == torch.float16 and value == 1e30:
        value = 6e4
    x, weight, bias, grad, exact, exact_dx = clean(dtype, window, rule)
    for place in ((0, 0), (6, 9), (12, 18), (3, 0)):
        spoiled = x.clone()
        spoiled[0, 1, place[0], place[1]] = value
        inputs = spoiled.requires_grad_()
        y = local_context_norm(
            *(inputs, weight, bias),
            channels_per_group=2,
            window=window,
            eps=EPS,
            rule=rule,
            backend=backend,
        )
        (dx,) = torch.autograd.grad(y, inputs, grad)
        hold, touched = holders(place, window, rule)
        assert not touched.all()
        itself = torch.zeros_like(hold)  # which the released layer's window may not hold
        itself[place] = True
        for ours, theirs, far in ((y, exact, ~hold), (dx, exact_dx, ~touched)):
            error = (ours.detach().double() - theirs)[..., far & ~itself].abs().max()
            assert error <= TOLERANCE[dtype] * theirs.abs().max(), (place, error)
        if math.isnan(value):
            assert y[..., hold].isnan().all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("window", [(3, 5), (2, 30)])
def test_in_channels_last_it_also_stays_within_its_group(dtype, value, window):
    """Eight groups are worked on side by side there; one of them has the value."""
    if dtype == torch.float16 and value == 1e30:
        value = 6e4
    x, weight, bias, grad, exact, exact_dx = (
        tensor.repeat(1, 8, 1, 1) if tensor.dim() == 4 else tensor.repeat(8)
        for tensor in clean(dtype, window, "centered")
    )
    for place in ((0, 0), (6, 9), (12, 18), (3, 0)):
        spoiled = x.clone()
        spoiled[0, 5, place[0], place[1]] = value
        inputs = spoiled.contiguous(memory_format=torch.channels_last).requires_grad_()
        y = local_context_norm(
            *(inputs, weight, bias), channels_per_group=2, window=window, eps=EPS, backend="cpu"
        )
        (dx,) = torch.autograd.grad(y, inputs, grad)
        hold, touched = holders(place, window, "centered")
        for ours, theirs, near in ((y, exact, hold), (dx, exact_dx, touched)):
            errors = (ours.detach().double() - theirs).abs()
            errors[:, 4:6, near] = 0
            assert errors.max() <= TOLERANCE[dtype] * theirs.abs().max(), (place, errors.max())
        if math.isnan(value):
            assert y[:, 4:6, hold].isnan().all()


@pytest.mark.parametrize("threads", [1, 5])
def test_a_row_of_values_stays_within_its_windows_in_bands_of_rows_too(threads, monkeypatch):
    """With fewer groups than threads the rows of a group are divided."""
    from lcn.kernels import cpu

    before = torch.get_num_threads()
    monkeypatch.setattr(cpu, "_GRAIN", 1)
    x = torch.randn(1, 2, 40, 70, generator=torch.Generator().manual_seed(0))
    spoiled = x.clone()
    spoiled[:, :, 20, 10:60] = math.nan
    spoiled[:, :, 22, ::3] = 1e30
    torch.set_num_threads(threads)
    try:
        results = []
        for values in (spoiled, x):
            inputs = values.clone().requires_grad_()
            y = local_context_norm(inputs, channels_per_group=2, window=7, backend="cpu")
            results.append((y.detach(), *torch.autograd.grad(y.sum(), inputs)))
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(*results, strict=True):
        for rows in (slice(0, 14), slice(29, 40)):  # no window there shares a cell with theirs
            torch.testing.assert_close(ours[:, :, rows], theirs[:, :, rows], atol=2e-5, rtol=0)
