"""A run's directory: its name, its lock, and what is written there.

config.yaml         the resolved configuration
provenance.json     the commit, the command; beside it diff.patch and requirements.txt
train.log           what the console said
metrics.csv         a line per epoch
audit.csv           a line per norm layer: is it windowed, in training and in evaluation
last.ckpt           the last checkpoint
result.json         written when the run has finished, and only then
"""

import contextlib
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

from tasks.errors import Busy, InputError, lack, told_of, write_atomically
from tasks.identity import run_identity, without_home
from tasks.protocol import norm_label
from tasks.runs.record import read_result

log = logging.getLogger("train")


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


class LogFile(logging.FileHandler):
    """A log that ends the run where it cannot be written, instead of a stack trace per line."""

    def __init__(self, path: Path, encoding: str):
        super().__init__(path, encoding=encoding, errors="backslashreplace")
        self.path = path

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        assert error is not None
        with told_of(self.path):
            raise error


class Run:
    """The place of one training and its evaluation.

    The directory is named after what decides the result: task, norm, data, seed, optimization and
    total batch; not after devices, loggers or paths. The same configuration finds it again.

    Args:
        cfg: the resolved configuration.
        dataset: what identifies the data, wherever it lies.
        world_size: number of processes, one device each.

    Attributes:
        total_batch: samples of a step: of all devices, and of all batches that are accumulated.
        directory: where everything of the run is.
        group: the same for runs that differ in nothing but the seed.
        was_finished: whether it was when this process entered it.
    """

    last_entered: ClassVar[Path | None] = None
    """The directory that this process worked in last: where to look after a failure."""

    def __init__(self, cfg: DictConfig, dataset: str, world_size: int):
        self.cfg, self.dataset = cfg, dataset
        self.total_batch = cfg.data.batch_size * world_size * cfg.trainer.accumulate
        identity = run_identity(cfg, dataset, self.total_batch)
        what = f"{cfg.task.model.name}-{norm_label(cfg.norm)}-{cfg.data.name}"
        name = f"{what}-seed{cfg.seed}-{_digest(identity)}"
        del identity["seed"]
        self.group = f"{cfg.task.name}-{what}-{_digest(identity)}"
        self.directory = Path(cfg.runs) / cfg.task.name / name
        self.is_first_process = is_first_process()
        self._lock = FileLock(self.directory / ".lock")
        self._log_file: LogFile | None = None

    def __enter__(self) -> "Run":
        log.propagate = False
        log.addHandler(logging.NullHandler())
        if self.is_first_process:
            self._start_log(console=True)
            try:
                with told_of(self.directory):
                    self.directory.mkdir(parents=True, exist_ok=True)
                    self._take_lock()
                    self._start_log(console=False)
            except Busy:
                self._close_log()
                raise
            except InputError:
                # A finished run is shown from a place where nothing can be written, too.
                if not (self.directory / "result.json").exists():
                    self._close_log()
                    self._lock.release()
                    raise
        Run.last_entered = self.directory
        try:
            self.was_finished = self.result is not None
        except InputError as error:
            self.__exit__(InputError, error, None)
            raise
        return self

    def _take_lock(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:  # an OSError, but nothing that the system refuses
            raise Busy(self.directory) from None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is not None and self._log_file is not None:  # launch tells the console
            why = f"stopped by {type(error).__name__}: {lack(error) or error}"
            of_user = isinstance(error, InputError) or lack(error) is not None
            if isinstance(error, Exception) and not of_user:  # a defect
                why = "".join(traceback.format_exception(error))
            with contextlib.suppress(InputError):  # the disk is full
                self._log_file.emit(logging.makeLogRecord({"msg": why}))
        self._close_log()
        self._lock.release()

    def _start_log(self, console: bool) -> None:
        """Logs to the console, or to ``train.log``."""
        log.setLevel(logging.INFO)
        handler: logging.Handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        if not console:
            handler = self._log_file = LogFile(self.directory / "train.log", encoding="utf-8")
            time_first = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")
            handler.setFormatter(time_first)
        log.addHandler(handler)

    def _close_log(self) -> None:
        for handler in list(log.handlers):
            with contextlib.suppress(OSError):  # what a full disk did not take
                handler.close()
            log.removeHandler(handler)

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
