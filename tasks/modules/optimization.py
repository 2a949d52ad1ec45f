"""Optimizers and learning-rate schedules by the names that configurations use."""

import bisect
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from lcn import LearnedContextNorm
from lcn.norm_layers import named_norm_layers
from tasks.errors import InputError
from tasks.protocol import learning_rate

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def make_optimizer(
    model: nn.Module, cfg: DictConfig, total_batch: int, steps: int
) -> OptimizerLRSchedulerConfig:
    """The optimizer and its schedule, stepped once per iteration, in Lightning's form.

    Args:
        model: the network; parameters that need no gradient are left out.
        cfg: the configuration; ``cfg.task`` has optimizer and schedule.
        total_batch: samples per step over all devices.
        steps: iterations of the whole training.

    Raises:
        InputError: an unknown optimizer or schedule.
    """
    settings = dict(cfg.task.optimizer) | {"lr": learning_rate(cfg, total_batch)}
    name = settings.pop("name")
    if name not in OPTIMIZERS:
        raise InputError(f"task.optimizer.name={name}: choose one of {', '.join(OPTIMIZERS)}")
    groups = _parameter_groups(model, settings)
    windows = [m.log_growth for m in model.modules() if isinstance(m, LearnedContextNorm)]
    if windows:
        groups = _windows_apart(groups, windows, settings["lr"] * cfg.norm.window_lr_factor)
    optimizer = OPTIMIZERS[name](groups, **settings)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _factor(cfg.task.schedule, steps))
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"},
    }


def _parameter_groups(model: nn.Module, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The trained parameters, in groups where biases and norms are treated apart; weights first.

    Takes what is said of the groups out of the settings.
    """
    bias_lr = settings["lr"] * settings.pop("bias_lr_factor", 1.0)
    decay = settings.get("weight_decay", 0.0)
    bias_decay = decay if settings.pop("decay_biases", True) else 0.0
    norm_decay = decay if settings.pop("decay_norms", True) else 0.0
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    if (bias_lr, bias_decay, norm_decay) == (settings["lr"], decay, decay):
        return [{"params": list(trained.values())}]
    norms = {f"{name}.{key}" for name, layer in named_norm_layers(model)
             for key, _ in layer.named_parameters()}  # fmt: skip
    biases = {key for key in trained if key.endswith("bias")} - norms
    return [
        {"params": [p for key, p in trained.items() if key not in norms | biases]},
        {"params": [trained[key] for key in trained if key in biases],
         "lr": bias_lr, "weight_decay": bias_decay},
        {"params": [trained[key] for key in trained if key in norms], "weight_decay": norm_decay},
    ]  # fmt: skip


def _windows_apart(
    groups: list[dict[str, Any]], windows: list[nn.Parameter], lr: float
) -> list[dict[str, Any]]:
    """Learned windows in a group of their own, without weight decay, at the end."""
    own = set(windows)
    rest = [{**group, "params": [p for p in group["params"] if p not in own]} for group in groups]
    return [*rest, {"params": windows, "lr": lr, "weight_decay": 0.0}]


def _factor(schedule: DictConfig, steps: int) -> Callable[[int], float]:
    """What the learning rate is multiplied by at each of ``steps`` iterations."""
    if schedule.name == "poly":
        return lambda step: max(0.0, 1 - step / steps) ** schedule.power
    if schedule.name == "step":
        drops = [drop * steps for drop in schedule.drops]
        warmup = schedule.get("warmup", 0.0) * steps
        start = schedule.get("warmup_from", 1.0)

        def factor(step: int) -> float:
            ramp = start + (1 - start) * step / warmup if step < warmup else 1.0
            return ramp * 0.1 ** bisect.bisect_right(drops, step)

        return factor
    raise InputError(f"task.schedule.name={schedule.name}: choose one of poly, step")
