"""A window per point, against loops over every cell that share no code with the kernels."""

import math

import pytest
import torch
from test_layer import assert_same, outputs, rows_of_window, tensors
from torch import nn
from torch.func import grad, jvp, vmap

from lcn import LocalContextNorm, TiledLocalContextNorm, audit
from lcn.functional import local_context_norm
from lcn.kernels import per_point_cpu

EPS = 1e-2
BACKENDS = ("reference", "cpu")
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
}


def brute_force(x, weight, bias, channels_per_group, window, eps=EPS):
    """Loops over every cell; float64; plain indexing."""
    n, c, h, w = x.shape
    p, q = (side.expand(n, h, w).tolist() for side in window)
    x, weight, bias = x.double(), weight.double(), bias.double()
    cells = []
    for sample in range(n):
        for channel in range(c):
            first = channel // channels_per_group * channels_per_group
            group = x[sample, first : first + channels_per_group]
            for i in range(h):
                for j in range(w):
                    rows = rows_of_window("centered", i, h, p[sample][i][j])
                    columns = rows_of_window("centered", j, w, q[sample][i][j])
                    values = group[:, rows.start : rows.stop, columns.start : columns.stop]
                    std = ((values - values.mean()).square().mean() + eps).sqrt()
                    normed = (x[sample, channel, i, j] - values.mean()) / std
                    cells.append(normed * weight[channel] + bias[channel])
    return torch.stack(cells).reshape(n, c, h, w)


def windows(*shape, most=None, dtype=torch.int64):
    """p and q of 1 to a little more than the map."""
    generator = torch.Generator().manual_seed(sum(shape))
    most = most or max(shape[-2:]) + 3
    return tuple(torch.randint(1, most, shape, generator=generator).to(dtype) for _ in range(2))


def layer(channels_per_group, window, backend="auto", eps=EPS):
    return lambda x, weight, bias: local_context_norm(
        x,
        weight,
        bias,
        channels_per_group=channels_per_group,
        window=window,
        eps=eps,
        backend=backend,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    ("n", "c", "per_group", "h", "w"),
    [(1, 1, 1, 1, 1), (2, 4, 2, 1, 7), (1, 3, 3, 6, 1), (2, 6, 3, 7, 9), (3, 2, 1, 9, 6)],
)
def test_forward_and_backward_equal_brute_force(backend, own, n, c, per_group, h, w):
    given = tensors(n, c, h, w)
    window = windows(*(n,) * own, h, w)
    expected = outputs(lambda *t: brute_force(*t, per_group, window), *given)
    assert_same(outputs(layer(per_group, window, backend), *given), expected, 1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_dtype(backend, dtype):
    given = tensors(2, 4, 6, 11, dtype, offset=3.0)
    window = windows(2, 6, 11, dtype=torch.int32)
    ours = outputs(layer(2, window, backend), *given)
    assert ours[0].dtype == ours[1].dtype == dtype
    assert_same(ours, outputs(lambda *t: brute_force(*t, 2, window), *given), TOLERANCE[dtype])


def test_the_same_window_everywhere_is_the_layer_s_own():
    given = tensors(2, 6, 12, 10, torch.float32)
    for p, q in ((1, 1), (3, 5), (4, 10), (12, 3), (12, 10)):
        window = torch.full((12, 10), p), torch.full((12, 10), q)
        assert_same(
            outputs(layer(3, window), *given), outputs(layer(3, (p, q)), *given), tolerance=2e-6
        )


def holders(window, place, h, w):
    """Cells whose window holds ``place``, and cells that lie in a window which holds it."""
    hold, touched = torch.zeros(2, h, w, dtype=torch.bool)
    for i in range(h):
        for j in range(w):
            rows = rows_of_window("centered", i, h, int(window[0][i, j]))
            columns = rows_of_window("centered", j, w, int(window[1][i, j]))
            if place[0] in rows and place[1] in columns:
                hold[i, j] = True
                touched[rows.start : rows.stop, columns.start : columns.stop] = True
    return hold, touched


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_value_stays_within_the_windows_that_hold_it(backend, dtype, value):
    x, weight, bias, g = tensors(1, 4, 9, 12, dtype)
    window = windows(9, 12, most=5)
    expected = outputs(lambda *t: brute_force(*t, 2, window), x, weight, bias, g)
    for place in ((0, 0), (4, 6), (8, 11)):
        spoiled = x.clone()
        spoiled[0, 1, place[0], place[1]] = value
        ours = outputs(layer(2, window, backend), spoiled, weight, bias, g)
        for result, exact, of_place in zip(
            ours[:2], expected[:2], holders(window, place, 9, 12), strict=True
        ):
            assert torch.equal(result[0, 2:].isfinite(), torch.ones(2, 9, 12, dtype=torch.bool))
            inside, clear = result[0, :2, of_place], ~of_place
            if not math.isfinite(value):
                assert not inside[0].isfinite().any()
            error = (result[0, :2, clear].double() - exact[0, :2, clear].double()).abs().max()
            assert error <= TOLERANCE[dtype] * exact.abs().max().clamp(min=1), place


@pytest.mark.parametrize("most", [3, 40])
def test_flat_and_steep_parts_of_a_map_keep_their_digits(most):
    """Windows that are summed again cell by cell, and those that plain PyTorch does."""
    x, weight, bias, g = tensors(1, 2, 40, 36, torch.float32)
    x[..., :18] *= 1e-3
    x[..., 20:] = x[..., 20:] * 1e3 + 1e4
    window = windows(40, 36, most=most)
    expected = outputs(layer(2, window, "reference", 1e-9), x.double(), weight, bias, g)
    ours = outputs(layer(2, window, eps=1e-9), x, weight, bias, g)
    for result, exact in zip(ours[:2], expected[:2], strict=True):
        for part in (slice(0, 16), slice(22, 36)):
            scale = exact[..., part].abs().max()
            error = (result[..., part].double() - exact[..., part]).abs().max() / scale
            assert error < 2e-5


def test_derivatives_of_derivatives_and_transforms():
    x, weight, bias, _ = tensors(2, 4, 5, 4)
    window = windows(5, 4)
    ours, witness = layer(2, window), lambda *t: brute_force(*t, 2, window)
    given = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(ours, given)
    assert torch.autograd.gradgradcheck(ours, given)
    with torch.no_grad():
        tangents = tuple(t.cos() for t in given)
        torch.testing.assert_close(
            jvp(ours, tuple(given), tangents), jvp(witness, tuple(given), tangents)
        )
        batch = torch.stack([x, 2 * x])
        one_by_one = torch.stack([ours(sample, weight, bias) for sample in batch])
        torch.testing.assert_close(vmap(ours, (0, None, None))(batch, weight, bias), one_by_one)
    per_sample = vmap(grad(lambda s: ours(s[None], weight, bias).pow(3).sum()))(x)
    together = grad(lambda x: ours(x, weight, bias).pow(3).sum())(x)
    torch.testing.assert_close(per_sample, together)


class Masked(nn.Module):
    """Windows that follow a mask, which is an input too."""

    def __init__(self):
        super().__init__()
        self.norm = LocalContextNorm(4, 2, 7)

    def forward(self, x, mask):
        side = torch.where(mask, 3, 7)
        return self.norm(x, window=(side, side))


def test_compiled_exported_and_traced():
    torch.compiler.reset()
    model, mask = Masked(), torch.rand(9, 8) > 0.5
    x = torch.randn(2, 4, 9, 8, requires_grad=True)
    expected = model(x, mask)
    (dx,) = torch.autograd.grad(expected.pow(3).sum(), x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x, mask)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(torch.autograd.grad(compiled.pow(3).sum(), x)[0], dx)
    exported = torch.export.export(model, (x.detach(), mask)).module()
    torch.testing.assert_close(exported(x, mask), expected)
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x, mask), expected)
    alone = torch.fx.symbolic_trace(model.norm)
    torch.testing.assert_close(alone(x), model.norm(x))
    side = torch.where(mask, 3, 7)
    torch.testing.assert_close(alone(x, (side, side)), expected)


def test_the_operator_s_own_checks():
    x, weight, bias, _ = tensors(2, 4, 5, 6, torch.float32)
    inputs = (x.requires_grad_(), weight, bias, *windows(5, 6), 2, EPS, "auto")
    operator = torch.ops.lcn.local_context_norm_per_point.default
    torch.library.opcheck(operator, inputs, test_utils=("test_schema", "test_faketensor"))


def test_a_map_without_a_batch_and_other_layouts():
    x, weight, bias, _ = tensors(2, 4, 7, 6, torch.float32)
    window = windows(7, 6)
    expected = layer(2, window)(x, weight, bias)
    torch.testing.assert_close(layer(2, window)(x[0], weight, bias), expected[0])
    last = layer(2, window)(x.contiguous(memory_format=torch.channels_last), weight, bias)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, expected)
    assert layer(2, window)(x[:0], weight, bias).shape == (0, 4, 7, 6)


def test_reach_is_unlimited_where_windows_are_computed():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = LocalContextNorm(4, 2, 7)

        def forward(self, x):
            side = torch.full(x.shape[2:], 3)
            return self.norm(x, window=(side, side))

    found = audit(Network(), (1, 4, 16, 16)).network
    assert (found.reach, found.unlimited_by, found.unknown) == ((math.inf,) * 2, ("norm",), ())


LARGE = torch.ones(5, 6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ((LARGE, 3), "q must be a tensor of whole numbers, got int"),
        ((LARGE, LARGE.float()), r"q must be a tensor of whole numbers, got torch.float32"),
        ((LARGE.bool(), LARGE), r"p must be a tensor of whole numbers, got torch.bool"),
        ((LARGE[:4], LARGE), r"p must be \[H, W\] or \[N, H, W\] of x, \(5, 6\) or \(2, 5, 6\)"),
        ((LARGE, LARGE.expand(3, 5, 6)), r"got shape \(3, 5, 6\)"),
        ((LARGE.to("meta"), LARGE), "p must be on the device of x, cpu, got meta"),
        ((LARGE, LARGE - 1), "q must be at least 1 everywhere, got 0"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_wrong_windows_are_named(window, message, backend):
    with pytest.raises(ValueError, match=message):
        layer(2, window, backend)(torch.randn(2, 4, 5, 6), None, None)


def test_other_rules_have_no_window_per_point():
    with pytest.raises(ValueError, match="needs the rule 'centered', got 'tiled'"):
        TiledLocalContextNorm(4, 2)(torch.randn(1, 4, 5, 6), window=(LARGE, LARGE))


def test_planes_are_handed_over_only_where_digits_would_be_lost(monkeypatch):
    handed_over = []
    run = per_point_cpu.run_loops

    def spied(*arguments, **given):
        handed_over.append(run(*arguments, **given))
        return handed_over[-1]

    monkeypatch.setattr(per_point_cpu, "run_loops", spied)
    x, weight, bias, g = tensors(2, 4, 30, 40, torch.float32)
    x[0, 0, :10] = 2.0  # flat
    outputs(layer(2, windows(30, 40)), x, weight, bias, g)
    assert [len(planes) for planes in handed_over] == [0, 0]
    x[1, 2, 3, 3] = math.nan
    outputs(layer(2, windows(30, 40)), x, weight, bias, g)
    assert [planes.tolist() for planes in handed_over[2:]] == [[3], [3]]
