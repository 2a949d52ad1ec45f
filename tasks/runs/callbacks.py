"""What a run writes and shows while it trains: metrics, checkpoints, one progress line."""

import contextlib
import csv
import io
import logging
import math
import os
import re
import signal
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.plugins.io import TorchCheckpointIO
from tqdm import tqdm

from tasks.errors import replacing, write_atomically
from tasks.modules.module import TaskModule

log = logging.getLogger("train")


class History(pl.Callback):
    """A line per epoch in ``metrics.csv``; kept in the checkpoint, so that a continued run goes on.

    Args:
        path: of the file.
        primary: the metric by which epochs are compared; less is better if it ends in ``_err``.
        total_batch: samples in a step, over all processes.

    Attributes:
        rows: one dict per epoch: epoch (from 1), step, lr, loss, seconds of the run so far,
            samples_per_second in training (reading included, evaluation not), memory_mib (the
            largest so far, see `peak_memory`), and, for epochs that were evaluated, val_loss if the
            task has one and the metrics in percent.
    """

    def __init__(self, path: Path, primary: str, total_batch: int):
        self.path, self.primary, self.total_batch = path, primary, total_batch
        self.rows: list[dict[str, float]] = []
        self._seconds_before = 0.0
        self._loss_sum: torch.Tensor | float = 0.0
        self._batches = 0
        self._training_seconds = 0.0

    def state_dict(self) -> dict:
        return {
            "rows": self.rows,
            "seconds": self.seconds,
            "loss_sum": float(self._loss_sum),
            "batches": self._batches,
            "training_seconds": self._training_seconds,
        }

    def load_state_dict(self, state: dict) -> None:
        self.rows = state["rows"]
        self._seconds_before = state["seconds"]
        self._loss_sum, self._batches = state["loss_sum"], state["batches"]
        self._training_seconds = state["training_seconds"]

    @property
    def seconds(self) -> float:
        """Time spent on this run, earlier sessions included."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def evaluated(self) -> list[dict[str, float]]:
        """The rows of evaluated epochs."""
        return [row for row in self.rows if self.primary in row]

    @property
    def best(self) -> dict[str, float] | None:
        """Epoch and primary metric of the best evaluated epoch; None if none was evaluated."""
        if not self.evaluated:
            return None
        choose = min if self.primary.endswith("_err") else max
        row = choose(self.evaluated, key=lambda row: row[self.primary])
        return {name: row[name] for name in ("epoch", self.primary)}

    def median(self, epochs: int, names: list[str]) -> dict[str, float]:
        """The median of each metric over those of the last epochs that were evaluated."""
        last = [row for row in self.rows[-epochs:] if self.primary in row]
        return {name: statistics.median(row[name] for row in last) for name in names}

    @property
    def cost(self) -> dict[str, float]:
        """Samples per second, the median over the epochs, and the largest memory in MiB."""
        return {
            "samples_per_second": statistics.median(row["samples_per_second"] for row in self.rows),
            "memory_mib": max(row["memory_mib"] for row in self.rows),
        }

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._started = time.monotonic()
        reset_peak_memory(trainer.strategy.root_device)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._clock = time.monotonic()  # an epoch that is continued in its middle does not start

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._clock = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._clock = time.monotonic()
        if trainer.state.fn == "validate":  # the last epoch, evaluated after training
            self._add_scores(trainer, module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        # Kept here, not by Lightning: an epoch that is continued in its middle has one mean.
        self._loss_sum = self._loss_sum + trainer.callback_metrics["loss"].double()
        self._batches += 1
        if trainer.is_last_batch:
            self._loss_sum = float(self._loss_sum)  # waits for the device before the time is taken
        self._training_seconds += time.monotonic() - self._clock
        self._clock = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        loss = float(self._loss_sum) / self._batches
        steps = self._batches / trainer.accumulate_grad_batches
        speed = steps * self.total_batch / self._training_seconds
        self._loss_sum, self._batches, self._training_seconds = 0.0, 0, 0.0
        self.rows.append(
            {
                "epoch": trainer.current_epoch + 1,
                "step": trainer.global_step,
                "lr": trainer.optimizers[0].param_groups[0]["lr"],
                "loss": loss,
                "seconds": round(self.seconds, 2),
                "samples_per_second": round(speed, 3),
                "memory_mib": round(peak_memory(trainer.strategy.root_device)),
            }
        )
        self._add_scores(trainer, module)

    def _add_scores(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if module.scores:
            if "val_loss" in trainer.callback_metrics:
                self.rows[-1]["val_loss"] = trainer.callback_metrics["val_loss"].item()
            self.rows[-1] |= cast(TaskModule, module).scores
        if trainer.is_global_zero:
            self._write()

    def _write(self) -> None:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, text.getvalue())


def reset_peak_memory(device: torch.device) -> None:
    """Lets `peak_memory` begin anew, where the system can: a process may train several runs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory(device: torch.device) -> float:
    """The largest memory in use so far in MiB: of a GPU's tensors; on the CPU, of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
        return int(peak) / 2**10
    except (OSError, ValueError):  # not Linux
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class Checkpoints(pl.Callback):
    """Keeps ``last.ckpt``: after every epoch, every few minutes, and when the run is asked to stop.

    A signal to stop is answered after the batch in work: the checkpoint is written, then the signal
    does what it did before. SIGTERM and Ctrl-C stop the training. Under submitit its own handlers
    follow, of SIGUSR2, which requeues the job, too. The same signal again, or one during an
    evaluation, acts at once, and then the last checkpoint is the one to continue from.

    Args:
        path: of the checkpoint.
        minutes: at most so long between two checkpoints, however long an epoch is.
    """

    EVERY = 10  # batches after which several processes ask each other whether to save or stop
    SAVE, NOTHING = 1000, 1001  # requests beside signals, of which the least goes first

    def __init__(self, path: Path, minutes: float):
        self.path, self.minutes = path, minutes
        self._request = self.NOTHING  # or the number of the signal that asked to stop
        self._before: dict[int, Any] = {}  # handlers

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGTERM, signal.SIGINT]
            if callable(signal.getsignal(signal.SIGUSR2)):
                numbers.append(signal.SIGUSR2)
            self._before = {number: signal.getsignal(number) for number in numbers}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        for number in self._before:  # only here, so that they take the place of Lightning's
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        if number == self._request:
            self._obey(number)
        self._request = min(self._request, number)

    def _obey(self, number: int) -> None:
        """Does what a signal did before this callback. Most handlers do not return."""
        handler = self._before.get(number)
        if not callable(handler):
            raise KeyboardInterrupt
        handler(number, None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, output: Any, batch: Any, index: int
    ) -> None:
        if index + 1 == trainer.num_training_batches:  # the end of the epoch follows
            return
        step, within = divmod(index + 1, trainer.accumulate_grad_batches)
        if within:  # gradients that are not yet used are not in a checkpoint
            return
        if trainer.world_size > 1 and (step - 1) % self.EVERY:
            return
        due = time.monotonic() - self._saved > 60 * self.minutes
        request = self._first(trainer, min(self._request, self.SAVE if due else self.NOTHING))
        if request < self.NOTHING:
            self._save(trainer)
            self._stop(request)

    def on_validation_batch_end(self, *_: Any) -> None:
        self._stop(self._request)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._save(trainer)
        self._stop(self._first(trainer, self._request))

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()

    def _stop(self, request: int) -> None:
        if request < self.SAVE:
            self._request = self.NOTHING
            self._obey(request)

    def _first(self, trainer: pl.Trainer, request: int) -> int:
        """Of the requests of all processes, so that they stop together."""
        tensor = torch.tensor(request, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(tensor, reduce_op="min"))

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._give_back_signals()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, _: Any) -> None:
        self._give_back_signals()

    def _give_back_signals(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class StopsAtOnce(pl.Callback):
    """Answers SIGTERM and Ctrl-C while a network is evaluated or predicts outside of a training.

    Nothing is lost then: Lightning's own handler of SIGTERM only takes note of it, for a training.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}  # handlers

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._begin()

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._begin()

    def on_predict_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._begin()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._end()

    def on_test_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._end()

    def on_predict_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, _: Any) -> None:
        self._end()

    def _begin(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in self.SIGNALS}
            for number in self.SIGNALS:
                signal.signal(number, self._stop)

    @staticmethod
    def _stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    def _end(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name and renames it: the previous one is never lost."""

    def save_checkpoint(self, checkpoint: dict, path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


class ProgressLine(ProgressBar):
    """One line for the whole run: epoch, loss, the primary metric, steps, time left.

    Where standard error is no terminal, a line is printed at most every ``interval`` seconds.
    """

    def __init__(self, primary: str, interval: float = 15.0):
        super().__init__()
        self.primary, self.interval = primary, interval
        self._bar: tqdm | None = None
        self._score = math.nan
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not self._enabled:
            return
        self._bar = tqdm(
            total=int(trainer.estimated_stepping_batches),
            initial=trainer.global_step,
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else self.interval,
            bar_format="{desc} |{bar:20}| {n_fmt}/{total_fmt} steps [{elapsed}, {remaining} left]",
        )

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if self._bar is not None:
            self._describe(trainer, self._bar)
            self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._score = cast(TaskModule, module).scores.get(self.primary, math.nan)
        if self._bar is not None:
            self._describe(trainer, self._bar)

    def _describe(self, trainer: pl.Trainer, bar: tqdm) -> None:
        loss = trainer.callback_metrics.get("loss")
        score = "    -" if math.isnan(self._score) else f"{self._score:5.2f}"
        label = "mIoU" if self.primary == "miou" else self.primary
        bar.set_description_str(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  "
            f"loss {float(loss) if loss is not None else math.nan:.4f}  {label} {score}",
            refresh=False,
        )

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, _: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None
