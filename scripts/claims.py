"""Checks results/claims.yaml, and what the paper says about the layer itself.

python scripts/claims.py                            the file, every check, the windowed layers
python scripts/claims.py cost-over-window           one check
python scripts/claims.py --paper FILE               also that the paper's text has every quotation

Writes checks.json and audit.csv into results/, which scripts/tables.py and scripts/report.py show.
"""

import argparse

from tasks.config import path_of
from tasks.errors import InputError, command
from tasks.evidence.checks import CHECKS, run_checks
from tasks.evidence.claims import CLAIMS_FILE, claims, unknown_quotations, unknown_settings
from tasks.evidence.windows import write_audit
from tasks.runs.files import read_text


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "checks", nargs="*", metavar="CHECK", help=f"any of {', '.join(CHECKS)} (default: all)"
    )
    parser.add_argument(
        "--paper", type=path_of, help="text file of the paper, to compare the quotes with"
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.checks if name not in CHECKS]
    if unknown:
        raise InputError(f"{unknown[0]}: no such check; there are {', '.join(CHECKS)}")
    known = claims()
    mistakes = unknown_settings(known)
    if arguments.paper is not None:
        mistakes += unknown_quotations(known, read_text(arguments.paper))
    if mistakes:
        raise InputError("\n".join(f"{CLAIMS_FILE.name}: {text}" for text in mistakes))
    print(f"{CLAIMS_FILE.name}: {len(known)} claims")
    for name, result in run_checks(arguments.checks or [*CHECKS], CLAIMS_FILE.parent).items():
        word = {True: "holds", False: "does not hold", None: "not run"}[result.holds]
        print(f"{name:20} {word}: {result.found}")
    if not arguments.checks:
        print(f"audit.csv: {len(write_audit())} rows of LCN")


if __name__ == "__main__":
    main()
