"""Reads the directories of runs, for every command that shows them. Nothing imports torch.

A run with a damaged file is an InputError that names the file; `read_each` goes on with the others.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from omegaconf import DictConfig, OmegaConf

from tasks.errors import InputError
from tasks.protocol import norm_label, stand_in, task_facts
from tasks.runs.files import damaged, read_csv, read_json, read_yaml
from tasks.schema import wrong_value

Kind = type | tuple[type, ...]
NUMBER = (int, float)

SETTINGS: dict[str, Kind] = {
    "task.name": str, "task.model.name": str, "norm.name": str, "data.name": str, "seed": int,
    "trainer.max_epochs": int,
}  # fmt: skip
"""What every version of this code wrote into ``config.yaml``, of what is read from it by name."""

RESULTS: dict[str, Kind] = {
    "status": str, "task": str, "model": str, "norm": dict, "data": str, "seed": int,
    "metrics": dict, "epochs": int, "total_batch": int, "versions": dict, "device": str,
}  # fmt: skip
"""The same of ``result.json``; beside them stand, in newer versions or in some runs:"""

ALSO_RESULTS: dict[str, Kind] = {
    "dataset": str, "crs": list, "git_commit": str, "paper": dict, "world_size": int,
    "wall_seconds": NUMBER, "samples_per_second": NUMBER, "memory_mib": NUMBER, "experiment": str,
    "steps": int, "best": dict, "overrides": list, "code_changes": int, "submission": str,
    "tile_mismatch": NUMBER,
}  # fmt: skip

WRITTEN = {".lock", "metrics.csv", "audit.csv", "train.log", "last.ckpt", "result.json"}
"""What a run has beside ``config.yaml``, any of it: other folders may have a file of that name."""


@dataclass(eq=False, repr=False)
class Record:
    """A run as its directory describes it.

    Attributes:
        directory: of the run.
        config: its configuration, plain dicts and lists.
        metrics: the columns of ``metrics.csv``: a number per epoch, None where there is none.
        windowed: windowed norm layers, and all, by phase; empty without an ``audit.csv``.
        windowed_released: those that would see one under the released layer's rule, by phase.
        windows: windows that are learned, by layer: (epoch, p, q); empty for other norms.
    """

    directory: Path
    config: dict[str, Any]
    metrics: dict[str, list[float | None]] = field(default_factory=dict)
    windowed: dict[str, tuple[int, int]] = field(default_factory=dict)
    windowed_released: dict[str, int] = field(default_factory=dict)
    windows: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return self.config["task"]["name"]

    @property
    def kind(self) -> str | None:
        """The kind of the task: segmentation, classification or detection."""
        return self.config["task"].get("kind")

    @property
    def model(self) -> str:
        return self.config["task"]["model"]["name"]

    @property
    def norm(self) -> str:
        return self.config["norm"]["name"]

    @property
    def data(self) -> str:
        return self.config["data"]["name"]

    @property
    def stand_in(self) -> str | None:
        """What the generated data that it learned from are called; None for the dataset itself."""
        return stand_in(self.config["data"])

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def primary(self) -> str:
        """The metric that is compared first."""
        return task_facts(self.task).primary

    @cached_property
    def label(self) -> str:
        """The norm's short name."""
        return norm_label(self.config["norm"])

    @cached_property
    def cfg(self) -> DictConfig:
        """The configuration as what builds networks and opens datasets takes it."""
        return OmegaConf.create(self.config)

    def last(self, column: str) -> float | None:
        """The value of a metric in the last epoch; None if it has none, or no epoch has ended."""
        return next(reversed(self.metrics.get(column, [])), None)

    def curve(self, column: str) -> tuple[list[float], list[float]]:
        """Epochs and values of a metric, where it has a value."""
        pairs = zip(self.metrics.get("epoch", ()), self.metrics.get(column, ()), strict=False)
        points = [(epoch, value) for epoch, value in pairs if epoch is not None is not value]
        return [epoch for epoch, _ in points], [value for _, value in points]


@dataclass(eq=False, repr=False)
class FinishedRun(Record):
    """A run with its ``result.json``, which was written at ``finished_at``, in ns of the epoch."""

    result: dict[str, Any] = field(default_factory=dict)
    finished_at: int = 0

    @property
    def scores(self) -> dict[str, float]:
        """The metrics of the result, in percent."""
        return self.result["metrics"]


# Finding


class Found(NamedTuple):
    """Run directories with their names below where they were looked for; what cannot be entered."""

    names: dict[Path, str]
    left_out: dict[Path, str]


def find_runs(places: Iterable[Path]) -> Found:
    """The run directories in and below the folders, each once; hidden folders are not entered."""
    found, known = Found({}, {}), set()

    def cannot_enter(error: OSError) -> None:
        place = Path(error.filename)
        if not isinstance(error, FileNotFoundError):
            found.left_out[place] = f"{place} cannot be read: {error.strerror}"

    for place in places:
        for where, below, files in os.walk(place, onerror=cannot_enter):
            names = {*below, *files}
            below[:] = sorted(name for name in below if not name.startswith("."))
            if not names & {"config.yaml", "result.json"}:
                continue
            if names & WRITTEN:
                below.clear()  # loggers keep files named config.yaml inside of runs
            directory = Path(where)
            if os.path.realpath(directory) not in known:
                known.add(os.path.realpath(directory))
                name = directory if directory == place else directory.relative_to(place)
                found.names[directory] = str(name)
    return found


T = TypeVar("T")


def read_each(
    directories: Iterable[Path], read: Callable[[Path], T]
) -> tuple[list[T], dict[Path, str]]:
    """What is read of each run, and of each that cannot be read the message."""
    runs, left_out = [], {}
    for directory in directories:
        try:
            runs.append(read(directory))
        except InputError as error:
            left_out[directory] = str(error)
        except OSError as error:  # removed meanwhile
            left_out[directory] = f"{directory} cannot be read: {error.strerror}"
    return runs, left_out


def finished_runs(places: Iterable[Path]) -> tuple[list[FinishedRun], dict[Path, str]]:
    """The finished runs in and below the folders, newest last, and those left out, with the reason.

    A run is finished if it has a ``result.json``.
    """
    names, left_out = find_runs(places)
    directories = [place for place in names if os.path.lexists(place / "result.json")]
    records, damages = read_each(directories, read_run)
    runs = [record for record in records if isinstance(record, FinishedRun)]
    runs.sort(key=lambda run: (run.finished_at, str(run.directory)))
    return runs, left_out | damages


# Reading


def read_run(directory: Path) -> Record:
    """The run in a directory: a `FinishedRun` if it has finished.

    Raises:
        InputError: a file of it is damaged or missing.
    """
    result = read_result(directory)
    config = read_config(directory)
    known = (
        directory,
        config,
        read_metrics(directory),
        *read_audit(directory),
        read_windows(directory),
    )
    if result is None:
        return Record(*known)
    path = directory / "result.json"
    run = FinishedRun(*known, result, path.stat().st_mtime_ns)
    for key in ("task", "model", "data", "seed"):
        if result[key] != getattr(run, key):
            raise InputError(
                f"{path} and {directory / 'config.yaml'} do not belong together ({key} is "
                f"{result[key]} in one and {getattr(run, key)} in the other): mend the one that "
                "is wrong, or remove the folder and give the run's command again"
            )
    return run


def require_finished(run: Record, checkpoint: str | None) -> None:
    """Refuses to use the weights of a run that has not finished, unless told.

    Args:
        checkpoint: ``"last"`` takes the last checkpoint.

    Raises:
        InputError: the run has not finished.
    """
    if not isinstance(run, FinishedRun) and checkpoint != "last":
        raise InputError(
            f"{run.directory} has not finished; use its last checkpoint with --checkpoint last, or "
            "give its training command again"
        )


def read_config(directory: Path) -> dict[str, Any]:
    """A run's ``config.yaml``.

    Raises:
        InputError: it is missing, damaged, or the configuration of something else.
    """
    path = directory / "config.yaml"
    if not os.path.lexists(path):
        raise InputError(
            f"{directory} has no config.yaml that would tell its settings: it is no run's directory"
        )
    config = read_yaml(path)
    sections = ("task", "norm", "data", "trainer")
    if not (
        isinstance(config, dict)
        and all(isinstance(config.get(name), dict) for name in sections)
        and isinstance(config["task"].get("name"), str)
    ):
        raise InputError(f"{path} is not the configuration of a run")
    try:
        task_facts(config["task"]["name"])
    except InputError as error:
        raise InputError(f"{path} is of a task that is not known here: {error}") from None
    _require(path, config, SETTINGS)
    if wrong := wrong_value(config):
        damaged(path, wrong)
    _require_norm(path, config["norm"])
    return config


def read_result(directory: Path) -> dict[str, Any] | None:
    """A finished run's ``result.json``; None if the run is not finished.

    Raises:
        InputError: the file is damaged.
    """
    path = directory / "result.json"
    if not os.path.lexists(path):  # a link that leads nowhere is named
        return None
    result = read_json(path)
    if not isinstance(result, dict):
        damaged(path, "it is no object")
    _require(path, result, RESULTS)
    for name, kind in ALSO_RESULTS.items():
        if result.get(name) is not None:
            _require(path, result, {name: kind})
    _require_norm(path, result["norm"])
    _require_values(path, "versions", result["versions"], str)
    for name, values in result.items():
        if name == "metrics" or (name.startswith("class_") and isinstance(values, dict)):
            _require_values(path, name, values, NUMBER)
            for key, value in values.items():
                if value is not None and not math.isfinite(value):
                    damaged(path, f"{name}.{key} is {value}")
    paper = result.get("paper") or {}
    _require_values(path, "paper", {k: paper[k] for k in result["metrics"] if k in paper}, NUMBER)
    return {"paper": None, **result}


def read_metrics(directory: Path) -> dict[str, list[float | None]]:
    """The columns of ``metrics.csv``, a value per epoch; none before the first epoch has ended.

    Raises:
        InputError: the file is damaged.
    """
    path = directory / "metrics.csv"
    if not os.path.lexists(path):
        return {}
    columns, lines = read_csv(path)
    if "epoch" not in columns:
        damaged(path, "it has no column epoch")
    try:
        metrics: dict[str, list[float | None]] = {
            name: [float(cell) if cell else None for cell in cells]
            for name, *cells in zip(columns, *lines, strict=True)
        }
    except ValueError as error:
        damaged(path, error)
    for name in ("epoch", "step"):
        values = [0.0 if value is None else value for value in metrics.get(name, ())]
        if not all(map(float.is_integer, values)) or min(values, default=1) < 1:
            damaged(path, f"{name} is not a whole number of at least 1 in every line")
        if name == "epoch":
            _require_ascending(path, values)
    return metrics


def read_audit(directory: Path) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """`Record.windowed` and `Record.windowed_released`; files without sizes have not the second.

    Raises:
        InputError: the file is damaged.
    """
    path = directory / "audit.csv"
    if not os.path.lexists(path):
        return {}, {}
    columns, lines = read_csv(path)
    if not {"phase", "windowed"} <= set(columns):
        damaged(path, "it has no columns phase and windowed")
    places = columns.index("phase"), columns.index("windowed")
    for number, line in enumerate(lines, start=2):
        phase, flag = line[places[0]], line[places[1]]
        if phase not in ("training", "evaluation") or flag not in ("True", "False"):
            damaged(path, f"line {number} has phase {phase} and windowed {flag}")
    if len(set(map(tuple, lines))) < len(lines):
        damaged(path, "it has a line twice")
    seen = Counter((line[places[0]], line[places[1]] == "True") for line in lines)
    phases = dict.fromkeys(phase for phase, _ in seen)
    windowed = {p: (seen[p, True], seen[p, True] + seen[p, False]) for p in phases}
    if not {"height", "width", "window"} <= set(columns):
        return windowed, {}
    sizes = [columns.index(name) for name in ("window", "height", "width")]
    released = Counter(
        line[places[0]] for line in lines if sees_window(*(line[place] for place in sizes))
    )
    return windowed, {phase: released[phase] for phase in phases}


def sees_window(window: str, height: str, width: str) -> bool:
    """Whether the released layer is windowed: with a window smaller than the map on both sides."""
    found = re.fullmatch(r"[(\[](\d+), (\d+)[)\]]", window)
    if not (found and height.isdigit() and width.isdigit()):
        return False
    return int(found[1]) < int(height) and int(found[2]) < int(width)


def read_windows(directory: Path) -> dict[str, list[tuple[float, float, float]]]:
    """Learned windows by layer: (epoch, p, q), from ``windows.csv``; empty without one.

    Raises:
        InputError: the file is damaged.
    """
    path = directory / "windows.csv"
    if not os.path.lexists(path):
        return {}
    columns, lines = read_csv(path)
    if columns != ["epoch", "layer", "p", "q"]:
        damaged(path, "its columns are not epoch, layer, p, q")
    windows: dict[str, list[tuple[float, float, float]]] = {}
    try:
        for epoch, layer, p, q in lines:
            windows.setdefault(layer, []).append((float(epoch), float(p), float(q)))
    except ValueError as error:
        damaged(path, error)
    for layer, rows in windows.items():
        if not all(math.isfinite(value) for row in rows for value in row):
            damaged(path, f"{layer} has a window that is not finite")
        _require_ascending(path, [epoch for epoch, _, _ in rows])
    return windows


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"norm": {"window": 5}}`` as ``{"norm.window": 5}``; lists and empty dicts stay whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


# Checking


def _require(path: Path, tree: dict[str, Any], kinds: dict[str, Kind]) -> None:
    """Raises the InputError of a damaged file if a value is missing or of another kind."""
    for name, kind in kinds.items():
        value: Any = tree
        for key in name.split("."):
            if not isinstance(value, dict) or key not in value:
                damaged(path, f"{name} is missing")
            value = value[key]
        if not isinstance(value, kind) or isinstance(value, bool):
            damaged(path, f"{name} is {value!r}")


def _require_values(path: Path, name: str, values: dict[str, Any], kind: Kind) -> None:
    for key, value in values.items():
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            damaged(path, f"{name}.{key} is {value!r}")


def _require_ascending(path: Path, epochs: list[float]) -> None:
    for before, epoch in pairwise(epochs):
        if epoch <= before:
            damaged(path, f"epoch {epoch:g} comes after epoch {before:g}")


def _require_norm(path: Path, norm: dict[str, Any]) -> None:
    try:
        norm_label(norm)
    except (LookupError, TypeError, AttributeError):
        damaged(path, f"norm is {norm}")
