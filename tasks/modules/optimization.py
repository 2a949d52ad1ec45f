"""Optimizers and learning-rate schedules by the names that configurations use."""

import bisect
from collections.abc import Callable, Iterable

import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from tasks.errors import InputError
from tasks.protocol import learning_rate

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def make_optimizer(
    parameters: Iterable[nn.Parameter], cfg: DictConfig, total_batch: int, steps: int
) -> OptimizerLRSchedulerConfig:
    """The optimizer and its schedule, stepped once per iteration, in Lightning's form.

    Args:
        parameters: of the network; those that need no gradient are left out.
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
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = OPTIMIZERS[name](trained, **settings)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _factor(cfg.task.schedule, steps))
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"},
    }


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
