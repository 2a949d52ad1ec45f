"""From the command line to runs: how each one ended, a sweep's summary, exit codes.

Nothing here imports torch, so that a mistake is answered at once.
"""

import contextlib
import functools
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from tasks.config import as_given, explain
from tasks.errors import Busy, InputError, lack, open_console, say, told_of, write_atomically
from tasks.identity import running_code
from tasks.protocol import task_facts
from tasks.runs.directory import Run, is_first_process
from tasks.runs.plan.plan import Plan, plan_text, table

OK, FAILED, USER_ERROR, BUSY, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes: finished; a defect; a mistake of the user; another process works on it; stopped."""


@dataclass
class Ending:
    """How one run of a sweep ended, as a file in the sweep's folder records it.

    Attributes:
        overrides: of the configuration, as the sweep gives them to this run.
        status: started (and not ended), finished, skipped, elsewhere (another process), failed,
            stopped.
        code: the exit code that it would have alone.
        directory: of the run, if it came so far.
        note: the primary metric of a finished run, why another is not.
        plan: of ``mode=plan``, the fields of `tasks.runs.plan.plan.Plan`.
    """

    overrides: list[str]
    status: str = "started"
    code: int = FAILED
    directory: str | None = None
    note: str = "ended without a word: killed, or out of memory"
    plan: dict | None = None


class Sweep(Callback):
    """Notes where the endings of this process's sweep are written (a callback of Hydra's)."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        Sweep.folder = Path(config.hydra.sweep.dir)
        for file in ending_files(Sweep.folder):  # of an earlier sweep in the same folder
            file.unlink()


def one_run(
    function: Callable[[DictConfig], Run | Plan | None],
) -> Callable[[DictConfig], float | None]:
    """Turns a mistake of the user into a message, and lets a sweep go on with its next run.

    The wrapped function returns its run, or a plan, or None if there is no result; the wrapper
    returns the primary metric, which a search optimizes.
    """

    @functools.wraps(function)
    def wrapped(cfg: DictConfig) -> float | None:
        hydra = HydraConfig.get()
        ending = Ending(list(hydra.overrides.task))
        file = None
        if is_first_process():
            running_code()  # read now: modules are loaded from here on, and the files may change
        if hydra.mode == RunMode.MULTIRUN:
            sys.argv[1:] = ending.overrides  # what Lightning starts other processes with
            if is_first_process():
                file = Path(hydra.sweep.dir) / f"{hydra.job.num}.json"
                _write(file, ending)
                _endings[file] = ending
        try:
            return _end(function, cfg, ending)
        finally:
            _exit_codes.append(ending.code)
            if file is not None:
                with contextlib.suppress(InputError):  # `_endings` has it for the summary
                    _write(file, ending)

    return wrapped


_exit_codes: list[int] = []
_endings: dict[Path, Ending] = {}
"""Of the runs that this process itself made, by the file that tells the same."""


def _end(function: Callable, cfg: DictConfig, ending: Ending) -> float | None:
    """Calls the function and notes its end; the primary metric of a finished run."""
    score, Run.last_entered = None, None
    try:
        run = function(cfg)
        ending.status, ending.code, ending.note = "finished", OK, ""
        if isinstance(run, Plan):
            _plan(run, ending)
        elif run is not None:
            ending.status = "skipped" if run.was_finished else "finished"
            ending.directory = str(run.directory)
            metric = task_facts(cfg.task.name).primary
            score = run.result["metrics"].get(metric) if is_first_process() else None
            ending.note = "" if score is None else f"{metric} {score:.2f}"
    except InputError as error:
        say(f"error: {error}")
        ending.status, ending.code, ending.note = "failed", USER_ERROR, str(error)
    except Busy as busy:
        say(str(busy))
        ending.status, ending.code, ending.note = "elsewhere", BUSY, "another process works on it"
        ending.directory = str(busy.directory)
    except (KeyboardInterrupt, SystemExit) as stop:
        ending.status, ending.note = "stopped", "the same command continues it"
        if getattr(stop, "code", 1) != 1:  # a launcher has requeued the job and ends this process
            raise
        ending.code = INTERRUPTED
        raise KeyboardInterrupt from None  # also for exit code 1, Lightning's answer to Ctrl-C
    except Exception as error:
        message = lack(error)
        if message is not None:
            say(f"error: {message}")
            ending.status, ending.code, ending.note = "failed", USER_ERROR, message
        else:  # a defect, not a mistake of the user: with its stack trace
            traceback.print_exc()
            ending.status, ending.note = "failed", f"{type(error).__name__}: {error}"
    finally:
        if ending.directory is None and Run.last_entered is not None:
            ending.directory = str(Run.last_entered)
    return score


def _plan(plan: Plan, ending: Ending) -> None:
    """Shows a plan, or notes it for the table of its sweep."""
    ending.status, ending.plan = "planned", asdict(plan)
    ending.code = OK if plan.is_ready else USER_ERROR
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        say(f"planned {plan.name}")
    else:
        print(plan_text(plan))


def _write(file: Path, ending: Ending) -> None:
    with told_of(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(asdict(ending)))


def main(train: Callable[[], None]) -> None:
    """Runs a ``hydra.main`` function and leaves with the exit code of its worst run."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its exceptions on instead of printing them
    open_console()
    arguments = [as_given(argument) for argument in sys.argv[1:]]
    arguments.sort(
        key=lambda argument: argument not in ("-m", "--multirun")
    )  # argparse wants it first
    sys.argv[1:] = arguments
    code = _launch(train)
    if Sweep.folder is not None and code != USER_ERROR:  # for which Hydra checks a sweep as a whole
        code = max(code, summarize(Sweep.folder))
    sys.exit(max([code, *_exit_codes]) if Sweep.folder is None else code)


def _launch(train: Callable[[], None]) -> int:
    try:
        train()
    except InputError as error:  # what tells of a sweep's runs cannot be written
        say(f"error: {error}")
        return USER_ERROR
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        of_hydra = isinstance(error, HydraException | OmegaConfBaseException)
        if _exit_codes or not (of_hydra or _is_of_the_command_line(error)):
            raise
        say(f"error: {explain(error, sys.argv[1:])}")
        return USER_ERROR
    except KeyboardInterrupt:
        say("interrupted; the same command continues from the last checkpoint")
        return INTERRUPTED
    except Exception as error:
        message = lack(error)
        if message is None and isinstance(error, OSError) and error.filename and not _exit_codes:
            # Hydra makes its folders before any run begins.
            remedy = "give another hydra.run.dir or hydra.sweep.dir"
            message = f"{error.filename} cannot be written: {error.strerror}; {remedy}"
        if message is not None:
            say(f"error: {message}")
            return USER_ERROR
        if Sweep.folder is None:
            raise
        say(f"error: the launcher stopped: {type(error).__name__}: {error}")  # a job was killed
        return FAILED
    return OK


def _is_of_the_command_line(error: BaseException) -> bool:
    """Whether it came up in Hydra before any run began: Hydra's own checks are not complete."""
    return "hydra" in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts


def ending_files(folder: Path) -> list[Path]:
    """The files in a sweep's folder that tell of its runs; others may lie there, too."""
    return [
        file
        for file in folder.glob("*.json")
        if file.stem.isdecimal() and file.is_file() and _is_ending(file)
    ]


def _is_ending(file: Path) -> bool:
    try:
        _read(file)
    except (OSError, ValueError, TypeError):
        return False
    return True


def _read(file: Path) -> Ending:
    return Ending(**json.loads(file.read_bytes()))


def summarize(folder: Path) -> int:
    """Prints a line per run of a sweep and returns its exit code: 0 if all runs are finished."""
    files = sorted({*ending_files(folder), *_endings}, key=lambda file: int(file.stem))
    endings = [_endings.get(file) or _read(file) for file in files]
    if not endings:
        of_glob = any("glob(" in argument for argument in sys.argv[1:])
        why = "the glob(...) matches no option" if of_glob else "none was started"
        say(f"error: the sweep has no runs: {why}")
        return USER_ERROR
    if all(ending.plan for ending in endings):
        print(table([Plan.from_dict(ending.plan) for ending in endings if ending.plan]))
        return max(ending.code for ending in endings)
    for ending in endings:  # meanwhile another sweep, or another run of this one, may have ended
        place = Path(ending.directory or "")
        if ending.status == "elsewhere" and (place / "result.json").exists():
            ending.status, ending.code, ending.note = "finished", OK, "by another process"
    common = set.intersection(*(set(ending.overrides) for ending in endings))
    names = [_name(ending.overrides, common) for ending in endings]
    finished = sum(ending.code == OK for ending in endings)
    say(f"\n{finished} of {len(endings)} runs that were started are finished")
    for name, ending in zip(names, endings, strict=True):
        log = "" if ending.directory is None else f"log: {ending.directory}/train.log"
        where = ending.directory if ending.code == OK else log
        note = " / ".join(line.strip() for line in ending.note.splitlines())
        parts = (f"{ending.status:9}", f"{name:{max(map(len, names))}}", note, where)
        say("  ".join(part for part in parts if part))
    return max(ending.code for ending in endings)


def _name(overrides: list[str], common: set[str]) -> str:
    """What tells this run from the others of its sweep."""
    own = [override for override in overrides if override not in common]
    return " ".join(own or overrides)
