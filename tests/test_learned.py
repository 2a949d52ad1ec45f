"""Real windows, against loops over every cell, finite differences, and the integer window."""

import copy
import math

import pytest
import torch
from conftest import run_two_processes
from test_layer import assert_same, outputs, tensors
from torch import nn
from torch.func import jvp

from lcn import LearnedContextNorm, LocalContextNorm, audit, build_norm, convert_norm
from lcn.functional import local_context_norm

EPS = 1e-2
BACKENDS = ("reference", "cpu")


def shares_of(cell, length, size):
    """How much of each cell lies in the interval around a cell's middle, moved inside."""
    length = min(max(length, 1.0), float(size))
    begin = min(max(cell + 0.5 - length / 2, 0.0), size - length)
    return [max(0.0, min(begin + length, k + 1) - max(begin, k)) for k in range(size)]


def brute_force(x, weight, bias, channels_per_group, windows, eps=EPS):
    """Loops over every cell; float64. ``windows``: (p, q) of each group."""
    n, c, h, w = x.shape
    x, weight, bias = x.double(), weight.double(), bias.double()
    cells = []
    for sample in range(n):
        for channel in range(c):
            group = channel // channels_per_group
            values = x[sample, group * channels_per_group : (group + 1) * channels_per_group]
            p, q = windows[group % len(windows)]
            for i in range(h):
                rows = torch.tensor(shares_of(i, p, h), dtype=torch.float64)
                for j in range(w):
                    columns = torch.tensor(shares_of(j, q, w), dtype=torch.float64)
                    share = rows[:, None] * columns
                    count = share.sum() * channels_per_group
                    mean = (values * share).sum() / count
                    std = (((values - mean).square() * share).sum() / count + eps).sqrt()
                    normed = (x[sample, channel, i, j] - mean) / std
                    cells.append(normed * weight[channel] + bias[channel])
    return torch.stack(cells).reshape(n, c, h, w)


def layer(channels_per_group, window, backend="auto"):
    window = torch.as_tensor(window, dtype=torch.float64)
    return lambda x, weight, bias: local_context_norm(
        x,
        weight,
        bias,
        channels_per_group=channels_per_group,
        window=window,
        eps=EPS,
        backend=backend,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("n", "c", "per_group", "h", "w", "windows"),
    [
        (1, 1, 1, 1, 1, [(2.5, 1.0)]),
        (2, 4, 2, 6, 7, [(2.3, 3.9)]),
        (1, 2, 1, 7, 5, [(1.0, 1.4), (6.9, 4.2)]),
        (1, 3, 3, 5, 8, [(30.0, 2.0)]),
        (2, 4, 2, 4, 9, [(0.2, 8.99), (4.0, 3.0)]),
    ],
)
def test_forward_and_backward_equal_brute_force(backend, n, c, per_group, h, w, windows):
    given = tensors(n, c, h, w)
    expected = outputs(lambda *t: brute_force(*t, per_group, windows), *given)
    ours = outputs(layer(per_group, windows if len(windows) > 1 else windows[0], backend), *given)
    assert_same(ours, expected, 1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("windows", [[(2.3, 3.9)], [(1.3, 2.2), (5.7, 6.6)]])
def test_the_window_s_gradient_is_that_of_finite_differences(backend, windows):
    x, weight, bias, grad = tensors(2, 4, 6, 7)
    given = torch.tensor(windows, dtype=torch.float64, requires_grad=True)
    window = given if len(windows) > 1 else given[0]
    y = local_context_norm(
        x, weight, bias, channels_per_group=2, window=window, eps=EPS, backend=backend
    )
    (ours,) = torch.autograd.grad(y, given, grad)

    def loss(sides):
        return float((brute_force(x, weight, bias, 2, sides.tolist()) * grad).sum())

    step = 1e-5
    for place in torch.cartesian_prod(*map(torch.arange, given.shape)).tolist():
        change = torch.zeros_like(given)
        change[tuple(place)] = step
        with torch.no_grad():
            slope = (loss(given + change) - loss(given - change)) / (2 * step)
        assert float(ours[tuple(place)]) == pytest.approx(slope, rel=1e-6, abs=1e-7)


def test_derivatives_of_derivatives_and_forward_mode():
    x, weight, bias, _ = tensors(1, 4, 5, 4)
    window = torch.tensor([2.3, 2.6], dtype=torch.float64)

    def function(x, weight, window):
        return local_context_norm(x, weight, bias, channels_per_group=2, window=window, eps=EPS)

    given = [t.clone().requires_grad_() for t in (x, weight, window)]
    assert torch.autograd.gradcheck(function, given)
    assert torch.autograd.gradgradcheck(function, given)
    tangent = jvp(lambda w: function(x, weight, w), (window,), (torch.ones_like(window),))[1]
    step = 1e-6
    slope = (function(x, weight, window + step) - function(x, weight, window - step)) / (2 * step)
    torch.testing.assert_close(tangent, slope, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_at_odd_whole_sizes_it_is_the_integer_window(dtype):
    tolerance = {torch.float64: 1e-11, torch.float32: 3e-6}.get(dtype, 3e-2)
    x, weight, bias, grad = tensors(2, 6, 12, 10, dtype)
    for window in ((1, 1), (3, 5), (11, 9), (227, 3), (99, 99)):
        fixed = LocalContextNorm(6, 3, window, EPS)
        learned = LearnedContextNorm(6, 3, window, EPS)
        ours, theirs = (
            outputs(
                lambda x, w, b, norm=norm: torch.func.functional_call(
                    norm, {"weight": w, "bias": b}, (x,)
                ),
                x, weight.float(), bias.float(), grad,
            )
            for norm in (learned, fixed)
        )  # fmt: skip
        assert ours[0].dtype == dtype
        assert_same(ours, theirs, tolerance)


def test_a_window_beyond_the_map_can_only_shrink():
    x, weight, bias, grad = tensors(1, 2, 6, 7)
    beyond = torch.tensor([50.0, 50.0], dtype=torch.float64, requires_grad=True)
    inside = torch.tensor([6 - 1e-6, 7 - 1e-6], dtype=torch.float64, requires_grad=True)
    for sign in (1, -1):
        found = []
        for window in (beyond, inside):
            y = local_context_norm(x, weight, bias, channels_per_group=2, window=window, eps=EPS)
            found.append(torch.autograd.grad((sign * y * grad).sum(), window)[0])
        torch.testing.assert_close(found[0], found[1].clamp(min=0), atol=1e-5, rtol=1e-4)
    below = torch.tensor([0.5, 0.5], dtype=torch.float64, requires_grad=True)
    y = local_context_norm(x, weight, bias, channels_per_group=2, window=below, eps=EPS)
    ours = torch.autograd.grad((y * grad).sum(), below)[0]
    assert (ours <= 0).all()


def test_what_the_loops_give_up_on_is_done_in_plain_torch():
    x, weight, bias, grad = tensors(2, 4, 9, 8, torch.float32)
    x[1, 2, 4, 4] = math.nan
    ours = outputs(layer(2, [(2.5, 3.5)] * 2), x, weight, bias, grad)
    clean = x.nan_to_num()
    theirs = outputs(lambda *t: brute_force(*t, 2, [(2.5, 3.5)]), clean, weight, bias, grad)
    for result, exact in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(result[0], exact[0].float(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(result[1, :2], exact[1, :2].float(), atol=1e-5, rtol=1e-4)
    assert ours[0][1, 2:].isnan().any()


@pytest.mark.parametrize("per_group", [False, True])
def test_the_layer_learns_a_window_and_keeps_it(per_group):
    torch.manual_seed(0)
    norm = LearnedContextNorm(4, 2, 5, EPS, window_per_group=per_group)
    assert norm.log_growth.shape == (2 if per_group else 1, 2)
    target, x = LocalContextNorm(4, 2, 11, EPS), torch.randn(4, 4, 24, 24).cumsum(-1)
    optimizer = torch.optim.Adam([norm.log_growth], lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        (norm(x) - target(x)).square().mean().backward()
        optimizer.step()
    assert norm.current_window() == pytest.approx((11, 11), abs=1.0)
    other = LearnedContextNorm(4, 2, 3, EPS, window_per_group=per_group)
    other.load_state_dict(norm.state_dict())
    assert torch.equal(other(x), norm(x))
    assert torch.equal(copy.deepcopy(norm)(x), norm(x))
    norm.reset_parameters()
    assert norm.current_window() == pytest.approx((5.0, 5.0))


def test_compiled_and_traced():
    torch.compiler.reset()
    norm, x = LearnedContextNorm(4, 2, 3.5), torch.randn(2, 4, 9, 8)
    expected = norm(x)
    gradients = torch.autograd.grad(expected.pow(3).sum(), norm.parameters())
    compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(
        torch.autograd.grad(compiled.pow(3).sum(), norm.parameters()), gradients
    )
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Identity(), norm))
    torch.testing.assert_close(traced(x), expected)
    window = torch.full((9, 8), 3)
    torch.testing.assert_close(norm(x, (window, window)), LocalContextNorm(4, 2, 3)(x))


def test_convert_and_audit_know_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    nn.init.normal_(model[1].weight)
    weight = model[1].weight.clone()
    convert_norm(model, {"name": "lcn_learned", "window": 5.5, "window_per_group": True})
    assert isinstance(model[1], LearnedContextNorm)
    assert torch.equal(model[1].weight, weight)
    (row,) = audit(model, (1, 3, 12, 12))
    assert (row.kind, row.window, row.windowed) == ("lcn_learned", (5.5, 5.5), True)
    convert_norm(model, {"name": "lcn", "windows": {"1": [5, 7]}})
    assert type(model[1]) is LocalContextNorm
    with pytest.raises(
        ValueError, match="window must be a number of at least 1 or a pair of them, got 'all'"
    ):
        build_norm({"name": "lcn_learned", "window": "all"})
    with pytest.raises(ValueError, match="window must be a number of at least 1"):
        LearnedContextNorm(4, window=0.5)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (torch.tensor([3, 3]), "must be of real numbers, got torch.int64"),
        (torch.ones(3, 2), r"must be \[2\] or \[groups, 2\], \(2,\) or \(2, 2\), got shape"),
        (torch.ones(2, device="meta"), "must be on the device of x, cpu, got meta"),
    ],
)
def test_wrong_windows_are_named(window, message):
    with pytest.raises(ValueError, match=message):
        local_context_norm(torch.randn(1, 4, 5, 6), channels_per_group=2, window=window)


DDP = """
    import os, sys, torch, torch.distributed as dist, torch.multiprocessing as mp
    from torch import nn
    from lcn import LearnedContextNorm

    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), LearnedContextNorm(4, 2, (5, 7)))

    def gradients_of(model, data):
        model.zero_grad()
        (model(data) * torch.linspace(-1, 1, 18)).square().mean().backward()
        return [p.grad.clone() for p in model.parameters()]

    def work(rank, port):
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        dist.init_process_group("gloo", rank=rank, world_size=2)
        torch.set_num_threads(1)
        data = torch.randn(3, 2, 2, 3, 20, 20, generator=torch.Generator().manual_seed(1))
        model, alone = nn.parallel.DistributedDataParallel(network()), network()
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.3) for m in (model, alone)]
        for step in range(3):
            ours = gradients_of(model, data[step, rank])
            parts = [gradients_of(alone, part) for part in data[step]]
            for gradient, one, other in zip(ours, *parts):
                torch.testing.assert_close(gradient, (one + other) / 2)
            for p, gradient in zip(alone.parameters(), ours):
                p.grad = gradient
            for optimizer in optimizers:
                optimizer.step()
        norm = model.module[1]
        assert norm.log_growth.abs().min() > 0, "windows stayed as they were"
        windows = norm.real_windows().detach()
        both = [torch.empty_like(windows) for _ in range(2)]
        dist.all_gather(both, windows)
        assert torch.equal(*both), both
        dist.destroy_process_group()

    if __name__ == "__main__":
        mp.start_processes(work, args=(sys.argv[1],), nprocs=2, start_method="fork")
        print("equal windows")
"""


def test_two_ddp_processes_average_the_windows_gradients_and_keep_equal_windows(tmp_path):
    assert run_two_processes(tmp_path, DDP) == "equal windows"
