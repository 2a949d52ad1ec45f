"""Windows over tiles: every pixel counts once, and predictions of windows are those of the tile."""

import zipfile

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import from_origin
from torch import nn

from tasks.config import compose
from tasks.data import IGNORED, Datasets
from tasks.data.loading import Augmented, DataModule
from tasks.data.tiles import (
    RandomPatches,
    Tile,
    TileSet,
    TileWindows,
    check_tiles,
    class_table,
    cover,
)
from tasks.data.transforms import make_transform
from tasks.errors import InputError
from tasks.modules.segmentation import Segmentation
from tasks.prediction.submission import write_submission
from tasks.protocol import task_facts
from tasks.runs.training import evaluate, evaluator

TABLE = class_table({0: 0, 255: 1})
PLACE = from_origin(600_000, 4_200_000, 0.3, 0.3)


def write(path, array, transform=PLACE):
    """An array [H, W, bands] as a GeoTIFF."""
    height, width, bands = array.shape
    profile = {
        "driver": "GTiff", "dtype": array.dtype, "count": bands, "height": height,
        "width": width, "crs": "EPSG:26914", "transform": transform,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.moveaxis(array, -1, 0))
    return path


def make_tile(folder, name="austin1", size=(70, 90), seed=0, label=True):
    """A tile whose buildings are where its first band is above 127."""
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    mask = np.where(image[..., :1] > 127, 255, 0).astype(np.uint8)
    path = write(folder / f"{name}.tif", image)
    return Tile(name, path, write(folder / f"{name}_gt.tif", mask) if label else None)


def tile_set(tiles):
    return TileSet(tiles, 3, TABLE, "id", task_facts("inria"))


@given(length=st.integers(1, 500), size=st.integers(1, 120), halo=st.integers(0, 50))
def test_cores_follow_each_other_without_gap_and_keep_their_halo(length, size, halo):
    if 2 * halo >= size:
        return
    position = 0
    for start, end, core_start, core_end in cover(length, size, halo):
        assert 0 <= start <= core_start <= core_end <= end <= length
        assert end - start == min(size, length)
        assert core_start == position
        assert core_start == 0 or core_start - start >= halo
        assert core_end == length or end - core_end >= halo
        position = core_end
    assert position == length


def test_labels_of_all_windows_are_the_tile_s_labels_once(tmp_path):
    tile = make_tile(tmp_path)
    windows = TileWindows(tile_set([tile]), (32, 32), 6)
    with rasterio.open(tile.label) as file:
        expected = np.bincount(TABLE[file.read(1)].ravel(), minlength=2)
    counted = np.zeros(256, dtype=int)
    for sample in (windows[index] for index in range(len(windows))):
        assert sample["image"].shape == (32, 32, 3)
        counted += np.bincount(sample["label"].ravel(), minlength=256)
    assert counted[:2].tolist() == expected.tolist()


def test_random_patches_follow_from_the_draw_and_reach_everywhere(tmp_path):
    tiles = [make_tile(tmp_path, f"austin{n}", seed=n) for n in (1, 2)]
    patches = RandomPatches(tile_set(tiles), (64, 64), 10)
    assert len(patches) == 10
    again = [patches.draw(0, np.random.default_rng(5))["image"] for _ in range(2)]
    assert np.array_equal(*again)
    names = {patches.draw(0, np.random.default_rng(seed))["name"] for seed in range(20)}
    assert names == {"austin1", "austin2"}
    data = Augmented(patches, make_transform(compose(["task=inria"]), True), 0)
    assert not torch.equal(data[0, 0]["image"], data[1, 0]["image"])
    assert torch.equal(data[1, 0]["image"], data[1, 0]["image"])


def brightness(threshold=127.5):
    """A network that finds a building where the first band is above 127."""
    cfg = compose(["task=inria", "data.crop=[32,32]", "task.eval_halo=6", "trainer=cpu"])

    class Bright(nn.Module):
        def forward(self, x):
            return x[:, :1] * cfg.task.std[0] + cfg.task.mean[0] - threshold / 255

    return cfg, Bright()


def test_submission_is_the_whole_tile_s_prediction_with_its_georeferencing(tmp_path):
    tiles = [make_tile(tmp_path, f"sfo{n}", (70 + n, 90), n, label=False) for n in (1, 2)]
    cfg, network = brightness()
    windows = TileWindows(tile_set(tiles), (32, 32), 6)
    data = DataModule(cfg, Datasets(windows, windows, None))
    module = Segmentation(network, cfg, {"name": "bn"})
    assert write_submission(module, evaluator(cfg), data, tmp_path) == "submission.zip"
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert sorted(archive.namelist()) == ["sfo1.tif", "sfo2.tif"]
        archive.extractall(tmp_path / "out")
    for tile in tiles:
        with (
            rasterio.open(tile.image) as image,
            rasterio.open(tmp_path / "out" / f"{tile.name}.tif") as mask,
        ):
            assert (mask.count, mask.dtypes[0]) == (1, "uint8")
            assert (mask.crs, mask.transform) == (image.crs, image.transform)
            assert np.array_equal(mask.read(1), np.where(image.read(1) > 127, 255, 0))
    assert not list(tmp_path.glob("submission.zip.tmp*"))


def test_scores_of_windows_are_the_scores_of_the_tile(tmp_path):
    tile = make_tile(tmp_path)
    cfg, network = brightness(threshold=100.5)
    windows = TileWindows(tile_set([tile]), (32, 32), 6)
    module = Segmentation(network, cfg, {"name": "bn"}, ["austin"])
    evaluate(evaluator(cfg), module, DataModule(cfg, Datasets(windows, windows, None)))
    with rasterio.open(tile.image) as image:
        band = image.read(1)
    truth, guess = band > 127, band > 100
    assert module.scores["austin_iou"] == pytest.approx(100 * (truth & guess).sum() / guess.sum())
    assert module.scores["overall_acc"] == pytest.approx(100 * (truth == guess).mean())


def test_tiles_that_are_not_as_they_should_be_are_named(tmp_path):
    tile = make_tile(tmp_path)
    other = np.zeros((70, 91, 1), np.uint8)
    wrong_size = Tile("a", tile.image, write(tmp_path / "wide.tif", other))
    moved = from_origin(600_000, 4_200_000.3, 0.3, 0.3)
    wrong_place = Tile("b", tile.image, write(tmp_path / "moved.tif", other[:, :90], moved))
    for bad, bands, message in (
        (wrong_size, 3, r"wide.tif is 70 x 91 but its image is 70 x 90"),
        (wrong_place, 3, r"moved.tif covers another place than its image"),
        (tile, 4, r"austin1.tif has 3 bands of uint8; expected 4 of uint8"),
        (Tile("c", tmp_path / "nowhere.tif", None), 3, r"nowhere.tif cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            check_tiles([bad], bands)
    grey = Tile("d", tile.image, write(tmp_path / "grey.tif", other[:, :90] + 7))
    with pytest.raises(InputError, match=r"grey.tif has the label value 7; expected 0, 255"):
        RandomPatches(tile_set([grey]), (8, 8), 1)[0]
    with pytest.raises(InputError, match="have no core"):
        TileWindows(tile_set([tile]), (32, 32), 16)
    with pytest.raises(InputError, match=r"smaller than a patch of 80 x 80: lower data.crop"):
        RandomPatches(tile_set([tile]), (80, 80), 1)


def test_a_tile_smaller_than_a_window_is_one_window(tmp_path):
    windows = TileWindows(tile_set([make_tile(tmp_path, size=(20, 25))]), (32, 32), 6)
    assert len(windows) == 1
    assert windows[0]["image"].shape == (20, 25, 3)
    assert (windows[0]["label"] != IGNORED).all()
