"""The generated miniature of Cityscapes: its files, its determinism, its completeness."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tasks.miniatures.cityscapes import CITIES, IMAGES_PER_CITY, ensure, files, render

EVALUATED = {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
VOID = {0, 1, 3, 4, 5, 6}
FEW = {"train": 1, "val": 1}  # images per city: enough for the files, quick to draw


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[np.ndarray]]:
    """The labels of five images of every third city, with each kind of quota."""
    return {
        split: [render(split, city, i)[1] for city in cities[::3] for i in range(5)]
        for split, cities in CITIES.items()
    }


def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "IMAGES_PER_CITY", FEW)


def ensure_few(root: str) -> None:
    """`ensure` with few images, for another process."""
    files.IMAGES_PER_CITY = FEW
    ensure(root)


def files_of(root) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.png")}


def test_splits_have_the_documented_sizes_and_share_no_city():
    sizes = {split: len(CITIES[split]) * IMAGES_PER_CITY[split] for split in CITIES}
    assert sizes == {"train": 200, "val": 50}
    assert not set(CITIES["train"]) & set(CITIES["val"])


def test_image_and_labels_have_the_size_and_dtype_of_the_format():
    image, labels = render("train", CITIES["train"][0], 0)
    assert image.shape == (128, 256, 3)
    assert image.dtype == np.uint8
    assert labels.shape == (128, 256)
    assert labels.dtype == np.uint8


def test_an_image_depends_on_its_arguments_alone():
    first = render("val", CITIES["val"][1], 3)
    render("val", CITIES["val"][1], 4)
    again = render("val", CITIES["val"][1], 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (
        render("val", CITIES["val"][1], 3, seed=1),
        render("val", CITIES["val"][1], 4),
        render("val", CITIES["val"][2], 3),
    ):
        assert not np.array_equal(first[1], other[1])


def test_every_label_is_a_cityscapes_code_and_all_19_classes_occur_in_both_splits(drawn):
    for labels in drawn.values():
        codes = set(np.unique(np.stack(labels)).tolist())
        assert codes <= EVALUATED | VOID
        assert codes >= EVALUATED


def test_road_and_building_dominate_and_two_wheelers_are_rare(drawn):
    for labels in drawn.values():
        share = np.bincount(np.stack(labels).ravel(), minlength=34) / np.stack(labels).size
        assert share[7] > 0.2
        assert share[11] > 0.1
        assert max(share[25], share[32], share[33]) < 0.02


def test_labels_follow_the_edges_of_the_image():
    """Across a label edge colours jump more than they do a few pixels beside it."""
    at_edge, beside = [], []
    for index in range(4):
        image, labels = render("train", CITIES["train"][2], index)
        jump = np.abs(np.diff(image.astype(float), axis=1)).sum(-1)
        edge = np.diff(labels.astype(int), axis=1) != 0
        at_edge.append(jump[edge].mean())
        beside.append(jump[np.roll(edge, 3, axis=1)].mean())
    assert np.mean(at_edge) > 1.5 * np.mean(beside)


def test_an_unknown_city_is_refused():
    with pytest.raises(ValueError, match="no city"):
        render("train", CITIES["val"][0], 0)


def test_files_lie_as_in_cityscapes_and_are_the_same_twice(tmp_path, monkeypatch):
    few_images(monkeypatch)
    first, second = ensure(tmp_path / "a"), ensure(tmp_path / "b")
    assert str(files.SEED) in first.name
    assert f"v{files.VERSION}" in first.name
    assert files_of(first) == files_of(second)
    for split, cities in CITIES.items():
        for city in cities:
            images = sorted((first / "leftImg8bit" / split / city).iterdir())
            labels = sorted((first / "gtFine" / split / city).iterdir())
            assert len(images) == len(labels) == FEW[split]
            for image, label in zip(images, labels, strict=True):
                stem = image.name.removesuffix("_leftImg8bit.png")
                assert label.name == f"{stem}_gtFine_labelIds.png"
                assert [len(part) for part in stem.split("_")[1:]] == [6, 6]
                assert Image.open(image).mode == "RGB"
                assert Image.open(label).mode == "L"
                assert Image.open(image).size == Image.open(label).size == (256, 128)


def test_a_second_call_generates_nothing(tmp_path, monkeypatch):
    few_images(monkeypatch)
    root = ensure(tmp_path)

    def fail(*_):
        raise AssertionError("generated again")

    monkeypatch.setattr(files, "render", fail)
    assert ensure(tmp_path) == root


def test_an_interrupted_generation_is_never_used_and_the_next_call_completes(tmp_path, monkeypatch):
    few_images(monkeypatch)
    countdown = iter(range(5))

    def interrupted(split, city, index, seed):
        if next(countdown, None) is None:
            raise KeyboardInterrupt
        return render(split, city, index, seed)

    with monkeypatch.context() as patch:
        patch.setattr(files, "render", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ensure(tmp_path)
    assert not files_of(tmp_path)

    # A killed process cleans nothing up: its leftovers must not be mixed into the next set.
    leftover = tmp_path / ".cityscapes-v1-seed0.partial" / "gtFine" / "train" / "half"
    leftover.mkdir(parents=True)
    (leftover / "half_000000_000019_gtFine_labelIds.png").write_bytes(b"half a file")
    root = ensure(tmp_path)
    assert len(files_of(root)) == 2 * sum(FEW[s] * len(CITIES[s]) for s in CITIES)
    assert files_of(root).keys() == {
        name.removeprefix(f"{root.name}/") for name in files_of(tmp_path)
    }


def test_two_processes_at_once_end_with_one_complete_set(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=ensure_few, args=(str(tmp_path),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(files_of(tmp_path)) == 2 * sum(FEW[s] * len(CITIES[s]) for s in CITIES)


def test_importing_the_module_imports_no_torch():
    code = "import sys, tasks.miniatures.cityscapes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
