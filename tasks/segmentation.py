"""Semantic segmentation: loss, optimisation and evaluation of a network (paper section 4.1)."""

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import nn
from torch.nn import functional as F

from tasks.errors import InputError
from tasks.metrics import class_iou, confusion_matrix, segmentation_scores
from tasks.optimization import make_optimizer


class Segmentation(pl.LightningModule):
    """Trains a network that maps images to logits at any resolution.

    Args:
        model: [N, 3, H, W] float to logits [N, classes, h, w].
        task: the ``task`` configuration: classes, loss weights, optimizer, schedule.
        norm: the norm layers' configuration, kept in checkpoints.
        ignored: label value that takes no part in loss and metrics.
    """

    def __init__(self, model: nn.Module, task: DictConfig, norm: dict, ignored: int = 255):
        super().__init__()
        self.model, self.task, self.norm, self.ignored = model, task, norm, ignored
        weights = task.get("class_weights") or [1.0] * task.num_classes
        self.register_buffer("class_weights", torch.tensor(list(weights)), persistent=False)
        self.confusion = confusion_matrix(task.num_classes, ignored)
        self.scores: dict[str, float] = {}
        self.class_iou: list[float] = []
        self.class_names = list(task.class_names)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes, H, W] at the images' own size, upsampled bilinearly."""
        return F.interpolate(
            self.model(images), images.shape[-2:], mode="bilinear", align_corners=False
        )

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, weighted by class, as a mean over the weights of the labelled pixels.

        The mean is over all processes, so that the gradient is the same however a total batch is
        divided (the cited code averages the devices' means). 0, not NaN, without a labelled pixel.

        Args:
            logits: [N, classes, H, W].
            labels: int64 [N, H, W].
        """
        total = F.cross_entropy(
            logits, labels, self.class_weights, ignore_index=self.ignored, reduction="sum"
        )
        counts = torch.bincount(labels.flatten(), minlength=256)[: len(self.class_weights)]
        weight = (counts * self.class_weights).sum()
        if self._trainer is not None and self.trainer.world_size > 1 and self.training:
            weight = self.trainer.strategy.reduce(weight, reduce_op="mean")
        return total / weight.clamp(min=torch.finfo(weight.dtype).tiny)

    def training_step(self, batch: dict, batch_index: int) -> torch.Tensor:
        loss = self.loss(self(batch["image"]), batch["label"])
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss is {loss.item()}")
        size = len(batch["image"])
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True, batch_size=size)
        return loss

    def on_validation_start(self) -> None:
        # No later loss shows what the last step of an epoch did before the checkpoint is written.
        if self.trainer.state.fn == "fit" and not all(
            torch.isfinite(tensor).all()
            for tensor in self.state_dict().values()
            if tensor.is_floating_point()
        ):
            raise self._diverged("a weight is not finite")

    def _diverged(self, what: str) -> InputError:
        lr = self.optimizers().param_groups[0]["lr"]
        return InputError(
            f"training diverged: {what} at step {self.global_step} (epoch {self.current_epoch}, "
            f"learning rate {lr:.3g}); the checkpoint of the last whole epoch is kept; lower "
            "task.optimizer.lr"
        )

    def validation_step(self, batch: dict, batch_index: int) -> None:
        logits = self(batch["image"])
        loss = self.loss(logits, batch["label"])
        self.log("val_loss", loss, sync_dist=True, batch_size=len(batch["image"]))
        self.confusion.update(logits.argmax(1), batch["label"])

    def on_validation_epoch_end(self) -> None:
        confusion = self.confusion.compute()
        self.confusion.reset()
        self.scores = segmentation_scores(confusion)
        self.class_iou = class_iou(confusion).tolist()
        self.log_dict({name: torch.tensor(value) for name, value in self.scores.items()})

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["norm"] = self.norm

    def configure_optimizers(self) -> dict:
        return make_optimizer(self.parameters(), self.task, self.trainer)
