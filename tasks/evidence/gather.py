"""Which runs count as evidence of a published row, or of a variant of one."""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tasks.config import compose, plain
from tasks.evidence.rows import SCALES, Row, all_rows, rows_of_table, variant_rows
from tasks.identity import run_identity
from tasks.protocol import canonical_norm, norm_label
from tasks.runs.record import FinishedRun, flattened
from tasks.schema import MUST_BE_GIVEN

OF_THE_DATASET = ("task.num_classes", "task.class_names", "task.outputs")
"""Settings that a run takes from the dataset it opens where its task leaves them null."""

BEFORE: dict[str, dict[str, object]] = {
    "imagenet": {
        "task.color_jitter": 0.0,
        "task.lighting": 0.0,
        "task.interpolation": "bilinear",
        "task.optimizer.nesterov": False,
    },
    "coco": {
        "task.box_loss_beta": 1 / 9,
        "task.optimizer.bias_lr_factor": 1.0,
        "task.optimizer.decay_biases": True,
        "task.optimizer.decay_norms": True,
    },
}
"""What runs did that are older than a key whose default is something else, by task."""

DECISIVE = ("task", "norm", "data", "trainer", "seed", "checkpoint")
"""The parts of a configuration that decide a result."""


@dataclass
class Evidence:
    """The runs that count, as ``runs[scale][experiment][seed]``.

    Rows that are the same experiment share their runs. ``left_out`` says of the directory of each
    run that does not count why.
    """

    runs: dict[str, dict[str, dict[int, FinishedRun]]] = field(
        default_factory=lambda: {scale: {} for scale in SCALES}
    )
    left_out: dict[Path, str] = field(default_factory=dict)

    def rows_of_table(self, scale: str, table: int) -> list[Row]:
        """The published rows of a table, each followed by those of its variants that were run."""
        rows = []
        for row in rows_of_table(table):
            variants = (v for v in variant_rows().values() if v.published == row.published)
            rows += [row, *(v for v in variants if v.experiment in self.runs[scale])]
        return rows

    @property
    def is_empty(self) -> bool:
        return not any(self.runs.values())

    def scores(self, scale: str, row: Row, metric: str) -> dict[int, float]:
        """The metric in percent by seed; empty for a row that was not run."""
        runs = self.runs[scale].get(row.experiment, {})
        return {seed: runs[seed].scores[metric] for seed in sorted(runs)}

    def distinct(self, scale: str) -> list[FinishedRun]:
        """Every run of a scale once, also if several rows take it."""
        of_rows = self.runs[scale].values()
        return list({run.directory: run for runs in of_rows for run in runs.values()}.values())


def gather(runs: Iterable[FinishedRun]) -> Evidence:
    """Those of the runs, oldest first, that follow the settings of a published row or its variant.

    Of several runs of one row and seed the newest counts.
    """
    evidence = Evidence()
    for run in runs:
        rows, reason = _rows_of(run)
        if reason:
            evidence.left_out[run.directory] = reason
            continue
        counted = evidence.runs[run.data]
        older = counted.get(rows[0].experiment, {}).get(run.seed)
        if older is not None:
            newer = f"{run.directory} has the same row and seed and is newer"
            evidence.left_out[older.directory] = newer
        for row in rows:
            counted.setdefault(row.experiment, {})[run.seed] = run
    return evidence


def _rows_of(run: FinishedRun) -> tuple[list[Row], str | None]:
    """The rows that a run counts in, or why it counts in none."""
    norm = {key: value for key, value in run.result["norm"].items() if key != "window_used"}
    own = (run.task, run.model, canonical_norm(norm))
    by_variant: dict[str, list[Row]] = {}
    for row in all_rows().values():
        if row.identity == own:
            by_variant.setdefault(row.variant, []).append(row)
    reasons = []
    for rows in by_variant.values() or [[]]:
        reason = _why_left_out(run, rows)
        if reason is None:
            return rows, None
        reasons.append(reason)
    return [], reasons[0]


def _why_left_out(run: FinishedRun, rows: list[Row]) -> str | None:
    if run.result["status"] != "finished":
        return f"its status is {run.result['status']}"
    if run.data not in SCALES:
        return f"data={run.data} is neither {' nor '.join(SCALES)}"
    if not rows:
        return f"no published row has {run.model} with {norm_label(run.result['norm'])}"
    unusable = [name for name in rows[0].metrics if not _is_finite(run.scores.get(name))]
    if unusable:
        return f"it has no value of {', '.join(unusable)}"
    experiment = rows[0].experiment
    try:
        differences = _differing_settings(run, experiment)
    except (LookupError, TypeError, ValueError, AttributeError, OmegaConfBaseException) as error:
        name = type(error).__name__
        return f"its settings cannot be compared with those of {experiment} ({name})"
    return f"not the settings of {experiment}: {differences}" if differences else None


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _differing_settings(run: FinishedRun, experiment: str) -> str:
    """What decides a result and is not as in the row's own command; empty if nothing.

    A key that is younger than the run has the value it has today, or the one in `BEFORE`.
    """
    row = _row(experiment, run.data)
    config = _resolved(_completed(run.config, _as_before(row.unresolved, run.task)))
    settings = settings_of(config, "", run.result["total_batch"])
    if config["trainer"]["max_steps"] is None:
        settings["epochs"] = run.result["epochs"]
    wanted = row.settings
    ignored = {"seed"} | {name for name in OF_THE_DATASET if wanted.get(name) is None}
    if run.data == "full":  # section 4.2 starts from a backbone trained on ImageNet
        ignored.add("task.backbone_checkpoint")
    names = sorted((settings.keys() | wanted.keys()) - ignored)
    return ", ".join(
        f"{name} {_shown(settings.get(name))} instead of {_shown(wanted.get(name))}"
        for name in names
        if not _agrees(settings.get(name), wanted.get(name))
    )


def _agrees(own: object, wanted: object) -> bool:
    return own is not None if wanted == MUST_BE_GIVEN else own == wanted


def _completed(own: Any, row: Any) -> Any:
    """A configuration with the row's value of each key that it lacks."""
    if not (isinstance(own, dict) and isinstance(row, dict)):
        return own
    common = {key: _completed(own[key], value) for key, value in row.items() if key in own}
    return row | own | common


def _as_before(config: dict[str, Any], task: str) -> dict[str, Any]:
    """A row's configuration with what its younger keys were before there was a key."""
    if task not in BEFORE:
        return config
    config = plain(config)
    for name, value in BEFORE[task].items():
        *groups, key = name.split(".")
        node = config
        for group in groups:
            node = node[group]
        node[key] = value
    return config


def _resolved(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with what its interpolations stand for."""
    if not _has_interpolation(config):  # OmegaConf takes hundreds of times as long
        return config
    return plain(OmegaConf.create({key: config[key] for key in DECISIVE}))


def _has_interpolation(tree: object) -> bool:
    if isinstance(tree, dict):
        return any(_has_interpolation(child) for child in tree.values())
    return isinstance(tree, str) and "${" in tree


def _shown(value: object) -> str:
    return "a file" if isinstance(value, str) and "/" in value else str(value)


@dataclass(frozen=True)
class RowSettings:
    """A row's own command: its configuration before it is resolved, and what it decides."""

    unresolved: dict[str, Any]
    settings: dict[str, object]


@functools.cache
def _row(experiment: str, scale: str) -> RowSettings:
    cfg = compose([f"experiment={experiment}", f"data={scale}"])
    unresolved: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(DECISIVE)))
    config = _resolved(unresolved)
    return RowSettings(unresolved, settings_of(config, "", config["data"]["total_batch"]))


def settings_of(config: dict[str, Any], dataset: str, total_batch: int) -> dict[str, object]:
    """Every setting that decides a result, by its dotted name.

    Files of weights are told by their names: they need not be on this machine.
    """
    config = plain(config)
    task = config["task"]
    holders = {
        "checkpoint": config, "task.backbone_checkpoint": task,
        "task.model.pretrained": task["model"],
    }  # fmt: skip
    names = {}
    for name, holder in holders.items():
        key = name.rpartition(".")[2]
        if key in holder:
            names[name], holder[key] = holder[key], None
    return flattened(run_identity(config, dataset, total_batch)) | names
