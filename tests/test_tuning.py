"""Memory format and compiled code of a network: the same numbers, but for rounding."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lcn import build_norm
from tasks.config import compose, options
from tasks.errors import InputError
from tasks.models import build_model
from tasks.models.unet import extended
from tasks.runs.plan.calibration import training_loss
from tasks.runs.plan.step import random_batch
from tasks.runs.training import tune


def config(*overrides):
    return compose(["experiment=table8_lcn", "data=mini", "trainer=cpu", *overrides])


def is_channels_last(model):
    kernels = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    return all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels)


@pytest.mark.parametrize(("asked", "expected"), [("auto", True), ("true", True), ("false", False)])
def test_a_cpu_takes_channels_last_unless_told_otherwise(asked, expected):
    cfg = config(f"trainer.channels_last={asked}")
    model = build_model(cfg)
    tune(cfg, model)
    assert is_channels_last(model) is expected


def test_channels_last_changes_nothing_but_rounding():
    cfg = config("norm.c_group=4", "norm.window=5")
    torch.manual_seed(0)
    plain = build_model(cfg).double()
    tuned = copy.deepcopy(plain)
    tune(cfg, tuned)
    x = torch.randn(2, 4, 48, 32, dtype=torch.float64)
    for model in (plain, tuned):
        model(x).square().mean().backward()
    for ours, theirs in zip(tuned.parameters(), plain.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() <= 1e-8 * theirs.grad.abs().max()


def block(norm):
    """A norm between convolutions, eight groups of two channels."""
    torch.manual_seed(0)
    configuration = {"name": norm}
    if norm == "gn":
        configuration["groups"] = 8
    if norm.startswith("lcn"):
        configuration |= {"c_group": 2, "window": 5}
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), build_norm(configuration)(16), nn.ReLU(), nn.Conv2d(16, 2, 1)
    )


def assert_same(eager, compiled, x):
    """The same result and gradients but for rounding."""
    results = []
    for model in (eager, compiled):
        y = model(x)
        y.square().sum().backward()
        results.append((y, *(p.grad for p in model.parameters())))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("norm", "channels_last"), [*((norm, False) for norm in options("norm")), ("lcn", True)]
)
def test_no_norm_breaks_the_graph(norm, channels_last):
    torch.compiler.reset()
    eager = block(norm)
    if channels_last:
        eager = eager.to(memory_format=torch.channels_last)
    compiled = copy.deepcopy(eager)
    compiled.compile(fullgraph=True, backend="aot_eager")
    assert_same(eager, compiled, torch.randn(2, 3, 14, 13))


def test_without_a_compiler_one_message(monkeypatch):
    cfg = config("trainer.compile=true")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler"):
        tune(cfg, build_model(cfg))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("experiment", ["table1_w18_lcn", "table6_lcn", "table7_lcn", "table8_lcn"])
def test_compiled_in_channels_last_a_network_gives_what_it_gave(experiment, precision):
    overrides = [f"experiment={experiment}", "data=mini", "trainer=cpu"]
    cfg = compose([*overrides, "trainer.compile=true", f"trainer.precision={precision}"])
    torch.manual_seed(0)
    plain = build_model(cfg)
    tuned = copy.deepcopy(plain)
    tune(cfg, tuned)
    x = torch.randn(2, len(cfg.task.bands), 64, 64)
    results = []
    for model in (plain, tuned):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
            y = model(x)
        y.float().square().mean().backward()
        results.append(y.detach().float())
    tolerance = 2e-3 if precision == "32-true" else 0.1
    assert (results[0] - results[1]).abs().max() <= tolerance * results[0].abs().max()


@pytest.mark.parametrize(
    "task",
    [
        "inria",
        *(pytest.param(t, marks=pytest.mark.slow) for t in ("chesapeake", "imagenet", "coco")),
        *(pytest.param(t, marks=pytest.mark.slow) for t in ("cityscapes", "camvid")),
    ],
)
def test_compiled_in_channels_last_and_bfloat16_every_task_trains(task, monkeypatch):
    """Without code from a C++ compiler, which takes minutes; graph breaks are errors."""
    torch.compiler.reset()
    compiled = functools.partialmethod(nn.Module.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(nn.Module, "compile", compiled)
    losses = []
    for tuned in (False, True):
        cfg = compose(
            [f"task={task}", "norm=lcn", "trainer=cpu", f"trainer.compile={tuned}",
             f"trainer.channels_last={tuned}", "data.batch_size=2", "data.width=0.25",
             *(["data=mini"] if task != "camvid" else [])]
        )  # fmt: skip
        if cfg.task.num_classes is None:
            cfg.task.class_names, cfg.task.num_classes, cfg.task.outputs = ["a", "b"], 2, 2
        torch.manual_seed(0)
        model = build_model(cfg).train()
        loss_of = training_loss(cfg, model)
        batch = random_batch(cfg, 2, torch.device("cpu"))
        torch.manual_seed(1)  # what a detector chooses
        with torch.autocast("cpu", torch.bfloat16, enabled=tuned):
            loss = loss_of(batch)
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients
        assert all(gradient.isfinite().all() for gradient in gradients)
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_gradient_checkpointing_by_the_line_of_the_docs_changes_no_bit():
    cfg = config("norm.c_group=4", "norm.window=5")
    torch.manual_seed(0)
    plain = build_model(cfg)
    saving = copy.deepcopy(plain)
    for block in saving.modules():
        if isinstance(block, nn.Sequential):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    x, kept, results = torch.randn(2, 4, 64, 64), [], []
    for model in (plain, saving):
        tensors = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, tensors=tensors: tensors.setdefault(t.untyped_storage().data_ptr(), t),
            lambda t: t,
        ):
            y = model(x)
        kept.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors.values()))
        y.square().mean().backward()
        results.append((y, *(parameter.grad for parameter in model.parameters())))
    assert kept[1] < 0.5 * kept[0]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


class Extending(nn.Module):
    """Convolutions around a map that is extended, as where a U-Net's side is odd."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        return self.last(extended(self.first(x).relu(), 1, 1))


@pytest.mark.slow
def test_a_u_net_of_odd_sides_is_compiled_in_channels_last():
    torch.compiler.reset()
    torch.manual_seed(0)
    eager = Extending().to(memory_format=torch.channels_last)
    compiled = copy.deepcopy(eager)
    compiled.compile(fullgraph=True)
    assert_same(eager, compiled, torch.randn(2, 3, 11, 10))
