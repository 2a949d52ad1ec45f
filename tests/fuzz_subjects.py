"""What `tests/fuzz.py` damages: files of every kind, each with what reads it."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
import safetensors.torch
import test_checkpoints
import test_coco
import test_damaged_data as data
import test_imagenet
import test_inria
import torch
from conftest import ROOT, write_cityscapes
from fakes import write_run
from torch import nn

from tasks.data.coco import Coco
from tasks.data.imagenet import ImageNet
from tasks.models.checkpoint import load_weights
from tasks.models.weights import read_weights
from tasks.prediction.source import Source
from tasks.runs.record import read_run


class Subject(NamedTuple):
    """A file, what reads it, and the commands that do."""

    format: str
    path: Path
    load: Callable[[], Any]
    commands: tuple[tuple[str, ...], ...] = ()


def whole(dataset: Any) -> list:
    return [dataset.class_names, *(dataset[index] for index in range(len(dataset)))]


def of_reader(reader: Callable, format: str, overrides: str = "") -> Callable[[Path], Subject]:
    """A file of tests/test_damaged_data.py, and the command that checks its dataset."""

    def build(folder: Path) -> Subject:
        path, load = reader(folder)
        check = ("scripts/check_data.py", *overrides.split(), f"data.root={folder}")
        return Subject(format, path, load, (check,) if overrides else ())

    return build


def annotations(folder: Path) -> Subject:
    path, _ = data.annotations_of_coco(folder)
    test_coco.write(folder, "val")
    check = ("scripts/check_data.py", "task=coco", f"data.root={folder}")
    return Subject("json", path, lambda: whole(Coco(folder, "train")), (check,))


def imagenet(name: str, format: str) -> Callable[[Path], Subject]:
    def build(folder: Path) -> Subject:
        root = test_imagenet.flat.__wrapped__(test_imagenet.tiny.__wrapped__(folder))
        return Subject(format, root / name, lambda: whole(ImageNet(root, "val")))

    return build


def tile(kind: str, **options: str) -> Callable[[Path], Subject]:
    def build(folder: Path) -> Subject:
        for name in ("austin1", "austin6"):
            test_inria.write_pair(folder, "train", name)
        path = folder / "train" / kind / "austin1.tif"
        with rasterio.open(path) as raster:
            profile, pixels = raster.profile, raster.read()
        with rasterio.open(path, "w", **{**profile, **options}) as raster:
            raster.write(pixels)
        root = folder / "train"
        return Subject(
            "tiff", path, lambda: whole(test_inria.open_one(root.parent).covered((48, 48)))
        )

    return build


def source_of_prediction(folder: Path) -> Subject:
    path, _ = data.tile(folder)
    rectangle = data.Place(0, 0, 40, 28)
    return Subject("tiff", path, lambda: Source(path, None, 3).read(rectangle))


def checkpoint(folder: Path) -> Subject:
    torch.manual_seed(0)
    path = test_checkpoints.write(folder / "last.ckpt", nn.Conv2d(3, 8, 3))

    def load() -> dict:
        network = nn.Conv2d(3, 8, 3)
        load_weights(network, str(path))
        return network.state_dict()

    return Subject("ckpt", path, load)


def weights(ending: str, format: str) -> Callable[[Path], Subject]:
    def build(folder: Path) -> Subject:
        torch.manual_seed(0)
        path = folder / f"weights{ending}"
        if ending == ".safetensors":
            safetensors.torch.save_file(nn.Conv2d(3, 8, 3).state_dict(), path)
        elif ending == ".pkl":
            array = np.random.default_rng(0).random((4, 3, 7, 7), np.float32)
            path.write_bytes(pickle.dumps({"blobs": {"conv1_w": array}}, protocol=2))
        else:
            zipped = ending != ".old.pth"
            state = nn.Conv2d(3, 8, 3).state_dict()
            torch.save(state, path, _use_new_zipfile_serialization=zipped)
        return Subject(format, path, lambda: read_weights(str(path)))

    return build


WINDOWS = "epoch,layer,p,q\n" + "".join(
    f"{e},l{i},{3.5 + e},7.25\n" for e in (0, 1) for i in (1, 2)
)


def file_of_run(name: str, format: str) -> Callable[[Path], Subject]:
    def build(folder: Path) -> Subject:
        write_run(folder / "runs", "experiment=table1_w18_lcn", name="good")
        run = write_run(folder / "runs", "experiment=table8_gn", name="damaged")
        (run / "windows.csv").write_text(WINDOWS)
        commands = (
            ("scripts/runs.py", f"{folder / 'runs'}"),
            ("scripts/tables.py", f"{folder / 'runs'}", "--out", f"{folder / 'out'}"),
            ("scripts/report.py", f"{folder / 'runs'}", "--out", f"{folder / 'out'}"),
        )
        return Subject(format, run / name, lambda: vars(read_run(run)), commands)

    return build


def in_training(name: str, format: str) -> Callable[[Path], Subject]:
    """A file that ``train.py`` meets when its command is given again, or before it trains."""

    def build(folder: Path) -> Subject:
        root = write_cityscapes(folder / "cityscapes", {"train": 2, "val": 1}, (32, 64))
        command = (
            "train.py", f"data.root={root}", f"runs={folder / 'runs'}", "norm=gn",
            "data.width=0.25", "data.crop=[32,64]", "data.batch_size=1", "data.workers=0",
            "trainer=cpu", "trainer.max_epochs=1",
        )  # fmt: skip
        if name.endswith(".png"):
            path = next(root.glob(f"leftImg8bit/train/*/{name}"))
            return Subject(format, path, lambda: whole(data.Cityscapes(root, "train")), (command,))
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
        (run,) = (folder / "runs/cityscapes").iterdir()
        if name == "last.ckpt":
            (run / "result.json").unlink()
        path = run / name
        # A run that was continued to its end has read what it was given.
        return Subject(
            format, path, lambda: vars(read_run(run)) if format == "json" else None, (command,)
        )

    return build


READ = {
    "picture of Cityscapes": of_reader(data.picture_of_cityscapes, "png", "task=cityscapes"),
    "label of Cityscapes": of_reader(data.label_of_cityscapes, "png", "task=cityscapes"),
    "photograph of ImageNet": of_reader(data.photograph_of_imagenet, "jpeg", "task=imagenet"),
    "photograph of COCO": of_reader(data.photograph_of_coco, "jpeg", "task=coco"),
    "annotations of COCO": annotations,
    "Kaggle's solution": of_reader(data.solution_of_kaggle, "csv"),
    "devkit's synsets": imagenet(f"{test_imagenet.DEVKIT}/meta.mat", "mat"),
    "devkit's ground truth": imagenet(
        f"{test_imagenet.DEVKIT}/ILSVRC2012_validation_ground_truth.txt", "csv"
    ),
    "patch of Chesapeake": of_reader(data.patch, "npz", "task=chesapeake data.crop=[16,16]"),
    "table of Chesapeake": of_reader(data.table_of_chesapeake, "csv", "task=chesapeake"),
    "tile of INRIA": tile("images"),
    "tile of INRIA, LZW": tile("images", compress="lzw"),
    "mask of INRIA, deflate": tile("gt", compress="deflate"),
    "raster of a prediction": source_of_prediction,
    "checkpoint": checkpoint,
    "weights, .pth": weights(".pth", "pth"),
    "weights, .pth of old": weights(".old.pth", "pickle"),
    "weights, .safetensors": weights(".safetensors", "safetensors"),
    "weights, .pkl": weights(".pkl", "pickle"),
    "config.yaml": file_of_run("config.yaml", "yaml"),
    "result.json": file_of_run("result.json", "json"),
    "metrics.csv": file_of_run("metrics.csv", "csv"),
    "audit.csv": file_of_run("audit.csv", "csv"),
    "windows.csv": file_of_run("windows.csv", "csv"),
}
TRAINED = {
    "picture in training": in_training("town_000001_000000_leftImg8bit.png", "png"),
    "result.json of a training": in_training("result.json", "json"),
    "last.ckpt of a training": in_training("last.ckpt", "ckpt"),
}
