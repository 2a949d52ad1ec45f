"""Keeps what finished runs say, without weights and logs: small enough to stand beside the code.

Nothing here imports torch.
"""

import argparse
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

from omegaconf import OmegaConf

from tasks.config import PATHS, path_of
from tasks.errors import InputError, say, told_of
from tasks.runs.record import FinishedRun, finished_runs

KEPT = Path("results/runs")
"""Where runs are kept; ``scripts/tables.py`` counts them beside those below ``runs``."""

FILES = ("result.json", "metrics.csv", "audit.csv", "windows.csv", "provenance.json")
"""What is copied as it is, beside the code's changes and the packages (``*.patch``, ``*.txt``)."""

OF_THE_USER = ("runs", "logger", "hydra")
"""Parts of a configuration that say where a run was kept and who watched it."""

WEIGHTS = ("checkpoint", "task.backbone_checkpoint", "task.model.pretrained")
"""Settings that name the run whose weights another started from."""

_PATH = re.compile(r"(?<![\w.)])[/~][\w.~/-]|\b[A-Za-z]:\\")  # absolute, anywhere in a text


def keep_command(arguments: list[str]) -> None:
    """``runs.py keep FOLDER... --into DIR``: copies finished runs and says how many.

    Args:
        arguments: the words after ``keep``.

    Raises:
        InputError: there is no finished run, or one is there already that says something else.
    """
    parser = argparse.ArgumentParser(
        prog="runs.py keep",
        description="Copies settings, results, curves, audit and provenance of finished runs, "
        "without weights, logs and paths of this machine.",
    )
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", type=path_of, help="folders of runs"
    )
    parser.add_argument(
        "--into", metavar="DIR", type=path_of, default=KEPT, help=f"where to (default: {KEPT})"
    )
    options = parser.parse_args(arguments)
    runs, damaged = finished_runs(options.folders)
    for reason in damaged.values():
        say(f"left out: {reason}")
    if not runs:
        raise InputError(f"no finished run below {', '.join(map(str, options.folders))}")
    new = [keep(run, options.into) for run in runs]
    print(f"kept in {options.into}: {sum(new)} new, {len(new) - sum(new)} that were there")


def keep(run: FinishedRun, into: Path) -> bool:
    """Copies what a finished run says to ``<into>/<task>/<name>``; False if it is there already.

    Raises:
        InputError: another result is there, or the folder cannot be written.
    """
    place = into / run.task / run.directory.name
    if place.is_dir():
        if (place / "result.json").read_bytes() == (run.directory / "result.json").read_bytes():
            return False
        raise InputError(f"{place} has another result than {run.directory}: remove one of them")
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    with told_of(place):
        try:
            temporary.mkdir(parents=True)
            for path in sorted(run.directory.iterdir()):
                if path.name in FILES or path.suffix in (".patch", ".txt"):
                    shutil.copyfile(path, temporary / path.name)
            config = OmegaConf.to_yaml(OmegaConf.create(shareable(run.config, run_of_weights)))
            (temporary / "config.yaml").write_text(config, encoding="utf-8")
            os.rename(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return True


def shareable(
    config: dict[str, Any], written: Callable[[str, str], str] = lambda key, path: "<path>"
) -> dict[str, Any]:
    """A run's configuration without what is this machine's or its user's.

    Args:
        config: the run's.
        written: what stands in place of a path, from its key and itself. That there was one decides
            which layers a detector has frozen.
    """

    def without_paths(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {name: without_paths(child, f"{key}.{name}") for name, child in value.items()}
        if isinstance(value, list):
            return [without_paths(child, key) for child in value]
        if isinstance(value, str) and not value.startswith("timm:"):
            return written(key, value) if key in PATHS or _PATH.search(value) else value
        return value

    return {key: without_paths(v, key) for key, v in config.items() if key not in OF_THE_USER}


def run_of_weights(key: str, path: str) -> str:
    """A path without its folders, but for the run that made it if it is a file of weights."""
    place = PurePath(path)
    return f"<path>/{place.parent.name}/{place.name}" if key in WEIGHTS else "<path>"
