"""Where generated stand-ins for datasets are kept, and how they get there whole."""

import importlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from tasks.errors import told_of


def generate_once(
    root: Path | str, name: str, version: int, seed: int, generate: Callable[[Path], None]
) -> Path:
    """The folder of a miniature, generated (under a minute) if it is not there.

    Args:
        root: folder that holds miniatures; made if absent.
        name: of the dataset. The miniature is the sub-folder ``<name>-v<version>-seed<seed>``, so
            that a change of the generator or of the seed never meets old files.
        version: of the generator.
        seed: everything drawn follows from it.
        generate: writes all files below the folder it is given.

    Returns:
        The dataset's root. It is complete: files are written to a temporary sibling that is renamed
        at the end. Processes that call this at once wait for the one that generates.

    Raises:
        InputError: `root` cannot be written.
    """
    root = Path(root)
    target = root / f"{name}-v{version}-seed{seed}"
    if target.is_dir():
        return target
    with told_of(root):
        root.mkdir(parents=True, exist_ok=True)
    with told_of(root), FileLock(root / f".{target.name}.lock"):
        if not target.is_dir():
            partial = root / f".{target.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted generation
            print(f"generating the {name} miniature in {target}", file=sys.stderr, flush=True)
            try:
                generate(partial)
                os.rename(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return target


def ensure_for_task(task: str, root: Path) -> Path:
    """The root of the miniature of a task's dataset, generated if it is not there."""
    return importlib.import_module(f"tasks.miniatures.{task}").ensure(root)


def exists_for_task(task: str, root: Path | str) -> bool:
    """Whether the miniature of a task's dataset has been generated."""
    module = importlib.import_module(f"tasks.miniatures.{task}")
    names = f"{task}-v{module.VERSION}-seed*"  # as `generate_once` names them
    return any(path.is_dir() for path in Path(root).expanduser().glob(names))
