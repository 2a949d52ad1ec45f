"""What surrounds the network in a run: the trainer and the description."""

import csv
import io
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from lcn import audit
from tasks.config import plain
from tasks.data import Dataset, Datasets, DetectionDataset
from tasks.data.loading import DataModule
from tasks.errors import InputError, write_atomically
from tasks.identity import installed_packages, running_code
from tasks.models import one_image, scaled_norm, training_size
from tasks.models.checkpoint import check_complete, load_weights
from tasks.modules.module import TaskModule
from tasks.protocol import learning_rate, norm_label, protocol_batch, task_facts
from tasks.runs.callbacks import (
    AtomicCheckpoints,
    Checkpoints,
    History,
    ProgressLine,
    StopsAtOnce,
)
from tasks.runs.directory import Run
from tasks.runs.loggers import Dashboard, make_loggers
from tasks.runs.provenance import without_path, write_start
from tasks.runs.windows import WindowHistory, bound_starts

log = logging.getLogger("train")


def world_size(trainer: DictConfig) -> int:
    """Number of processes, one device each, that this trainer configuration starts in all."""
    devices = trainer.devices
    if devices in ("auto", -1):
        devices = torch.cuda.device_count() if _on_gpu(trainer) else 1
    count = devices if isinstance(devices, int) else len(devices)
    return count * trainer.num_nodes


def _on_gpu(trainer: DictConfig) -> bool:
    return trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def tune(cfg: DictConfig, model: nn.Module) -> None:
    """Gives a network the memory format and the compiled code that the trainer asks for.

    Raises:
        InputError: it is to be compiled, and there is no compiler.
    """
    channels_last = cfg.trainer.channels_last
    if channels_last is True or (channels_last == "auto" and not _on_gpu(cfg.trainer)):
        model.to(memory_format=torch.channels_last)
    if cfg.trainer.compile:
        compilers = filter(None, (os.environ.get("CXX"), "g++", "clang++"))
        if not any(map(shutil.which, compilers)):
            raise InputError(
                "trainer.compile=true needs a C++ compiler, and there is none: install g++, or "
                "leave trainer.compile=false"
            )
        # The rest of Mask R-CNN depends on what is in the images.
        whole = cfg.task.kind != "detection"
        (model if whole else model.get_submodule("backbone")).compile()


def make_module(cfg: DictConfig, model: nn.Module, eval_set: Dataset) -> TaskModule:
    """The network with the loss and the scores of its kind of task, tuned as the trainer asks."""
    tune(cfg, model)
    norm = scaled_norm(cfg)
    if cfg.task.kind == "segmentation":
        from tasks.modules.segmentation import Segmentation

        return Segmentation(model, cfg, norm, eval_set.groups)
    if cfg.task.kind == "classification":
        from tasks.modules.classification import Classification

        return Classification(model, cfg, norm)
    from tasks.modules.detection import Detection

    if not isinstance(eval_set, DetectionDataset):
        raise TypeError(f"task={cfg.task.name}: its dataset is no tasks.data.DetectionDataset")
    return Detection(model, cfg, norm, eval_set)


def make_trainer(cfg: DictConfig, run: Run, datasets: Datasets) -> tuple[pl.Trainer, History]:
    """Lightning's trainer for a run, and the history that it fills."""
    quiet_lightning()
    primary = task_facts(cfg.task.name).primary
    history = History(run.directory / "metrics.csv", primary, run.total_batch)
    loggers = make_loggers(cfg, run)
    callbacks: list[pl.Callback] = [history]
    if cfg.norm.name == "lcn_learned":
        callbacks.append(WindowHistory(run.directory, cfg))
    if loggers:
        callbacks.append(Dashboard(cfg, run, history, datasets.eval))
    callbacks.append(Checkpoints(run.directory / "last.ckpt", cfg.trainer.checkpoint_minutes))
    callbacks.append(StopsAtOnce())
    if cfg.trainer.progress_bar:
        callbacks.append(ProgressLine(primary))
    settings = plain(cfg.trainer)
    trainer = _lightning_trainer(
        accelerator=settings["accelerator"],
        devices=settings["devices"],
        num_nodes=settings["num_nodes"],
        strategy=settings["strategy"],
        precision=settings["precision"],
        accumulate_grad_batches=settings["accumulate"],
        max_epochs=settings["max_epochs"],
        max_steps=-1 if settings["max_steps"] is None else settings["max_steps"],
        deterministic=settings["deterministic"],
        enable_progress_bar=settings["progress_bar"],
        enable_checkpointing=False,  # tasks.runs.callbacks.Checkpoints does it
        check_val_every_n_epoch=cfg.data.eval_every,
        limit_val_batches=None if datasets.eval.labelled else 0,
        callbacks=callbacks,
        logger=loggers,
        log_every_n_steps=(cfg.get("logger") or {}).get("every_n_steps"),
        plugins=[AtomicCheckpoints()],
        default_root_dir=run.directory,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the batches of tasks.data.loading know their process
        benchmark=torch.cuda.is_available() and not settings["deterministic"],
    )
    # With max_steps Lightning takes every training that is continued for one in the middle of an
    # epoch. From a checkpoint of an epoch's end it would end that epoch again, without a batch.
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
    return trainer, history


def _lightning_trainer(**settings: Any) -> pl.Trainer:
    """A trainer with these settings.

    Raises:
        InputError: this machine has no such devices.
    """
    try:
        return pl.Trainer(**settings)
    except (MisconfigurationException, TypeError, ValueError) as error:
        wanted = ", ".join(f"trainer.{key}={settings[key]}" for key in ("accelerator", "devices"))
        reason = str(error).splitlines()[0].strip()
        raise InputError(f"{wanted}: {reason} (trainer=cpu trains on the CPU)") from None


def quiet_lightning() -> None:
    """Silences what Lightning says of choices that are made here on purpose."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*resuming from a checkpoint that ended before the epoch ended.*",
        ".*custom batch sampler .EvalBatches. for prediction.*",
    ):
        warnings.filterwarnings("ignore", text)


def describe(cfg: DictConfig, run: Run, model: nn.Module, datasets: Datasets) -> None:
    """Logs what is about to be trained, and how many norm layers are windowed."""
    if run.is_first_process:
        run.write_config()
        note_start(run)
    norm, used = cfg.norm, scaled_norm(cfg)
    window = ""
    if "window" in norm and cfg.data.scale != 1 and norm.window != "all":
        window = f" (window {used['window']} at scale {cfg.data.scale:g})"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    steps = len(datasets.train) // run.total_batch * cfg.trainer.max_epochs
    if cfg.trainer.max_steps is not None:
        steps = min(steps, cfg.trainer.max_steps)
    height, width = training_size(cfg)
    log.info(f"run     {run.directory}")
    log.info(
        f"data    {cfg.task.name}, {cfg.data.name}: {len(datasets.train)} training samples of "
        f"{height} x {width}, {len(datasets.eval)} in {cfg.data.eval_split}"
    )
    log.info(f"model   {cfg.task.model.name}, {parameters:,} parameters")
    for note in getattr(model, "notes", ()):
        log.info(f"        {note}")
    warn_of_scratch(cfg)
    log.info(f"norm    {norm_label(norm)}{window}")
    accumulated = cfg.trainer.accumulate
    devices = run.total_batch // cfg.data.batch_size // accumulated
    parts, epochs = f"{devices} x {cfg.data.batch_size}", cfg.trainer.max_epochs
    if accumulated > 1:
        parts += f", {accumulated} batches before each step"
    log.info(f"batch   {run.total_batch} in all ({parts}), {epochs} epochs, {steps} steps")
    if accumulated > 1 and norm.name in ("bn", "brn", "sync_bn"):
        at_once = cfg.data.batch_size * (devices if norm.name == "sync_bn" else 1)
        log.warning(
            f"warning: {norm.name} looks across a batch: its statistics are those of {at_once} "
            f"samples, and its running ones follow {accumulated} batches in each step"
        )
    log_learning_rate(cfg, run.total_batch)
    log_audit(cfg, run, model, datasets.eval)


def note_start(run: Run) -> None:
    """Notes code, packages and command in the run; warns where that is less than the whole."""
    code = running_code()
    overrides = [without_path(override) for override in HydraConfig.get().overrides.task]
    starts = write_start(run.directory, code, installed_packages(), overrides)
    if code.problem:
        log.warning(f"warning: the commit is not known, git failed: {code.problem}")
    for name in code.left_out:
        log.warning(f"warning: too large for diff.patch: {name}")
    if len(starts) > 1:
        log.warning(
            "warning: continued with other code or packages than it was started with; "
            f"{run.directory / 'provenance.json'} has both"
        )


def warn_of_scratch(cfg: DictConfig) -> None:
    """Warns where a row of Table 5 would train from scratch on COCO, which the paper does not."""
    detects, full = cfg.task.kind == "detection", cfg.data.name == "full"
    if not (cfg.paper and detects and full):
        return
    if cfg.task.backbone_checkpoint is None and cfg.task.model.pretrained is None:
        log.warning(
            "warning: the paper's rows start from an ImageNet backbone: give "
            "task.backbone_checkpoint=FILE (docs/protocol.md says which files there are)"
        )


def log_learning_rate(cfg: DictConfig, total_batch: int) -> None:
    """Says how the learning rate goes with the total batch, if that is not the protocol's."""
    lr, protocol = cfg.task.optimizer.lr, protocol_batch(cfg.task)
    if cfg.task.scale_lr and (total_batch != protocol or cfg.data.lr_factor != 1):
        factor = (
            "" if cfg.data.lr_factor == 1 else f", times {cfg.data.lr_factor:g} on {cfg.data.name}"
        )
        log.info(
            f"rate    {learning_rate(cfg, total_batch):g}: the protocol's {lr:g} for a total "
            f"batch of {protocol}, in proportion to {total_batch}{factor}"
        )
    elif total_batch != cfg.data.total_batch:
        log.warning(
            f"warning: the total batch is {total_batch}; the protocol's learning rate {lr:g} "
            f"belongs to a total batch of {cfg.data.total_batch}: "
            + ("set trainer.accumulate=auto, or " if total_batch < cfg.data.total_batch else "")
            + "change data.batch_size, trainer.devices or task.optimizer.lr"
        )


def evaluation_size(cfg: DictConfig, eval_set: Dataset) -> tuple[int, int]:
    """Height and width of what the network is evaluated on, as of the first sample."""
    if cfg.task.kind == "segmentation":
        return eval_set[0]["image"].shape[:2]
    return training_size(cfg)


def log_audit(cfg: DictConfig, run: Run, model: nn.Module, eval_set: Dataset) -> None:
    """Logs how many norm layers are windowed, and writes ``audit.csv`` with a line per layer."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    columns = ("name", "kind", "channels", "height", "width", "window", "windowed")
    writer.writerow(("phase", *columns))
    sizes = {"training": training_size(cfg), "evaluation": evaluation_size(cfg, eval_set)}
    for phase, size in sizes.items():
        shape, forward = one_image(cfg, size)
        report = audit(model, shape, forward=forward)
        if any(row.window for row in report):
            *_, height, width = shape
            log.info(f"\nnorm layers in {phase}, input {height} x {width}\n{report.summary()}")
        for row in report:
            writer.writerow((phase, *(getattr(row, column) for column in columns)))
    if run.is_first_process:
        write_atomically(run.directory / "audit.csv", lines.getvalue())
    log.info("")


def bound_windows(cfg: DictConfig, model: nn.Module) -> None:
    """Starts windows that are learned at most at the size of their maps in training."""
    bound_starts(model, *one_image(cfg, training_size(cfg)))


def checkpoint_to_continue(run: Run, model: nn.Module) -> Path | None:
    """The run's last checkpoint, if there is one and it is this model's.

    Raises:
        InputError: it is the checkpoint of another model, damaged, or not complete.
    """
    path = run.last_checkpoint
    if path is not None:
        checkpoint = load_weights(model, str(path), scaled_norm(run.cfg))
        check_complete(checkpoint, path)
        log.info(f"continuing after step {checkpoint['global_step']:,}: {path}")
    return path


def evaluator(cfg: DictConfig) -> pl.Trainer:
    """Lightning's trainer for an evaluation: it trains nothing and writes nothing."""
    quiet_lightning()
    return _lightning_trainer(
        accelerator=cfg.trainer.accelerator,
        devices=cfg.trainer.devices,
        precision=cfg.trainer.precision,
        logger=False,
        callbacks=[StopsAtOnce()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )


def evaluate(trainer: pl.Trainer, module: TaskModule, data: DataModule) -> None:
    """Evaluates the weights in ``module`` and prints the metrics in percent."""
    trainer.validate(module, data, verbose=False)
    if trainer.is_global_zero:
        for name, value in module.scores.items():
            print(f"{name:24}{value:8.2f}")
        for by_class in module.breakdown.values():
            for name, score in by_class.items():
                print(f"  {name:22}{'-' if score is None else f'{score:.2f}':>8}")
