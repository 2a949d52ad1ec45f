"""What a run was made with: its code, its packages, its command. Nothing here imports torch.

provenance.json     a list: how the run was started, and each time it was continued with other code
diff.patch          how the code differed from the commit; not written where it did not
requirements.txt    the installed packages

Code or packages that a run was continued with have a number: ``diff.2.patch``,
``requirements.2.txt``. What the run ended with stands last in the list, and in ``result.json``.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import InputError, write_atomically
from tasks.identity import Code

NAME = "provenance.json"


@dataclass
class Start:
    """What a run was started or continued with, as ``provenance.json`` has it.

    Attributes:
        git_commit: as in ``result.json``; None outside a checkout.
        patch, requirements: names of files in the run; None if there are none.
        left_out, rewritten: as in `tasks.identity.Code`.
        python: its version.
        overrides: of the configuration; a path is written ``<path>``.
    """

    git_commit: str | None
    patch: str | None
    requirements: str | None
    left_out: list[str]
    rewritten: list[str]
    python: str
    overrides: list[str]


def read_starts(directory: Path) -> list[Start]:
    """What a run was started and continued with, newest last; empty if it does not say.

    Raises:
        InputError: the file is damaged.
    """
    path = directory / NAME
    try:
        return [Start(**entry) for entry in json.loads(path.read_bytes())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}): remove it") from None


def write_start(directory: Path, code: Code, packages: str, overrides: list[str]) -> list[Start]:
    """Notes what a run is started or continued with; what it was started with before stays.

    Returns:
        What it was started and continued with, newest last: one entry unless code or packages
        changed on the way.
    """
    starts = read_starts(directory)
    if not (directory / "last.ckpt").exists():  # it begins anew
        starts = []
        for old in (*directory.glob("diff*.patch"), *directory.glob("requirements*.txt")):
            old.unlink()
    elif not starts:
        starts = [Start(None, None, None, [], [], "", [])]  # by a version that did not say
    python = sys.version.split()[0]
    number = f".{len(starts) + 1}" if starts else ""
    new = Start(code.commit, None, None, [*code.left_out], [*code.rewritten], python, overrides)
    names = (starts[-1].patch, starts[-1].requirements) if starts else (None, None)
    new.patch = _same_or_written(directory, names[0], f"diff{number}.patch", code.patch)
    new.requirements = _same_or_written(
        directory, names[1], f"requirements{number}.txt", packages.encode()
    )
    if starts and _made_with(starts[-1]) == _made_with(new):
        starts.pop()
    starts.append(new)
    entries = [vars(start) for start in starts]
    write_atomically(directory / NAME, json.dumps(entries, indent=2) + "\n")
    return starts


def _made_with(start: Start) -> dict[str, object]:
    return {name: value for name, value in vars(start).items() if name != "overrides"}


def _same_or_written(directory: Path, last: str | None, name: str, content: bytes) -> str | None:
    """The name of the file with this content: the last one's if that has it, else a new one's."""
    if not content:
        return None
    old = None if last is None else directory / last
    if old is not None and old.exists() and old.read_bytes() == content:
        return last
    write_atomically(directory / name, content)
    return name


def without_path(override: str) -> str:
    """An override of the configuration; a path in it is this machine's and becomes ``<path>``."""
    key, _, value = override.partition("=")
    return f"{key}=<path>" if "/" in value and "/" not in key else override
