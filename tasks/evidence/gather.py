"""Which runs count as evidence of a row."""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tasks.config import compose, plain
from tasks.evidence.claims import claimed_rows
from tasks.evidence.rows import (
    SCALES,
    Row,
    own_rows,
    page_of,
    published_rows,
    rows_of_table,
    variant_rows,
)
from tasks.identity import run_identity
from tasks.protocol import canonical_norm, norm_label
from tasks.runs.keep import WEIGHTS
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
    """The runs that count, as ``runs[page][experiment][seed]``.

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

    @property
    def pages(self) -> list[str]:
        """The pages that have runs: those of our own tasks, then the published rows'."""
        own = sorted(page for page in self.runs if page not in SCALES)
        return [page for page in (*own, *SCALES) if self.runs[page]]

    def scores(self, page: str, row: Row, metric: str) -> dict[int, float]:
        """The metric in percent by seed; empty for a row that was not run."""
        runs = self.runs.get(page, {}).get(row.experiment, {})
        found = {seed: score_of(runs[seed], metric) for seed in sorted(runs)}
        return {seed: score for seed, score in found.items() if score is not None}

    def distinct(self, page: str) -> list[FinishedRun]:
        """Every run of a page once, even if it counts in several rows."""
        of_rows = self.runs[page].values()
        return list({run.directory: run for runs in of_rows for run in runs.values()}.values())


def gather(runs: Iterable[FinishedRun]) -> Evidence:
    """Those of the runs, oldest first, that follow the settings of a row.

    Of several runs of one row and seed the newest counts.
    """
    evidence = Evidence()
    for run in sorted(runs, key=_starts_from_weights):  # the run that it started from comes before
        rows, reason = _rows_of(run, evidence)
        if not rows:
            evidence.left_out[run.directory] = reason
            continue
        counted = evidence.runs.setdefault(page_of(run.task, run.data), {})
        older = counted.get(rows[0].experiment, {}).get(run.seed)
        if older is not None:
            newer = f"{run.directory} has the same row and seed and is newer"
            evidence.left_out[older.directory] = newer
        for row in rows:
            counted.setdefault(row.experiment, {})[run.seed] = run
    return evidence


@functools.cache
def all_rows() -> dict[str, Row]:
    """Every row that runs can count in: the published ones, their variants, our own, those that
    claims name."""
    return published_rows() | variant_rows() | own_rows() | claimed_rows()


def _rows_of(run: FinishedRun, evidence: Evidence) -> tuple[list[Row], str]:
    """The rows that a run counts in, or, where there are none, why."""
    if run.result["status"] != "finished":
        return [], f"its status is {run.result['status']}"
    if run.data not in SCALES:
        return [], f"data={run.data} is none of {', '.join(SCALES)}"
    norm = {key: value for key, value in run.result["norm"].items() if key != "window_used"}
    own = (run.task, run.model, canonical_norm(norm))
    alike = [
        row
        for row in all_rows().values()
        if row.identity == own and (row.variant != "pretrained" or _starts_from_weights(run))
    ]
    if not alike:
        return [], f"no row has {run.model} with {norm_label(run.result['norm'])}"
    reasons: list[tuple[object, str | None]] = []  # by settings: several rows may have the same
    rows = []
    for row in alike:
        settings = settings_of_row(row, run.data).settings
        known = [reason for other, reason in reasons if other == settings]
        reason = known[0] if known else _why_left_out(run, row, evidence)
        reasons.append((settings, reason))
        if reason is None:
            rows.append(row)
    return rows, str(reasons[0][1])


def _starts_from_weights(run: FinishedRun) -> bool:
    settings = flattened(run.config)
    return any(settings.get(name) is not None for name in WEIGHTS)


def _why_left_out(run: FinishedRun, row: Row, evidence: Evidence) -> str | None:
    wanted = row.metrics if row.published else [row.primary]
    unusable = [name for name in wanted if not _is_finite(run.scores.get(name))]
    if unusable:
        return f"it has no value of {', '.join(unusable)}"
    try:
        differences = _differing_settings(run, row, evidence)
    except (LookupError, TypeError, ValueError, AttributeError, OmegaConfBaseException) as error:
        name = type(error).__name__
        return f"its settings cannot be compared with those of {row.experiment} ({name})"
    return f"not the settings of {row.experiment}: {differences}" if differences else None


def score_of(run: FinishedRun, metric: str) -> float | None:
    """The value of a metric in a run; None if the run has no such metric.

    A score, another number of the result (``tile_mismatch``, ``class_iou.pole``) or `STEPS_TO_90`.
    """
    if metric == STEPS_TO_90:
        value: object = steps_to(run, 0.9)
    else:
        group, _, name = metric.partition(".")
        value = run.result.get(group)
        value = value.get(name) if isinstance(value, dict) else value
        value = run.scores.get(metric, value)
    return float(value) if _is_finite(value) else None


STEPS_TO_90 = "steps_to_90"
"""Percent of a run's steps until it reaches 90 % of the score that it ends with."""


def steps_to(run: FinishedRun, share: float) -> float | None:
    """Percent of a run's epochs until a share of its last score, straight between evaluations."""
    epochs, values = run.curve(run.primary)
    if not values or run.primary.endswith("_err"):
        return None
    before, reached = (0.0, 0.0), share * values[-1]
    for epoch, value in zip(epochs, values, strict=True):
        if value >= reached:
            rise = value - before[1]
            part = (reached - before[1]) / rise if rise > 0 else 1.0
            return 100 * (before[0] + part * (epoch - before[0])) / epochs[-1]
        before = (epoch, value)
    return None


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _differing_settings(run: FinishedRun, row: Row, evidence: Evidence) -> str:
    """The settings that decide a result and differ from the row's own command.

    A key that is younger than the run has the value it has today, or the one in `BEFORE`.
    """
    of_row = settings_of_row(row, run.data)
    config = _resolved(_completed(run.config, _as_before(of_row.unresolved, run.task)))
    settings = settings_of(config, "", run.result["total_batch"])
    if config["trainer"]["max_steps"] is None:
        settings["epochs"] = run.result["epochs"]
    wanted = of_row.settings
    ignored = {"seed"} | {name for name in OF_THE_DATASET if wanted.get(name) is None}
    if run.data == "full" and row.published:  # section 4.2: from a backbone trained on ImageNet
        ignored.add("task.backbone_checkpoint")
    names = sorted((settings.keys() | wanted.keys()) - ignored)
    return ", ".join(
        f"{name} {_shown(settings.get(name))} instead of {_shown(wanted.get(name))}"
        for name in names
        if not _agrees(settings.get(name), wanted.get(name))
        and not _is_run_of(settings.get(name), wanted.get(name), run, evidence)
    )


def _agrees(own: object, wanted: object) -> bool:
    return own is not None if wanted == MUST_BE_GIVEN else own == wanted


def _is_run_of(own: object, wanted: object, run: FinishedRun, evidence: Evidence) -> bool:
    """Whether a file of weights is from the named row, with the same seed."""
    if not (isinstance(own, str) and isinstance(wanted, str)):
        return False
    page = page_of(run.task, run.data)
    source = evidence.runs.get(page, {}).get(wanted, {}).get(run.seed)
    return source is not None and Path(own).parent.name == source.directory.name


def _completed(own: Any, row: Any) -> Any:
    """A configuration with the row's value of each key that it lacks."""
    if not (isinstance(own, dict) and isinstance(row, dict)):
        return own
    common = {key: _completed(own[key], value) for key, value in row.items() if key in own}
    return row | own | common


def _as_before(config: dict[str, Any], task: str) -> dict[str, Any]:
    """A row's configuration, in which newer keys have the values of the time before them."""
    if task not in BEFORE:
        return config
    config = plain(config)
    for name, value in BEFORE[task].items():
        node, key = _node_of(config, name)
        node[key] = value
    return config


def _resolved(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with its interpolations resolved."""
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


def settings_of_row(row: Row, data: str) -> RowSettings:
    """The settings of a row's own command."""
    return _settings_of_row(tuple(row.settings), data)


@functools.cache
def _settings_of_row(overrides: tuple[str, ...], data: str) -> RowSettings:
    cfg = compose([*overrides, f"data={data}"])
    decisive = OmegaConf.masked_copy(cfg, list(DECISIVE))
    unresolved, config = plain(decisive, resolve=False), plain(decisive)
    return RowSettings(unresolved, settings_of(config, "", config["data"]["total_batch"]))


def settings_of_run(run: FinishedRun) -> dict[str, object] | None:
    """What decided a run's result, but its seed; None of a run of another version of this code."""
    try:
        dataset = run.result.get("dataset") or ""
        settings = settings_of(run.config, dataset, run.result["total_batch"])
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    del settings["seed"]
    return settings


def settings_of(config: dict[str, Any], dataset: str, total_batch: int) -> dict[str, object]:
    """Every setting that decides a result, by its dotted name.

    Files of weights are told by their names: they need not be on this machine.
    """
    config = plain(config)
    names = {}
    for name in WEIGHTS:
        node, key = _node_of(config, name)
        if key in node:
            names[name], node[key] = node[key], None
    return flattened(run_identity(config, dataset, total_batch)) | names


def _node_of(config: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The part of a configuration that holds a dotted name, and the name there."""
    *groups, key = name.split(".")
    for group in groups:
        config = config[group]
    return config, key
