"""The list of runs, and the difference between two; run directories are written by hand."""

import contextlib
import functools
import json
import os
import subprocess
import sys

import fakes
import pytest
from conftest import ROOT

METRICS = """\
epoch,step,lr,loss,seconds,miou
1,10,0.01,2.5,30.0,8.5
2,20,0.01,2.0,60.0,12.25
3,30,0.01,1.5,90.0,
"""
HOLD_LOCK = """\
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def write_run(
    directory, *, task="cityscapes", seed=0, max_epochs=10, max_steps="null",
    metrics="epoch,step,loss\n", result=False, log=None, age=0,
):  # fmt: skip
    """A run of GN; without a result it has not finished."""
    overrides = (
        f"task={task}", "norm=gn", f"trainer.max_epochs={max_epochs}",
        f"trainer.max_steps={max_steps}",
    )  # fmt: skip
    return fakes.write_run(
        directory.parent, *overrides, seed=seed, name=directory.name, finished=result,
        curve=metrics, log=log, age=age, score=61.5,
    )  # fmt: skip


@contextlib.contextmanager
def locked_by_another_process(directory):
    command = [sys.executable, "-c", HOLD_LOCK, str(directory / ".lock")]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


@pytest.fixture
def runs(script):
    """Calls the script."""
    return functools.partial(script, "runs")


@pytest.fixture
def listed(runs):
    """The runs as JSON, by the names of their directories."""

    def call(folder):
        done = runs("--json", folder)
        assert done.returncode == 0, done.stderr
        return {os.path.basename(run["directory"]): run for run in json.loads(done.stdout)}

    return call


def assert_refused(done, *words):
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    for word in words:
        assert word in done.stderr


def test_a_run_is_finished_running_stopped_or_failed(listed, tmp_path):
    stamp = "2026-01-01 10:00:00 "
    started = f"{stamp}run     somewhere\n{stamp}continuing after epoch 3: last.ckpt\n"
    error = "RuntimeError: CUDA out of memory\nTried to allocate 2 GiB"
    write_run(tmp_path / "finished", metrics=METRICS, result=True, log=started)
    write_run(tmp_path / "killed", metrics=METRICS, log=started)
    write_run(tmp_path / "interrupted", log=f"{started}{stamp}stopped by KeyboardInterrupt: \n")
    write_run(tmp_path / "failed", log=f"{started}{stamp}stopped by {error}\n")
    write_run(tmp_path / "repaired", log=f"{stamp}stopped by {error}\n{started}")
    write_run(tmp_path / "just_created")
    retried = write_run(tmp_path / "retried", log=f"{started}{stamp}stopped by {error}\n")
    with locked_by_another_process(retried) as holder:
        found = listed(tmp_path)
        assert holder.poll() is None
    assert {name: run["status"] for name, run in found.items()} == {
        "finished": "finished",
        "killed": "stopped",
        "interrupted": "stopped",
        "failed": "failed",
        "repaired": "stopped",
        "just_created": "stopped",
        "retried": "running",
    }
    assert {name: run["error"] for name, run in found.items() if run["error"]} == {"failed": error}
    assert listed(tmp_path)["retried"]["status"] == "failed"


def test_listing_creates_and_changes_no_file(listed, tmp_path):
    write_run(tmp_path / "with_lock", age=5)
    (write_run(tmp_path / "without_lock", age=5) / ".lock").unlink()

    def contents():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    before = contents()
    assert len(listed(tmp_path)) == 2
    assert contents() == before


def test_epochs_metric_and_age_are_those_of_the_files(listed, tmp_path):
    write_run(tmp_path / "fresh", age=50)
    write_run(tmp_path / "half", metrics=METRICS, age=300)
    write_run(tmp_path / "ended", metrics=METRICS, result=True, max_epochs=3, age=7200)
    write_run(tmp_path / "few_steps", metrics=METRICS, max_steps=45)
    found = listed(tmp_path)
    progress = {name: (run["epoch"], run["epochs"]) for name, run in found.items()}
    assert progress == {"fresh": (0, 10), "half": (3, 10), "ended": (3, 3), "few_steps": (3, 5)}
    assert found["fresh"]["value"] is None
    assert found["half"]["value"] == 12.25
    assert found["ended"]["value"] == 61.5
    assert {run["metric"] for run in found.values()} == {"miou"}
    for name, age in (("fresh", 50), ("half", 300), ("ended", 7200)):
        assert found[name]["age_seconds"] == pytest.approx(age, abs=20)


@pytest.mark.parametrize(
    ("age", "left"),
    [(0, 7 * 30), (10, 7 * 30 - 10), (400, 6 * 30)],
    ids=["epoch just ended", "a third into the next", "an epoch that takes longer"],
)
def test_time_left_is_that_of_the_epochs_to_come(listed, tmp_path, age, left):
    directory = write_run(tmp_path / "run", metrics=METRICS, age=age)
    assert listed(tmp_path)["run"]["seconds_left"] is None
    with locked_by_another_process(directory):
        assert listed(tmp_path)["run"]["seconds_left"] == pytest.approx(left, abs=8)


def test_a_break_does_not_shorten_the_time_left(listed, tmp_path):
    directory = write_run(tmp_path / "run", metrics=METRICS, age=86400)
    os.utime(directory / "config.yaml")
    with locked_by_another_process(directory):
        assert listed(tmp_path)["run"]["seconds_left"] == pytest.approx(7 * 30, abs=8)


def test_table_is_sorted_by_task_then_age_and_ends_with_a_count(runs, tmp_path):
    write_run(tmp_path / "imagenet" / "a", task="imagenet", age=310)
    write_run(tmp_path / "cityscapes" / "b", result=True, metrics=METRICS, age=3 * 3600 + 60)
    write_run(tmp_path / "cityscapes" / "c", seed=7, age=2 * 86400 + 60)
    running = write_run(tmp_path / "cityscapes" / "d", metrics=METRICS)
    with locked_by_another_process(running):
        done = runs(tmp_path)
    header, *lines, empty, count = done.stdout.splitlines()
    assert "left" in header.split()
    first, *others = [" ".join(line.split()) for line in lines]
    assert first.startswith("cityscapes gn_g16 mini 0 running ")
    assert first.endswith(" 3 min cityscapes/d")
    assert others == [
        "cityscapes gn_g16 mini 0 finished 3 h 3/10 miou 61.50 cityscapes/b",
        "cityscapes gn_g16 mini 7 stopped 2 d 0/10 miou - cityscapes/c",
        "imagenet gn_g16 mini 0 stopped 5 min 0/10 top1_err - imagenet/a",
    ]
    assert (empty, count) == ("", "4 runs: 1 finished, 1 running, 2 stopped")
    assert len({line.index(" gn_g16 ") for line in lines}) == 1


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_lines_fit_the_terminal_and_keep_the_end_of_the_name(runs, tmp_path, columns):
    name = "hrnetv2_w18_small_v1-lcn_released_c2_w227-full-seed0-1234abcd"
    metrics = METRICS.replace("12.25", "52.25")
    run = write_run(tmp_path / "cityscapes" / name, metrics=metrics, max_epochs=1000, age=3000)
    with locked_by_another_process(run):
        line = runs(tmp_path, columns=columns).stdout.splitlines()[1]
    assert " 8 h " in line
    assert len(line) <= columns
    assert line.endswith("1234abcd")
    assert runs(tmp_path).stdout.splitlines()[1].endswith(f"cityscapes/{name}")


def test_other_files_named_config_are_no_runs(runs, tmp_path):
    directory = write_run(tmp_path / "run")
    (directory / "wandb" / "files").mkdir(parents=True)
    (directory / "wandb" / "files" / "config.yaml").write_text("wandb_version: 1\n")
    for name, text in (("other", "a: 1\n"), ("broken", "a: [1\n"), ("empty", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    done = runs(tmp_path, tmp_path / "run")
    assert done.returncode == 0
    assert done.stdout.endswith("\n1 run: 1 stopped\n")
    refused = done.stderr.splitlines()
    assert len(refused) == 3
    for name in ("other", "broken", "empty"):
        assert any(str(tmp_path / name / "config.yaml") in line for line in refused)


def test_one_damaged_run_does_not_hide_the_others(runs, tmp_path):
    write_run(tmp_path / "good", result=True)
    (write_run(tmp_path / "bad") / "result.json").write_text('{"metrics"')
    done = runs(tmp_path)
    assert done.stdout.endswith("\n1 run: 1 finished\n")
    assert str(tmp_path / "bad" / "result.json") in done.stderr


def test_nothing_found_is_one_message(runs, tmp_path):
    assert_refused(runs(tmp_path / "nowhere"), "no run", str(tmp_path / "nowhere"))
    assert_refused(runs(cwd=tmp_path), "below runs")


def write_pair(folder):
    a = write_run(folder / "runs" / "cityscapes" / "gn-seed0-aa", result=True)
    b = write_run(folder / "runs" / "cityscapes" / "lcn-seed0-bb", result=True)
    text = (b / "config.yaml").read_text()
    text = text.replace("name: gn\n  groups: 16", "name: lcn\n  window: 227")
    text = text.replace("  crop:\n  - 64\n  - 128", "  crop:\n  - 64\n  - 64")
    text = text.replace("  max_steps: null\n", "")
    (b / "config.yaml").write_text(text)
    return a, b


def test_diff_prints_the_keys_that_differ_and_no_others(runs, tmp_path):
    a, b = write_pair(tmp_path)
    other = json.loads((b / "result.json").read_text())
    other["versions"]["torch"] = "2.7.0"
    (b / "result.json").write_text(json.dumps(other))
    done = runs("diff", a, b)
    assert done.returncode == 0, done.stderr
    assert [" ".join(line.split()) for line in done.stdout.splitlines()] == [
        f"A {a}",
        f"B {b}",
        "",
        "configurations:",
        "key A B",
        "norm.name gn lcn",
        "norm.groups 16 (absent)",
        "data.crop [64, 128] [64, 64]",
        "trainer.max_steps null (absent)",
        "norm.window (absent) 227",
        "",
        "commit and versions:",
        "key A B",
        "versions.torch 2.9.9 2.7.0",
    ]


def test_diff_finds_runs_by_a_part_of_the_name(runs, tmp_path):
    a, b = write_pair(tmp_path)
    assert (
        runs("diff", "gn-", "bb", cwd=tmp_path).stdout
        == runs("diff", a.relative_to(tmp_path), b.relative_to(tmp_path), cwd=tmp_path).stdout
        != ""
    )


def test_diff_of_equal_runs_says_so(runs, tmp_path):
    a = write_run(tmp_path / "a", result=True)
    b = write_run(tmp_path / "b", result=True)
    lines = runs("diff", a, b).stdout.splitlines()
    assert lines[2:] == [
        "",
        "configurations do not differ",
        "",
        "commit and versions do not differ",
    ]
    (b / "result.json").unlink()
    assert runs("diff", a, b).stdout.splitlines()[2:] == ["", "configurations do not differ"]


def test_diff_refuses_what_is_no_run_or_several(runs, tmp_path):
    a, b = write_pair(tmp_path)
    (tmp_path / "folder").mkdir()
    assert_refused(runs("diff", a, "folder", cwd=tmp_path), "folder is neither a run")
    assert_refused(
        runs("diff", "seed0", b, cwd=tmp_path), "seed0", "2 runs", "gn-seed0-aa", "lcn-seed0-bb"
    )


def test_as_a_command_it_answers_without_importing_torch(tmp_path):
    write_run(tmp_path / "run")
    command = [sys.executable, "-X", "importtime", "scripts/runs.py", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].endswith(" run")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "yaml" in imported
    assert imported.isdisjoint({"torch", "pytorch_lightning", "matplotlib"})
