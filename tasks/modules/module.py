"""What the training of every task has in common."""

from typing import Any, cast

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from tasks.errors import InputError
from tasks.identity import stable_seed
from tasks.modules.optimization import make_optimizer


class TaskModule(pl.LightningModule):
    """A network in training; subclasses give the loss and the scores.

    A subclass logs ``loss`` in ``training_step`` (passing it through `finite`) and sets `scores` in
    ``on_validation_epoch_end``; a test split is scored by the same two validation hooks.

    Args:
        model: the network.
        cfg: the whole configuration; ``cfg.task`` has classes, loss, optimizer and schedule.
        norm: the norm layers' configuration, kept in checkpoints.

    Attributes:
        scores: metrics of the last evaluation in percent, empty before the first.
        breakdown: the same by class, by name: ``{"class_iou": {"road": 97.1, ...}}``, None where a
            value is not defined.
        is_test: whether what is being evaluated is a test split.
    """

    def __init__(self, model: nn.Module, cfg: DictConfig, norm: dict):
        super().__init__()
        self.model, self.cfg, self.task, self.norm = model, cfg, cfg.task, norm
        self.scores: dict[str, float] = {}
        self.breakdown: dict[str, dict[str, float | None]] = {}
        self.is_test = False

    def finite(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss, unless it is NaN or infinite.

        Raises:
            InputError: it is.
        """
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss is {loss.item()}")
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
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        return InputError(
            f"training diverged: {what} at step {self.global_step} (epoch {self.current_epoch}, "
            f"learning rate {lr:.3g}); the checkpoint of the last whole epoch is kept; lower "
            "task.optimizer.lr"
        )

    def on_train_epoch_start(self) -> None:
        self.scores = {}  # an epoch that is not evaluated has none

    def on_train_batch_start(self, batch: object, batch_index: int) -> None:
        # What a network draws (dropout, sampled proposals) follows from the step, so that a
        # continued run draws the same.
        drawn = (self.cfg.seed, "step", self.global_step, self.global_rank)
        part = batch_index % self.trainer.accumulate_grad_batches
        torch.manual_seed(stable_seed(*drawn, *([part] if part else [])))

    def on_test_start(self) -> None:
        self.is_test = True

    def on_test_end(self) -> None:
        self.is_test = False

    def test_step(self, batch: object, batch_index: int) -> None:
        self.validation_step(batch, batch_index)

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def log_scores(self) -> None:
        """Hands `scores` to the loggers, those of a test split as ``test_<name>``."""
        prefix = "test_" if self.is_test else ""
        self.log_dict({prefix + name: torch.tensor(value) for name, value in self.scores.items()})

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["norm"] = self.norm

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        accumulated = self.trainer.accumulate_grad_batches
        total_batch = self.cfg.data.batch_size * self.trainer.world_size * accumulated
        # Not trainer.estimated_stepping_batches: it makes the loader, and that begins to read,
        # before Lightning knows where a continued run goes on.
        data = cast(Any, self.trainer).datamodule
        steps = len(data.train_batches()) // accumulated * self.cfg.trainer.max_epochs
        steps = min(steps, self.cfg.trainer.max_steps or steps)
        return make_optimizer(self.model, self.cfg, total_batch, steps)
