"""Compares finished runs: one HTML page beside the paper's tables, and a table on the console.

python scripts/report.py                             every run below runs/, into report/
python scripts/report.py runs/cityscapes --out report

Writes <out>/report.html, which needs no other file, and the pictures learning_curves.png and
predictions.png, in a folder for each task where there are several.
"""

import argparse
from pathlib import Path

from tasks.config import path_of
from tasks.errors import InputError, command, say, told_of
from tasks.evidence.gather import gather
from tasks.evidence.pictures import learning_curves, side_by_side
from tasks.evidence.report import write_report
from tasks.evidence.sections import Section, make_sections
from tasks.runs.record import FinishedRun, finished_runs

COLUMNS = 4  # metrics that a table shows side by side


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "runs",
        nargs="*",
        type=path_of,
        default=[Path("runs")],
        help="folders of runs (default: runs)",
    )
    parser.add_argument(
        "--out", type=path_of, default=Path("report"), help="folder to write into (default: report)"
    )
    arguments = parser.parse_args()
    page = arguments.out / "report.html"
    runs, damaged = finished_runs(arguments.runs)
    for reason in damaged.values():
        say(f"left out: {reason}")
    places = ", ".join(map(str, arguments.runs))
    if not runs:
        raise InputError(f"no finished run (result.json) below {places}")
    evidence = gather(runs)
    sections = make_sections(runs, evidence)
    with told_of(arguments.out):  # what cannot be read is an InputError
        for section in sections:
            alone = len(sections) == 1
            show(section, arguments.out if alone else arguments.out / section.slug)
        write_report(sections, evidence, page)
    print(f"{'runs:':17} {places}")
    print(f"{'report:':17} {page}")


def show(section: Section, folder: Path) -> None:
    """Prints the table of a section's runs and writes their pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    print(f"\n{section.title}")
    print_table(section.runs)
    written = {"learning curves": folder / "learning_curves.png"}
    learning_curves(section.runs).savefig(written["learning curves"], dpi=120)
    if section.runs[0].kind == "segmentation":
        if isinstance(section.comparisons, str):
            print(f"no predictions: {section.comparisons}")
        else:
            written["predictions"] = folder / "predictions.png"
            side_by_side(section.comparisons).savefig(written["predictions"], dpi=120)
    print()
    for what, path in written.items():
        print(f"{what + ':':17} {path}")


def print_table(runs: list[FinishedRun]) -> None:
    """A line per run and metric group: ours, and the published row where there is one."""
    names = list(dict.fromkeys(name for run in runs for name in run.scores))
    ours = runs[0].stand_in or runs[0].data
    for start in range(0, len(names), COLUMNS):
        part = names[start : start + COLUMNS]
        column = 2 + max(9, *map(len, part))
        width = column * len(part)
        print(f"\n{'':32}{'ours (' + ours + ')':>{width}}   {'paper (full dataset)':>{width}}")
        header = "".join(f"{name:>{column}}" for name in part)
        print(f"{'model':22}{'norm':10}{header}   {header}")
        for run in runs:
            rows = (run.scores, run.result["paper"] or {})
            cells = ("".join(_cell(row.get(name), column) for name in part) for row in rows)
            print(f"{run.model:22}{run.label:10}{'   '.join(cells)}")


def _cell(value: float | None, width: int) -> str:
    return f"{'-' if value is None else format(value, '.2f'):>{width}}"


if __name__ == "__main__":
    main()
