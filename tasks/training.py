"""What surrounds the network in a run: the trainer, the description, the result."""

import csv
import io
import logging
import math
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import nn

from lcn import audit
from tasks.callbacks import AtomicCheckpoints, History, ProgressLine
from tasks.models import load_weights, scaled_norm
from tasks.paper import METRICS, paper_row
from tasks.run import Run, git_commit, norm_label, versions, write_atomically

log = logging.getLogger("train")


def world_size(trainer: DictConfig) -> int:
    """Number of processes, one device each, that this trainer configuration starts in all."""
    devices = trainer.devices
    if devices in ("auto", -1):
        on_gpu = trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        devices = torch.cuda.device_count() if on_gpu else 1
    count = devices if isinstance(devices, int) else len(devices)
    return count * trainer.num_nodes


def make_trainer(cfg: DictConfig, run: Run) -> tuple[pl.Trainer, History]:
    """Lightning's trainer for a run, and the history that it fills."""
    quiet_lightning()
    history = History(run.directory / "metrics.csv")
    loggers = make_loggers(cfg, run)
    callbacks = [
        history,
        ModelCheckpoint(
            run.directory,
            filename="last",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        ),
        ProgressLine(),
    ]
    if loggers:
        callbacks.append(LearningRateMonitor("step"))
    settings = OmegaConf.to_container(cfg.trainer, resolve=True)
    trainer = pl.Trainer(
        accelerator=settings["accelerator"],
        devices=settings["devices"],
        num_nodes=settings["num_nodes"],
        strategy=settings["strategy"],
        precision=settings["precision"],
        max_epochs=settings["max_epochs"],
        deterministic=settings["deterministic"],
        enable_progress_bar=settings["progress_bar"],
        check_val_every_n_epoch=cfg.data.eval_every,
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpoints()],
        default_root_dir=run.directory,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the batches of tasks.data.loading know their process
        benchmark=torch.cuda.is_available() and not settings["deterministic"],
    )
    return trainer, history


def quiet_lightning() -> None:
    """Silences what Lightning says of choices that are made here on purpose."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", text)


def make_loggers(cfg: DictConfig, run: Run) -> list[Logger]:
    """The loggers asked for; a run's own files are written in any case."""
    if cfg.logger.name == "tensorboard":
        return [TensorBoardLogger(run.directory, name="", version="tensorboard")]
    if cfg.logger.name == "wandb":
        return [
            WandbLogger(
                project=cfg.logger.project,
                offline=cfg.logger.offline,
                name=run.directory.name,
                save_dir=run.directory,
                group=cfg.task.name,
                job_type=cfg.norm.name,
                config=OmegaConf.to_container(cfg, resolve=True),
            )
        ]
    return []


def describe(cfg: DictConfig, run: Run, model: nn.Module, train_set, eval_set) -> None:
    """Logs what is about to be trained, and which norm layers will see a window."""
    if run.is_first_process:
        run.write_config()
    norm, used = cfg.norm, scaled_norm(cfg)
    window = ""
    if "window" in norm and cfg.data.scale != 1 and norm.window != "all":
        window = f" (window {used['window']} at scale {cfg.data.scale:g})"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    steps = len(train_set) // run.total_batch * cfg.trainer.max_epochs
    log.info(f"run     {run.directory}")
    log.info(
        f"data    {cfg.task.name}, {cfg.data.name}: {len(train_set)} training images, "
        f"{len(eval_set)} in {cfg.data.eval_split}, crop {cfg.data.crop[0]} x {cfg.data.crop[1]}"
    )
    log.info(f"model   {cfg.task.model.name}, {parameters:,} parameters")
    log.info(f"norm    {norm_label(norm)}{window}")
    log.info(
        f"batch   {run.total_batch} in all ({run.total_batch // cfg.data.batch_size} x "
        f"{cfg.data.batch_size}), {cfg.trainer.max_epochs} epochs, {steps} steps"
    )
    if run.total_batch != cfg.data.total_batch:
        log.warning(
            f"warning: the total batch is {run.total_batch}; the protocol's learning rate "
            f"{cfg.task.optimizer.lr:g} belongs to a total batch of {cfg.data.total_batch}: change "
            "data.batch_size, trainer.devices or task.optimizer.lr"
        )
    log_audit(cfg, run, model, eval_set[0]["image"].shape[:2])


def log_audit(cfg: DictConfig, run: Run, model: nn.Module, eval_size: tuple[int, int]) -> None:
    """Logs how many norm layers see a window, and writes ``audit.csv`` with a line per layer."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    columns = ("name", "kind", "channels", "height", "width", "window", "windowed")
    writer.writerow(("phase", *columns))
    for phase, size in (("training", cfg.data.crop), ("evaluation", eval_size)):
        report = audit(model, (1, 3, *size))
        if any(row.window for row in report):
            log.info(f"\nnorm layers in {phase}, input {size[0]} x {size[1]}\n{report.summary()}")
        for row in report:
            writer.writerow((phase, *(getattr(row, column) for column in columns)))
    if run.is_first_process:
        write_atomically(run.directory / "audit.csv", lines.getvalue())
    log.info("")


def make_result(
    cfg: DictConfig,
    run: Run,
    trainer: pl.Trainer,
    module: pl.LightningModule,
    history: History,
) -> dict:
    """The content of ``result.json``: metrics of the last epoch in percent, and what gave them."""
    names = METRICS[cfg.task.name]
    norm = OmegaConf.to_container(cfg.norm)
    if "window" in norm:
        norm["window_used"] = scaled_norm(cfg)["window"]
    return {
        "status": "finished",
        "experiment": HydraConfig.get().runtime.choices.get("experiment"),
        "task": cfg.task.name,
        "model": cfg.task.model.name,
        "norm": norm,
        "data": cfg.data.name,
        "seed": cfg.seed,
        "metrics": {name: module.scores[name] for name in names},
        "best": {name: history.best[name] for name in ("epoch", *names)},
        "class_iou": {
            name: None if math.isnan(value) else value
            for name, value in zip(module.class_names, module.class_iou, strict=True)
        },
        "miou_present": module.scores["miou_present"],
        "paper": paper_row(cfg),
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "total_batch": run.total_batch,
        "wall_seconds": round(history.seconds, 1),
        "device": device_name(trainer),
        "world_size": trainer.world_size,
        "versions": versions(),
        "git_commit": git_commit(),
        "overrides": [_without_path(override) for override in HydraConfig.get().overrides.task],
    }


def _without_path(override: str) -> str:
    key, _, value = override.partition("=")
    return f"{key}=<path>" if "/" in value and "/" not in key else override


def device_name(trainer: pl.Trainer) -> str:
    """``cpu``, or the GPU's name."""
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def print_row(result: dict) -> None:
    """Logs the row: ours, the paper's, the difference."""
    names, paper = list(result["metrics"]), result["paper"]
    rows = [("this run", result["metrics"])]
    if paper is not None:
        rows.append((f"paper, Table {paper['table']}", paper))
        difference = {name: result["metrics"][name] - paper[name] for name in names}
        rows.append(("difference", difference))
    log.info("\n" + " " * 18 + "".join(f"{name:>12}" for name in names))
    for label, values in rows:
        sign = "+" if label == "difference" else ""
        log.info(f"{label:18}" + "".join(f"{values[name]:{sign}12.2f}" for name in names))
    if result["data"] == "mini" and paper is not None:
        log.info(
            "(ours on the miniature, the paper's on the full dataset: compare norms, not rows)"
        )


def checkpoint_to_continue(run: Run, model: nn.Module) -> Path | None:
    """The run's last checkpoint, if there is one and it is this model's.

    Raises:
        InputError: it is the checkpoint of another model, or damaged.
    """
    path = run.last_checkpoint
    if path is not None:
        checkpoint = load_weights(model, str(path), scaled_norm(run.cfg))
        log.info(f"continuing after epoch {checkpoint['epoch'] + 1}: {path}")
    return path


def evaluate(cfg: DictConfig, module: pl.LightningModule, data: pl.LightningDataModule) -> None:
    """Evaluates the weights in ``module`` and prints the metrics; nothing is trained or written."""
    quiet_lightning()
    trainer = pl.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=cfg.trainer.devices,
        precision=cfg.trainer.precision,
        logger=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    trainer.validate(module, data, verbose=False)
    if trainer.is_global_zero:
        for name, value in module.scores.items():
            print(f"{name:14}{value:8.2f}")
        for name, value in zip(module.class_names, module.class_iou, strict=True):
            print(f"  {name:14}{value:6.2f}")
