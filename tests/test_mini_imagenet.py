"""The generated miniature of ImageNet: its files, its determinism, what tells its classes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.config import compose
from tasks.data import open_splits
from tasks.miniatures.imagenet import CLASSES, IMAGES_PER_CLASS, ensure, files, render

FEW = {"train": 5, "val": 1}  # images per class: enough to meet three odd files, quick to draw
NAMES = {"train": r"{wnid}_\d+\.JPEG", "val": r"ILSVRC2012_val_\d{{8}}\.JPEG"}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a miniature with few images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "IMAGES_PER_CLASS", FEW)
        return ensure(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="module")
def drawn() -> dict[str, tuple[list[np.ndarray], np.ndarray]]:
    """Images of either split with their labels."""
    return {
        split: (
            [render(split, wnid, index) for wnid in CLASSES for index in range(count)],
            np.repeat(np.arange(len(CLASSES)), count),
        )
        for split, count in (("train", 16), ("val", 8))
    }


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.JPEG")}


def accuracy(drawn: dict, features) -> float:
    """Share of val that ridge regression on the features gets right, fitted on train."""
    (x, y), (x_val, y_val) = (
        (np.stack([features(image) for image in images]), labels)
        for images, labels in drawn.values()
    )
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_val = ((np.column_stack([(a - mean) / std, np.ones(len(a))])) for a in (x, x_val))
    weights = np.linalg.solve(x.T @ x + 30 * np.eye(x.shape[1]), x.T @ np.eye(len(CLASSES))[y])
    return float(((x_val @ weights).argmax(1) == y_val).mean())


def colours(image: np.ndarray) -> np.ndarray:
    """Histogram of the colours, 4 levels a channel, and mean and deviation of the channels."""
    codes = (image // 64).astype(int) @ [16, 4, 1]
    histogram = np.bincount(codes.ravel(), minlength=64) / codes.size
    return np.concatenate([np.sqrt(histogram), image.mean((0, 1)) / 255, image.std((0, 1)) / 255])


def edges(image: np.ndarray) -> np.ndarray:
    """Histograms of gradient orientation in 6 x 6 cells of a grey version of fixed size."""
    grey = np.asarray(Image.fromarray(image).convert("L").resize((48, 48)), dtype=float)
    dy, dx = np.gradient(grey)
    bins = (np.arctan2(dy, dx) % np.pi / np.pi * 8).astype(int).clip(0, 7)
    cells = [
        np.bincount(
            bins[i : i + 8, j : j + 8].ravel(),
            weights=np.hypot(dx, dy)[i : i + 8, j : j + 8].ravel(),
            minlength=8,
        )
        for i in range(0, 48, 8)
        for j in range(0, 48, 8)
    ]
    return np.sqrt(np.concatenate(cells) / (np.sum(cells) + 1e-6))


def test_splits_have_the_documented_sizes():
    sizes = {split: count * len(CLASSES) for split, count in IMAGES_PER_CLASS.items()}
    assert sizes == {"train": 500, "val": 200}
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in CLASSES)


def test_sizes_vary_around_a_quarter_of_imagenet_s(drawn):
    for images, _ in drawn.values():
        assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in images)
        sizes = np.array([image.shape[:2] for image in images])
        assert sizes.min(1).min() >= 64
        assert sizes.min(1).max() <= 90
        assert (sizes.max(1) / sizes.min(1)).max() <= 1.42
        assert (sizes[:, 0] > sizes[:, 1]).any()
        assert (sizes[:, 0] < sizes[:, 1]).any()


def test_shape_tells_the_class_and_colour_does_not(drawn):
    assert accuracy(drawn, colours) < 0.3
    assert accuracy(drawn, edges) > 0.5


def test_light_contrast_and_colour_cast_vary(drawn):
    images, _ = drawn["train"]
    means = np.array([image.mean((0, 1)) for image in images])
    assert means.mean(1).std() > 20
    assert (means[:, 0] / means[:, 2]).std() > 0.15
    assert np.std([image.std() for image in images]) > 8


def test_an_image_depends_on_its_arguments_alone():
    wnid, other, *_ = CLASSES
    first = render("val", wnid, 3)
    render("val", wnid, 4)
    assert np.array_equal(render("val", wnid, 3), first)
    for arguments in (("train", wnid, 3), ("val", other, 3), ("val", wnid, 4), ("val", wnid, 3, 1)):
        assert not np.array_equal(render(*arguments), first)


@pytest.mark.parametrize("arguments", [("test", "n02391049"), ("val", "n00000000")])
def test_an_unknown_split_or_class_is_refused(arguments):
    with pytest.raises(ValueError, match="no class"):
        render(*arguments, 0)


def test_files_lie_as_in_imagenet(few):
    assert few.name == f"imagenet-v{files.VERSION}-seed{files.SEED}"
    for split, count in FEW.items():
        assert {folder.name for folder in (few / split).iterdir()} == set(CLASSES)
        for wnid in CLASSES:
            names = [path.name for path in (few / split / wnid).iterdir()]
            assert len(names) == count
            assert all(re.fullmatch(NAMES[split].format(wnid=wnid), name) for name in names)


def test_the_same_seed_gives_the_same_bytes(few, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "IMAGES_PER_CLASS", FEW)
    assert files_of(ensure(tmp_path)) == files_of(few)


def test_no_image_occurs_twice(few):
    contents = list(files_of(few).values())
    assert len(set(contents)) == len(contents) == sum(FEW.values()) * len(CLASSES)


def test_train_has_the_odd_files_of_the_real_set(few):
    kinds = []
    for path in (few / "train").rglob("*.JPEG"):
        with Image.open(path) as image:
            kinds.append((image.format, image.mode))
    assert kinds.count(("JPEG", "CMYK")) == kinds.count(("PNG", "RGB")) == 1
    assert ("JPEG", "L") in kinds
    assert kinds.count(("JPEG", "RGB")) >= 0.9 * len(kinds)


def test_the_dataset_opens_it(few, monkeypatch):
    """A folder that is there already is taken as it is: nothing is generated."""
    monkeypatch.setattr(files, "render", None)
    cfg = compose(["task=imagenet", "data=mini", f"data.root={few.parent}"])
    train, val = open_splits(cfg, ["train", "val"])
    assert train.class_names == val.class_names == sorted(CLASSES)
    assert (len(train), len(val)) == (50, 10)
    assert few.name in train.identity
    for dataset in (train, val):
        for index in range(len(dataset)):
            sample = dataset[index]
            assert sample["image"].shape[2] == 3
            assert dataset.class_names[sample["label"]] in sample["name"]


def test_importing_the_module_imports_no_torch():
    code = "import sys, tasks.miniatures.imagenet; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
