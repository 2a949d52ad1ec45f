"""Kills trainings of all five tasks at random moments and compares what comes of them in the end.

    python tests/soak.py                 100 kills
    python tests/soak.py --kills 10 --seed 3

Data are a few samples in each task's own format. A run is killed (SIGKILL to all its processes)
one to three times at moments drawn from the whole length of an undisturbed run, and each time
continued by the same command. At the end its weights, its optimizer's state and its metrics must
be those of the undisturbed run, bit for bit.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import test_chesapeake
import test_coco
import test_imagenet
import test_inria
import torch
from conftest import ROOT, write_cityscapes
from fuzz import difference, plain
from test_train import epochs, without_cost

SMALL = (
    "norm=gn", "norm.groups=4", "data.workers=0", "trainer=cpu", "trainer.checkpoint_minutes=0",
    "data.batch_size=2",
)  # fmt: skip


def commands(folder: Path) -> dict[str, list[str]]:
    """The overrides of a run of each task on data that are written into the folder."""
    write_cityscapes(folder / "cityscapes", {"train": 8, "val": 3}, (32, 64))
    test_imagenet.tiny.__wrapped__(folder)
    for split in ("train", "val"):
        test_coco.write(folder / "coco", split)
    for number in range(1, 8):
        test_inria.write_pair(folder / "inria", "train", f"austin{number}")
    test_chesapeake.SIDE = 32  # at 16 the lowest map of the U-Net has one pixel
    test_chesapeake.root.__wrapped__(folder)
    of_task = {
        "cityscapes": ["data.crop=[32,64]", "trainer.max_epochs=4"],
        "imagenet": ["data.crop=[32,32]", "data.resize=40", "trainer.max_epochs=4"],
        "coco": ["data.resize=[64,96]", "data.width=0.25", "trainer.max_epochs=4"],
        "inria": [
            "data.crop=[32,32]", "data.width=0.125", "data.patches_per_epoch=8",
            "data.holdout=true", "task.eval_halo=0", "trainer.max_epochs=4",
        ],
        "chesapeake": [
            "data.crop=[32,32]", "data.width=0.125", "task.eval_halo=0", "trainer.max_epochs=4",
        ],
    }  # fmt: skip
    return {
        task: [f"task={task}", f"data.root={folder / task}", *SMALL, *overrides]
        for task, overrides in of_task.items()
    }


def start(runs: Path, overrides: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "train.py", f"runs={runs}", *overrides], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def to_the_end(runs: Path, overrides: list[str]) -> str | None:
    """Trains, or continues; returns what it said if it failed."""
    process = start(runs, overrides)
    _, errors = process.communicate()
    return None if process.returncode == 0 else errors.decode(errors="replace")[-2000:]


def is_killed_after(seconds: float, runs: Path, overrides: list[str]) -> bool:
    """Whether the run was still going then."""
    process = start(runs, overrides)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    return False


def ending(runs: Path) -> dict:
    """What a run came to, as plain values."""
    (result,) = runs.rglob("result.json")
    checkpoint = torch.load(result.with_name("last.ckpt"), weights_only=True)
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    return plain(
        {"metrics": without_cost(epochs(result.parent)), **{k: checkpoint[k] for k in kept}}
    )


def step_of(runs: Path) -> int:
    for path in runs.rglob("last.ckpt"):
        return torch.load(path, weights_only=True)["global_step"]
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after these")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, started = random.Random(arguments.seed), time.monotonic()
    kills, within, ended, different = Counter[str](), 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        folder = Path(place)
        expected, lengths, trial = {}, {}, 0
        of_task = commands(folder)
        deadline = started + 60 * arguments.minutes
        while sum(kills.values()) < arguments.kills and time.monotonic() < deadline:
            task = list(of_task)[trial % len(of_task)]
            if task not in expected:
                begin = time.monotonic()
                if failed := to_the_end(folder / f"undisturbed-{task}", of_task[task]):
                    sys.exit(f"{task}, undisturbed: {failed}")
                lengths[task] = time.monotonic() - begin
                expected[task] = ending(folder / f"undisturbed-{task}")
            trial += 1
            runs = folder / f"trial{trial}"
            for _ in range(rng.randint(1, 3)):
                if sum(kills.values()) == arguments.kills:
                    break
                if not is_killed_after(rng.uniform(0, lengths[task]), runs, of_task[task]):
                    ended += 1
                    break
                kills[task] += 1
                within += 0 < step_of(runs) < int(expected[task]["global_step"])
            found = to_the_end(runs, of_task[task])
            if found or (found := difference(expected[task], ending(runs))):
                different += 1
                print(f"trial {trial}, {task}: {found}", flush=True)
    by_task = ", ".join(f"{count} {task}" for task, count in kills.items())
    print(
        f"{sum(kills.values())} kills ({by_task}), {within} of them between the first and the last "
        f"step; {trial} runs continued, {different} different or "
        f"failed; {ended} ended before their kill; "
        f"seed {arguments.seed}, {time.monotonic() - started:.0f} s"
    )
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
