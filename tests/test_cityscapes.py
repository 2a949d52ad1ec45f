"""The Cityscapes files: what is read, and what is said of files that are not as they should be."""

import numpy as np
import pytest
from conftest import write_cityscapes
from PIL import Image

from tasks.config import compose
from tasks.data import IGNORED, open_datasets, open_splits
from tasks.data.cityscapes import LABEL_IDS, Cityscapes
from tasks.data.plots import colorize
from tasks.errors import InputError
from tasks.protocol import task_facts


def label_file(root, index=0, split="train"):
    return root / f"gtFine/{split}/town/town_{index:06d}_000000_gtFine_labelIds.png"


def image_file(root, index=0, split="train"):
    return root / f"leftImg8bit/{split}/town/town_{index:06d}_000000_leftImg8bit.png"


def test_label_ids_become_the_train_ids_of_the_dataset(tiny_cityscapes):
    labels = pytest.importorskip("cityscapesscripts.helpers.labels")
    codes = np.array([*range(34), 255], np.uint8)
    picture = np.resize(codes, (64, 128))
    Image.fromarray(picture).save(label_file(tiny_cityscapes))
    got = Cityscapes(tiny_cityscapes, "train")[0]["label"]
    for code in codes:
        official = labels.id2label[-1 if code == 255 else int(code)].trainId
        expected = IGNORED if official in (-1, 255) else official
        assert (got[picture == code] == expected).all(), code


def test_colours_and_codes_are_the_dataset_s_own():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels")
    names = task_facts("cityscapes").class_names
    for train_id, code in enumerate(LABEL_IDS):
        assert labels.id2label[code].trainId == train_id
        assert names[train_id] == labels.id2label[code].name
        color = colorize(np.array([[train_id]]), task_facts("cityscapes"))[0, 0]
        assert tuple(color) == labels.id2label[code].color


def test_real_photographs_load(real_data):
    for split, count in (("train", 40), ("val", 12)):
        dataset = Cityscapes(real_data / "cityscapes", split)
        assert len(dataset) == count
        sample = dataset[0]
        assert sample["image"].shape == (360, 480, 3)
        assert sample["label"].shape == (360, 480)
    figure = dataset.plot(sample, prediction=sample["label"])
    assert [ax.get_title() for ax in figure.axes] == ["input", "ground truth", "prediction"]


def test_identity_follows_the_files_and_not_their_place(tiny_cityscapes, tmp_path):
    identity = Cityscapes(tiny_cityscapes, "train").identity
    moved = tiny_cityscapes.rename(tmp_path / "elsewhere")
    assert Cityscapes(moved, "train").identity == identity
    for path in (image_file(moved, 7), label_file(moved, 7)):
        path.unlink()
    assert Cityscapes(moved, "train").identity != identity


def test_missing_dataset_names_place_archives_and_the_miniature(tmp_path):
    with pytest.raises(InputError) as error:
        open_splits(compose([f"data.root={tmp_path / 'nowhere'}"]), ["train", "val"])
    for part in ("nowhere", "leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip", "data=mini"):
        assert part in str(error.value)


def test_image_without_label_and_label_without_image_are_named(tiny_cityscapes):
    label_file(tiny_cityscapes, 3).unlink()
    with pytest.raises(InputError, match=r"town_000003_000000_leftImg8bit\.png has no label"):
        Cityscapes(tiny_cityscapes, "train")
    image_file(tiny_cityscapes, 3).unlink()
    image_file(tiny_cityscapes, 5).unlink()
    with pytest.raises(InputError, match=r"town_000005_000000_gtFine_labelIds\.png has no image"):
        Cityscapes(tiny_cityscapes, "train")


def test_empty_split_is_named(tiny_cityscapes):
    with pytest.raises(InputError, match=r"no images in .*leftImg8bit/test"):
        Cityscapes(tiny_cityscapes, "test")


def test_sizes_that_differ_are_named(tiny_cityscapes):
    Image.fromarray(np.zeros((32, 128), np.uint8)).save(label_file(tiny_cityscapes))
    with pytest.raises(InputError, match="is 32 x 128 but its image is 64 x 128"):
        Cityscapes(tiny_cityscapes, "train")[0]


def test_unknown_label_value_is_named(tiny_cityscapes):
    Image.fromarray(np.full((64, 128), 77, np.uint8)).save(label_file(tiny_cityscapes))
    with pytest.raises(InputError, match="has the label value 77"):
        Cityscapes(tiny_cityscapes, "train")[0]


def test_colour_picture_as_label_is_named(tiny_cityscapes):
    Image.fromarray(np.zeros((64, 128, 3), np.uint8)).save(label_file(tiny_cityscapes))
    with pytest.raises(InputError, match="mode RGB"):
        Cityscapes(tiny_cityscapes, "train")[0]


@pytest.mark.parametrize("damage", ["truncated", "not a picture", "empty"])
def test_unreadable_png_is_named(tiny_cityscapes, damage):
    path = image_file(tiny_cityscapes)
    content = path.read_bytes()
    broken = {"truncated": content[: len(content) // 2], "not a picture": b"hello", "empty": b""}
    path.write_bytes(broken[damage])
    with pytest.raises(InputError, match=rf"{path.name} cannot be read"):
        Cityscapes(tiny_cityscapes, "train")[0]


def test_mode_test_needs_only_the_split_that_it_evaluates(tmp_path):
    root = write_cityscapes(tmp_path, {"val": 2})
    overrides = ["task=cityscapes", f"data.root={root}"]
    assert len(open_datasets(compose([*overrides, "mode=test"])).eval) == 2
    with pytest.raises(InputError, match="leftImg8bit/train"):
        open_datasets(compose(overrides))
