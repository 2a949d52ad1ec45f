"""Damages files of every kind that is read here, and counts what becomes of them.

    python tests/fuzz.py                       2,000 cases; the same ones each time
    python tests/fuzz.py --seed 7 --case 123   one of them, with the whole message

Most cases read a file in this process, every 20th gives a command (train.py and the scripts) a
folder with the file. Classes: *named* (one message with the file's path), *same* (the data are as
they were), *undetectable* (other data, and by the format no reader could tell), and the faults
*silent* (other data), *unnamed* (a message without the path), *trace*, *hang* and *memory*.
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from conftest import ROOT
from damages import Damage, draw, undetectable
from fuzz_subjects import READ, TRAINED, Subject

from tasks.errors import InputError

FAULTS = ("silent", "unnamed", "trace", "hang", "memory")
CLASSES = ("named", "same", "undetectable", *FAULTS)
SECONDS, SECONDS_OF_COMMAND = 20, 150
MEMORY = 2**30
"""What reading a file may take at its peak; at four times that a process has a `MemoryError`."""


# ----------------------------------------------------------------------------------- one case


class Case(NamedTuple):
    """A case as its number and the seed say, apart from the damage."""

    number: int
    subject: str
    is_command: bool
    rng: random.Random


def case_of(seed: int, number: int, with_training: bool) -> Case:
    rng = random.Random(f"{seed}/{number}")
    is_command = number % 20 == 19
    if is_command and with_training and number % 60 == 59:
        return Case(number, rng.choice(list(TRAINED)), True, rng)
    return Case(number, rng.choice(list(READ)), is_command, rng)


class Outcome(NamedTuple):
    number: int
    kind: str
    text: str


class Workplace:
    """The subjects, each built once and mended after every case."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.known: dict[str, tuple[Subject, bytes, Any, Path]] = {}

    def subject(self, name: str) -> tuple[Subject, bytes, Any]:
        """As it was built, with its content and its data."""
        if name not in self.known:
            folder = self.folder / f"s{len(self.known):02}"
            folder.mkdir()
            subject = {**READ, **TRAINED}[name](folder)
            copy = folder.with_name(f"{folder.name}-sound")
            shutil.copytree(folder, copy, symlinks=True)
            self.known[name] = subject, subject.path.read_bytes(), plain(subject.load()), copy
        subject, content, expected, _ = self.known[name]
        return subject, content, expected

    def mend(self, name: str) -> None:
        copy = self.known[name][3]
        folder = copy.with_name(copy.name.removesuffix("-sound"))
        shutil.rmtree(folder)
        shutil.copytree(copy, folder, symlinks=True)

    def run(self, case: Case) -> Outcome:
        subject, content, expected = self.subject(case.subject)
        damage = draw(case.rng, subject.format, content)
        command = case.rng.choice(subject.commands) if case.is_command and subject.commands else ()
        what = f"{case.subject}, {damage.kind}{', ' + command[0] if command else ''}"
        damage.apply(subject.path)
        try:
            kind, text = give(command, subject) if command else read(subject)
            if kind == "unnamed" and damage.kind == "place: nothing" and self.folder.name in text:
                kind = "named"  # by the folder that it is not in
            if kind == "read":
                kind, text = self._compared(subject, damage, content, expected)
        finally:
            self.mend(case.subject)
        return Outcome(case.number, kind, f"{what}: {text}")

    def _compared(
        self, subject: Subject, damage: Damage, content: bytes, expected: Any
    ) -> tuple[str, str]:
        """The class of a file that was read without a word, and where its data differ."""
        try:
            different = difference(expected, plain(subject.load()))
        except InputError as error:
            return "silent", f"the command said nothing of: {error}"
        if different is None:
            return "same", ""
        told = undetectable(subject.format, damage, content)
        return ("undetectable" if told else "silent"), different


def read(subject: Subject) -> tuple[str, str]:
    """The class of reading a damaged file in this process, or "read", and what was said."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _peak()
    try:
        subject.load()
        kind, text = "read", ""
    except InputError as error:
        text = str(error)
        kind = "named" if str(subject.path) in text else "unnamed"
    except MemoryError:
        kind, text = "memory", traceback.format_exc()
    except Exception:
        kind, text = "trace", traceback.format_exc()
    if _peak() - before > MEMORY or "MemoryError" in text or "allocate" in text:
        kind = "memory"
    return kind, text


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def give(command: tuple[str, ...], subject: Subject) -> tuple[str, str]:
    """The class of a command that meets a damaged file, or "read", and what it said."""
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env={**os.environ, "COLUMNS": "1000"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        text, _ = process.communicate(timeout=SECONDS_OF_COMMAND)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return "hang", process.communicate()[0]
    if "Traceback" in text or process.returncode not in (0, 2):
        return "trace", text
    if "out of memory" in text or "MemoryError" in text:
        return "memory", text
    if str(subject.path) in text:
        return "named", text
    # check_data.py counts the samples of these small datasets as a problem in any case.
    is_fine = process.returncode == 0 or "check_data" in command[0]
    return ("read" if is_fine else "unnamed"), text


def plain(value: Any) -> Any:
    """Nested values that can be compared: arrays and tensors as type, shape and bytes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, dict):
        left_out = ("finished_at", "directory")
        return {str(k): plain(v) for k, v in value.items() if k not in left_out}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    return repr(value)


def difference(old: Any, new: Any, key: str = "") -> str | None:
    """Where two plain values differ first, and how; None if they are the same."""
    if isinstance(old, dict) and isinstance(new, dict):
        missing = object()
        pairs = ((k, old.get(k, missing), new.get(k, missing)) for k in old | new)
        return next(filter(None, (difference(a, b, f"{key}.{k}") for k, a, b in pairs)), None)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return next(filter(None, (difference(a, b, f"{key}[{n}]") for n, (a, b) in pairs)), None)
    return None if old == new else f"{key}: {str(new)[:80]} instead of {str(old)[:80]}"


# -------------------------------------------------------------------------------- many cases


def work(pipe: Connection, seed: int, numbers: list[int], folder: Path, training: bool) -> None:
    """In a process of its own: each case's number when it begins, and its outcome."""
    torch.set_num_threads(1)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 4 * MEMORY,) * 2)  # commands have it as well
    place = Workplace(folder)
    for number in numbers:
        case = case_of(seed, number, training)
        with contextlib.suppress(BrokenPipeError):
            pipe.send((number, case.is_command or case.subject not in place.known))
        pipe.send(place.run(case))
    pipe.send(None)


def outcomes(seed: int, numbers: list[int], training: bool) -> Iterator[Outcome]:
    """Those of the cases, from a process that is replaced when it hangs or ends."""
    while numbers:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            here, there = multiprocessing.get_context("spawn").Pipe()
            process = multiprocessing.get_context("spawn").Process(
                target=work, args=(there, seed, numbers, Path(folder), training)
            )
            process.start()
            there.close()
            limit, current = SECONDS_OF_COMMAND, numbers[0]
            try:
                while True:
                    if not here.poll(limit):
                        yield Outcome(current, "hang", f"nothing after {limit} s")
                        break
                    message = here.recv()
                    if message is None:
                        return
                    if isinstance(message, Outcome):
                        yield message
                    else:
                        current, slow = message
                        limit = SECONDS_OF_COMMAND + 60 if slow else SECONDS
            except EOFError:
                yield Outcome(current, "trace", "the process ended")
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                process.join()
            numbers = numbers[numbers.index(current) + 1 :]


def fuzz(seed: int, numbers: list[int], jobs: int, training: bool) -> list[Outcome]:
    """The outcomes of the cases, by their numbers; a fault is printed as soon as it is found."""
    found: list[Outcome] = []

    def collect(part: list[int]) -> None:
        for outcome in outcomes(seed, part, training):
            found.append(outcome)
            if outcome.kind in FAULTS:
                text = " ".join(outcome.text.split())
                short = text if len(text) < 600 else f"{text[:150]} ... {text[-400:]}"
                print(f"{outcome.kind}: --seed {seed} --case {outcome.number}: {short}", flush=True)

    shuffled = random.Random(seed).sample(
        numbers, len(numbers)
    )  # so that all have as many commands
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(collect, [shuffled[job::jobs] for job in range(jobs)]))
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--case", type=int, help="this one alone")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    started = time.monotonic()
    numbers = list(range(arguments.cases)) if arguments.case is None else [arguments.case]
    found = fuzz(arguments.seed, numbers, min(arguments.jobs, len(numbers)), training=True)
    if arguments.case is not None:
        print(*(f"{outcome.kind}: {outcome.text}" for outcome in found), sep="\n")
    counts = Counter(outcome.kind for outcome in found)
    undetected = Counter(o.text.split(",")[0] for o in found if o.kind == "undetectable")
    print(", ".join(f"{counts[name]} {name}" for name in CLASSES), end="")
    print(f"; seed {arguments.seed}, {len(found)} cases, {time.monotonic() - started:.0f} s")
    for name, count in undetected.most_common():
        print(f"  undetectable: {count:4} {name}")
    sys.exit(any(counts[name] for name in FAULTS) or len(found) != len(numbers))


if __name__ == "__main__":
    main()
