"""What decides a run's result, and what it was made with: settings, seeds, files, versions, commit.

Nothing here imports torch.
"""

import hashlib
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from tasks.config import ROOT
from tasks.protocol import canonical_norm, learning_rate

SETTLED_ELSEWHERE = (
    "epochs", "steps", "devices", "scale_lr", "crop", "resize", "patches_per_epoch", "eval_split",
    "eval_splits", "holdout_split", "mini",
)  # fmt: skip
"""Keys of a task that reach a run through `data`, `trainer` or the learning rate."""


def run_identity(cfg: DictConfig, dataset: str, total_batch: int) -> dict:
    """What decides a run's result, and therefore names its directory."""
    task = OmegaConf.to_container(cfg.task, resolve=True)
    task["optimizer"]["lr"] = learning_rate(cfg, total_batch)
    for key in (*SETTLED_ELSEWHERE, "facts"):
        task.pop(key, None)
    model = task["model"]
    for key in ("kind", "batch_size", "mini"):
        model.pop(key, None)
    for settings, key in ((model, "pretrained"), (task, "backbone_checkpoint")):
        if key in settings:
            settings[key] = file_digest(settings[key])
    data = OmegaConf.to_container(cfg.data, resolve=True)
    for key in (
        "root",
        "batch_size",
        "total_batch",
        "eval_batch_size",
        "workers",
        "epochs",
        "steps",
        "lr_factor",
    ):
        data.pop(key)
    identity = {
        "task": task,
        "norm": canonical_norm(OmegaConf.to_container(cfg.norm)),
        "data": data,
        "dataset": dataset,
        "total_batch": total_batch,
        "seed": cfg.seed,
        "checkpoint": file_digest(cfg.checkpoint),
        "epochs": cfg.trainer.max_epochs,
        "steps": cfg.trainer.max_steps,
        "precision": cfg.trainer.precision,
    }
    if cfg.norm.name in ("bn", "brn"):  # whose statistics are those of one device's images
        identity["batch_per_device"] = cfg.data.batch_size
    return identity


def stable_seed(*parts: int | str) -> int:
    """63 bits that follow from the parts, the same in every process and on every platform."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def file_digest(path: str | None) -> str | None:
    """The first 12 hexadecimal digits of the file's SHA-256; None for no path."""
    if path is None or not Path(path).is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": sys.version.split()[0]}
    for package in ("lcn", "torch", "torchvision", "pytorch-lightning", "timm", "numba", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the code, with ``-dirty`` if files differ from it; None outside a checkout."""
    try:
        command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
