"""Compares finished runs: a table beside the paper's, learning curves, predictions side by side.

python scripts/report.py runs/cityscapes --out report
"""

import argparse
import sys
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from tasks.errors import InputError
from tasks.figures import FinishedRun, finished_runs, learning_curves, side_by_side

COLUMNS = 4  # metrics that a table shows side by side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", nargs="*", type=Path, default=[Path("runs")], help="folders of runs"
    )
    parser.add_argument("--out", type=Path, default=Path("report"), help="where to write pictures")
    arguments = parser.parse_args()
    try:
        runs = finished_runs(arguments.runs)
        tasks = list(dict.fromkeys(run.cfg.task.name for run in runs))
        for task in tasks:
            folder = arguments.out if len(tasks) == 1 else arguments.out / task
            report([run for run in runs if run.cfg.task.name == task], folder)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{'runs:':17} {', '.join(str(place) for place in arguments.runs)}")


def report(runs: list[FinishedRun], folder: Path) -> None:
    """Prints the table of one task's runs and writes their pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    print_table(runs)
    written = {"learning curves": folder / "learning_curves.png"}
    learning_curves(runs).savefig(written["learning curves"], dpi=120)
    pair = [newest(runs, name) for name in ("gn", "lcn")]
    if None not in pair and runs[0].cfg.task.kind == "segmentation":
        try:
            side_by_side(*pair).savefig(folder / "predictions.png", dpi=120)
            written["predictions"] = folder / "predictions.png"
        except OmegaConfBaseException:  # a key that an older version did not write
            print(f"no predictions: {pair[0].directory} is of another version of this code")
    print()
    for what, path in written.items():
        print(f"{what + ':':17} {path}")


def newest(runs: list[FinishedRun], norm: str) -> FinishedRun | None:
    return next((run for run in reversed(runs) if run.cfg.norm.name == norm), None)


def print_table(runs: list[FinishedRun]) -> None:
    """A line per run and metric group: ours, and the published row where there is one."""
    names = list(dict.fromkeys(name for run in runs for name in run.result["metrics"]))
    data = {run.cfg.data.name for run in runs}
    ours = "miniature" if data == {"mini"} else "/".join(sorted(data))
    for start in range(0, len(names), COLUMNS):
        part = names[start : start + COLUMNS]
        column = 2 + max(9, *map(len, part))
        width = column * len(part)
        print(f"\n{'':32}{'ours (' + ours + ')':>{width}}   {'paper (full dataset)':>{width}}")
        header = "".join(f"{name:>{column}}" for name in part)
        print(f"{'model':22}{'norm':10}{header}   {header}")
        for run in runs:
            rows = (run.result["metrics"], run.result["paper"] or {})
            cells = ("".join(_cell(row.get(name), column) for name in part) for row in rows)
            print(f"{run.result['model']:22}{run.label:10}{'   '.join(cells)}")


def _cell(value: float | None, width: int) -> str:
    return f"{'-' if value is None else format(value, '.2f'):>{width}}"


if __name__ == "__main__":
    main()
