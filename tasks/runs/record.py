"""Reads the directories of runs. Nothing here imports torch."""

import csv
import json
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tasks.errors import InputError
from tasks.protocol import PRIMARY, norm_label


class FinishedRun:
    """A run directory with its result, configuration, metrics per epoch and network."""

    def __init__(self, directory: Path):
        self.directory = directory
        try:
            self.result = json.loads((directory / "result.json").read_text())
            self.cfg: DictConfig = OmegaConf.load(directory / "config.yaml")
            self.label = norm_label(self.cfg.norm)
            self.task, self.kind = self.cfg.task.name, self.cfg.task.kind
        except (OSError, ValueError, LookupError, TypeError, AttributeError, YAMLError,
                OmegaConfBaseException) as error:  # fmt: skip
            what = f"{directory} is damaged ({type(error).__name__})"
            raise InputError(f"{what}: remove it and give the run's command again") from None

    @property
    def primary(self) -> str:
        """The metric that is compared first."""
        return PRIMARY[self.task]

    def lines(self, name: str) -> list[dict[str, str]]:
        """The lines of a CSV file of the run; none if it has no such file."""
        path = self.directory / name
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    def curve(self, column: str) -> tuple[list[float], list[float]]:
        """Epochs and values of a column of ``metrics.csv``, where it has a value."""
        rows = [row for row in self.lines("metrics.csv") if row.get(column)]
        return [float(row["epoch"]) for row in rows], [float(row[column]) for row in rows]


def finished_runs(places: list[Path]) -> list[FinishedRun]:
    """The finished runs in and below the folders, newest last.

    Raises:
        InputError: there is none.
    """
    files = {file.resolve(): file for place in places for file in place.rglob("result.json")}
    if not files:
        raise InputError(f"no finished run (result.json) below {', '.join(map(str, places))}")
    oldest_first = sorted(files.values(), key=lambda file: (file.stat().st_mtime_ns, str(file)))
    return [FinishedRun(file.parent) for file in oldest_first]
