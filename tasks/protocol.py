"""What a task is measured by, what was published of it, and the batch its learning rate belongs to.

Nothing here imports torch.
"""

import csv
import functools
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from tasks.config import CONFIGS, ROOT, options, plain
from tasks.errors import InputError


@dataclass(frozen=True)
class TaskFacts:
    """What a task's yaml says under ``facts``: none of it changes a result.

    Attributes:
        title: the task as people call it.
        metrics: of its results in percent, in the order of its table's columns. More is better, but
            for those that end in ``_err``.
        metrics_by_group: whether the same of every group (city) that is scored stand before them.
        primary: the metric that is shown while the task trains and compared first.
        classes: colour (red, green, blue in 0..255) by class name, in the order of the class ids;
            None if the dataset has the names.
        ignored_color: of pixels without a class; None without classes.
        samples: samples, or tiles, of the splits whose number is known.
        image_size: height and width in pixels of every image; None if they differ.
        num_classes: of a dataset that has their names itself; may be left out.
        download_gb: of the archives that docs/prepare names, 1e9 bytes; may be left out.
    """

    title: str
    metrics: list[str]
    metrics_by_group: bool
    primary: str
    classes: dict[str, list[int]] | None
    ignored_color: list[int] | None
    samples: dict[str, int]
    image_size: list[int] | None
    num_classes: int | None = None
    download_gb: float | None = None

    @property
    def class_names(self) -> list[str]:
        """In the order of the class ids; none if the dataset has them."""
        return list(self.classes or ())


@functools.cache
def task_facts(name: str) -> TaskFacts:
    """The facts of a task, also for runs that are older than its facts.

    Raises:
        InputError: there is no such task, or its yaml lacks a fact.
    """
    if name not in options("task"):
        raise InputError(f"task={name}: no such task; there are: {', '.join(options('task'))}")
    path = CONFIGS / "task" / f"{name}.yaml"
    facts = _load_unresolved(path).get("facts", {})
    names = {field.name for field in fields(TaskFacts)}
    optional = {field.name for field in fields(TaskFacts) if field.default is not MISSING}
    if not names - optional <= facts.keys() <= names:
        raise InputError(
            f"{path}: facts must have the keys {', '.join(sorted(names - optional))}, may have "
            f"{', '.join(sorted(optional))}, and no others"
        )
    return TaskFacts(**facts)


@functools.cache
def stand_ins() -> dict[str, str]:
    """What generated data are called, by the choice of ``data`` that generates them."""
    found = {name: _load_unresolved(CONFIGS / "data" / f"{name}.yaml") for name in options("data")}
    return {name: data["stand_in"] for name, data in found.items() if data.get("stand_in")}


def stand_in(data: DictConfig | dict) -> str | None:
    """What the generated data in a dataset's place are called; None for the dataset itself.

    Args:
        data: the part ``data`` of a configuration, which may be older than the key.
    """
    return data["stand_in"] if "stand_in" in data else stand_ins().get(data["name"])


def check_facts(cfg: DictConfig) -> None:
    """Raises InputError if facts were set: results are checked and shown by those of the file."""
    facts = task_facts(cfg.task.name)
    for key, value in plain(cfg.task.get("facts") or {}).items():
        if getattr(facts, key, None) != value:
            raise InputError(
                f"task.facts.{key}: facts are how results are checked and shown, and change "
                f"nothing in a run; leave it out, or edit configs/task/{cfg.task.name}.yaml"
            )


def protocol_batch(task: DictConfig | dict) -> int:
    """The total batch that the protocol's learning rate belongs to."""
    return task["devices"] * task["model"]["batch_size"]


def accumulated_batches(cfg: DictConfig | dict, world_size: int) -> int:
    """Batches of each device whose gradients are added before a step.

    Raises:
        InputError: ``trainer.accumulate=auto`` and no number of them gives ``data.total_batch``.
    """
    accumulate = cfg["trainer"]["accumulate"]
    if accumulate != "auto":
        return accumulate
    at_once, wanted = cfg["data"]["batch_size"] * world_size, cfg["data"]["total_batch"]
    if at_once < wanted and wanted % at_once:
        raise InputError(
            f"trainer.accumulate=auto: a total batch of {wanted} is no multiple of {at_once} "
            f"({world_size} x {cfg['data']['batch_size']}, devices x batch); change data.batch_size"
        )
    return max(1, wanted // at_once)


def learning_rate(cfg: DictConfig | dict, total_batch: int) -> float:
    """The rate to start from: the protocol's, in proportion to the total batch if so configured."""
    task = cfg["task"]
    factor = total_batch / protocol_batch(task) if task["scale_lr"] else 1.0
    return task["optimizer"]["lr"] * factor * cfg["data"]["lr_factor"]


def given_norm(norm: dict) -> dict:
    """What a norm's configuration says: no empty keys, and no ``c_group``, which has a default,
    beside a number of ``groups``."""
    norm = {key: value for key, value in norm.items() if value is not None}
    if "groups" in norm:
        norm.pop("c_group", None)
    return norm


def canonical_norm(norm: dict) -> dict:
    """One spelling for one layer: one group is LN, C groups are IN, window 5 is [5, 5]."""
    norm = given_norm(norm)
    if norm["name"].startswith("lcn") and str(norm.get("groups")) in ("1", "C"):
        norm["c_group"] = "C" if str(norm.pop("groups")) == "1" else 1
    if norm["name"] == "gn" and str(norm["groups"]) in ("1", "C"):
        norm["name"] = "ln" if str(norm.pop("groups")) == "1" else "in"
    if isinstance(norm.get("window"), int):
        norm["window"] = [norm["window"]] * 2
    return norm


def published_row(table: int, row: dict) -> dict:
    """The line of ``results/paper/table<N>.csv`` whose columns equal ``row``, numbers as floats.

    Raises:
        LookupError: no line or several lines match.
    """
    with (ROOT / "results" / "paper" / f"table{table}.csv").open(
        newline="", encoding="utf-8"
    ) as file:
        lines = [
            line
            for line in csv.DictReader(file)
            if all(line[column] == str(value) for column, value in row.items())
        ]
    if len(lines) != 1:
        raise LookupError(f"table{table}.csv has {len(lines)} lines with {row}")
    return {"table": table} | {key: _number(value) for key, value in lines[0].items()}


def _number(text: str) -> float | str:
    try:
        return float(text) if "." in text else text
    except ValueError:
        return text


def paper_row(cfg: DictConfig) -> dict | None:
    """The published row that a run stands beside, or None.

    The row of the experiment asked for, or, without one, of the experiment with the same task,
    model and norm; on the full dataset only if crop and epochs are the protocol's too. A norm that
    is no row's has none, whatever experiment it was derived from; neither has one that is scored on
    held out tiles of the training cities.
    """
    if cfg.data.holdout:
        return None
    as_published = cfg.data.crop == cfg.task.crop and cfg.trainer.max_epochs == cfg.task.epochs
    if cfg.paper is None and cfg.data.name == "full" and not as_published:
        return None
    wanted = (cfg.task.name, cfg.task.model.name, canonical_norm(plain(cfg.norm)))
    found = {
        path.stem: experiment["paper"]
        for path in sorted((CONFIGS / "experiment").glob("*.yaml"))
        if (experiment := read_experiment(path))["identity"] == wanted and experiment["paper"]
    }
    if not found:
        return None
    if cfg.paper is not None and dict(cfg.paper) in found.values():
        place = cfg.paper
    else:
        place = next(iter(found.values()))
    return published_row(place["table"], place["row"])


@functools.cache
def read_experiment(path: Path) -> dict:
    """An experiment file's ``identity`` (task, model, canonical norm), ``paper`` and ``variant``.

    ``paper`` is its published row, None for a row of our own. ``variant`` is empty for a row as it
    is by default; an experiment that starts from another, such as ``released_table4_all``, is the
    variant ``released`` of that one.
    """
    raw = _load(path)
    base: dict[str, Any] = {}
    chosen: dict[str, str] = {}
    variant = ""
    for default in raw["defaults"]:
        if isinstance(default, str):
            base = read_experiment(path.with_name(f"{default}.yaml"))
            chosen |= base["chosen"]
            variant = path.stem.removesuffix(f"_{default}")
        else:
            chosen |= {key.removeprefix("override /"): name for key, name in default.items()}
    settings = base.get("norm", {}) | raw.get("norm", {})
    norm = _load(CONFIGS / "norm" / f"{chosen['norm']}.yaml") | settings
    return {
        "identity": (chosen["task"], chosen["task/model"], canonical_norm(norm)),
        "paper": raw.get("paper", base.get("paper")),
        "variant": variant,
        "chosen": chosen,
        "norm": settings,
    }


def norm_label(norm: DictConfig | dict) -> str:
    """A short name for a norm: ``bn``, ``gn_g16``, ``lcn_c2_w227``, ``lcn_c2_w31x63``."""
    norm = canonical_norm(norm if isinstance(norm, dict) else plain(norm))
    parts = [norm["name"]]
    if "groups" in norm:
        parts.append(f"g{norm['groups']}")
    if "c_group" in norm:
        parts.append(f"c{norm['c_group']}")
    if "window" in norm:
        window = norm["window"]
        if isinstance(window, list):
            window = window[0] if window[0] == window[1] else f"{window[0]}x{window[1]}"
        parts.append(f"w{window}")
    return "_".join(parts)


def metric_title(name: str) -> str:
    """A metric as people write it: ``miou`` is mIoU, ``san_francisco_iou`` San Francisco IoU."""
    words = {
        "miou": "mIoU", "iou": "IoU", "acc": "accuracy", "err": "error", "ap": "AP",
        "ap50": "AP50", "ap75": "AP75", "bbox": "box", "top1": "top-1", "top5": "top-5",
        "pixel": "pixel", "mean": "mean", "mask": "mask", "overall": "overall",
    }  # fmt: skip
    return " ".join(words.get(word, word.capitalize()) for word in name.split("_"))


def _load(path: Path) -> dict[str, Any]:
    """What a yaml file of the configuration holds."""
    return plain(cast(DictConfig, OmegaConf.load(path)))


def _load_unresolved(path: Path) -> dict[str, Any]:
    """The same, of a file that names keys of others."""
    return plain(cast(DictConfig, OmegaConf.load(path)), resolve=False)
