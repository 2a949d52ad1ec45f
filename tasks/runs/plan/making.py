"""From a configuration to the plan of its training."""

import copy
import json
import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tasks import miniatures
from tasks.config import plain
from tasks.data import open_datasets, with_classes
from tasks.errors import InputError
from tasks.models import training_size
from tasks.protocol import accumulated_batches, norm_label, stand_in, task_facts
from tasks.runs.plan.calibration import STEPS, step_seconds, waiting_seconds
from tasks.runs.plan.cards import CARDS, GIB, seconds, usable_bytes
from tasks.runs.plan.checklist import checks
from tasks.runs.plan.plan import SIZES, Check, Plan
from tasks.runs.plan.step import Step, fake_step, network
from tasks.runs.training import world_size


def make_plan(cfg: DictConfig, data: Check | None = None) -> Plan:
    """What the training of a configuration needs. Nothing is trained, written or generated.

    Args:
        cfg: a checked configuration.
        data: whether the dataset is there, if that is known better than by opening it.

    Raises:
        InputError: the network cannot be built, or cannot run at this size.
    """
    samples = _samples(cfg)
    cfg = samples.cfg
    on_gpu = cfg.trainer.accelerator != "cpu"
    known = network(cfg)
    step = fake_step(cfg, cfg.data.batch_size, on_gpu)
    devices, devices_note = _devices(cfg)
    accumulate = accumulated_batches(cfg, devices)
    buckets = known.trained_bytes if devices > 1 else 0  # in which DDP averages gradients
    epochs, steps = _steps(cfg, samples.train, devices * accumulate)
    evaluated, evaluation = _evaluated(cfg, samples.evaluation, epochs)
    plan = Plan(
        name=_name(cfg),
        network=cfg.task.model.name,
        norm=norm_label(cfg.norm),
        precision=cfg.trainer.precision,
        data=f"{cfg.task.name}, {cfg.data.name}",
        parameters=known.parameters,
        size=training_size(cfg),
        regions=_regions(cfg, known.positives),
        batch_size=cfg.data.batch_size,
        devices=devices,
        accumulate=accumulate,
        devices_note=devices_note,
        samples=samples.train,
        epochs=epochs,
        steps=steps,
        step_flops=accumulate * step.flops,
        total_flops=None
        if steps is None
        else steps * devices * accumulate * step.flops + evaluated * step.forward_flops,
        evaluation=evaluation,
        memory=max(step.activations_peak, step.update_peak) + buckets,
        largest=_largest(cfg, step, buckets, on_gpu),
        checkpoint=known.checkpoint_bytes,
        download_gb=task_facts(cfg.task.name).download_gb if cfg.data.name == "full" else None,
        **_target(cfg),
        step_seconds=None,
        timing="",
        hours=None,
    )
    _add_time(cfg, plan, step, evaluated)
    plan.checks = checks(cfg, plan, data or samples.check)
    return plan


@dataclass
class _Samples:
    """The configuration with its classes, samples of an epoch and of an evaluation."""

    cfg: DictConfig
    train: int | None
    evaluation: int | None
    check: Check


def _samples(cfg: DictConfig) -> _Samples:
    """From the dataset where it is there, else from what its task knows of it."""
    facts, found = task_facts(cfg.task.name), _opened(cfg)
    if isinstance(found, _Samples):
        return found
    cfg = copy.deepcopy(cfg)
    if cfg.task.num_classes is None:
        if facts.num_classes is None:
            raise InputError(
                f"task.num_classes: not known before the data are there: {found.note}; "
                "set task.num_classes and task.outputs"
            )
        cfg.task.num_classes = cfg.task.outputs = facts.num_classes
    is_full = cfg.data.name == "full"
    train = cfg.data.patches_per_epoch or (facts.samples.get("train") if is_full else None)
    evaluation = facts.samples.get(cfg.data.eval_split) if is_full else None
    return _Samples(cfg, train, evaluation, found)


_opened_before: dict[str, tuple[int, int, list[str]] | Check] = {}


def _opened(cfg: DictConfig) -> _Samples | Check:
    """The dataset's numbers, or why there are none; opened once for all rows of a table."""
    if stand_in(cfg.data) and not miniatures.exists_for_task(cfg.task.name, cfg.data.root):
        return Check("data", True, "the first run generates the miniature")
    key = json.dumps([cfg.task.name, plain(cfg.data), cfg.task.bands], default=str)
    if key not in _opened_before:
        try:
            datasets = open_datasets(_in_training(cfg))
        except InputError as error:
            first = str(error).splitlines()[0]
            _opened_before[key] = Check("data", False, first)
        else:
            _opened_before[key] = (
                len(datasets.train), len(datasets.eval) if datasets.eval.labelled else 0,
                list(datasets.train.class_names),
            )  # fmt: skip
    found = _opened_before[key]
    if isinstance(found, Check):
        return found
    train, evaluation, names = found
    cfg = with_classes(cfg, names)
    return _Samples(cfg, train, evaluation, Check("data", True, f"found, {train:,} samples"))


def _in_training(cfg: DictConfig) -> DictConfig:
    cfg = copy.deepcopy(cfg)
    cfg.mode = "train"
    return cfg


def _devices(cfg: DictConfig) -> tuple[int, str]:
    """How many devices, and where the number is from."""
    is_auto = cfg.trainer.devices in ("auto", -1)
    if not is_auto:
        return world_size(cfg.trainer), "as trainer.devices says"
    if cfg.trainer.accelerator == "cpu" or torch.cuda.is_available():
        return world_size(cfg.trainer), "this machine's"
    count = max(1, cfg.data.total_batch // cfg.data.batch_size)
    return count, "for the protocol's total batch; no GPU is here"


def _steps(cfg: DictConfig, samples: int | None, batches: int) -> tuple[int, int | None]:
    """Epochs that begin, and steps of so many devices' batches."""
    epochs = cfg.trainer.max_epochs
    if samples is None:
        return epochs, cfg.trainer.max_steps
    in_epoch = samples // (cfg.data.batch_size * batches)
    steps = min(in_epoch * epochs, cfg.trainer.max_steps or math.inf)
    return math.ceil(steps / max(1, in_epoch)), int(steps)


def _evaluated(cfg: DictConfig, samples: int | None, epochs: int) -> tuple[float, str]:
    """How many forward passes of a device's training step all evaluations amount to."""
    facts, height, width = task_facts(cfg.task.name), *training_size(cfg)
    size = facts.image_size if cfg.task.kind == "segmentation" else [height, width]
    if cfg.task.kind == "detection" or "eval_halo" in cfg.task or samples is None or size is None:
        return 0, "evaluations are not counted"
    if cfg.task.kind == "segmentation":
        size = [max(1, int(side * cfg.data.scale)) for side in size]
    times = math.ceil(epochs / cfg.data.eval_every)
    share = size[0] * size[1] / (height * width * cfg.data.batch_size)
    note = f"{times} evaluations of {samples:,} x {size[0]} x {size[1]} are in the total"
    return times * samples * share, note


def _largest(cfg: DictConfig, step: Step, buckets: int, on_gpu: bool) -> dict[int, int]:
    """The largest batch of a device that fits, by GB.

    Memory of forward and backward pass grows with the batch in a straight line, drawn here through
    the planned batch and twice that.
    """
    batch = cfg.data.batch_size
    double = fake_step(cfg, 2 * batch, on_gpu)
    slope = (double.activations_peak - step.activations_peak) / batch
    start = step.activations_peak - slope * batch + buckets
    fits = {}
    for size in SIZES:
        room = usable_bytes(size)
        count = int((room - start) // slope) if step.update_peak + buckets <= room else 0
        fits[size] = max(0, count)
    return fits


def _card(cfg: DictConfig) -> str | None:
    """The card that is planned for: the one asked for, this machine's, or an A100; None for a
    device of this machine that is no card of the table."""
    if cfg.plan.calibrate:  # which is about this machine
        return _own_card() if cfg.trainer.accelerator != "cpu" else None
    if cfg.plan.device is not None:
        return str(cfg.plan.device)
    if cfg.trainer.accelerator == "cpu":
        return None
    return _own_card() if torch.cuda.is_available() else "a100"


def _target(cfg: DictConfig) -> dict[str, Any]:
    """What `Plan` says of the device: where, on_gpu, room, has_precision."""
    key, precision = _card(cfg), cfg.trainer.precision
    if key is not None:
        card = CARDS[key]
        where, on_gpu, room = card.title, True, usable_bytes(card.memory)
        has_precision = precision in card.teraflops
    elif cfg.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        where, on_gpu = "this CPU", False
        room = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        has_precision = precision != "16-mixed"  # Lightning takes bf16 instead
    else:
        where, on_gpu = torch.cuda.get_device_name(), True
        room = usable_bytes(torch.cuda.get_device_properties(0).total_memory / GIB)
        has_precision = precision != "bf16-mixed" or torch.cuda.is_bf16_supported(False)
    return {"where": where, "on_gpu": on_gpu, "room": room, "has_precision": has_precision}


def _own_card() -> str | None:
    """The card of this machine, if it is one of the table."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name().upper().replace(" ", "")
    large = torch.cuda.get_device_properties(0).total_memory > 60e9
    for key in ("rtx3090", "rtx4090", "h100", "v100", "t4"):
        if key.upper().removeprefix("RTX") in name:
            return key
    return ("a100_80gb" if large else "a100") if "A100" in name else None


def _add_time(cfg: DictConfig, plan: Plan, step: Step, evaluated: float) -> None:
    """Seconds of a step and hours of the training: measured, or from the data sheet."""
    has_gpu = cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()
    asked, key = cfg.plan.calibrate, _card(cfg)
    forward: float | None = None
    if (has_gpu and cfg.plan.device is None) if asked is None else asked:
        plan.step_seconds = step_seconds(cfg)
        forward = plan.step_seconds * step.forward_flops / step.flops
        plan.timing = f"measured: {STEPS} steps with random data; loading excluded"
        if isinstance(_opened(cfg), _Samples):
            datasets = open_datasets(_in_training(cfg))
            plan.step_seconds += waiting_seconds(cfg, datasets, plan.step_seconds)
            plan.timing = f"measured: {STEPS} steps with random data, and reading {STEPS} batches"
    elif key is not None:
        card, share = CARDS[key], cfg.plan.utilization
        plan.timing = (
            f"{card.title}'s data sheet at an assumed utilization of {share:.0%} "
            "(plan.utilization); loading excluded"
        )
        if plan.has_precision:
            plan.step_seconds = seconds(step.costs, card, plan.precision) / share
            forward = seconds(step.forward_costs, card, plan.precision) / share
    else:
        plan.timing = "plan.calibrate=true measures it"
    if plan.step_seconds is not None:
        plan.step_seconds *= plan.accumulate
    if plan.step_seconds is not None and forward is not None and plan.steps is not None:
        spent = plan.steps * plan.step_seconds + evaluated * forward / plan.devices
        plan.hours = spent / 3600


def _regions(cfg: DictConfig, positives: int | None) -> str | None:
    if positives is None:
        return None
    return (
        f"planned for {cfg.plan.objects} objects and {positives} positive regions in each image "
        "(plan.objects, plan.positives)"
    )


def _name(cfg: DictConfig) -> str:
    """The experiment's name, or what stands in its place."""
    if HydraConfig.initialized():
        experiment = HydraConfig.get().runtime.choices.get("experiment")
        if experiment is not None:
            return str(experiment)
    return f"{cfg.task.name} {cfg.task.model.name} {norm_label(cfg.norm)}"
