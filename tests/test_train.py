"""Whole runs of ``train.py``: what they leave, how they continue, and how they stop."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_cityscapes
from PIL import Image

from tasks.config import compose
from tasks.errors import Busy
from tasks.prediction.network import load_network
from tasks.runs.directory import Run

SMALL = ["data.crop=[32,64]", "data.batch_size=4", "data.workers=0", "trainer=cpu"]


def only_run(tmp_path: Path) -> Path:
    (directory,) = (tmp_path / "runs/cityscapes").iterdir()
    return directory


def epochs(directory: Path) -> list[dict]:
    with (directory / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def without_cost(rows: list[dict]) -> list[dict]:
    cost = ("seconds", "samples_per_second", "memory_mib")
    return [{key: value for key, value in row.items() if key not in cost} for row in rows]


def test_a_run_leaves_what_it_says_and_the_same_command_skips_it(train, tiny_cityscapes, tmp_path):
    data = f"data.root={tiny_cityscapes}"
    command = ["experiment=table1_w18_lcn", data, "trainer.max_epochs=3", *SMALL]
    done = train(*command)
    assert done.returncode == 0, done.stderr
    directory = only_run(tmp_path)
    for name in (
        "config.yaml",
        "provenance.json",
        "requirements.txt",
        "train.log",
        "metrics.csv",
        "audit.csv",
        "last.ckpt",
        "result.json",
    ):
        assert (directory / name).stat().st_size > 0, name
    assert not list(directory.glob("*.tmp"))

    result = json.loads((directory / "result.json").read_text())
    assert result["status"] == "finished"
    assert (result["task"], result["data"], result["seed"]) == ("cityscapes", "full", 0)
    assert result["norm"]["name"] == "lcn"
    assert (result["epochs"], result["steps"], result["world_size"]) == (3, 6, 1)
    assert (result["experiment"], result["paper"]["miou"]) == ("table1_w18_lcn", 71.77)
    assert set(result["metrics"]) == {"miou", "pixel_acc", "mean_acc"}
    assert all(0 <= value <= 100 for value in result["metrics"].values())
    (start,) = json.loads((directory / "provenance.json").read_text())
    assert result["git_commit"] == start["git_commit"]
    assert (start["patch"] is not None) == (directory / "diff.patch").exists()
    assert "code_changes" not in result
    assert 0 <= result["tile_mismatch"] <= 100
    assert load_network(directory).tile_mismatch == result["tile_mismatch"]
    other = load_network(directory, norm=["norm.window=99"], convert=True)
    assert other.tile_mismatch is None
    assert result["versions"]["torch"] == torch.__version__.split("+")[0]
    assert str(tiny_cityscapes) not in json.dumps(result)
    assert 100 < result["memory_mib"] < 8000
    assert 24 / result["wall_seconds"] < result["samples_per_second"] < 1000  # 24 samples seen

    rows = epochs(directory)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["miou"]) == result["metrics"]["miou"]
    assert result["best"]["miou"] == max(float(row["miou"]) for row in rows)
    # poly: 0.01 * (1 - iteration / 6) ** 0.9, after 2, 4 and 6 of 6 iterations
    for row, done_share in zip(rows, (1 / 3, 2 / 3, 1), strict=True):
        assert float(row["lr"]) == pytest.approx(0.01 * (1 - done_share) ** 0.9, abs=1e-12)

    for part in (
        "windowed:",
        "1,540,819 parameters",
        "warning: the total batch is 4",
        "difference",
    ):
        assert part in done.stdout, part
    # a map of 16 x 32 at stride 2 is all that a window of 227 could see a part of
    audit = list(csv.DictReader((directory / "audit.csv").open()))
    assert len(audit) == 2 * 72
    assert {row["windowed"] for row in audit} == {"False"}

    before = (directory / "result.json").stat().st_mtime_ns
    again = train(*command)
    assert again.returncode == 0
    assert "finished already" in again.stderr
    assert (directory / "result.json").stat().st_mtime_ns == before

    checkpoint = directory / "last.ckpt"
    evaluated = train(*command, "mode=test", f"checkpoint={checkpoint}")
    assert evaluated.returncode == 0, evaluated.stderr
    assert f"{result['metrics']['miou']:.2f}" in evaluated.stdout.splitlines()[0]
    other = train("norm=gn", *command[1:], "mode=test", f"checkpoint={checkpoint}")
    assert other.returncode == 2
    assert "is the checkpoint of another model" in other.stderr


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run of three epochs of eight steps that nothing interrupts, and its command."""
    folder = tmp_path_factory.mktemp("straight")
    data = write_cityscapes(folder / "cityscapes", {"train": 8, "val": 3})
    command = [
        "norm=gn", f"data.root={data}", "trainer.max_epochs=3", *SMALL, "data.batch_size=1",
        "trainer.checkpoint_minutes=0",
    ]  # fmt: skip
    subprocess.run(
        [sys.executable, "train.py", f"runs={folder / 'runs'}", *command], cwd=ROOT, check=True
    )
    (directory,) = (folder / "runs/cityscapes").iterdir()
    return command, directory


def test_a_checkpoint_is_evaluated_with_another_norm_if_asked(train, uninterrupted):
    command, directory = uninterrupted
    result = json.loads((directory / "result.json").read_text())
    command = ["norm=lcn", "norm.groups=16", "norm.window=all", *command[1:], "mode=test"]
    command.append(f"checkpoint={directory / 'last.ckpt'}")
    refused = train(*command)
    assert refused.returncode == 2
    assert "convert=true" in refused.stderr
    done = train(*command, "convert=true")  # a window of the whole map is GN
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[1]) == pytest.approx(result["metrics"]["miou"], abs=0.02)


def steps_in(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]


@pytest.mark.parametrize(
    ("stop", "steps", "workers"),
    [
        (signal.SIGKILL, 11, 0),  # in the second epoch
        (signal.SIGKILL, 8, 1),  # about the end of the first
        (signal.SIGTERM, 13, 1),
        (signal.SIGINT, 3, 0),
    ],
)
def test_a_stopped_run_continues_to_the_same_numbers(
    train, uninterrupted, tmp_path, stop, steps, workers
):
    command, reference = uninterrupted
    command = [*command, f"data.workers={workers}"]
    process = subprocess.Popen(
        [sys.executable, "train.py", f"runs={tmp_path / 'runs'}", *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:  # a checkpoint is renamed into place whole: always readable
        (checkpoint,) = list((tmp_path / "runs").rglob("last.ckpt")) or [None]
        if checkpoint is not None and steps_in(checkpoint) >= steps:
            break
    process.send_signal(stop)
    errors = process.communicate()[1]
    assert process.returncode == (-signal.SIGKILL if stop == signal.SIGKILL else 130), errors
    directory = only_run(tmp_path)
    assert directory.name == reference.name
    assert not (directory / "result.json").exists()
    assert steps <= steps_in(directory / "last.ckpt") < 24

    resumed = train(*command)
    assert resumed.returncode == 0, resumed.stderr
    assert "continuing after step" in resumed.stdout
    assert without_cost(epochs(directory)) == without_cost(epochs(reference))
    ours, theirs = (torch.load(d / "last.ckpt")["state_dict"] for d in (directory, reference))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_two_processes_train_like_one_with_the_same_total_batch(train, tmp_path):
    data = write_cityscapes(tmp_path / "cityscapes", {"train": 8, "val": 5})
    command = ["norm=lcn", "norm.window=8", f"data.root={data}", "trainer.max_epochs=2", *SMALL]
    one = train(*command)
    assert one.returncode == 0, one.stderr
    two = train(
        *command,
        f"runs={tmp_path / 'two'}",
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "data.batch_size=2",
    )
    assert two.returncode == 0, two.stderr
    (directory,) = (tmp_path / "two/cityscapes").iterdir()
    assert directory.name == only_run(tmp_path).name
    results = [json.loads((d / "result.json").read_text()) for d in (only_run(tmp_path), directory)]
    assert [r["world_size"] for r in results] == [1, 2]
    for name, value in results[0]["metrics"].items():
        assert results[1]["metrics"][name] == pytest.approx(value, abs=0.1), name
    weights = [torch.load(d / "last.ckpt")["state_dict"] for d in (only_run(tmp_path), directory)]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_not_finite_stops_and_names_step_and_learning_rate(
    train, tiny_cityscapes, tmp_path
):
    done = train(
        "norm=bn", f"data.root={tiny_cityscapes}", "task.optimizer.lr=1e18", "trainer.max_epochs=5",
        *SMALL,
    )  # fmt: skip
    assert done.returncode == 2
    assert "training diverged" in done.stderr
    assert "at step" in done.stderr
    assert "learning rate" in done.stderr
    assert "Traceback" not in done.stderr
    directory = only_run(tmp_path)
    assert not (directory / "result.json").exists()
    for checkpoint in directory.glob("*.ckpt"):
        weights = torch.load(checkpoint)["state_dict"].values()
        assert all(torch.isfinite(w).all() for w in weights if w.is_floating_point())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_met_in_training_is_named(train, tiny_cityscapes, workers):
    path = sorted((tiny_cityscapes / "leftImg8bit/train").rglob("*.png"))[2]
    path.write_bytes(path.read_bytes()[:200])
    done = train(
        "norm=bn", f"data.root={tiny_cityscapes}", "trainer.max_epochs=1", *SMALL,
        f"data.workers={workers}",
    )  # fmt: skip
    assert done.returncode == 2
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"{path.name} cannot be read" in message
    assert "Traceback" not in done.stderr


def test_total_batch_larger_than_the_training_split_is_named(train, tiny_cityscapes):
    done = train(f"data.root={tiny_cityscapes}", *SMALL, "data.batch_size=9")
    assert done.returncode == 2
    assert "the training split has 8 samples, less than a total batch of 9" in done.stderr


def test_damaged_checkpoint_of_a_run_is_named(train, tiny_cityscapes, tmp_path):
    command = ["norm=gn", f"data.root={tiny_cityscapes}", "trainer.max_epochs=1", *SMALL]
    assert train(*command, "trainer.progress_bar=false").returncode == 0
    directory = only_run(tmp_path)
    (directory / "result.json").unlink()
    (directory / "last.ckpt").write_bytes(b"nothing")
    done = train(*command)
    assert done.returncode == 2
    assert "last.ckpt cannot be read" in done.stderr
    assert "last.ckpt cannot be read" in (directory / "train.log").read_text()


def test_a_damaged_checkpoint_is_named_before_a_miniature_is_generated(train, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"nothing")
    root = tmp_path / "mini"
    done = train(
        "data=mini", "mode=test", f"checkpoint={tmp_path}/last.ckpt", f"data.root={root}"
    )  # fmt: skip
    assert done.returncode == 2
    assert "last.ckpt cannot be read" in done.stderr
    assert not root.exists()


def test_second_process_leaves_a_run_alone(tmp_path):
    cfg = compose([f"runs={tmp_path}"])
    with Run(cfg, "t v", 1), pytest.raises(Busy, match="another process works on"):
        Run(cfg, "t v", 1).__enter__()
    with Run(cfg, "t v", 1):
        pass


def test_real_photographs_train(train, real_data, tmp_path):
    done = train(
        "norm=lcn", "norm.window=28", f"data.root={real_data / 'cityscapes'}",
        "data.crop=[96,128]", "data.batch_size=8", "trainer.max_epochs=1", "trainer=cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((only_run(tmp_path) / "result.json").read_text())
    assert result["steps"] == 5
    assert result["paper"] is None


def test_a_row_runs_on_the_miniature(train, tmp_path):
    done = train("experiment=table4_w199", "data=mini", "trainer.max_epochs=1", "trainer=cpu")
    assert done.returncode == 0, done.stderr
    result = json.loads((only_run(tmp_path) / "result.json").read_text())
    assert (result["experiment"], result["data"]) == ("table4_w199", "mini")
    assert result["norm"]["window"] == 199
    assert result["norm"]["window_used"] == [24, 24]
    assert result["paper"]["miou"] == 71.55
    sample = next((ROOT / "data/mini").rglob("*_leftImg8bit.png"))
    assert Image.open(sample).size == (256, 128)
