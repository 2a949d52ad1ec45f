"""Optimizers and learning-rate schedules by the names that configurations use."""

from collections.abc import Iterable

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import nn

from tasks.errors import InputError

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
SCHEDULES = ("poly",)


def make_optimizer(
    parameters: Iterable[nn.Parameter], task: DictConfig, trainer: pl.Trainer
) -> dict:
    """The optimizer and its schedule, stepped once per iteration, in Lightning's form.

    Raises:
        InputError: an unknown optimizer or schedule.
    """
    settings = dict(task.optimizer)
    name = settings.pop("name")
    if name not in OPTIMIZERS:
        raise InputError(f"task.optimizer.name={name}: choose one of {', '.join(OPTIMIZERS)}")
    optimizer = OPTIMIZERS[name](parameters, **settings)
    if task.schedule.name not in SCHEDULES:
        raise InputError(f"task.schedule.name={task.schedule.name}: choose one of {SCHEDULES}")
    steps, power = trainer.estimated_stepping_batches, task.schedule.power
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: max(0.0, 1 - step / steps) ** power
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
