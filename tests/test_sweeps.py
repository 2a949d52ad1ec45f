"""Sweeps: what they say at their end, and how they share the work and survive."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, write_cityscapes

SMALL = ["data.crop=[32,64]", "data.batch_size=4", "data.workers=0", "trainer=cpu"]


@pytest.fixture
def sweep(tmp_path):
    """The command of a sweep over GroupNorm with ``groups``, on tiny data."""
    data = write_cityscapes(tmp_path / "cityscapes", {"train": 8, "val": 3})

    def command(groups: str, *overrides: str) -> list[str]:
        return [
            sys.executable, "train.py", "-m", "norm=gn", f"norm.groups={groups}",
            f"runs={tmp_path / 'runs'}", f"data.root={data}", "trainer.max_epochs=1", *SMALL,
            *overrides,
        ]  # fmt: skip

    return command


def endings(text: str) -> dict[str, list[str]]:
    """Of a sweep's summary: the groups of its runs by how they ended."""
    found: dict[str, list[str]] = {}
    for status, groups in re.findall(r"^(\w+) .*\bnorm\.groups=(\w+)", text, re.MULTILINE):
        found.setdefault(status, []).append(groups)
    return found


def results(tmp_path: Path) -> int:
    return len(list((tmp_path / "runs").rglob("result.json")))


def test_a_sweep_skips_goes_on_after_a_failure_and_says_so(sweep, tmp_path):
    first = subprocess.run(sweep("16"), cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert endings(first.stderr) == {"finished": ["16"]}
    (damaged,) = (tmp_path / "runs/cityscapes").iterdir()

    done = subprocess.run(sweep("16,32,8"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert endings(done.stderr) == {"skipped": ["16"], "failed": ["32"], "finished": ["8"]}
    assert "2 of 3 runs that were started are finished" in done.stderr
    (failed,) = [line for line in done.stderr.splitlines() if line.startswith("failed")]
    assert "transition1.0.1" in failed  # the layer whose channels 32 does not divide
    assert results(tmp_path) == 2

    (damaged / "result.json").unlink()
    (damaged / "last.ckpt").write_bytes(b"nothing")
    again = subprocess.run(sweep("16"), cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 2
    assert f"log: {damaged}/train.log" in again.stderr
    assert "last.ckpt cannot be read" in (damaged / "train.log").read_text()


def test_two_sweeps_started_at_once_divide_the_runs(sweep, tmp_path):
    command = [*sweep("16,8,4"), "trainer.max_epochs=2"]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                         text=True)
        for _ in range(2)
    ]  # fmt: skip
    texts = [process.communicate()[1] for process in both]
    assert results(tmp_path) == 3
    trained = [len(re.findall(r"^result, metrics, log", text, re.MULTILINE)) for text in texts]
    assert sum(trained) == 3, texts
    assert all(trained), texts
    for process, text in zip(both, texts, strict=True):
        unfinished = endings(text).get("elsewhere", [])
        assert process.returncode == (3 if unfinished else 0)


def test_runs_go_side_by_side_with_joblib(sweep, tmp_path):
    command = sweep("16,32,8", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert endings(done.stderr) == {"finished": ["16", "8"], "failed": ["32"]}
    assert results(tmp_path) == 2


def processes_of(folder: Path) -> list[int]:
    """The processes that submitit started for jobs whose files are in a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_bytes().decode().split("\0")
        except OSError:  # ended meanwhile
            continue
        if "submitit.core._submit" in command and command[-2].startswith(str(folder)):
            found.append(int(file.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the jobs in /proc")
def test_a_job_that_submitit_requeues_continues(sweep, tmp_path):
    command = sweep(
        "16,8", "hydra/launcher=submitit_local", "trainer.max_epochs=4", "data.batch_size=1",
        "trainer.checkpoint_minutes=60",
    )  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (checkpoints := list((tmp_path / "runs").rglob("last.ckpt"))):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    jobs = processes_of(tmp_path / "runs")
    assert jobs
    for job in jobs:
        os.kill(job, signal.SIGTERM)  # which Slurm sends before it stops a job: not the end
        os.kill(job, signal.SIGUSR2)
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    assert sorted(endings(errors)["finished"]) == ["16", "8"]
    log = (checkpoints[0].parent / "train.log").read_text()
    assert "continuing after step" in log


def test_a_search_runs_its_trials_and_skips_them_the_next_time(tmp_path):
    data = write_cityscapes(tmp_path / "cityscapes", {"train": 4, "val": 1})
    command = [
        sys.executable, "train.py", "-m", "search=lcn", "norm=lcn", "hydra.sweeper.n_trials=2",
        f"runs={tmp_path / 'runs'}", f"data.root={data}", "trainer.max_epochs=1", *SMALL,
    ]  # fmt: skip
    for status in ("finished", "skipped"):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        trials = [line for line in done.stderr.splitlines() if line.startswith(status)]
        assert len(trials) == 2, done.stderr
        assert all("norm.window=" in line and "miou" in line for line in trials)
    assert results(tmp_path) == 2
