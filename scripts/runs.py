"""Lists runs with status, age, metric and time left, shows how two differ, or replays one.

python scripts/runs.py runs/cityscapes
python scripts/runs.py diff gn_g16-mini-seed0 lcn_c2_w227-mini-seed0
python scripts/runs.py replay lcn_c2_w227-mini-seed0 --into again
"""

import argparse
import collections
import csv
import fcntl
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from tasks.errors import InputError
from tasks.protocol import PRIMARY, norm_label
from tasks.runs.replay import replay_command

# Nothing here may import torch: a list of runs is asked for often and has to come at once.

DEFAULT = Path("runs")
DIGEST = 8  # characters that a directory's name ends in, which tell runs apart
ABSENT = "(absent)"
RUN_KEYS = {"norm", "data", "seed", "trainer"}  # besides the task
INTERRUPTIONS = ("KeyboardInterrupt", "SystemExit", "SIGTERMException")
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where it is built


@dataclass
class RunState:
    """Where a run stands.

    Attributes:
        directory: of the run.
        norm: its short name, such as ``lcn_c2_w227``.
        status: ``finished``; ``running``: another process holds its lock; ``failed``: an error
            ended it; ``stopped``: none of these, so that the same command continues it.
        error: what ended a failed run, as its log says.
        age_seconds: since its last write.
        epoch: how many are done, of ``epochs``.
        metric: name of the task's primary metric; ``value``: its last one, in percent.
        seconds_left: of a running one, as far as its epochs so far tell.
    """

    directory: str
    task: str
    model: str
    norm: str
    data: str
    seed: int
    status: str
    error: str | None
    age_seconds: float
    epoch: int
    epochs: int
    metric: str
    value: float | None
    seconds_left: float | None


def main() -> None:
    try:
        if sys.argv[1:2] == ["replay"]:
            replay_command(sys.argv[2:], find_run)
        elif sys.argv[1:2] == ["diff"]:
            diff_command()
        else:
            list_command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def list_command() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="python scripts/runs.py diff A B: the keys in which two runs differ; "
        "replay RUN --into DIR: its code, and how to train it again",
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[DEFAULT], help="where to look (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    arguments = parser.parse_args()
    names = find_runs(arguments.folders)
    runs = list(read_states(names))
    if not runs:
        where = ", ".join(map(str, arguments.folders))
        raise InputError(f"no run (a folder with config.yaml) below {where}")
    runs.sort(key=lambda run: (run.task, run.age_seconds))
    if arguments.json:
        print(json.dumps([asdict(run) for run in runs], indent=2))
    else:
        print_table(runs, [names[Path(run.directory)] for run in runs])


def find_runs(folders: list[Path]) -> dict[Path, str]:
    """The run directories in and below the folders, with their names relative to the folder."""
    found: dict[Path, str] = {}
    for folder in folders:
        for place, below, files in os.walk(folder):
            if "config.yaml" not in files:
                below[:] = sorted(name for name in below if not name.startswith("."))
                continue
            below.clear()  # loggers keep files named config.yaml inside of runs
            directory = Path(place)
            name = directory if directory == folder else directory.relative_to(folder)
            found.setdefault(directory, str(name))
    return found


def read_states(directories: Iterable[Path]) -> Iterator[RunState]:
    """The runs' states; a folder that cannot be read is named on standard error and left out."""
    for directory in directories:
        try:
            yield read_state(directory)
        except (InputError, OSError) as error:
            print(f"left out: {error}", file=sys.stderr)


def read_state(directory: Path) -> RunState:
    """Where the run in a directory stands.

    Raises:
        InputError: its files are not those of a run.
    """
    config = read_config(directory)
    status, error = read_status(directory)
    rows = read_metrics(directory)
    epoch = int(rows[-1]["epoch"]) if rows else 0
    epochs = planned_epochs(config["trainer"], rows)
    metric = PRIMARY[config["task"]["name"]]
    if status == "finished":
        value = read_result(directory)["metrics"].get(metric)
    else:
        value = next((float(row[metric]) for row in reversed(rows) if row.get(metric)), None)
    is_timed = status == "running" and rows
    return RunState(
        directory=str(directory),
        task=config["task"]["name"],
        model=config["task"]["model"]["name"],
        norm=norm_label(OmegaConf.create(config["norm"])),
        data=config["data"]["name"],
        seed=config["seed"],
        status=status,
        error=error,
        age_seconds=seconds_since(*written_files(directory)),
        epoch=epoch,
        epochs=epochs,
        metric=metric,
        value=value,
        seconds_left=seconds_left(directory, rows, epochs) if is_timed else None,
    )


def read_config(directory: Path) -> dict[str, Any]:
    """A run's ``config.yaml``.

    Raises:
        InputError: it cannot be read, or is the configuration of something else.
    """
    path = directory / "config.yaml"
    try:
        config = yaml.load(path.read_text(), YAML_LOADER)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    try:
        is_run = config["task"]["name"] in PRIMARY and config.keys() >= RUN_KEYS
    except (KeyError, TypeError):
        is_run = False
    if not is_run:
        raise InputError(f"{path} is not the configuration of a run")
    return config


def read_result(directory: Path) -> dict[str, Any] | None:
    """A finished run's ``result.json``; None if the run is not finished.

    Raises:
        InputError: the file is damaged.
    """
    path = directory / "result.json"
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; delete it to run again") from None


def read_metrics(directory: Path) -> list[dict[str, str]]:
    """The lines of ``metrics.csv``, one per epoch; none before the first epoch has ended."""
    path = directory / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_status(directory: Path) -> tuple[str, str | None]:
    """A run's status and, if it failed, the error."""
    result = directory / "result.json"
    if not result.exists() and is_locked(directory / ".lock"):
        return "running", None
    if result.exists():  # looked for again: it may have finished since
        return "finished", None
    error = last_error(directory / "train.log")
    return ("stopped" if error is None else "failed"), error


def is_locked(lock: Path) -> bool:
    """Whether another process holds the lock; neither waits for it nor creates the file.

    A shared lock on a file opened for reading: two lists at once do not see each other as runs, and
    the runs of other users can be listed.
    """
    try:
        file = lock.open("rb")
    except FileNotFoundError:
        return False
    with file:  # closing releases the lock
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # the latter on some network file systems
            return True
    return False


def last_error(log: Path) -> str | None:
    """The error that a log ends with; None if it ends otherwise or with an interruption."""
    if not log.exists():
        return None
    stamp = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "  # a message may have several lines
    *_, last = re.split(stamp, log.read_text(errors="replace"), flags=re.MULTILINE)
    match = re.match(r"stopped by (\w+)", last)
    if match is None or match.group(1) in INTERRUPTIONS:
        return None
    return last.removeprefix("stopped by ").strip()


def planned_epochs(trainer: dict[str, Any], rows: list[dict[str, str]]) -> int:
    """How many epochs a run has; fewer than configured if its steps end before."""
    steps = trainer.get("max_steps")
    if steps is None or not rows:
        return trainer["max_epochs"]
    return min(trainer["max_epochs"], -(-steps // int(rows[0]["step"])))


def seconds_left(directory: Path, rows: list[dict[str, str]], epochs: int) -> float:
    """What remains of a running run if its epochs go on taking as long as they did on average."""
    epoch = int(rows[-1]["epoch"])
    per_epoch = float(rows[-1]["seconds"]) / epoch
    # config.yaml is written when a run starts or continues: a break before does not count.
    in_this_one = seconds_since(directory / "metrics.csv", directory / "config.yaml")
    return max(0.0, (epochs - epoch) * per_epoch - min(in_this_one, per_epoch))


def written_files(directory: Path) -> list[Path]:
    """What a run has written; not its lock, nor files about to be renamed."""
    return [
        path
        for path in directory.iterdir()
        if path.suffix != ".tmp" and not path.name.startswith(".")
    ]


def seconds_since(*paths: Path) -> float:
    """Time since the last change of any of the files."""
    return max(0.0, time.time() - max(path.stat().st_mtime for path in paths))


def print_table(runs: list[RunState], names: list[str]) -> None:
    """A line per run and the count of each status."""
    columns: dict[str, tuple[str, list[str]]] = {
        "task": ("<", [run.task for run in runs]),
        "norm": ("<", [run.norm for run in runs]),
        "data": ("<", [run.data for run in runs]),
        "seed": (">", [str(run.seed) for run in runs]),
        "status": ("<", [run.status for run in runs]),
        "age": (">", [duration(run.age_seconds) for run in runs]),
        "epoch": (">", [f"{run.epoch}/{run.epochs}" for run in runs]),
        "metric": (">", [metric(run) for run in runs]),
        "left": (">", [duration(run.seconds_left) for run in runs]),
    }
    if not any(run.status == "running" for run in runs):
        del columns["left"]
    widths = {title: max(map(len, (title, *cells))) for title, (_, cells) in columns.items()}
    screen = shutil.get_terminal_size(fallback=(1000, 24)).columns  # not cut short in a pipe
    used = sum(widths.values())
    gap = 2 if used + 2 * len(widths) + 1 + DIGEST <= screen else 1
    room = screen - used - gap * len(widths)
    lines = [[f"{title:{columns[title][0]}{widths[title]}}" for title in columns]]
    for index, name in enumerate(names):
        cells = [f"{c[index]:{align}{widths[t]}}" for t, (align, c) in columns.items()]
        lines.append([*cells, shortened(name, room)])
    if room > DIGEST:
        lines[0].append("directory")
    for line in lines:
        print((" " * gap).join(line).rstrip())
    counts = collections.Counter(run.status for run in runs)
    parts = (f"{count} {status}" for status, count in sorted(counts.items()))
    print(f"\n{len(runs)} run{'s' * (len(runs) != 1)}: {', '.join(parts)}")


def shortened(name: str, room: int) -> str:
    """The name, or as much of its end as there is room for; nothing if that is too little."""
    if len(name) <= room:
        return name
    return "…" + name[-(room - 1) :] if room > DIGEST else ""


def metric(run: RunState) -> str:
    return f"{run.metric} {'-' if run.value is None else format(run.value, '.2f'):>5}"


def duration(seconds: float | None) -> str:
    """Such as ``40 s``, ``5 min``, ``3 h``, ``2 d``, in a unit of which there are at least two."""
    if seconds is None:
        return ""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    unit, size = next(((u, s) for u, s in units if seconds >= 2 * s), units[-1])
    return f"{int(seconds / size)} {unit}"


def diff_command() -> None:
    parser = argparse.ArgumentParser(
        prog="runs.py diff", description="Prints the keys in which two runs differ."
    )
    for name in ("A", "B"):
        parser.add_argument(
            name, help="a run directory, or a part of the name of one run below runs"
        )
    arguments = parser.parse_args(sys.argv[2:])
    pair = [find_run(arguments.A), find_run(arguments.B)]
    for letter, directory in zip("AB", pair, strict=True):
        print(f"{letter}  {directory}")
    configs = [flattened(read_config(directory)) for directory in pair]
    print_differences("configurations", *configs)
    results = [read_result(directory) for directory in pair]
    if None not in results:
        print_differences("commit and versions", *map(provenance, results))


def find_run(name: str) -> Path:
    """The run directory called so, or the one below ``runs`` whose name has this part.

    Raises:
        InputError: there is none, or there are several.
    """
    if (Path(name) / "config.yaml").is_file():
        return Path(name)
    matches = [directory for directory, known in find_runs([DEFAULT]).items() if name in known]
    if not matches:
        raise InputError(
            f"{name} is neither a run (a folder with config.yaml) nor a part of the name of one "
            f"below {DEFAULT}"
        )
    if len(matches) > 1:
        listed = "".join(f"\n  {match}" for match in matches)
        raise InputError(f"{name} is a part of the names of {len(matches)} runs:{listed}")
    return matches[0]


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"norm": {"window": 5}}`` as ``{"norm.window": 5}``; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def provenance(result: dict[str, Any]) -> dict[str, Any]:
    """The code that gave a result: commit and versions."""
    return flattened({"git_commit": result["git_commit"], "versions": result["versions"]})


def print_differences(what: str, a: dict[str, Any], b: dict[str, Any]) -> None:
    """A line per key whose values differ, or one saying that none does."""
    lines = [
        (key, *(_shown(values[key]) if key in values else ABSENT for values in (a, b)))
        for key in a | b
        if key not in a or key not in b or a[key] != b[key]
    ]
    if not lines:
        print(f"\n{what} do not differ")
        return
    lines.insert(0, ("key", "A", "B"))
    widths = [min(48, max(map(len, column))) for column in list(zip(*lines, strict=True))[:2]]
    print(f"\n{what}:")
    for key, left, right in lines:
        print(f"{key:{widths[0]}}  {left:{widths[1]}}  {right}")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends quietly in `| head`
    main()
