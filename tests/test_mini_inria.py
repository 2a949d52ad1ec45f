"""The generated miniature of INRIA: its files, its determinism, what its pictures can teach."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from omegaconf import OmegaConf

from tasks.data import open_splits
from tasks.miniatures.inria import CITIES, STYLES, TILES_PER_CITY, ensure, files, render

FEW = {"train": ("kitsap",), "test": ("sfo", "tyrol-e")}  # enough for the files, quick to draw
PUBLISHED = Path(__file__).resolve().parent.parent / "results" / "paper" / "table7.csv"


@pytest.fixture(scope="module")
def drawn() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Image and mask of one tile of every city."""
    return {city: render(split, city, 2) for split, cities in CITIES.items() for city in cities}


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """The miniature with a few tiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CITIES", FEW)
        patch.setattr(files, "TILES_PER_CITY", {"train": 2, "test": 1})
        return ensure(tmp_path_factory.mktemp("few"))


def moved(mask: np.ndarray, south: int, east: int) -> np.ndarray:
    return np.roll(mask, (south, east), (0, 1))


def test_cities_are_the_dataset_s_own_and_none_is_in_both_splits():
    with PUBLISHED.open() as file:
        columns = next(csv.reader(file))
    scored = {column.removesuffix("_iou") for column in columns if column.endswith("_iou")}
    table = {"sfo": "san_francisco", "tyrol-e": "east_tyrol"}
    assert {table.get(city, city) for city in CITIES["test"]} == scored - {"overall"}
    assert set(CITIES["train"]) == {"austin", "chicago", "kitsap", "tyrol-w", "vienna"}
    assert TILES_PER_CITY["train"] > 5  # tiles 1 to 5 can be held out


def test_image_and_mask_have_the_size_and_dtype_of_the_format(drawn):
    for image, mask in drawn.values():
        assert image.shape == (500, 500, 3)
        assert mask.shape == (500, 500)
        assert image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}


def test_a_tile_depends_on_its_arguments_alone(drawn):
    again = render("train", "vienna", 2)
    assert all(np.array_equal(a, b) for a, b in zip(drawn["vienna"], again, strict=True))
    for other in (render("train", "vienna", 3), render("train", "vienna", 2, seed=1)):
        assert not np.array_equal(other[1], again[1])


def test_a_city_of_another_split_is_refused():
    with pytest.raises(ValueError, match="no city"):
        render("train", "sfo", 1)


def test_buildings_cover_as_much_as_in_towns_and_villages(drawn):
    shares = {city: (mask > 0).mean() for city, (_, mask) in drawn.items()}
    assert all(0.05 < share < 0.4 for share in shares.values()), shares
    assert shares["sfo"] > 2 * shares["bellingham"]


def test_shadows_fall_away_from_the_sun(drawn):
    for city, (image, mask) in drawn.items():
        azimuth = np.radians(STYLES[city].light.azimuth)
        to_sun = np.array([-np.cos(azimuth), np.sin(azimuth)])  # rows, columns
        building, grey = mask > 0, image.mean(-1)
        around = [moved(building, *np.round(side * 3 * to_sun).astype(int)) for side in (1, -1)]
        sunny, shady = (grey[place & ~building].mean() for place in around)
        assert shady < 0.9 * sunny, city


def test_light_differs_between_cities(drawn):
    means = np.array([image.mean((0, 1)) for image, _ in drawn.values()])
    assert np.ptp(means.mean(1)) > 50  # brightness
    assert np.ptp(means[:, 0] / means[:, 2]) > 0.2  # white balance and ground


def test_colour_alone_does_not_tell_a_building(drawn):
    """The best decision for each colour (of 16 x 16 x 16), learned on the training cities."""

    def colours(city):
        image, mask = drawn[city]
        return (image // 16 @ [256, 16, 1]).ravel(), mask.ravel() > 0

    def iou(predicted, truth):
        return (predicted & truth).sum() / (predicted | truth).sum()

    votes = np.zeros((2, 4096))
    for city in CITIES["train"]:
        code, truth = colours(city)
        votes[0] += np.bincount(code[~truth], minlength=4096)
        votes[1] += np.bincount(code[truth], minlength=4096)
    for city in CITIES["test"]:
        code, truth = colours(city)
        assert iou((votes[1] > votes[0])[code], truth) < 0.45, city


def test_files_lie_as_in_the_dataset(few):
    names = {
        "train": {"kitsap1.tif", "kitsap2.tif"},
        "test": {"sfo1.tif", "tyrol-e1.tif"},
    }
    assert f"v{files.VERSION}" in few.name
    assert str(files.SEED) in few.name
    for split, expected in names.items():
        for kind in ("images", "gt"):
            folder = few / "AerialImageDataset" / split / kind
            assert {path.name for path in folder.iterdir()} == expected


def test_geotiffs_are_georeferenced_in_metres(few):
    for path in few.glob("AerialImageDataset/*/images/*.tif"):
        mask_path = path.parents[1] / "gt" / path.name
        with rasterio.open(path) as image, rasterio.open(mask_path) as mask:
            assert (image.count, mask.count) == (3, 1)
            assert image.dtypes[0] == mask.dtypes[0] == "uint8"
            assert image.crs == mask.crs
            assert image.crs.linear_units == "metre"
            assert image.transform == mask.transform
            assert image.res == (1.2, 1.2)


def test_tiles_of_a_city_lie_side_by_side(few):
    folder = few / "AerialImageDataset" / "train" / "images"
    with rasterio.open(folder / "kitsap1.tif") as first, rasterio.open(folder / "kitsap2.tif") as b:
        assert b.bounds.left == pytest.approx(first.bounds.right)
        assert b.bounds.top == first.bounds.top


def test_the_same_seed_gives_the_same_bytes(few, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CITIES", {"test": FEW["test"][:1]})
    monkeypatch.setattr(files, "TILES_PER_CITY", {"test": 1})
    again = ensure(tmp_path)
    for kind in ("images", "gt"):
        name = f"AerialImageDataset/test/{kind}/sfo1.tif"
        assert (again / name).read_bytes() == (few / name).read_bytes()


def test_the_miniature_opens_as_the_dataset_and_its_test_tiles_are_scored(few):
    data = {"name": "mini", "root": str(few.parent), "crop": [143, 143], "scale": 0.25}
    data |= {"patches_per_epoch": 4, "holdout": False}
    task = {"name": "inria", "eval_halo": 92, "model": {"widths": 5 * [8]}}
    cfg = OmegaConf.create({"data": data, "task": task})
    train, test = open_splits(cfg, ["train", "test"])
    assert train[0]["image"].shape == (143, 143, 3)
    assert len(train) == 4
    assert test.labelled
    assert test.groups == ["san_francisco", "east_tyrol"]
    assert few.name in train.identity


def test_importing_the_module_imports_no_torch():
    code = "import sys, tasks.miniatures.inria; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
