"""Lists runs with status, age, metric and time left; shows how two differ; replays or keeps them.

python scripts/runs.py runs/cityscapes
python scripts/runs.py diff gn_g16-mini-seed0 lcn_c2_w227-mini-seed0
python scripts/runs.py replay lcn_c2_w227-mini-seed0 --into again
python scripts/runs.py keep runs/camvid                    copies it to results/runs, no weights
"""

import argparse
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from tasks.config import path_of
from tasks.errors import InputError, command, say
from tasks.runs.keep import keep_command
from tasks.runs.listing import DEFAULT, find_run, print_diff, print_table, read_state
from tasks.runs.record import find_runs, read_each
from tasks.runs.replay import replay_command


@command
def main() -> None:
    if sys.argv[1:2] == ["replay"]:
        replay_command(sys.argv[2:], find_run)
    elif sys.argv[1:2] == ["keep"]:
        keep_command(sys.argv[2:])
    elif sys.argv[1:2] == ["diff"]:
        diff_command()
    else:
        list_command()


def list_command() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="other uses:\n"
        "  runs.py diff A B               the settings in which two runs differ\n"
        "  runs.py replay RUN --into DIR  a run's code, and the commands that train it again\n"
        "  runs.py keep FOLDER...         copies finished runs, without weights, to results/runs",
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=path_of,
        default=[DEFAULT],
        help="folders to look in (default: runs)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    arguments = parser.parse_args()
    found = find_runs(arguments.folders)
    runs, left_out = read_each(found.names, read_state)
    for reason in (found.left_out | left_out).values():
        say(f"left out: {reason}")
    if not runs:
        where = ", ".join(map(str, arguments.folders))
        raise InputError(f"no run (a folder with config.yaml) below {where}")
    runs.sort(key=lambda run: (run.task, run.age_seconds))
    if arguments.json:
        print(json.dumps([asdict(run) for run in runs], indent=2))
    else:
        print_table(runs, [found.names[Path(run.directory)] for run in runs])


def diff_command() -> None:
    parser = argparse.ArgumentParser(
        prog="runs.py diff", description="Prints the keys in which two runs differ."
    )
    for name in ("A", "B"):
        parser.add_argument(
            name, help="a run directory, or a part of the name of one run below runs"
        )
    arguments = parser.parse_args(sys.argv[2:])
    print_diff([arguments.A, arguments.B])


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends quietly in `| head`
    main()
