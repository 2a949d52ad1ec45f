"""A trained network as a folder that others can use: weights, configuration, model card, ONNX.

Nothing in it names this machine or its user. The folder appears whole or not at all. Nothing here
imports torch before a mistake of the user is answered.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from tasks.config import PATHS
from tasks.errors import InputError, told_of
from tasks.runs.record import Record, read_run, require_finished

if TYPE_CHECKING:
    from tasks.prediction.network import Network

WEIGHTS, CONFIG, CARD, ONNX = "model.safetensors", "config.yaml", "README.md", "model.onnx"
OF_THE_USER = ("runs", "logger", "hydra")
"""Parts of a configuration that say where a run was kept and who watched it."""

_PATH = re.compile(r"(?<![\w.)])[/~][\w.~/-]|\b[A-Za-z]:\\")  # absolute, anywhere in a text


def export(
    run: Path,
    out: Path,
    card: Callable[["Network", Record, str | None], str],
    *,
    checkpoint: str | None = None,
    onnx: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Writes a run's network to a folder that `load_network` takes; returns its files.

    Args:
        run: its directory.
        out: the folder.
        card: the text of ``README.md`` from the network, its run, and what is to be said of ONNX.
        checkpoint: ``"last"`` takes a run that has not finished.
        onnx: whether there is a ``model.onnx`` too.
        overwrite: whether an export that is there is replaced.

    Raises:
        InputError: no such run, one that has not finished, a folder that exists, a network that
            ONNX cannot express, or a folder that cannot be written.
    """
    if not run.is_dir():
        raise InputError(f"{run} is no folder: give a run's directory")
    if (run / WEIGHTS).exists():
        raise InputError(f"{run} is an export already: copy it, or give the run's directory")
    record = read_run(run)
    require_finished(record, checkpoint)
    if onnx and record.kind == "detection":
        raise InputError("--onnx is for segmentation and classification: export without it")
    _require_place(out, overwrite)

    from safetensors.torch import save

    from tasks.prediction.network import load_network

    network = load_network(run, checkpoint=checkpoint)
    with _appearing(out) as folder:
        said = None
        if onnx:
            from tasks.prediction.to_onnx import write_onnx

            said = write_onnx(network, folder / ONNX)
        values = network.model.state_dict().items()
        weights = {name: value.cpu().contiguous().clone() for name, value in values}
        (folder / WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))
        text = OmegaConf.to_yaml(OmegaConf.create(shareable(record.config)))
        (folder / CONFIG).write_text(text, encoding="utf-8")
        (folder / CARD).write_text(card(network, record, said), encoding="utf-8")
        names = sorted(path.name for path in folder.iterdir())
    return [out / name for name in names]


def shareable(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration without what is this machine's or its user's.

    A path becomes ``<path>``: that there was one decides which layers a detector has frozen.
    """
    return {key: _without_paths(v, key) for key, v in config.items() if key not in OF_THE_USER}


def _without_paths(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {name: _without_paths(child, f"{key}.{name}") for name, child in value.items()}
    if isinstance(value, list):
        return [_without_paths(child, key) for child in value]
    if isinstance(value, str) and not value.startswith("timm:"):
        return "<path>" if key in PATHS or _PATH.search(value) else value
    return value


def _require_place(out: Path, overwrite: bool) -> None:
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise InputError(f"{out} exists; replace it with --overwrite")
    if out.is_symlink() or not out.is_dir():
        raise InputError(f"{out} is no folder: give another name")
    others = {path.name for path in out.iterdir()} - {WEIGHTS, CONFIG, CARD, ONNX}
    if others:
        raise InputError(f"{out} has {min(others)}, which is no export's: give another folder")


@contextlib.contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder with a temporary name that becomes ``out`` when the block ends without an error."""
    out = Path(os.path.abspath(out))
    temporary, old = (out.with_name(f".{out.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    with told_of(out):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if out.exists():
                os.rename(out, old)
            try:
                os.rename(temporary, out)
            except OSError:
                if old.exists():
                    os.rename(old, out)
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if out.exists():
                shutil.rmtree(old, ignore_errors=True)
