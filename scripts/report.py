"""Compares finished runs: a table beside the paper's, learning curves, predictions side by side.

python scripts/report.py runs/cityscapes --out report
"""

import argparse
import sys
from pathlib import Path

from tasks.errors import InputError
from tasks.figures import FinishedRun, finished_runs, learning_curves, side_by_side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", nargs="*", type=Path, default=[Path("runs")], help="folders of runs"
    )
    parser.add_argument("--out", type=Path, default=Path("report"), help="where to write pictures")
    arguments = parser.parse_args()
    try:
        runs = finished_runs(arguments.runs)
        arguments.out.mkdir(parents=True, exist_ok=True)
        print_table(runs)
        written = {"learning curves": arguments.out / "learning_curves.png"}
        learning_curves(runs).savefig(written["learning curves"], dpi=120)
        pair = [newest(runs, name) for name in ("gn", "lcn")]
        if None not in pair:
            written["predictions"] = arguments.out / "predictions.png"
            side_by_side(*pair).savefig(written["predictions"], dpi=120)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print()
    for what, path in written.items():
        print(f"{what + ':':17} {path}")
    print(f"{'runs:':17} {', '.join(str(place) for place in arguments.runs)}")


def newest(runs: list[FinishedRun], norm: str) -> FinishedRun | None:
    return next((run for run in reversed(runs) if run.cfg.norm.name == norm), None)


def print_table(runs: list[FinishedRun]) -> None:
    """A line per run: ours, and the published row where there is one."""
    names = list(runs[0].result["metrics"])
    data = {run.cfg.data.name for run in runs}
    ours = "miniature" if data == {"mini"} else "/".join(sorted(data))
    width = 11 * len(names)
    print(f"\n{'':32}{'ours (' + ours + ')':>{width}}   {'paper (full dataset)':>{width}}")
    header = "".join(f"{name:>11}" for name in names)
    print(f"{'model':22}{'norm':10}{header}   {header}")
    for run in runs:
        paper = run.result["paper"]
        cells = "".join(f"{run.result['metrics'][name]:11.2f}" for name in names)
        published = "".join(f"{paper[name]:11.2f}" if paper else f"{'-':>11}" for name in names)
        print(f"{run.result['model']:22}{run.label:10}{cells}   {published}")


if __name__ == "__main__":
    main()
