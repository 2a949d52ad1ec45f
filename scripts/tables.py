"""Gathers finished runs into tables beside the paper's, and checks the paper's claims on them.

python scripts/tables.py                         every run below runs/, into results/
python scripts/tables.py runs other --out results

Writes <out>/mini/table<N>.csv, <out>/full/table<N>.csv and <out>/README.md.
"""

import argparse
import sys
from pathlib import Path

from tasks.errors import InputError
from tasks.evidence.claims import claims_text
from tasks.evidence.gather import gather
from tasks.evidence.tables import write_tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", nargs="*", type=Path, default=[Path("runs")], help="folders of runs"
    )
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder to write into")
    arguments = parser.parse_args()
    try:
        evidence = gather(arguments.runs)
        for line in evidence.left_out:
            print(f"left out: {line}")
        if evidence.is_empty:
            places = ", ".join(map(str, arguments.runs))
            raise InputError(
                f"no finished run of a published row below {places}; "
                "python train.py experiment=table1_w18_lcn data=mini makes one"
            )
        written = write_tables(evidence, arguments.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(claims_text(evidence))
    for path in written:
        print(f"written: {path}")


if __name__ == "__main__":
    main()
