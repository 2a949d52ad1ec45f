"""The generated miniature of COCO: its files, its masks, its determinism."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from tasks.data.coco import Coco
from tasks.miniatures import coco as mini_coco
from tasks.miniatures.coco import CATEGORIES, IMAGES, ensure, polygons, render, run_lengths

FEW = {"train": 24, "val": 12}


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini_coco, "IMAGES", FEW)


@pytest.fixture(scope="module")
def drawn() -> dict[str, list]:
    """40 images of each split, without writing them."""
    return {split: [render(split, index) for index in range(40)] for split in IMAGES}


def decoded(segmentation: list | dict, shape: tuple[int, int]) -> np.ndarray:
    """As pycocotools reads a json's segmentation."""
    encoded = mask_utils.frPyObjects(segmentation, *shape)
    if isinstance(encoded, list):
        encoded = mask_utils.merge(encoded)
    return mask_utils.decode(encoded).astype(bool)


def files_of(root) -> dict[str, bytes]:
    files = (path for path in root.rglob("*.*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.parametrize("filled", [0.05, 0.3, 0.5, 0.7, 0.95])
def test_pycocotools_decodes_polygons_and_run_lengths_to_the_same_mask(filled):
    """Random masks: many parts, parts that touch at corners, holes, holes in parts in holes."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((13, 18)) < filled
        mask[rng.integers(13), rng.integers(18)] = True
        np.testing.assert_array_equal(decoded(polygons(mask), mask.shape), mask)
        np.testing.assert_array_equal(decoded(run_lengths(mask), mask.shape), mask)


def test_polygons_do_not_overlap_and_straight_edges_have_no_points_between():
    ring = np.ones((6, 8), bool)
    assert polygons(ring) == [[0, 0, 8, 0, 8, 6, 0, 6]]
    ring[2:4, 3:5] = False
    parts = [decoded([part], ring.shape) for part in polygons(ring)]
    np.testing.assert_array_equal(np.sum(parts, axis=0), ring)


def test_instances_do_not_overlap_and_some_are_divided_by_what_is_in_front(drawn):
    for images in drawn.values():
        masks = [[instance.mask for instance in instances] for _, instances in images]
        assert max(np.sum(m, axis=0).max() for m in masks if m) == 1
        assert sum(len(polygons(mask)) > 1 for m in masks for mask in m) >= 5


def test_touching_objects_occur_in_many_images(drawn):
    for images in drawn.values():
        touching = 0
        for _, instances in images:
            grown = [np.pad(i.mask, 1)[2:, 1:-1] | np.pad(i.mask, 1)[1:-1, 2:] for i in instances]
            touching += any(
                (grown[a] & instances[b].mask).any()
                for a in range(len(instances))
                for b in range(len(instances))
                if a != b
            )
        assert touching >= 15


def test_every_category_a_crowd_and_an_empty_image_occur_in_both_splits(drawn):
    numbers = {category["id"] for category in CATEGORIES}
    assert numbers != set(range(1, len(numbers) + 1))  # with gaps, as COCO's
    for images in drawn.values():
        instances = [instance for _, found in images for instance in found]
        assert {instance.category_id for instance in instances} == numbers
        assert any(instance.crowd for instance in instances)
        assert any(not found for _, found in images)


def test_objects_are_large_and_colour_does_not_tell_the_category(drawn):
    pictures, found = zip(*drawn["train"], strict=True)
    areas = [i.mask.mean() for instances in found for i in instances if not i.crowd]
    assert np.median(areas) > 0.03
    colours: dict[int, list[np.ndarray]] = {}
    for picture, instances in zip(pictures, found, strict=True):
        for instance in instances:
            colour = picture[instance.mask].mean(0)
            colours.setdefault(instance.category_id, []).append(colour)
    means = np.stack([np.mean(values, axis=0) for values in colours.values()])
    within = np.mean([np.std(values, axis=0) for values in colours.values()])
    assert means.std(0).max() < within


def test_light_differs_between_and_within_images(drawn):
    pictures = [picture.astype(float).mean(-1) for picture, _ in drawn["train"]]
    assert np.std([picture.mean() for picture in pictures]) > 20
    halves = [(p[:, : p.shape[1] // 2].mean(), p[:, p.shape[1] // 2 :].mean()) for p in pictures]
    assert np.mean([max(pair) / min(pair) > 1.2 for pair in halves]) > 0.25


def test_an_image_depends_on_its_arguments_alone():
    first = render("val", 3)
    render("val", 4)
    again = render("val", 3)
    np.testing.assert_array_equal(first[0], again[0])
    assert len(first[1]) == len(again[1])
    for other in (render("val", 3, seed=1), render("val", 4), render("train", 3)):
        assert not np.array_equal(first[0], other[0])


def test_files_have_coco_s_form_and_are_the_same_twice(tmp_path, few_images):
    first, second = ensure(tmp_path / "a"), ensure(tmp_path / "b")
    assert files_of(first) == files_of(second)
    assert f"v{mini_coco.VERSION}-seed{mini_coco.SEED}" in first.name
    numbers: set[int] = set()
    for split, count in FEW.items():
        content = json.loads((first / f"annotations/instances_{split}2017.json").read_text())
        assert list(content) == ["info", "licenses", "images", "annotations", "categories"]
        assert len(content["images"]) == count
        for image in content["images"]:
            assert image["file_name"] == f"{image['id']:012d}.jpg"
            with Image.open(first / f"{split}2017" / image["file_name"]) as picture:
                assert picture.format == "JPEG"
                assert picture.size == (image["width"], image["height"])
                assert sorted(picture.size) == [120, 160]
        new = {image["id"] for image in content["images"]}
        assert not new & numbers
        numbers |= new


def test_boxes_areas_and_segmentations_of_the_json_agree(tmp_path, few_images):
    root = ensure(tmp_path)
    content = json.loads((root / "annotations/instances_train2017.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    assert any(annotation["iscrowd"] for annotation in content["annotations"])
    for annotation in content["annotations"]:
        assert isinstance(annotation["segmentation"], dict) == bool(annotation["iscrowd"])
        mask = decoded(annotation["segmentation"], sizes[annotation["image_id"]])
        assert annotation["area"] == mask.sum()
        around = mask_utils.toBbox(mask_utils.encode(np.asfortranarray(mask.astype(np.uint8))))
        assert annotation["bbox"] == around.tolist()


def test_the_dataset_reads_it(tmp_path, few_images):
    root = ensure(tmp_path)
    train = Coco(root, "train", training=True)
    assert FEW["train"] - 2 <= len(train) < FEW["train"]  # without the empty image
    assert train.class_names == [category["name"] for category in CATEGORIES]
    pixels, instances = render("train", 0)
    sample = train[0]
    assert np.abs(sample["image"].astype(int) - pixels).mean() < 8  # JPEG
    kept = [instance.mask for instance in instances if not instance.crowd]
    np.testing.assert_array_equal(sample["masks"], kept)


def test_a_second_call_generates_nothing(tmp_path, few_images, monkeypatch):
    root = ensure(tmp_path)

    def fail(*_):
        raise AssertionError("generated again")

    monkeypatch.setattr(mini_coco, "render", fail)
    assert ensure(tmp_path) == root


def test_importing_the_module_imports_no_torch():
    code = "import sys, tasks.miniatures.coco; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
