"""A trained network as a folder that others can use: weights, configuration, model card, ONNX.

Nothing in it names this machine or its user. The folder appears whole or not at all. Nothing here
imports torch before a mistake of the user is answered.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from tasks.errors import InputError, told_of
from tasks.runs.keep import shareable
from tasks.runs.record import Record, read_run, require_finished

if TYPE_CHECKING:
    from tasks.prediction.network import Network

WEIGHTS, CONFIG, CARD, ONNX = "model.safetensors", "config.yaml", "README.md", "model.onnx"


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
