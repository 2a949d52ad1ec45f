"""CamVid: files, labels, class weights, and rows whose windows are Cityscapes' at this size."""

import numpy as np
import pytest
from PIL import Image

from tasks.config import compose, options
from tasks.data import IGNORED, open_splits
from tasks.errors import InputError
from tasks.protocol import task_facts
from tasks.schema import check_config

SIDE = (6, 8)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in {"train": 3, "val": 2}.items():
        for folder in (split, f"{split}annot"):
            (tmp_path / folder).mkdir()
        for index in range(count):
            image = rng.integers(0, 256, (*SIDE, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / split / f"0001TP_{index}.png")
            label = rng.integers(0, 12, SIDE, dtype=np.uint8)
            Image.fromarray(label).save(tmp_path / f"{split}annot" / f"0001TP_{index}.png")
    return tmp_path


def opened(root, *splits):
    return open_splits(compose(["task=camvid", f"data.root={root}"]), splits)


def test_images_and_labels_are_the_files_with_void_ignored(root):
    train, val = opened(root, "train", "val")
    assert (len(train), len(val)) == (3, 2)
    assert train.identity != val.identity
    for index in range(3):
        sample = train[index]
        image = np.asarray(Image.open(root / f"train/0001TP_{index}.png"))
        codes = np.asarray(Image.open(root / f"trainannot/0001TP_{index}.png"))
        assert np.array_equal(sample["image"], image)
        assert np.array_equal(sample["label"], np.where(codes == 11, IGNORED, codes))
        assert sample["label"].dtype == np.uint8


def test_a_missing_split_says_where_to_get_it(root):
    with pytest.raises(InputError, match="no folder test and no folder testannot"):
        opened(root, "test")


def test_files_that_do_not_go_together_are_named(root):
    (root / "valannot/0001TP_1.png").unlink()
    with pytest.raises(InputError, match=r"val/0001TP_1.png has no counterpart .*valannot"):
        opened(root, "val")
    Image.fromarray(np.full(SIDE, 12, np.uint8)).save(root / "trainannot/0001TP_0.png")
    with pytest.raises(InputError, match=r"trainannot/0001TP_0.png has the label 12"):
        opened(root, "train")[0][0]
    Image.fromarray(np.zeros((5, 8), np.uint8)).save(root / "trainannot/0001TP_1.png")
    with pytest.raises(InputError, match="differ in size"):
        opened(root, "train")[0][1]


def test_hidden_files_are_no_samples(root):
    (root / "train/._0001TP_0.png").write_bytes(b"")
    assert len(*opened(root, "train")) == 3


def test_class_weights_balance_the_medians_of_the_training_labels(real_data):
    """Median frequency balancing, counted here anew over the label files."""
    pixels, shown = np.zeros(256), np.zeros(256)
    for path in (real_data / "camvid" / "trainannot").glob("*.png"):
        counts = np.bincount(np.asarray(Image.open(path)).ravel(), minlength=256)
        pixels += counts
        shown += (counts > 0) * counts.sum()
    frequencies = pixels[:11] / shown[:11]
    weights = compose(["task=camvid"]).task.class_weights
    assert np.allclose(weights, np.median(frequencies) / frequencies, atol=5e-5)


def test_real_photographs_are_as_many_as_the_benchmark_has(real_data):
    facts = task_facts("camvid")
    train, val = opened(real_data / "camvid", "train", "val")
    assert (len(train), len(val)) == (facts.samples["train"], facts.samples["val"])
    assert list(val[0]["image"].shape[:2]) == facts.image_size


@pytest.mark.parametrize("name", [n for n in options("experiment") if n.startswith("camvid_lcn")])
def test_windows_are_those_of_cityscapes_scaled_as_the_images_are(name):
    cfg = compose([f"experiment={name}"])
    published = int(name.partition("_w")[2] or 227)
    assert list(cfg.norm.window) == [published * 360 // 1024, published * 480 // 2048]
    crop = [512 * 360 / 1024, 1024 * 480 / 2048]
    assert list(cfg.data.crop) == crop


def test_there_is_no_miniature():
    with pytest.raises(InputError, match="task=camvid has no miniature"):
        check_config(compose(["task=camvid", "data=mini"]))
