"""Seconds of a training step and of reading its batch, measured on this machine."""

import copy
import itertools
import statistics
import time
from collections.abc import Callable
from typing import cast

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from tasks.data import Datasets
from tasks.data.loading import DataModule, loading_processes
from tasks.models import build_model
from tasks.modules.optimization import make_optimizer
from tasks.runs.plan.step import autocast, make_module, random_batch
from tasks.runs.training import tune

WARM, STEPS = 3, 20


def step_seconds(cfg: DictConfig) -> float:
    """The median over 20 steps of one device with random data, after 3 that are not counted.

    Args:
        cfg: the configuration, with a number of classes.
    """
    on_gpu = cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.backends.cudnn.benchmark = on_gpu and not cfg.trainer.deterministic  # as a run
    torch.manual_seed(cfg.seed)
    model = build_model(cfg).to(device).train()
    if cfg.trainer.precision == "64-true":
        model.double()
    loss_of = training_loss(cfg, model)
    optimizer = make_optimizer(model, cfg, cfg.data.batch_size, 10**6)["optimizer"]
    scaler = torch.amp.GradScaler(device.type, enabled=cfg.trainer.precision == "16-mixed")
    batch = random_batch(cfg, cfg.data.batch_size, device)
    seconds = []
    for _ in range(WARM + STEPS):
        start = time.perf_counter()
        with autocast(cfg.trainer.precision, device.type):
            loss = loss_of(batch)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        loss.item()  # a run looks at it too
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM:])


def waiting_seconds(cfg: DictConfig, datasets: Datasets, step: float) -> float:
    """How long a device waits for each batch, beside the seconds of its step.

    Reading and augmenting is the median over 20 training batches, after the first. Processes that
    read ahead share it, and the device waits for what takes longer than its step.
    """
    alone = copy.deepcopy(cfg)
    alone.data.workers = 0
    batches = iter(DataModule(alone, datasets).train_dataloader())
    moments = [time.perf_counter() for _ in itertools.islice(batches, STEPS + 2)]
    taken = [after - before for before, after in itertools.pairwise(moments)]
    if not taken:
        return 0.0
    processes = loading_processes(cfg)
    reading = statistics.median(taken)
    return max(0.0, reading / processes - step) if processes else reading


def training_loss(cfg: DictConfig, model: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
    """From a random batch to the loss of a real network, a detector's own choice of regions
    included."""
    tune(cfg, model)
    if cfg.task.kind != "detection":
        module = make_module(cfg, model).to(next(model.parameters()).device)
        module.finite = lambda loss: loss  # type: ignore[method-assign]  # looked at above
        return lambda batch: cast(Tensor, module.training_step(batch, 0))
    objects = _objects(cfg)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        images = list(batch["image"].clamp(0, 1))
        targets = [{key: value.to(images[0].device) for key, value in objects.items()}
                   for _ in images]  # fmt: skip
        return torch.stack(list(model(images, targets).values())).sum()

    return loss


def _objects(cfg: DictConfig) -> dict[str, Tensor]:
    """As many rectangles as an image is planned to have, from a tenth to a half of its sides."""
    height, width = cfg.data.resize
    corner = torch.rand(cfg.plan.objects, 2) * 0.5
    size = torch.rand(cfg.plan.objects, 2) * 0.4 + 0.1
    sides = torch.tensor([width, height])
    boxes = torch.cat([corner, corner + size], dim=1) * torch.cat([sides, sides])
    masks = torch.zeros(cfg.plan.objects, height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    labels = torch.randint(1, cfg.task.num_classes + 1, (cfg.plan.objects,))
    return {"boxes": boxes, "labels": labels, "masks": masks}
