"""Puts the code of a run into an empty folder, to train it again there.

Nothing here imports torch.
"""

import argparse
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tasks.config import ROOT, path_of
from tasks.errors import InputError
from tasks.identity import git
from tasks.runs.provenance import NAME, Start, read_starts


def replay_command(arguments: list[str], find_run: Callable[[str], Path]) -> None:
    """``runs.py replay RUN --into DIR``: writes the code into DIR and prints how to train.

    Args:
        arguments: the words after ``replay``.
        find_run: the directory of the run that a word names.

    Raises:
        InputError: the run does not say what code it was made with, this repository does not have
            the commit, or DIR is not empty.
    """
    parser = argparse.ArgumentParser(
        prog="runs.py replay",
        description="Puts the code of a run, its commit and its changes, into an empty folder, and "
        "prints the commands that make its environment and train it again.",
    )
    parser.add_argument("run", metavar="RUN", help="a run directory, or a part of its name")
    parser.add_argument(
        "--into", metavar="DIR", type=path_of, required=True, help="an empty or new folder"
    )
    options = parser.parse_args(arguments)
    run = find_run(options.run)
    start, others = last_start(run)
    folder = write_code(run, start, options.into)
    print("\n".join(instructions(run, start, options.into, folder)))
    for note in notes(start, others):
        print(f"\nnote: {note}")


def last_start(run: Path) -> tuple[Start, int]:
    """What a run ended with, and how many times it was started or continued with something else.

    Raises:
        InputError: the run does not say it, or was not made from a git checkout.
    """
    starts = read_starts(run) or [_start_of_result(run)]
    if starts[-1].git_commit is None:
        raise InputError(f"{run} was not made from a git checkout: its code is not known")
    return starts[-1], len(starts) - 1


def _start_of_result(run: Path) -> Start:
    """The start of a run from before there was a ``provenance.json``, from its ``result.json``."""
    path = run / "result.json"
    try:
        result = json.loads(path.read_bytes())
        commit, overrides = result["git_commit"], result["overrides"]
        python = result["versions"]["python"]
    except FileNotFoundError:
        raise InputError(
            f"{run} has neither {NAME} nor result.json: its code is not known"
        ) from None
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__})") from None
    if commit is not None and commit.endswith("-dirty"):
        raise InputError(
            f"{run} was made with code that differed from its commit, by a version that did not "
            f"keep the difference; the commit is {commit.removesuffix('-dirty')}"
        )
    return Start(commit, None, None, [], [], python, overrides)


def write_code(run: Path, start: Start, into: Path) -> Path:
    """Writes commit and patch as a clone of this repository; returns the folder of train.py.

    Raises:
        InputError: this repository does not have the commit, ``into`` is not empty, or git failed.
    """
    commit = str(start.git_commit).removesuffix("-dirty")
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise InputError(f"{into} is not empty; give --into a new folder")
    try:
        git(ROOT, "cat-file", "-e", f"{commit}^{{commit}}")
    except (OSError, subprocess.SubprocessError):
        raise InputError(
            f"there is no commit {commit} in {ROOT}; fetch it from where {run.name} was made"
        ) from None
    try:
        into.mkdir(parents=True, exist_ok=True)
        top = git(ROOT, "rev-parse", "--show-toplevel").decode().removesuffix("\n")
        below = git(ROOT, "rev-parse", "--show-prefix").decode().removesuffix("\n")
        git(into, "clone", "--quiet", "--no-checkout", top, ".")
        git(into, "checkout", "--quiet", "--detach", commit)
        if start.patch is not None:
            patch = str((run / start.patch).resolve())
            git(into, "apply", "--whitespace=nowarn", patch)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(into, ignore_errors=True)
        said = (getattr(error, "stderr", None) or str(error).encode()).decode(errors="replace")
        raise InputError(f"{run.name} cannot be written into {into}: {said.strip()}") from None
    return into / below


def instructions(run: Path, start: Start, into: Path, folder: Path) -> list[str]:
    """What was written, and the commands that make the environment and train."""
    changes = "" if start.patch is None else f", with {run / start.patch}"
    python = "python" + ".".join(start.python.split(".")[:2])
    constraints = "constraints.txt"
    if start.requirements is not None:
        constraints = shlex.quote(str((run / start.requirements).resolve()))
    overrides = [text for text in start.overrides if not text.startswith("runs=")]
    return [
        f"{into}: commit {str(start.git_commit).removesuffix('-dirty')}{changes}",
        "",
        "its environment:",
        f"  cd {shlex.quote(str(folder.resolve()))}",
        f"  {python} -m venv .venv",
        f"  .venv/bin/python -m pip install -c {constraints} -e '.[experiments]'",
        "the training:",
        f"  .venv/bin/{shlex.join(['python', 'train.py', *overrides])}",
    ]


def notes(start: Start, others: int) -> list[str]:
    """What keeps the training from being the same, or has to be done by hand."""
    found = []
    if others:
        found.append(
            "the run was continued with other code or packages than it was started with; these are "
            "the last ones, and its numbers may differ"
        )
    if start.left_out:
        found.append(f"too large for the patch, to be copied by hand: {', '.join(start.left_out)}")
    if start.rewritten:
        names = ", ".join(start.rewritten)
        found.append(f"names of the machine were taken out of: {names}")
    if any("<path>" in override for override in start.overrides):
        found.append("put your own paths in place of <path>")
    return found
