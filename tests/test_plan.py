"""mode=plan: what it counts, against published counts, PyTorch's own counters and real steps."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import torch
from conftest import ROOT
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tasks.config import compose, options
from tasks.errors import InputError
from tasks.models import build_model
from tasks.modules.optimization import make_optimizer
from tasks.runs.plan import calibration, making, step
from tasks.runs.plan.cards import CARDS, SHORTEST_KERNEL, seconds, usable_bytes
from tasks.runs.plan.making import make_plan
from tasks.runs.plan.meter import Meter
from tasks.runs.plan.plan import Plan, duration, number, plan_text, table
from tasks.schema import RULES


def plan_of(*overrides: str) -> Plan:
    return make_plan(compose([*overrides, "mode=plan"]))


# From the papers and pages that introduced the networks, multiply-adds at 224 x 224: ResNet (He et
# al., 2016) and torchvision's tables; ResNet-50 in its form with the stride in the 3 x 3.
PUBLISHED = {"resnet18": 1.81e9, "resnet50": 4.09e9, "resnet101": 7.80e9, "vgg16": 15.47e9,
             "mobilenet_v2": 0.30e9}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_operations_of_a_forward_pass_are_the_published_ones(name):
    import torchvision

    with torch.device("meta"):
        model, image = getattr(torchvision.models, name)(), torch.empty(1, 3, 224, 224)
    meter = Meter()
    with meter:
        model.eval()(image)
    assert meter.flops / 2 == pytest.approx(PUBLISHED[name], rel=0.01)


def test_resnet50_has_4_1_billion_multiply_adds():
    cfg = compose(["task=imagenet", "norm=bn"])
    cfg.task.num_classes = cfg.task.outputs = 1000
    measured = step.fake_step(cfg, 1, on_gpu=True)
    assert measured.forward_flops / 2 == pytest.approx(4.09e9, rel=0.005)
    # Backward: as much for the weights, and for the inputs of all layers but the first.
    stem = 2 * 112 * 112 * 64 * 3 * 49
    assert measured.flops == 3 * measured.forward_flops - stem


@pytest.mark.parametrize(("name", "published"), [
    ("hrnetv2_w48", 696.2), ("hrnetv2_w18_small_v1", 31.1),
])  # fmt: skip
def test_operations_of_the_hrnets_are_those_of_their_authors(name, published):
    """Multiply-adds at 1024 x 2048, from the tables of HRNet-Semantic-Segmentation, whose summary
    divides by 1024 ** 3."""
    from tasks.models.hrnet import hrnetv2

    with torch.device("meta"):
        model, image = hrnetv2(name, 19), torch.empty(1, 3, 1024, 2048)
    meter = Meter()
    with meter, torch.no_grad():
        model.eval()(image)
    assert meter.flops / 2 / 1024**3 == pytest.approx(published, rel=0.01)


def test_a_step_counts_what_pytorchs_own_counter_does():
    cfg = compose(["experiment=table8_lcn", "data.crop=[64,64]", "data.batch_size=1"])
    model = build_model(cfg)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 4, 64, 64)).sum().backward()
    assert step.fake_step(cfg, 1, on_gpu=False).flops == counter.get_total_flops()


SMALL = {
    "cityscapes": ["experiment=table1_w18_lcn", "data.crop=[128,256]", "data.batch_size=2"],
    "imagenet": ["experiment=table6_bn", "data.crop=[96,96]", "data.batch_size=8"],
    "coco": ["experiment=table5_gn", "data.resize=[128,192]"],
    "inria": ["experiment=table7_lcn", "data.crop=[92,92]", "data.batch_size=2"],
    "chesapeake": ["experiment=table8_gn", "data.crop=[128,128]", "data.batch_size=2"],
    "camvid": ["experiment=camvid_ln", "data.crop=[64,64]", "data.batch_size=2"],
    "mixed precision": ["experiment=table8_gn", "data.crop=[128,128]", "data.batch_size=2",
                        "trainer.precision=bf16-mixed"],
}  # fmt: skip


def test_memory_is_compared_for_every_task():
    assert set(options("task")) <= set(SMALL)


SLOW = ("imagenet", "coco", "camvid", "mixed precision")
EACH = [pytest.param(t, marks=[pytest.mark.slow] if t in SLOW else []) for t in SMALL]


@pytest.mark.parametrize("task", EACH)
def test_planned_memory_is_what_a_real_step_allocates(task):
    """The CPU allocator's own record (torch.profiler), building the network included."""
    cfg = making._samples(compose([*SMALL[task], "trainer=cpu"])).cfg
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        positives = two_real_steps(cfg)
    if positives is not None:
        cfg.plan.positives = positives
    planned = step.fake_step(cfg, cfg.data.batch_size, on_gpu=False)
    peak, allocated = max(planned.activations_peak, planned.update_peak), allocated_peak(profiled)
    print(f"{task}: {peak / 2**20:.1f} MiB planned, {allocated / 2**20:.1f} MiB allocated")
    assert peak == pytest.approx(allocated, rel=0.1)


def two_real_steps(cfg) -> int | None:
    """Trains on random data; the regions of an image that a detector's mask head saw at the end."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    loss_of = calibration.training_loss(cfg, model)
    optimizer = make_optimizer(model, cfg, cfg.data.batch_size, 1000)["optimizer"]
    batch = step.random_batch(cfg, cfg.data.batch_size, torch.device("cpu"))
    seen: list[int] = []
    if cfg.task.kind == "detection":
        head = model.roi_heads.mask_head
        head.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    for _ in range(2):
        with step.autocast(cfg.trainer.precision, "cpu"):
            loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return seen[-1] // cfg.data.batch_size if seen else None


def allocated_peak(profiled: profile) -> int:
    """The most bytes that were allocated at once, from the first event on."""
    events, live, peak = [], 0, 0
    nodes = list(profiled.profiler.kineto_results.experimental_event_tree())
    while nodes:
        node = nodes.pop()
        nodes += node.children
        if node.tag == _EventType.Allocation:
            events.append((node.start_time_ns, node.extra_fields.alloc_size))
    for _, size in sorted(events):
        live += size
        peak = max(peak, live)
    return peak


def test_the_largest_batch_fits_and_one_more_does_not():
    cfg = compose(["experiment=table8_gn", "data.batch_size=4", "mode=plan"])
    plan = make_plan(cfg)
    most = plan.largest[40]
    peaks = [step.fake_step(cfg, n, on_gpu=True).activations_peak for n in (most, most + 1)]
    assert peaks[0] <= usable_bytes(40) < peaks[1]


def test_windows_and_groups_change_neither_operations_nor_memory():
    """What lets rows of a table share a step."""
    cfg = compose(["experiment=table8_lcn", "data.crop=[64,64]"])
    other = compose(["experiment=table8_lcn", "norm.window=9", "norm.c_group=2",
                     "data.crop=[64,64]"])  # fmt: skip
    first, second = (step._measure(c, 1, True) for c in (cfg, other))
    assert first.flops == second.flops
    assert first.activations_peak == pytest.approx(second.activations_peak, rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["brn", "lcn_released", "lcn_tiled", "pn", "lrn", "contrast"])
def test_every_norm_can_be_planned(norm):
    cfg = compose(["task=chesapeake", f"norm={norm}", "data.crop=[64,64]"])
    assert step.fake_step(cfg, 2, on_gpu=True).activations_peak > 2 * 64 * 64 * 64 * 4


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "64-true"])
def test_precision_changes_memory(precision):
    small = ["experiment=table8_bn", "data.crop=[64,64]"]
    cfg, other = (compose([*small, f"trainer.precision={p}"]) for p in ("32-true", precision))
    ratio = step.fake_step(other, 8, True).activations_peak
    ratio /= step.fake_step(cfg, 8, True).activations_peak
    assert ratio > 1.5 if precision == "64-true" else 0.5 < ratio < 1


def test_steps_and_samples_are_the_protocols():
    plan = plan_of("experiment=table1_w18_gn")
    assert (plan.devices, plan.batch_size, plan.steps) == (4, 4, 2975 // 16 * 484)
    assert plan.parameters == 1_540_819
    assert not plan.is_ready  # there is no data
    assert [check.what for check in plan.checks if not check.ok] == ["data"]


def test_steps_end_where_the_protocol_ends_them():
    cfg = compose(["experiment=table5_gn"])
    assert making._steps(cfg, 117_266, batches=4) == (13, 360_000)
    assert making._steps(cfg, 1_000, batches=4) == (13, 250 * 13)


@pytest.mark.parametrize(("overrides", "missing"), [
    (["trainer.devices=2"], "batch"),
    (["trainer.precision=bf16-mixed", "plan.device=h100", "data.batch_size=1"], None),
    (["trainer.precision=bf16-mixed", "plan.device=t4"], "precision"),
    (["plan.device=t4"], "memory"),
])  # fmt: skip
def test_the_checklist_names_what_is_missing(overrides, missing):
    plan = plan_of("experiment=table8_gn", *overrides)
    found = {check.what for check in plan.checks if not check.ok} - {"data"}
    assert found == {missing} - {None} if missing != "precision" else "precision" in found


def test_a_full_disk_is_named(monkeypatch):
    usage = type("Usage", (), {"free": 10**6})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    checks = {check.what: check for check in plan_of("experiment=table8_gn").checks}
    assert not checks["disk"].ok
    assert "0.0 GB free" in checks["disk"].note


def test_a_card_needs_the_longest_of_arithmetic_memory_and_launch():
    card = CARDS["a100"]  # 156e12 operations and 1555e9 bytes a second
    assert seconds({(156 * 10**12, 0): 1}, card, "32-true") == 1
    assert seconds({(0, 1555 * 10**9): 2}, card, "32-true") == 2
    assert seconds({(1, 1): 3}, card, "32-true") == pytest.approx(3 * SHORTEST_KERNEL)


def test_every_card_can_be_asked_for():
    assert all(RULES["plan.device"].allows(card) for card in CARDS)
    assert RULES["plan.device"].words == " or ".join(CARDS) + ", or null"


def test_plan_keys_change_no_runs_name():
    from tasks.identity import run_identity

    base = compose(["experiment=table1_w18_lcn"])
    other = compose(["experiment=table1_w18_lcn", "plan.device=t4", "plan.objects=3", "mode=plan"])
    assert run_identity(base, "data", 16) == run_identity(other, "data", 16)


def test_numbers_have_three_digits_and_a_unit():
    assert [number(v) for v in (12, 1_540_819, 2.2416e12, 1.97e18)] == [
        "12", "1.54 M", "2.24 T", "1.97 E",
    ]  # fmt: skip
    assert [duration(s) for s in (0.1164, 2.5)] == ["116 ms", "2.50 s"]


def test_text_and_table_are_aligned_and_short():
    plan = plan_of("experiment=table8_gn", "plan.device=t4")
    text = plan_text(plan)
    assert all(len(line) <= 140 for line in text.splitlines())
    assert "GPU-hours" in text
    assert "assumed utilization" in text
    lines = table([plan, Plan.from_dict(json.loads(json.dumps(asdict(plan))))]).splitlines()
    assert lines[1] == lines[2]


def test_a_network_that_cannot_be_built_or_run_is_named():
    with pytest.raises(InputError, match="groups must divide the 64 channels, got 7"):
        plan_of("task=inria", "norm=gn", "norm.groups=7")
    with pytest.raises(InputError, match=r"unet_slim with gn does not run on 96 x 8 x 8: "):
        plan_of("experiment=table8_gn", "data.crop=[8,8]")


def test_planning_writes_nothing_and_leaves_with_2_until_all_is_there(train, tmp_path):
    done = train("experiment=table8_gn", "mode=plan", "data.root=nowhere", "plan.device=h100")
    assert done.returncode == 2
    assert done.stderr == ""
    assert "NO  data       Chesapeake land cover not found" in done.stdout
    assert done.stdout.endswith("not ready: 1 of 5 missing\n")
    assert not (tmp_path / "runs").exists()


def test_a_miniature_is_planned_but_not_generated_and_a_sweep_is_a_table(train, tmp_path):
    done = train("-m", "task=chesapeake", "norm=gn", "seed=0,1", "data=mini", "mode=plan",
                 f"data.root={tmp_path / 'm'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "m").exists()
    assert "2 rows" in done.stdout
    assert done.stdout.splitlines()[0].split()[:3] == ["run", "params", "batch"]


def test_the_long_miniature_is_planned_for_its_own_epochs(tmp_path):
    short, long = (
        plan_of("experiment=table7_gn", f"data={data}", f"data.root={tmp_path}", "trainer=cpu")
        for data in ("mini", "mini_long")
    )
    assert (short.epochs, long.epochs) == (10, 50)
    assert long.steps == 5 * short.steps
    (data,) = [check for check in long.checks if check.what == "data"]
    assert data.note == "the first run generates the miniature"


def test_a_device_waits_for_what_reading_takes_longer_than_its_step(monkeypatch):
    class Slow:
        def __init__(self, cfg, datasets):
            assert cfg.data.workers == 0  # one process is measured

        def train_dataloader(self):
            for _ in range(4):
                time.sleep(0.01)
                yield {}

    monkeypatch.setattr(calibration, "DataModule", Slow)
    cfg = compose(["task=camvid", "data.workers=2"])
    for processes, seconds_of_step, least, most in (
        (0, 9.0, 0.01, 1.0),  # read in turns with the steps
        (2, 0.0, 0.005, 1.0),  # two processes share it
        (2, 9.0, 0.0, 0.0),  # read while the device works
    ):
        monkeypatch.setattr(calibration, "loading_processes", lambda cfg, n=processes: n)
        assert least <= calibration.waiting_seconds(cfg, None, seconds_of_step) <= most


@pytest.mark.slow
def test_all_published_rows_are_planned_in_two_minutes(train):
    """The limit is on the processor's time, which other work on the machine does not change."""
    before = os.times()
    done = train("-m", "experiment=glob(table*)", "mode=plan", "data.root=nowhere",
                 env={"OMP_NUM_THREADS": "1"}, timeout=900)  # fmt: skip
    after = os.times()
    assert done.returncode == 2
    assert "36 rows" in done.stdout
    spent = after.children_user + after.children_system
    assert spent - before.children_user - before.children_system < 120


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["table8_gn", "table1_w18_lcn"])
def test_a_measured_step_predicts_a_short_run(experiment, tmp_path):
    """Samples a second in a miniature's training, reading included, at most 15 % from the plan's.

    Measured before and after the run, because a machine with other work changes its speed.
    """
    overrides = [f"experiment={experiment}", "data=mini", "trainer=cpu", f"runs={tmp_path}",
                 "trainer.max_epochs=3", "data.eval_every=100"]  # fmt: skip
    command = [sys.executable, "train.py", *overrides]
    plans = [plan_of(*overrides, "plan.calibrate=true")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    plans.append(plan_of(*overrides, "plan.calibrate=true"))
    (result,) = tmp_path.rglob("result.json")
    measured = json.loads(result.read_text())["samples_per_second"]
    planned = sum(plan.batch_size / plan.step_seconds for plan in plans) / 2
    print(f"{experiment}: {planned:.1f} samples a second planned, {measured:.1f} measured")
    assert planned == pytest.approx(measured, rel=0.15)
