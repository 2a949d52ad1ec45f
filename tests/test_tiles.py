"""Windows over tiles: every pixel counts once, and predictions of windows are those of the tile."""

import math
import zipfile

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import from_origin
from torch import nn

from lcn import audit
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
    round_up,
    scored_windows,
    total_stride,
)
from tasks.data.transforms import make_transform
from tasks.errors import InputError
from tasks.models import build_model
from tasks.modules.segmentation import Segmentation
from tasks.prediction.network import Network, predict
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


@given(
    length=st.integers(1, 500),
    size=st.integers(1, 120),
    halo=st.integers(0, 50),
    stride=st.sampled_from([1, 2, 16, 32]),
)
def test_cores_follow_each_other_without_gap_and_keep_their_halo(length, size, halo, stride):
    if 2 * round_up(halo, stride) >= round_up(size, stride):
        return
    position = 0
    for start, end, core_start, core_end in cover(length, size, halo, stride):
        assert 0 <= start <= core_start < core_end <= end <= round_up(length, stride)
        assert end - start == min(round_up(size, stride), round_up(length, stride))
        assert core_start == position
        assert core_start == 0 or core_start - start >= halo
        assert core_end == length or end - core_end >= halo
        assert start % stride == end % stride == core_start % stride == 0
        assert end >= min(core_end + halo, round_up(length, stride))
        position = core_end
    assert position == length


def test_the_protocol_s_windows_begin_384_and_128_pixels_apart(tmp_path):
    """INRIA: 572 with a margin of at least 92; Chesapeake: 256 with 64. U-Nets have stride 16."""
    starts = [start for start, *_ in cover(5000, 572, 92, 16)]
    assert starts == [*range(0, 4225, 384), 5008 - 576]
    assert [start for start, *_ in cover(1000, 256, 64, 16)] == [*range(0, 641, 128), 1008 - 256]
    assert {stop - start for *_, start, stop in cover(5000, 572, 92, 16)[1:-2]} == {384}


@pytest.mark.parametrize(
    "name",
    [
        "unet", "unet_duke", "unet_slim", "unet_large", "smp",
        pytest.param("hrnetv2_w18_small_v1", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_stride_of_windows_is_the_one_the_audit_finds(name):
    cfg = compose(["task=inria", f"task/model={name}", "norm=bn", "trainer=cpu"])
    if "widths" in cfg.task.model:
        cfg.task.model.widths = [2] * len(cfg.task.model.widths)
    side = 960 if name.startswith("hrnet") else 256
    found = audit(build_model(cfg).eval(), (1, 3, side, side)).total_stride
    assert found == (total_stride(cfg.task.model),) * 2


@pytest.mark.parametrize(
    ("settings", "size", "count", "stride"),
    [
        (["task.model.widths=[2,2,2,2,2]"], (1000, 590), 3 * 2, 16),
        (
            ["task/model=unet_duke", "task.model.widths=[4,4,4]", "task.model.margin=20",
             "data.crop=[61,61]", "task.eval_halo=18"],
            (150, 131), 5 * 4, 4,
        ),
    ],
    ids=["the protocol's", "without padding"],
)  # fmt: skip
def test_a_submission_of_batch_norm_is_what_the_network_gives_of_the_whole_tile(
    tmp_path, settings, size, count, stride
):
    tile = make_tile(tmp_path, "sfo1", size, label=False)
    cfg = compose(["task=inria", "norm=bn", "trainer=cpu", *settings])
    torch.manual_seed(0)
    network = Network(build_model(cfg), cfg)
    with rasterio.open(tile.image) as image:
        pixels = np.moveaxis(image.read(), 0, -1)
    share = float(np.quantile(predict(network, pixels, probabilities=True)[1], 0.4))
    network.model.head.bias -= math.log(share / (1 - share))  # so that both classes occur
    whole = predict(network, pixels)
    assert 0.4 < whole.mean() < 0.8
    windows = scored_windows(cfg, tile_set([tile]))
    assert len(windows) == count
    assert windows.identity == f"id/{stride}"
    np.testing.assert_array_equal(submitted(network, cfg, windows, tmp_path), whole)
    elsewhere = TileWindows(tile_set([tile]), cfg.data.crop, cfg.task.eval_halo)
    assert (submitted(network, cfg, elsewhere, tmp_path) != whole).any()  # windows of before


def submitted(network, cfg, windows, folder):
    module = Segmentation(network.model, cfg, {"name": "bn"})
    data = DataModule(cfg, Datasets(windows, windows, None))
    write_submission(module, evaluator(cfg), data, folder)
    with zipfile.ZipFile(folder / "submission.zip") as archive:
        archive.extractall(folder / "masks")
    with rasterio.open(folder / "masks" / windows.tiles[0].image.name) as mask:
        return mask.read(1) // 255


def test_windows_that_lie_as_before_keep_their_identity(tmp_path):
    """Those of Chesapeake's miniature: names of its runs stay."""
    for side, identity in ((256, "id"), (250, "id/16")):
        tile = make_tile(tmp_path, size=(side, 256))
        assert TileWindows(tile_set([tile]), (64, 64), 16, 16).identity == identity


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
