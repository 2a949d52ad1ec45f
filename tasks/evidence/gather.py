"""Which runs count as evidence of a published row."""

import functools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tasks.config import compose
from tasks.errors import InputError
from tasks.evidence.rows import SCALES, Row, published_rows
from tasks.identity import run_identity
from tasks.protocol import canonical_norm, norm_label

OF_THE_DATASET = ("task.num_classes", "task.class_names", "task.outputs")
"""Settings that a run takes from the dataset it opens where its task leaves them null."""


@dataclass
class Evidence:
    """The runs that count: ``runs[scale][experiment][seed]`` is a run's ``result.json``.

    Rows that are the same experiment share their runs. ``left_out`` says in a line each which runs
    do not count, and why.
    """

    runs: dict[str, dict[str, dict[int, dict]]] = field(
        default_factory=lambda: {scale: {} for scale in SCALES}
    )
    left_out: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not any(self.runs.values())

    def scores(self, scale: str, row: Row, metric: str) -> dict[int, float]:
        """The metric in percent by seed; empty for a row that was not run."""
        runs = self.runs[scale].get(row.experiment, {})
        return {seed: runs[seed]["metrics"][metric] for seed in sorted(runs)}

    def distinct(self, scale: str) -> list[dict]:
        """Every run of a scale once, also if several rows take it."""
        of_rows = self.runs[scale].values()
        return list({id(run): run for runs in of_rows for run in runs.values()}.values())


def gather(places: list[Path]) -> Evidence:
    """The finished runs in and below the folders that follow the settings of a published row.

    Of several runs of one row and seed the newest counts, by the time of its ``result.json``.

    Raises:
        InputError: a ``result.json`` or ``config.yaml`` cannot be read.
    """
    files = {file.resolve(): file for place in places for file in place.rglob("result.json")}
    evidence = Evidence()
    oldest_first = sorted(files.values(), key=lambda file: (file.stat().st_mtime_ns, str(file)))
    folders: dict[tuple[str, str, int], Path] = {}
    for file in oldest_first:
        result = _read_result(file)
        rows = _rows_of(result)
        if reason := _why_left_out(file, result, rows):
            evidence.left_out.append(f"{file.parent}: {reason}")
            continue
        scale, seed = result["data"], result["seed"]
        key = (scale, rows[0].experiment, seed)
        if key in folders:
            newer = f"{file.parent} has the same row and seed and is newer"
            evidence.left_out.append(f"{folders[key]}: {newer}")
        folders[key] = file.parent
        for row in rows:
            evidence.runs[scale].setdefault(row.experiment, {})[seed] = result
    evidence.left_out.sort()
    return evidence


def _read_result(file: Path) -> dict:
    types = {
        "status": str, "task": str, "model": str, "norm": dict, "data": str, "seed": int,
        "metrics": dict, "epochs": int, "total_batch": int, "versions": dict, "device": str,
    }  # fmt: skip
    remedy = "remove it and give the run's command again"
    try:
        result = json.loads(file.read_text())
        wrong = [key for key, kind in types.items() if not isinstance(result[key], kind)]
        canonical_norm(result["norm"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file} is damaged ({type(error).__name__}: {error}): {remedy}") from None
    if wrong:
        raise InputError(f"{file} is damaged (at {', '.join(wrong)}): {remedy}")
    return result


def _rows_of(result: dict) -> list[Row]:
    norm = {key: value for key, value in result["norm"].items() if key != "window_used"}
    return [
        row
        for row in published_rows().values()
        if row.is_same_experiment(result["task"], result["model"], norm)
    ]


def _why_left_out(file: Path, result: dict, rows: list[Row]) -> str | None:
    if result["status"] != "finished":
        return f"its status is {result['status']}"
    if result["data"] not in SCALES:
        return f"data={result['data']} is neither {' nor '.join(SCALES)}"
    if not rows:
        label = norm_label(OmegaConf.create(result["norm"]))
        return f"no published row has {result['model']} with {label}"
    unusable = [name for name in rows[0].metrics if not _is_finite(result["metrics"].get(name))]
    if unusable:
        return f"it has no value of {', '.join(unusable)}"
    config = file.with_name("config.yaml")
    if not config.exists():
        return "it has no config.yaml that would tell its settings"
    differences = _differing_settings(config, result, rows[0].experiment)
    return f"not the settings of {rows[0].experiment}: {differences}" if differences else None


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _differing_settings(file: Path, result: dict, experiment: str) -> str:
    """What decides a result and is not as in the row's own command; empty if nothing.

    A key that is younger than the run has the value it has today.
    """
    row_cfg = _row_config(experiment, result["data"])
    try:
        own = OmegaConf.load(file)
        if not {"task", "norm", "data", "trainer", "seed"} <= own.keys():
            raise ValueError("not the configuration of a run")
        cfg = OmegaConf.merge(row_cfg, own)
        settings = _settings(cfg, result["total_batch"])
    except (OSError, YAMLError, OmegaConfBaseException, ValueError, AttributeError) as error:
        raise InputError(f"{file} is damaged ({type(error).__name__}): remove its folder") from None
    if cfg.trainer.max_steps is None:
        settings["epochs"] = result["epochs"]
    wanted = _settings(row_cfg, row_cfg.data.total_batch)
    ignored = {"seed"} | {name for name in OF_THE_DATASET if wanted.get(name) is None}
    if result["data"] == "full":  # section 4.2 starts from a backbone trained on ImageNet
        ignored.add("task.backbone_checkpoint")
    names = sorted((settings.keys() | wanted.keys()) - ignored)
    return ", ".join(
        f"{name} {_shown(settings.get(name))} instead of {_shown(wanted.get(name))}"
        for name in names
        if settings.get(name) != wanted.get(name)
    )


def _shown(value: object) -> str:
    return "a file" if isinstance(value, str) and "/" in value else str(value)


@functools.cache
def _row_config(experiment: str, scale: str) -> DictConfig:
    cfg = compose([f"experiment={experiment}", f"data={scale}"])
    OmegaConf.set_struct(cfg, False)
    return cfg


def _settings(cfg: DictConfig, total_batch: int) -> dict[str, object]:
    """Every setting that decides the result, by its dotted name."""
    settings: dict[str, object] = {}

    def flatten(node: dict, prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                flatten(value, f"{prefix}{key}.")
            else:
                settings[prefix + key] = value

    flatten(run_identity(cfg, dataset="", total_batch=total_batch), "")
    # The weights' files need not be on this machine: whether there were any is told by their names.
    for name in ("checkpoint", "task.backbone_checkpoint", "task.model.pretrained"):
        if name in settings:
            settings[name] = OmegaConf.select(cfg, name)
    return settings
