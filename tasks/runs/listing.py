"""Where runs stand, as lines for people, and how two runs differ. Nothing here imports torch."""

import collections
import fcntl
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.config import path_of
from tasks.errors import InputError
from tasks.runs.files import read_end
from tasks.runs.record import FinishedRun, Record, find_runs, flattened, read_run

DEFAULT = Path("runs")
DIGEST = 8  # characters that a directory's name ends in, which tell runs apart
ABSENT = "(absent)"
INTERRUPTIONS = ("KeyboardInterrupt", "SystemExit", "SIGTERMException")


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


def read_state(directory: Path) -> RunState:
    """Where the run in a directory stands.

    Raises:
        InputError: its files are damaged, or not those of a run.
    """
    is_running = is_locked(directory / ".lock")  # looked at first: it may finish meanwhile
    run = read_run(directory)
    error = None
    if isinstance(run, FinishedRun):
        status, value = "finished", run.scores.get(run.primary)
    else:
        error = None if is_running else last_error(directory / "train.log")
        status = "running" if is_running else "stopped" if error is None else "failed"
        value = next(reversed(run.curve(run.primary)[1]), None)
    epoch, epochs = int(run.last("epoch") or 0), planned_epochs(run)
    return RunState(
        directory=str(directory),
        task=run.task,
        model=run.model,
        norm=run.label,
        data=run.data,
        seed=run.seed,
        status=status,
        error=error,
        age_seconds=seconds_since(*written_files(directory)),
        epoch=epoch,
        epochs=epochs,
        metric=run.primary,
        value=value,
        seconds_left=seconds_left(run, epochs) if status == "running" else None,
    )


def is_locked(lock: Path) -> bool:
    """Whether another process holds the lock; neither waits for it nor creates the file.

    A shared lock on a file opened for reading: two lists at once do not see each other as runs, and
    the runs of other users can be listed.
    """
    try:
        file = os.open(lock, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"{lock} cannot be read: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the latter on some network file systems
        return True
    finally:
        os.close(file)  # which releases the lock
    return False


def last_error(log: Path) -> str | None:
    """The error that a log ends with; None if it ends otherwise or with an interruption."""
    if not log.exists():
        return None
    stamp = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "  # a message may have several lines
    *_, last = re.split(stamp, read_end(log), flags=re.MULTILINE)
    match = re.match(r"stopped by (\w+)", last)
    if match is None or match.group(1) in INTERRUPTIONS:
        return None
    return last.removeprefix("stopped by ").strip()


def planned_epochs(run: Record) -> int:
    """How many epochs a run has; fewer than configured if its steps end before."""
    most, steps = run.config["trainer"]["max_epochs"], run.config["trainer"].get("max_steps")
    of_one = next(iter(run.metrics.get("step", [])), None)
    if steps is None or of_one is None:
        return most
    return min(most, -(-steps // int(of_one)))


def seconds_left(run: Record, epochs: int) -> float | None:
    """What remains of a running run if its epochs go on taking as long as they did on average.

    None before the first epoch has ended.
    """
    epoch, seconds = run.last("epoch"), run.last("seconds")
    if epoch is None or seconds is None:
        return None
    # config.yaml is written when a run starts or continues: a break before does not count.
    files = (run.directory / "metrics.csv", run.directory / "config.yaml")
    per_epoch = seconds / epoch
    return max(0.0, (epochs - epoch) * per_epoch - min(seconds_since(*files), per_epoch))


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


def find_run(name: str) -> Path:
    """The run directory called so, or the one below ``runs`` whose name has this part.

    Raises:
        InputError: there is none, or there are several.
    """
    if (path_of(name) / "config.yaml").exists():
        return path_of(name)
    matches = [place for place, known in find_runs([DEFAULT]).names.items() if name in known]
    if not matches:
        raise InputError(
            f"{name} is neither a run (a folder with config.yaml) nor a part of the name of one "
            f"below {DEFAULT}"
        )
    if len(matches) > 1:
        listed = "".join(f"\n  {match}" for match in matches)
        raise InputError(f"{name} is a part of the names of {len(matches)} runs:{listed}")
    return matches[0]


def print_diff(names: list[str]) -> None:
    """Prints the keys in which two runs differ.

    Raises:
        InputError: one of them is not found or damaged.
    """
    runs = [read_run(find_run(name)) for name in names]
    for letter, run in zip("AB", runs, strict=True):
        print(f"{letter}  {run.directory}")
    print_differences("configurations", *(flattened(run.config) for run in runs))
    results = [provenance(run.result) for run in runs if isinstance(run, FinishedRun)]
    if len(results) == 2:
        print_differences("commit and versions", *results)


def provenance(result: dict[str, Any]) -> dict[str, Any]:
    """The code that gave a result: commit and versions."""
    commit, versions = result.get("git_commit"), result["versions"]
    return flattened({"git_commit": commit, "versions": versions})


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
