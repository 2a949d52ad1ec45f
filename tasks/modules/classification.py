"""Image classification: loss and evaluation of a network (paper section 4.3)."""

from typing import cast

import torch
from omegaconf import DictConfig
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from tasks.modules.module import TaskModule


class Classification(TaskModule):
    """Trains a network that maps images [N, 3, H, W] to logits [N, classes].

    `scores` are ``top1_err`` and ``top5_err``: percent of the images whose class is not the one, or
    not among the five, with the highest logits.
    """

    def __init__(self, model: nn.Module, cfg: DictConfig, norm: dict):
        super().__init__(model, cfg, norm)
        self.errors = nn.ModuleDict({"top1_err": MeanMetric(), "top5_err": MeanMetric()})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)

    def training_step(self, batch: dict, batch_index: int) -> torch.Tensor:
        loss = self.finite(F.cross_entropy(self(batch["image"]), batch["label"]))
        size = len(batch["image"])
        self.log("loss", loss, sync_dist=True, batch_size=size)
        return loss

    def validation_step(self, batch: dict, batch_index: int) -> None:
        logits, labels = self(batch["image"]), batch["label"]
        loss = F.cross_entropy(logits, labels)
        self.log("val_loss", loss, sync_dist=True, batch_size=len(labels))
        metrics = self._metrics()
        for name, missed in missed_classes(logits, labels).items():
            metrics[name].update(100.0 * missed)

    def on_validation_epoch_end(self) -> None:
        metrics = self._metrics()
        self.scores = {name: metric.compute().item() for name, metric in metrics.items()}
        for metric in metrics.values():
            metric.reset()
        self.log_scores()

    def _metrics(self) -> dict[str, MeanMetric]:
        return {name: cast(MeanMetric, metric) for name, metric in self.errors.items()}


def missed_classes(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which images are classified wrongly, bool [N], by ``top1_err`` and ``top5_err``.

    Args:
        logits: [N, classes].
        labels: int64 [N].
    """
    best = logits.topk(min(5, logits.shape[1])).indices
    hit = best == labels[:, None]
    return {"top1_err": ~hit[:, 0], "top5_err": ~hit.any(1)}
