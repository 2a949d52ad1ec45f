"""A run's directory: its name, its lock, and what is written there.

config.yaml    the resolved configuration
train.log      what the console said
metrics.csv    a line per epoch
audit.csv      a line per norm layer: does it see a window, in training and in evaluation
last.ckpt      the last checkpoint
result.json    written when the run has finished, and only then
"""

import hashlib
import json
import logging
import os
import subprocess
import sys
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from tasks.cli import ROOT, Busy
from tasks.errors import InputError
from tasks.paper import canonical_norm, learning_rate

log = logging.getLogger("train")


class Run:
    """The place of one training and its evaluation.

    The directory is named after what decides the result: task, norm, data, seed, optimisation and
    total batch; not after devices, loggers or paths. The same configuration finds it again.

    Args:
        cfg: the resolved configuration.
        dataset: what identifies the data, wherever it lies.
        world_size: number of processes, one device each.

    Attributes:
        directory: where everything of the run is.
        was_finished: whether it was when this process entered it.
    """

    def __init__(self, cfg: DictConfig, dataset: str, world_size: int):
        self.cfg, self.dataset = cfg, dataset
        self.total_batch = cfg.data.batch_size * world_size
        identity = json.dumps(run_identity(cfg, dataset, self.total_batch), sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
        norm = norm_label(cfg.norm)
        name = f"{cfg.task.model.name}-{norm}-{cfg.data.name}-seed{cfg.seed}-{digest}"
        self.directory = Path(cfg.runs) / cfg.task.name / name
        self.is_first_process = is_first_process()
        self._lock = FileLock(self.directory / ".lock")
        self._log_file: logging.FileHandler | None = None

    def __enter__(self) -> "Run":
        log.propagate = False
        log.addHandler(logging.NullHandler())
        if self.is_first_process:
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise Busy(self.directory) from None
            self._start_log()
        self.was_finished = self.result is not None
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.directory = str(self.directory)  # for a sweep's summary
        if error is not None and self._log_file is not None:  # the console is told by tasks.launch
            why = f"stopped by {kind.__name__}: {error}"
            if isinstance(error, Exception) and not isinstance(error, InputError):  # a defect
                why = "".join(traceback.format_exception(error))
            self._log_file.emit(logging.makeLogRecord({"msg": why}))
        for handler in list(log.handlers):
            handler.close()
            log.removeHandler(handler)
        self._lock.release()

    def _start_log(self) -> None:
        log.setLevel(logging.INFO)
        console = logging.StreamHandler(sys.stdout)
        console.setFormatter(logging.Formatter("%(message)s"))
        file = logging.FileHandler(self.directory / "train.log")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(console)
        log.addHandler(file)
        self._log_file = file

    @property
    def last_checkpoint(self) -> Path | None:
        """The checkpoint to continue from, if there is one."""
        path = self.directory / "last.ckpt"
        return path if path.exists() else None

    @property
    def result(self) -> dict | None:
        """The finished run's ``result.json``, if it is finished."""
        path = self.directory / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def write_config(self) -> None:
        text = OmegaConf.to_yaml(self.cfg, resolve=True).replace(str(Path.home()), "~")
        write_atomically(self.directory / "config.yaml", text)

    def write_result(self, result: dict) -> None:
        write_atomically(self.directory / "result.json", json.dumps(result, indent=2) + "\n")


def is_first_process() -> bool:
    """Whether this process is rank 0: with several devices each runs the same command."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)


def write_atomically(path: Path, text: str) -> None:
    """The file has either its old content or ``text``, never a part of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def norm_label(norm: DictConfig) -> str:
    """A short name for a norm: ``bn``, ``gn_g16``, ``lcn_c2_w227``, ``lcn_c2_w31x63``."""
    norm = canonical_norm(OmegaConf.to_container(norm))
    parts = [norm["name"]]
    if "groups" in norm:
        parts.append(f"g{norm['groups']}")
    if "c_group" in norm:
        parts.append(f"c{norm['c_group']}")
    if "window" in norm:
        window = norm["window"]
        if isinstance(window, list):
            window = window[0] if window[0] == window[1] else f"{window[0]}x{window[1]}"
        parts.append(f"w{window}")
    return "_".join(parts)


# Keys of a task that a run takes from `data`, `trainer` or the learning rate.
REACHES_THE_RUN_OTHERWISE = (
    "epochs", "steps", "devices", "scale_lr", "crop", "resize", "patches_per_epoch", "eval_split",
    "eval_splits", "mini",
)  # fmt: skip


def run_identity(cfg: DictConfig, dataset: str, total_batch: int) -> dict:
    """What decides a run's result, and therefore names its directory."""
    task = OmegaConf.to_container(cfg.task, resolve=True)
    task["optimizer"]["lr"] = learning_rate(cfg, total_batch)
    for key in REACHES_THE_RUN_OTHERWISE:
        task.pop(key, None)
    model = task["model"]
    for key in ("batch_size", "mini"):
        model.pop(key)
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
    if cfg.norm.name == "bn":  # its statistics are those of one device's images
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
