"""What a training comes to: its scores, ``result.json``, the row that is printed."""

import logging
import math
from dataclasses import dataclass, field

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tasks.config import plain
from tasks.data import Datasets, TiledDataset
from tasks.data.loading import DataModule
from tasks.identity import versions
from tasks.models import scaled_norm
from tasks.modules.module import TaskModule
from tasks.protocol import given_norm, paper_row, stand_ins, task_facts
from tasks.runs.callbacks import History
from tasks.runs.directory import Run
from tasks.runs.provenance import read_starts

log = logging.getLogger("train")


@dataclass
class Outcome:
    """The outcome of a training: scores in percent, scores by class, files written.

    A split whose labels are not public has no scores: its predictions are written as the benchmark
    wants them submitted.
    """

    scores: dict[str, float] = field(default_factory=dict)
    breakdown: dict[str, dict[str, float | None]] = field(default_factory=dict)
    submission: str | None = None


def final_outcome(
    cfg: DictConfig,
    trainer: pl.Trainer,
    module: TaskModule,
    data: DataModule,
    history: History,
) -> Outcome:
    """The scores of a trained network, as its task reports them.

    Those of the test split if the task has one, else of the last epoch, or the median over the last
    ones (section 4.3).
    """
    if data.datasets.test is not None:
        trainer.test(module, data, verbose=False)
        return Outcome(module.scores, module.breakdown)
    if not module.scores:  # the last epoch was not one of those evaluated
        trainer.validate(module, data, verbose=False)
    scores = history.median(cfg.task.median_epochs, list(module.scores))
    return Outcome(scores, module.breakdown)


def make_result(
    cfg: DictConfig,
    run: Run,
    trainer: pl.Trainer,
    datasets: Datasets,
    outcome: Outcome,
    history: History,
) -> dict:
    """The content of ``result.json``: metrics in percent, and what gave them."""
    norm = given_norm(plain(cfg.norm))
    if "window" in norm:
        norm["window_used"] = scaled_norm(cfg)["window"]
    facts = task_facts(cfg.task.name)
    names = list(outcome.scores) if facts.metrics_by_group else facts.metrics
    starts = read_starts(run.directory)
    return {
        "status": "finished",
        "experiment": HydraConfig.get().runtime.choices.get("experiment"),
        "task": cfg.task.name,
        "model": cfg.task.model.name,
        "norm": norm,
        "data": cfg.data.name,
        "dataset": run.dataset,
        **({"crs": datasets.train.crs()} if isinstance(datasets.train, TiledDataset) else {}),
        "seed": cfg.seed,
        "metrics": {name: outcome.scores[name] for name in names if name in outcome.scores},
        "best": history.best,
        **outcome.breakdown,
        **{name: value for name, value in outcome.scores.items() if name not in names},
        **({"submission": outcome.submission} if outcome.submission else {}),
        "paper": paper_row(cfg),
        "epochs": math.ceil(
            trainer.global_step * trainer.accumulate_grad_batches / trainer.num_training_batches
        ),
        "steps": trainer.global_step,
        "total_batch": run.total_batch,
        "wall_seconds": round(history.seconds, 1),
        **history.cost,
        "device": device_name(trainer),
        "world_size": trainer.world_size,
        "versions": versions(),
        "git_commit": starts[-1].git_commit,
        **({"code_changes": len(starts) - 1} if len(starts) > 1 else {}),
        "overrides": starts[-1].overrides,
    }


def device_name(trainer: pl.Trainer) -> str:
    """``cpu``, or the GPU's name."""
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def print_row(result: dict) -> None:
    """Logs the row: ours, the paper's, the difference."""
    if not result["metrics"]:
        log.info(f"\nno scores: the labels are not public; to be submitted: {result['submission']}")
        return
    names, paper = list(result["metrics"]), result["paper"]
    columns = {"this run": result["metrics"]}
    if paper is not None:
        columns[f"paper, Table {paper['table']}"] = paper
        shared = [name for name in names if name in paper]
        columns["difference"] = {n: result["metrics"][n] - paper[n] for n in shared}
    log.info("\n" + " " * 18 + "".join(f"{title:>18}" for title in columns))
    for name in names:
        cells = [values.get(name) for values in columns.values()]
        signs = ("", "", "+")
        log.info(
            f"{name:18}"
            + "".join(
                " " * 18 if cell is None else f"{cell:{sign}18.2f}"
                for cell, sign in zip(cells, signs, strict=False)
            )
        )
    generated = stand_ins().get(result["data"])
    if generated is not None and paper is not None:
        log.info(
            f"(ours on the {generated}, the paper's on the full dataset: compare norms, not rows)"
        )
