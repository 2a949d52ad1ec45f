"""Runs as Weights & Biases and TensorBoard show them.

A run's own files (`tasks.runs.directory`) are written whichever loggers are chosen. What wandb
would add about the machine by itself (host name, user, paths, command line, packages) is switched
off.
"""

import csv
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from tasks.config import plain
from tasks.data import Dataset
from tasks.data.loading import Augmented
from tasks.data.transforms import IGNORED, make_transform
from tasks.errors import InputError, write_atomically
from tasks.modules.module import TaskModule
from tasks.modules.segmentation import Segmentation
from tasks.protocol import norm_label
from tasks.runs.callbacks import History
from tasks.runs.directory import Run

WandbMode = Literal["online", "offline", "disabled", "shared"]

if TYPE_CHECKING:  # it takes a second to import: only runs that use it do
    import wandb

log = logging.getLogger("train")

UPLOAD_SECONDS = 300
"""How long the end of a run may wait for wandb's server; `wandb sync` sends the rest later."""

PICTURES, TIMES = 3, 5
"""Images of the evaluation split that are shown, and how often in a training."""

PICTURE_SIDE = 1024
"""Longer side in pixels above which a picture is thinned out to an integer fraction."""

SURE = 0.5
"""Score from which on a detection is drawn."""


def make_loggers(cfg: DictConfig, run: Run) -> list[Logger]:
    """The loggers asked for, in the first process; the others have none.

    Raises:
        InputError: wandb cannot start as asked for.
    """
    chosen = cfg.get("logger") or {}
    loggers: list[Logger] = []
    if run.is_first_process and chosen.get("tensorboard"):
        loggers.append(TensorBoardLogger(run.directory, name="", version="tensorboard"))
    if run.is_first_process and chosen.get("wandb"):
        loggers.append(Wandb(start_wandb(cfg, run)))
    return loggers


class Wandb(WandbLogger):
    """Lightning's wandb logger, whose steps are the training's own."""

    def __init__(self, started: "wandb.Run"):
        super().__init__(project=started.project, experiment=started)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # wandb takes steps in rising order only, and a continued run repeats those that came after
        # its checkpoint.
        run = self.experiment
        run.log(dict(metrics), step=None if step is None else max(step, run.step))

    def finalize(self, status: str) -> None:
        if status == "failed":
            self.experiment.finish(exit_code=1)


def start_wandb(cfg: DictConfig, run: Run) -> "wandb.Run":
    """Starts the wandb run of a run directory, or goes on with it."""
    import wandb

    mode = wandb_mode(cfg.logger.offline)
    table = [f"table{cfg.paper.table}"] if cfg.paper else []
    try:
        started = wandb.init(
            project=cfg.logger.project,
            entity=cfg.logger.entity,
            id=wandb_id(run.directory),
            name=run.directory.name,
            group=run.group,
            job_type=norm_label(cfg.norm),
            tags=[cfg.task.name, cfg.data.name, cfg.norm.name, *table],
            config=without_home(cfg),
            dir=run.directory,
            mode=mode,
            resume="allow",
            reinit="finish_previous",  # of a sweep in this process
            settings=private_settings(),
        )
    except wandb.errors.Error as error:
        why = str(error).splitlines()[0]
        raise InputError(f"logger=wandb: {why}; logger.offline=true needs no server") from None
    if mode == "offline":
        log.info(f"wandb   offline; to send it: wandb sync {run.directory / 'wandb'}")
    elif started.url:
        log.info(f"wandb   {started.url}")
    return started


def wandb_mode(offline: bool | None) -> WandbMode:
    """wandb's mode: as asked for, else as wandb is set up, else online if there is a key.

    Raises:
        InputError: online was asked for and there is no key, or the key cannot be one.
    """
    import wandb
    from wandb.sdk.lib import wbauth

    if offline:
        return "offline"
    settings = wandb.setup().settings  # WANDB_MODE, `wandb offline`
    if offline is None and settings.mode != "online":
        return cast(WandbMode, settings.mode)
    try:
        key = wbauth.authenticate_session(
            host=settings.base_url, source="train.py", prompt=False, update_session=False
        )
    except wandb.errors.AuthenticationError as error:
        raise InputError(f"logger=wandb: {str(error).splitlines()[0]}") from None
    if key is None and offline is False:
        raise InputError("logger.offline=false: wandb has no key; log in first: wandb login")
    return "offline" if key is None else "online"


def private_settings() -> "wandb.Settings":
    """Settings under which wandb records metrics and nothing about the machine but its load."""
    import wandb

    return wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        finish_timeout=UPLOAD_SECONDS,
        host="",
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=1.0,  # seconds of an offline run that SIGKILL can lose
    )


def wandb_id(directory: Path) -> str:
    """The id of a run directory's wandb run: drawn once, and kept in the directory.

    It does not follow from the directory's name: the same row trained elsewhere is another run.
    """
    path = directory / "wandb_id"
    if not path.exists():
        write_atomically(path, secrets.token_hex(6) + "\n")
    return path.read_text(encoding="utf-8").strip()


def without_home(cfg: DictConfig) -> dict:
    """The resolved configuration as ``config.yaml`` has it, without the home folder's path."""
    text = OmegaConf.to_yaml(cfg, resolve=True).replace(str(Path.home()), "~")
    return plain(cast(DictConfig, OmegaConf.create(text)))


def finish_loggers(trainer: pl.Trainer, scores: dict[str, float]) -> None:
    """Ends the wandb run with the result's scores as its summary."""
    for run in _wandb_runs(trainer):
        run.log({}, commit=True)  # the last row, whose values would else become the summary
        run.summary.update(scores)
        run.finish(exit_code=0)


def _wandb_runs(trainer: pl.Trainer) -> list["wandb.Run"]:
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, Wandb)]


class Dashboard(pl.Callback):
    """Tells the loggers what Lightning does not.

    The rate of the weights (biases may have another one) as often as the loss; every epoch its mean
    loss, throughput and memory; scores by class; to wandb also the audit of
    norm layers as a table, and predictions on a few images of the evaluation split.

    Args:
        cfg: the configuration.
        run: its directory has the audit.
        history: what was measured of each epoch; stands before this among the callbacks.
        eval_set: where the images are from.
    """

    def __init__(self, cfg: DictConfig, run: Run, history: History, eval_set: Dataset):
        self.cfg, self.run, self.history, self.eval_set = cfg, run, history, eval_set
        self._shown = 0
        self._last_rate = -1  # step whose rate was logged

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        import wandb

        for run in _wandb_runs(trainer):
            columns, *rows = read_audit(self.run.directory / "audit.csv")
            step = max(trainer.global_step, run.step)
            table = wandb.Table(columns=columns, data=rows)
            if run.offline:  # else the run would hold the path of a copy in the home folder
                table.bind_to_run(run, "audit", step)
            run.log({"audit": table}, step=step)
            for phase in ("training", "evaluation"):
                windowed = [row[-1] for row in rows if row[0] == phase]
                run.summary[f"windowed_layers_{phase}"] = sum(windowed)

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any
    ) -> None:
        step, every = trainer.global_step, cast(Any, trainer).log_every_n_steps
        if step != self._last_rate and (step + 1) % every == 0:
            self._last_rate = step
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            for logger in trainer.loggers:
                logger.log_metrics({"lr": rate}, step=step)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        epoch = self.history.rows[-1]
        names = ("seconds", "samples_per_second", "memory_mib")
        self._log(trainer, {"loss_epoch": epoch["loss"]} | {name: epoch[name] for name in names})

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        module = cast(TaskModule, module)
        by_class = {
            f"{kind}/{name}": value
            for kind, values in module.breakdown.items()
            for name, value in values.items()
            if value is not None
        }
        if by_class:
            self._log(trainer, by_class)
        # Pictures after every fifth of the training, and so after all of it.
        share = min(1.0, trainer.global_step / trainer.estimated_stepping_batches)
        if int(TIMES * share) > self._shown and self.cfg.task.kind in PICTURE:
            self._shown = int(TIMES * share)
            for run in _wandb_runs(trainer):
                pictures = enumerate(draw(self.cfg, module, self.eval_set), start=1)
                by_name = {f"validation/{number}": picture for number, picture in pictures}
                run.log(by_name, step=max(_last_step(trainer), run.step))

    def _log(self, trainer: pl.Trainer, values: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(values, step=_last_step(trainer))


def _last_step(trainer: pl.Trainer) -> int:
    """The step just made, as Lightning counts them for loggers."""
    return max(0, trainer.global_step - 1)


def read_audit(path: Path) -> list[list[str | int | bool]]:
    """The lines of an ``audit.csv``, the header first, with numbers and truth values as such."""
    truth = {"True": True, "False": False}
    with path.open(newline="", encoding="utf-8") as file:
        return [
            [int(cell) if cell.isdigit() else truth.get(cell, cell) for cell in line]
            for line in csv.reader(file)
        ]


@torch.no_grad()
def draw(cfg: DictConfig, module: TaskModule, dataset: Dataset) -> list["wandb.Image"]:
    """Images spread evenly over a split, with the labels and what the network makes of them."""
    inputs = Augmented(dataset, make_transform(cfg, training=False), cfg.seed)
    was_training = module.training
    module.eval()
    pictures = [
        PICTURE[cfg.task.kind](cfg, module, dataset, inputs, int(index))
        for index in np.linspace(0, len(dataset) - 1, min(PICTURES, len(dataset)))
    ]
    module.train(was_training)
    return pictures


def segmentation_picture(
    cfg: DictConfig, module: TaskModule, dataset: Dataset, inputs: Augmented, index: int
) -> "wandb.Image":
    import wandb

    sample = dataset[index]
    logits = module(inputs[0, index]["image"][None].to(module.device))
    prediction = cast(Segmentation, module).decide(logits)[0].cpu().numpy()
    masks = {"ground_truth": sample["label"], "prediction": prediction}
    names = dict(enumerate(cfg.task.class_names)) | {IGNORED: "ignored"}
    every = -(-max(sample["label"].shape) // PICTURE_SIDE)
    return wandb.Image(
        sample["image"][::every, ::every, :3],
        caption=sample.get("name"),
        masks={
            what: {"mask_data": mask[::every, ::every].astype(np.uint8), "class_labels": names}
            for what, mask in masks.items()
        },
    )


def detection_picture(
    cfg: DictConfig, module: TaskModule, dataset: Dataset, inputs: Augmented, index: int
) -> "wandb.Image":
    import wandb

    sample = inputs[0, index]
    (found,) = module.model([sample["image"].to(module.device)])
    sure = found["scores"] >= SURE
    names = dict(enumerate(cfg.task.class_names, start=1))
    boxes = {
        "ground_truth": (sample["boxes"], sample["labels"]),
        "prediction": (found["boxes"][sure].cpu(), found["labels"][sure].cpu()),
    }
    return wandb.Image(
        sample["image"].permute(1, 2, 0).numpy(),
        boxes={
            what: {
                "box_data": [
                    {
                        "position": dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True)),
                        "domain": "pixel",
                        "class_id": label,
                    }
                    for box, label in zip(corners.tolist(), labels.tolist(), strict=True)
                ],
                "class_labels": names,
            }
            for what, (corners, labels) in boxes.items()
        },
    )


PICTURE = {"segmentation": segmentation_picture, "detection": detection_picture}
