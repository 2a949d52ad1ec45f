"""Positional, local response and local contrast normalization, and batch renormalization."""

import copy
import math
from pathlib import Path

import pytest
import torch
from conftest import run_two_processes
from omegaconf import OmegaConf
from torch import nn

from lcn import audit, build_norm, convert_norm
from lcn.batch_renorm import BatchRenorm2d
from lcn.siblings import LocalContrastNorm, LocalResponseNorm, PositionalNorm

ROOT = Path(__file__).resolve().parent.parent
LAYERS = {
    "pn": lambda: PositionalNorm(6),
    "lrn": lambda: LocalResponseNorm(6),
    "contrast": lambda: LocalContrastNorm(6, 5),
    "brn": lambda: BatchRenorm2d(6, warmup_steps=0, r_steps=1, d_steps=1),
}


def with_affine(layer):
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return layer


# Against their definitions, number by number


def test_pn_normalizes_the_channels_of_each_place():
    torch.manual_seed(0)
    layer = with_affine(PositionalNorm(6).double())
    x = torch.randn(2, 6, 3, 4).double() * 5 + 2
    y = layer(x)
    for n, i, j in [(0, 0, 0), (1, 2, 3), (0, 1, 2)]:
        place = x[n, :, i, j].tolist()
        mean = sum(place) / 6
        std = math.sqrt(sum((v - mean) ** 2 for v in place) / 6 + 1e-5)
        for c in range(6):
            expected = (place[c] - mean) / std * layer.weight[c] + layer.bias[c]
            assert y[n, c, i, j].item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(layer(x[0]), y[0])


@pytest.mark.parametrize("size", [1, 4, 5, 9])
def test_lrn_is_that_of_krizhevsky_and_of_pytorch(size):
    torch.manual_seed(0)
    alpha, beta, k = 0.3, 0.75, 2.0
    layer = LocalResponseNorm(6, size, alpha, beta, k)
    x = torch.randn(2, 6, 3, 4).double()
    y = layer(x)
    torch.testing.assert_close(y, nn.LocalResponseNorm(size, alpha, beta, k)(x))
    for c in range(6):
        around = x[:, max(0, c - size // 2) : c + (size - 1) // 2 + 1]
        # Their alpha is of the sum, ours and PyTorch's of the mean.
        expected = x[:, c] / (k + alpha / size * around.square().sum(1)) ** beta
        torch.testing.assert_close(y[:, c], expected)
    default = LocalResponseNorm(6)
    assert (default.size, default.alpha / default.size, default.beta, default.k) == (
        5,
        pytest.approx(1e-4),
        0.75,
        2.0,
    )


@pytest.mark.parametrize(("size", "sigma"), [(3, None), (5, 0.8), (9, None)])
def test_contrast_is_equation_1(size, sigma):
    torch.manual_seed(0)
    n, channels, h, w = 2, 3, 6, 7
    x = torch.randn(n, channels, h, w).double() * 3 + 1
    layer, half = LocalContrastNorm(channels, size, sigma), size // 2
    width = size / 4 if sigma is None else sigma

    def weighted(i, j, value):
        total = weights = 0.0
        for a in range(max(0, i - half), min(h, i + half + 1)):
            for b in range(max(0, j - half), min(w, j + half + 1)):
                weight = math.exp(-((a - i) ** 2 + (b - j) ** 2) / (2 * width**2))
                total, weights = total + weight * value(a, b), weights + weight
        return total / weights

    v, s = torch.empty_like(x), torch.empty(n, h, w).double()
    cells = [(m, i, j) for m in range(n) for i in range(h) for j in range(w)]
    for m, i, j in cells:
        for c in range(channels):
            v[m, c, i, j] = x[m, c, i, j] - weighted(i, j, lambda a, b, m=m, c=c: x[m, c, a, b])
    for m, i, j in cells:
        square = weighted(i, j, lambda a, b, m=m: v[m, :, a, b].square().mean())
        s[m, i, j] = math.sqrt(square + 1e-5)
    floor = s.mean((1, 2), keepdim=True)
    torch.testing.assert_close(layer(x), v / torch.maximum(s, floor)[:, None])


def test_contrast_of_a_constant_map_is_zero_and_can_be_differentiated():
    x = torch.full((1, 2, 12, 12), 7.0, requires_grad=True)
    y = LocalContrastNorm(2)(x)
    y.sum().backward()
    torch.testing.assert_close(y, torch.zeros_like(y), atol=1e-3, rtol=0)
    assert x.grad.isfinite().all()


def renormalized(x, weight, bias, mean, std, r_max, d_max, momentum, eps=1e-5):
    """Algorithm 1 of Ioffe, channel by channel."""
    y, means, stds = torch.empty_like(x), [], []
    for c in range(x.shape[1]):
        values = x[:, c]
        mean_b = values.mean()
        std_b = (eps + (values - mean_b).square().mean()).sqrt()
        r = min(max((std_b / std[c]).item(), 1 / r_max), r_max)
        d = min(max(((mean_b - mean[c]) / std[c]).item(), -d_max), d_max)
        y[:, c] = ((values - mean_b) / std_b * r + d) * weight[c] + bias[c]
        means.append(mean[c] + momentum * (mean_b.detach() - mean[c]))
        stds.append(std[c] + momentum * (std_b.detach() - std[c]))
    return y, torch.stack(means), torch.stack(stds)


def test_brn_is_algorithm_1_with_its_schedule():
    torch.manual_seed(0)
    layer = BatchRenorm2d(3, momentum=0.2, warmup_steps=2, r_steps=6, d_steps=4).double()
    with_affine(layer)
    mean, std = torch.zeros(3).double(), torch.ones(3).double() * math.sqrt(1 + 1e-5)
    seen = set()
    for step in range(8):
        r_max = [1, 1, 1, 1.5, 2, 2.5, 3, 3][step]
        d_max = [0, 0, 0, 2.5, 5, 5, 5, 5][step]
        x = torch.randn(2, 3, 4, 5).double() * torch.tensor([0.1, 1, 9])[:, None, None] + step
        x.requires_grad_()
        witness = x.detach().clone().requires_grad_()
        expected, mean, std = renormalized(
            witness, layer.weight, layer.bias, mean, std, r_max, d_max, 0.2
        )
        y = layer(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(layer.running_mean, mean)
        torch.testing.assert_close((layer.running_var + 1e-5).sqrt(), std)
        upstream = torch.randn_like(y)
        parameters = (layer.weight, layer.bias)
        ours = torch.autograd.grad(y, (x, *parameters), upstream)
        theirs = torch.autograd.grad(expected, (witness, *parameters), upstream)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
        plain = nn.functional.batch_norm(x, None, None, *parameters, training=True)
        seen.add(torch.allclose(y, plain))
        assert torch.allclose(y, plain) == (step <= 2)
    assert seen == {True, False}
    assert layer.num_batches_tracked == 8


def test_brn_in_evaluation_is_batch_norm_with_the_running_statistics():
    torch.manual_seed(0)
    layer = LAYERS["brn"]()
    for _ in range(3):
        layer(torch.randn(4, 6, 5, 5) * 3 + 1)
    batch_norm = nn.BatchNorm2d(6)
    batch_norm.load_state_dict(layer.state_dict())
    x = torch.randn(2, 6, 5, 5)
    before = layer.running_mean.clone()
    assert torch.equal(layer.eval()(x), batch_norm.eval()(x))
    assert torch.equal(layer.running_mean, before)


def test_the_schedule_of_brn_goes_on_from_a_checkpoint():
    torch.manual_seed(0)
    batches = [torch.randn(2, 6, 4, 4) * (i + 1) for i in range(6)]
    make = lambda: BatchRenorm2d(6, warmup_steps=1, r_steps=5, d_steps=4)  # noqa: E731
    whole = make()
    for x in batches[:3]:
        whole(x)
    resumed = make()
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for x in batches[3:]:
        assert torch.equal(whole(x), resumed(x))
    fresh = make()
    assert not torch.equal(fresh(batches[-1]), whole(batches[-1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"r_max": 0.5}, "r_max must be at least 1"),
        ({"d_max": -1}, "d_max 0"),
        ({"warmup_steps": 9, "r_steps": 3}, "warmup_steps must be at most"),
    ],
)
def test_bounds_of_brn_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchRenorm2d(6, **arguments)


DDP = """
    import os, sys, torch, torch.distributed as dist, torch.multiprocessing as mp
    from torch import nn
    from lcn.batch_renorm import BatchRenorm2d

    def layer():
        return BatchRenorm2d(3, momentum=0.5, warmup_steps=0, r_steps=2, d_steps=2)

    def work(rank, port):
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        dist.init_process_group("gloo", rank=rank, world_size=2)
        torch.set_num_threads(1)
        data = torch.randn(3, 2, 2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
        model = nn.parallel.DistributedDataParallel(layer())
        # A process goes on from the statistics of the first, with its own batch.
        first, own = layer(), layer()
        for step in range(3):
            own.load_state_dict(first.state_dict())
            y, expected = model(data[step, rank]), own(data[step, rank])
            assert torch.equal(y, expected), f"step {step} of process {rank}"
            y.sum().backward()
            first(data[step, 0])
        assert model.module.num_batches_tracked == 3
        dist.destroy_process_group()

    if __name__ == "__main__":
        mp.start_processes(work, args=(sys.argv[1],), nprocs=2, start_method="fork")
        print("same")
"""


def test_brn_trains_in_two_ddp_processes_as_batch_norm_does(tmp_path):
    assert run_two_processes(tmp_path, DDP) == "same"


# What all of them do inside PyTorch


@pytest.mark.parametrize("name", LAYERS)
class TestInsidePyTorch:
    def test_compile_in_one_graph(self, name):
        torch.compiler.reset()
        torch.manual_seed(0)
        layer = LAYERS[name]()
        compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
        for _ in range(2):
            x = torch.randn(2, 6, 7, 8)
            torch.testing.assert_close(compiled(x), layer(x))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("whole_layer", [True, False])
    def test_half_precision(self, name, dtype, whole_layer):
        torch.manual_seed(0)
        layer = LAYERS[name]()
        x = (torch.randn(2, 6, 7, 8) * 300).to(dtype)  # squares leave the range of float16
        expected = copy.deepcopy(layer)(x.float())
        y = layer.to(dtype)(x) if whole_layer else layer(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), expected, atol=0.05, rtol=0.02)

    def test_channels_last_stays_and_changes_no_number(self, name):
        torch.manual_seed(0)
        layer = LAYERS[name]().double().eval()
        x = torch.randn(2, 6, 7, 8).double()
        last = layer(x.contiguous(memory_format=torch.channels_last))
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert layer(x).is_contiguous()
        torch.testing.assert_close(last, layer(x))

    @pytest.mark.parametrize("shape", [(1, 6, 7, 8), (1, 6, 1, 2), (3, 6, 1, 9)])
    def test_small_batches_and_maps(self, name, shape):
        x = torch.randn(shape)
        y = LAYERS[name]()(x)
        assert y.shape == x.shape
        assert y.isfinite().all()

    def test_first_and_second_derivatives_against_finite_differences(self, name):
        torch.manual_seed(0)
        layer = with_affine(LAYERS[name]().double())
        if name == "brn":  # its forward changes its statistics, and r and d carry no gradient
            layer.eval()
            layer.running_var.fill_(3)
        x = torch.randn(1, 6, 3, 4).double().requires_grad_()
        torch.autograd.gradcheck(layer, x)
        torch.autograd.gradgradcheck(layer, x)

    def test_a_double_backward_in_training(self, name):
        torch.manual_seed(0)
        layer = LAYERS[name]()
        x = torch.randn(2, 6, 3, 4, requires_grad=True)
        [gradient] = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        gradient.square().sum().backward()
        assert x.grad.isfinite().all()

    def test_a_wrong_number_of_channels_is_refused(self, name):
        with pytest.raises((ValueError, RuntimeError)):
            LAYERS[name]()(torch.randn(2, 5, 7, 8))


# One switch


KIND = {"pn": PositionalNorm, "lrn": LocalResponseNorm, "contrast": LocalContrastNorm}
KIND["brn"] = BatchRenorm2d


@pytest.mark.parametrize("name", KIND)
def test_its_configuration_makes_it_with_the_defaults_of_the_class(name):
    config = OmegaConf.load(ROOT / "configs" / "norm" / f"{name}.yaml")
    assert repr(build_norm(config)(6)) == repr(KIND[name](6)) == repr(build_norm({"name": name})(6))
    lines = (ROOT / "configs" / "norm" / f"{name}.yaml").read_text().splitlines()
    assert all("#" in line for line in lines if not line.startswith("name:"))


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        ({"name": "lrn", "size": 0}, "norm.size must be an int of at least 1, got 0"),
        ({"name": "lrn", "alpha": "much"}, "norm.alpha must be a number of at least 0"),
        ({"name": "contrast", "size": 4}, "size must be a positive odd int, got 4"),
        ({"name": "brn", "r_steps": 1.5}, "norm.r_steps must be an int of at least 0"),
        ({"name": "pn", "size": 3}, "'size' does nothing for 'pn'; it takes eps"),
    ],
)
def test_a_wrong_value_is_named(norm, message):
    with pytest.raises(ValueError, match=message):
        build_norm(norm)(6)


@pytest.mark.parametrize("name", KIND)
def test_converting_to_it_and_back_keeps_weights_where_it_has_them(name):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    with_affine(model[1])
    weight = model[1].weight.detach().clone()
    convert_norm(model, {"name": name})
    assert type(model[1]) is KIND[name]
    if hasattr(model[1], "weight"):
        assert torch.equal(model[1].weight, weight)
    [row] = audit(model, (3, 32, 32))
    window = {"pn": (1, 1), "lrn": (1, 1), "contrast": (9, 9), "brn": None}[name]
    assert (row.kind, row.channels, row.window) == (name, 6, window)
    assert row.windowed == (name != "brn")
    convert_norm(model, {"name": "gn", "groups": 2})
    assert type(model[1]) is nn.GroupNorm
    expected = weight if name in ("pn", "brn") else torch.ones(6)
    assert torch.equal(model[1].weight, expected)


def test_brn_takes_over_the_statistics_of_batch_norm_and_gives_them_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(6, eps=1e-3))
    model(torch.randn(4, 6, 5, 5) + 2)
    mean, var = model[0].running_mean.clone(), model[0].running_var.clone()
    convert_norm(model, {"name": "brn", "r_max": 2.0, "momentum": 0.05})
    layer = model[0]
    assert (layer.r_max, layer.momentum, layer.eps) == (2.0, 0.05, 1e-3)
    assert torch.equal(layer.running_mean, mean)
    assert torch.equal(layer.running_var, var)
    assert layer.num_batches_tracked == 0
    convert_norm(model, {"name": "sync_bn"})
    assert torch.equal(model[0].running_var, var)
