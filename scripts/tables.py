"""Gathers finished runs into tables beside the paper's, and checks the paper's claims on them.

python scripts/tables.py                         every run below runs and results/runs, into results
python scripts/tables.py runs other --out results
python scripts/tables.py --missing               the commands of the runs that claims still lack
python scripts/tables.py --missing mini_long     of one page: a choice of data, or a task of our own

Writes <out>/<data>/table<N>.csv, <out>/<task>/rows.csv and <out>/README.md.
"""

import argparse
from pathlib import Path

from tasks.config import path_of
from tasks.errors import InputError, command, say, told_of
from tasks.evidence.gather import gather
from tasks.evidence.missing import missing_text
from tasks.evidence.rows import SCALES, own_tasks
from tasks.evidence.tables import write_tables
from tasks.evidence.verdicts import claims_text
from tasks.runs.keep import KEPT
from tasks.runs.record import finished_runs


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "runs",
        nargs="*",
        type=path_of,
        default=[Path("runs"), KEPT],
        help="folders of runs (default: runs results/runs)",
    )
    parser.add_argument("--out", type=path_of, default=Path("results"), help="folder to write into")
    pages = [*own_tasks(), *SCALES]
    parser.add_argument(
        "--missing", nargs="?", const="", choices=["", *pages], metavar="PAGE",
        help=f"only print the commands of the runs that claims lack; PAGE: {', '.join(pages)}",
    )  # fmt: skip
    arguments = parser.parse_args()
    runs, damaged = finished_runs(arguments.runs)
    for reason in damaged.values():
        say(f"left out: {reason}")
    evidence = gather(runs)
    if arguments.missing is not None:
        laptop = [page for page in pages if page != "full" or evidence.runs[page]]
        for page in [arguments.missing] if arguments.missing else laptop:
            print(missing_text(evidence, page))
        return
    for line in sorted(f"{place}: {reason}" for place, reason in evidence.left_out.items()):
        print(f"left out: {line}")
    if evidence.is_empty:
        places = ", ".join(map(str, arguments.runs))
        raise InputError(
            f"no finished run of a row below {places}; "
            "python train.py experiment=table1_w18_lcn data=mini makes one"
        )
    with told_of(arguments.out):
        written = write_tables(evidence, arguments.out)
    print(claims_text(evidence))
    for path in written:
        print(f"written: {path}")


if __name__ == "__main__":
    main()
