"""Semantic segmentation: loss and evaluation of a network (paper sections 4.1, 4.4 and 4.5)."""

import math
from collections.abc import Sequence

import torch
from omegaconf import DictConfig
from torch import nn
from torch.nn import functional as F

from tasks.modules.metrics import ConfusionByGroup, building_scores, class_iou, segmentation_scores
from tasks.modules.module import TaskModule


def at_least_tiny(weight: torch.Tensor) -> torch.Tensor:
    """Itself, or what can be divided by where it is 0: without a labelled pixel."""
    return weight.clamp(min=torch.finfo(weight.dtype).tiny)


class Segmentation(TaskModule):
    """Trains a network that maps images to logits at any resolution.

    Args:
        model: [N, bands, H, W] float to logits [N, outputs, h, w]. One output is the logit of class
            1 of two (binary cross-entropy); otherwise the first ``num_classes`` outputs are the
            classes.
        cfg: the configuration.
        norm: the norm layers' configuration, kept in checkpoints.
        groups: names of the groups (cities) that samples belong to, scored apart; samples say
            theirs as ``group``.
        ignored: label value that takes no part in loss and metrics.
    """

    class_weights: torch.Tensor

    def __init__(
        self,
        model: nn.Module,
        cfg: DictConfig,
        norm: dict,
        groups: Sequence[str] = ("all",),
        ignored: int = 255,
    ):
        super().__init__(model, cfg, norm)
        self.groups, self.ignored = list(groups), ignored
        self._shares: list[torch.Tensor] = []  # of the batches accumulated for the next step
        self.binary = cfg.task.outputs == 1
        weights = cfg.task.class_weights or [1.0] * max(2, cfg.task.outputs)
        self.register_buffer(
            "class_weights", torch.tensor(list(weights), dtype=torch.float32), persistent=False
        )
        self.confusion = ConfusionByGroup(len(self.groups), cfg.task.num_classes, ignored)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, outputs, H, W] at the images' own size, upsampled bilinearly if need be.

        In training, those of the part that a network without padding gives.
        """
        logits = self.model(images)
        if self._margin or logits.shape[-2:] == images.shape[-2:]:
            return logits
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)

    @property
    def _margin(self) -> int:
        """Pixels at each side of a training image that have no logits."""
        return getattr(self.model, "margin", 0) if self.training else 0

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [N, outputs, H, W] to class ids, int64 [N, H, W]."""
        if self.binary:
            return (logits[:, 0] > 0).long()
        return logits[:, : self.task.num_classes].argmax(1)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, weighted by class, as a mean over the weights of the labelled pixels.

        The mean is over all processes, so that the gradient is the same however a total batch is
        divided (the cited code averages the devices' means). 0, not NaN, without a labelled pixel.

        Args:
            logits: [N, outputs, H, W].
            labels: int64 [N, H, W].
        """
        if self.binary:
            labelled = (labels != self.ignored).to(logits.dtype)
            target = (labels == 1).to(logits.dtype)
            total = F.binary_cross_entropy_with_logits(
                logits[:, 0], target, labelled, reduction="sum"
            )
        else:
            total = F.cross_entropy(
                logits, labels, self.class_weights, ignore_index=self.ignored, reduction="sum"
            )
        return total / at_least_tiny(self._weight(labels))

    def _weight(self, labels: torch.Tensor) -> torch.Tensor:
        """What the loss is a mean over: the summed class weights, as a mean over processes."""
        counts = torch.bincount(labels.flatten(), minlength=256)[: len(self.class_weights)]
        weight = (counts * self.class_weights).sum()
        if self._trainer is not None and self.trainer.world_size > 1 and self.training:
            weight = self.trainer.strategy.reduce(weight, reduce_op="mean")
        return weight

    def training_step(self, batch: dict, batch_index: int) -> torch.Tensor:
        _, height, width = batch["label"].shape
        margin = self._margin
        labels = batch["label"][:, margin : height - margin, margin : width - margin]
        loss = self.finite(self.loss(self(batch["image"]), labels))
        size = len(batch["image"])
        self.log("loss", loss, sync_dist=True, batch_size=size)
        return self._share_of_step(loss, labels)

    def _share_of_step(self, loss: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss times this batch's weight, where several batches are accumulated.

        Lightning averages them. They count by their weights, whose sum is known only at the step:
        `on_before_optimizer_step` divides by it.
        """
        if self._trainer is None or self.trainer.accumulate_grad_batches == 1:
            return loss
        share = self._weight(labels) / labels.numel()  # about 1: no smaller gradients in float16
        self._shares.append(share)
        return loss * share

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._shares:
            mean = at_least_tiny(torch.stack(self._shares).mean())
            self._shares = []
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= mean

    def validation_step(self, batch: dict, batch_index: int) -> None:
        logits, labels = self(batch["image"]), batch["label"]
        loss = self.loss(logits, labels)
        name = "test_loss" if self.is_test else "val_loss"
        self.log(name, loss, sync_dist=True, batch_size=len(labels))
        group = batch.get("group", torch.zeros(len(labels), dtype=torch.int64))
        self.confusion.update(self.decide(logits), labels, group)

    def predict_step(self, batch: dict, batch_index: int) -> torch.Tensor:
        """Class ids, int64 [N, H, W]."""
        return self.decide(self(batch["image"]))

    def on_validation_epoch_end(self) -> None:
        confusion = self.confusion.compute()
        self.confusion.reset()
        if self.binary:
            self.scores = building_scores(confusion, self.groups)
        else:
            confusion = confusion.sum(0)
            self.scores = segmentation_scores(confusion)
            ious = zip(self.task.class_names, class_iou(confusion).tolist(), strict=True)
            self.breakdown = {
                "class_iou": {name: None if math.isnan(iou) else iou for name, iou in ious}
            }
        self.log_scores()
