"""A run's directory: its name, its lock, and what is written there.

config.yaml         the resolved configuration
provenance.json     the commit, the command; beside it diff.patch and requirements.txt
train.log           what the console said
metrics.csv         a line per epoch
audit.csv           a line per norm layer: does it see a window, in training and in evaluation
last.ckpt           the last checkpoint
result.json         written when the run has finished, and only then
"""

import hashlib
import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from tasks.errors import Busy, InputError
from tasks.identity import run_identity, without_home
from tasks.protocol import norm_label
from tasks.runs.record import read_result

log = logging.getLogger("train")


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


class Run:
    """The place of one training and its evaluation.

    The directory is named after what decides the result: task, norm, data, seed, optimization and
    total batch; not after devices, loggers or paths. The same configuration finds it again.

    Args:
        cfg: the resolved configuration.
        dataset: what identifies the data, wherever it lies.
        world_size: number of processes, one device each.

    Attributes:
        directory: where everything of the run is.
        group: the same for runs that differ in nothing but the seed.
        was_finished: whether it was when this process entered it.
    """

    last_entered: ClassVar[Path | None] = None
    """The directory that this process worked in last: where to look after a failure."""

    def __init__(self, cfg: DictConfig, dataset: str, world_size: int):
        self.cfg, self.dataset = cfg, dataset
        self.total_batch = cfg.data.batch_size * world_size
        identity = run_identity(cfg, dataset, self.total_batch)
        what = f"{cfg.task.model.name}-{norm_label(cfg.norm)}-{cfg.data.name}"
        name = f"{what}-seed{cfg.seed}-{_digest(identity)}"
        del identity["seed"]
        self.group = f"{cfg.task.name}-{what}-{_digest(identity)}"
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
        Run.last_entered = self.directory
        try:
            self.was_finished = self.result is not None
        except InputError as error:
            self.__exit__(InputError, error, None)
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is not None and self._log_file is not None:  # launch tells the console
            why = f"stopped by {type(error).__name__}: {error}"
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
        """The finished run's ``result.json``, if it is finished.

        Raises:
            InputError: it is damaged.
        """
        return read_result(self.directory)

    def write_config(self) -> None:
        text = without_home(OmegaConf.to_yaml(self.cfg, resolve=True))
        write_atomically(self.directory / "config.yaml", text)

    def write_result(self, result: dict) -> None:
        write_atomically(self.directory / "result.json", json.dumps(result, indent=2) + "\n")


def is_first_process() -> bool:
    """Whether this process is rank 0: with several devices each runs the same command."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)


def write_atomically(path: Path, content: str | bytes) -> None:
    """The file has either its old content or the new one, never a part of it; text is UTF-8."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)
