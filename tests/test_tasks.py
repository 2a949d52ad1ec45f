"""Real samples of every task train and are evaluated by train.py, end to end on the CPU."""

import csv
import json
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from omegaconf import OmegaConf

from tasks import miniatures
from tasks.config import compose
from tasks.data import open_splits
from tasks.errors import InputError

SMALL = ["trainer=cpu", "data.workers=0", "norm=lcn", "norm.c_group=4", "norm.window=15"]
TASKS = {
    "imagenet": [
        "data.crop=[64,64]", "data.resize=72", "data.batch_size=20", "data.eval_batch_size=20",
        "trainer.max_epochs=1",
    ],
    "coco": [
        "data.resize=[96,128]", "data.width=0.25", "data.batch_size=4", "trainer.max_epochs=1",
        "trainer.max_steps=2",
    ],
    "inria": [
        "data.crop=[96,96]", "data.width=0.125", "data.patches_per_epoch=8", "data.batch_size=4",
        "data.holdout=true", "task.eval_halo=16", "trainer.max_epochs=2",
    ],
    "chesapeake": [
        "data.width=0.25", "data.batch_size=4", "trainer.max_epochs=1", "data.eval_batch_size=4",
    ],
}  # fmt: skip
METRICS = {
    "imagenet": {"top1_err", "top5_err"},
    "coco": {"ap_bbox", "ap50_bbox", "ap75_bbox", "ap_mask", "ap50_mask", "ap75_mask"},
    "inria": {
        "westvirginianorth_iou", "westvirginianorth_acc", "westvirginiasouth_iou",
        "westvirginiasouth_acc", "overall_iou", "overall_acc",
    },
    "chesapeake": {"miou", "pixel_acc"},
}  # fmt: skip


@pytest.mark.parametrize("overrides", [["data=mini"], ["data=mini_long"], ["data=mini", "~"]])
def test_both_lengths_of_a_miniature_read_the_same_files(overrides, monkeypatch):
    cfg = compose(["task=inria", overrides[0]])
    if "~" in overrides:  # as of a run that is older than the key
        cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
        del cfg.data.stand_in
    asked = []
    monkeypatch.setattr(miniatures, "ensure_for_task", lambda *place: asked.append(place) or ROOT)
    with pytest.raises(InputError, match="not found"):
        open_splits(cfg, ["train"])
    assert asked == [("inria", Path("data/mini"))]


def command(task, real_data):
    return [f"task={task}", f"data.root={real_data / task}", *SMALL, *TASKS[task]]


def the_result_of(done, runs):
    assert done.returncode == 0, done.stderr
    (file,) = runs.rglob("result.json")
    return file, json.loads(file.read_text())


@pytest.mark.parametrize("task", TASKS)
def test_real_samples_train(train, real_data, tmp_path, task):
    done = train(*command(task, real_data))
    file, result = the_result_of(done, tmp_path / "runs")
    assert result["status"] == "finished"
    with file.with_name("metrics.csv").open() as metrics:
        assert all(float(row["loss"]) > 0 for row in csv.DictReader(metrics))
    assert result["steps"] == 2 * result["epochs"]
    assert set(result["metrics"]) == METRICS[task]
    assert all(0 <= value <= 100 for value in result["metrics"].values())
    assert result["paper"] is None
    assert "norm layers in training" in done.stdout


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_train_as_one(train, real_data, tmp_path, task):
    alone = [*command(task, real_data), f"runs={tmp_path / 'one'}"]
    if task != "coco":  # whose sampled proposals each process draws for itself
        alone.append("trainer.precision=64-true")
    (batch,) = (int(option.partition("=")[2]) for option in alone if ".batch_size=" in option)
    halves = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    halves += [f"data.batch_size={batch // 2}", f"runs={tmp_path / 'two'}"]
    one_file, one = the_result_of(train(*alone), tmp_path / "one")
    two_file, two = the_result_of(train(*alone, *halves), tmp_path / "two")
    assert one_file.parent.name == two_file.parent.name
    assert (one["world_size"], two["world_size"]) == (1, 2)
    bound = 0.05 if task == "coco" else 1e-6
    assert two["metrics"] == pytest.approx(one["metrics"], abs=bound)
    if task != "coco":
        ours, theirs = (
            torch.load(file.with_name("last.ckpt"))["state_dict"] for file in (one_file, two_file)
        )
        for key, value in ours.items():
            assert (theirs[key] - value).abs().max() <= 1e-9 * value.abs().max(), key


def test_unlabelled_test_tiles_end_in_a_submission(train, real_data, tmp_path):
    root = tmp_path / "AerialImageDataset"
    (root / "test").mkdir(parents=True)
    source = real_data / "inria" / "AerialImageDataset" / "train"
    (root / "train").symlink_to(source)
    (root / "test" / "images").symlink_to(source / "images")
    done = train(
        "task=inria", f"data.root={tmp_path}", *SMALL, "data.crop=[96,96]", "data.width=0.125",
        "data.patches_per_epoch=4", "data.batch_size=4", "task.eval_halo=0",
        "trainer.max_epochs=1", "data.eval_batch_size=9",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no scores: the labels are not public" in done.stdout
    (archive,) = (tmp_path / "runs").rglob("submission.zip")
    assert len(zipfile.ZipFile(archive).namelist()) == 16
    result = json.loads((archive.parent / "result.json").read_text())
    assert (result["metrics"], result["submission"]) == ({}, "submission.zip")


@pytest.mark.parametrize("task", TASKS)
def test_missing_dataset_is_one_message_with_the_way_out(train, tmp_path, task):
    done = train(f"task={task}", f"data.root={tmp_path / 'nowhere'}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    for part in ("not found", "https://", f"python train.py task={task} data=mini"):
        assert part in done.stderr
    assert not (tmp_path / "runs").exists()


def test_bad_file_found_while_training_is_named(train, real_data, tmp_path):
    root = tmp_path / "imagenet"
    for split in ("train", "val"):
        for source in sorted((real_data / "imagenet" / split).glob("*/*"))[:4]:
            copy = root / split / source.parent.name / source.name
            copy.parent.mkdir(parents=True)
            copy.write_bytes(source.read_bytes())
    whole = copy.read_bytes()
    (root / "train" / copy.parent.name / copy.name).write_bytes(whole[: len(whole) // 2])
    done = train(
        "task=imagenet", f"data.root={root}", *SMALL, *TASKS["imagenet"], "data.batch_size=4"
    )
    assert done.returncode == 2, done.stderr
    assert copy.name in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "runs").rglob("result.json"))


def test_data_check_reads_everything_and_says_what_is_missing(real_data):
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "scripts/check_data.py", "task=chesapeake",
         f"data.root={real_data / 'chesapeake'}"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "test   1 of 20 tiles" in done.stdout
    assert "train has 8 samples, the dataset 50,000" in done.stderr
