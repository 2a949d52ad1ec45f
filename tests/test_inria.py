"""The INRIA files: splits, cities, labels, and what is said of files that are not right."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from rasterio import Affine

from tasks.data import open_splits
from tasks.errors import InputError

SIZE = 48
TRAIN_CITIES = ("austin", "tyrol-w")


def write_tile(path: Path, pixels: np.ndarray, west: float = 0.0) -> None:
    """A GeoTIFF of uint8 [H, W, bands]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, count = pixels.shape
    profile = {"height": height, "width": width, "count": count, "dtype": "uint8"}
    place = {"crs": "EPSG:26914", "transform": Affine(0.3, 0, west, 0, -0.3, 100)}
    with rasterio.open(path, "w", driver="GTiff", **profile, **place) as raster:
        raster.write(pixels.transpose(2, 0, 1))


def write_pair(root: Path, split: str, name: str, with_mask: bool = True) -> None:
    """A tile of noise; its left half is building."""
    rng = np.random.default_rng(sum(name.encode()))
    write_tile(
        root / split / "images" / f"{name}.tif",
        rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8),
    )
    if with_mask:
        mask = np.zeros((SIZE, SIZE, 1), np.uint8)
        mask[:, : SIZE // 2] = 255
        write_tile(root / split / "gt" / f"{name}.tif", mask)


@pytest.fixture
def inria(tmp_path) -> Path:
    """Two training cities of seven tiles and two test cities of one, without masks."""
    root = tmp_path / "inria" / "AerialImageDataset"
    for city in TRAIN_CITIES:
        for number in range(1, 8):
            write_pair(root, "train", f"{city}{number}")
    for city in ("sfo", "tyrol-e"):
        write_pair(root, "test", f"{city}3", with_mask=False)
    return root


def settings(root: Path, holdout: bool = False, **data) -> DictConfig:
    values = {"name": "full", "root": str(root), "crop": [32, 32], "scale": 1.0}
    values |= {"patches_per_epoch": 10, "holdout": holdout}
    task = {"name": "inria", "eval_halo": 4, "model": {"widths": [8]}}
    return OmegaConf.create({"data": values | data, "task": task})


def open_one(root: Path, split: str = "train", **options):
    (dataset,) = open_splits(settings(root, **options), [split])
    return dataset


def names(dataset) -> list[str]:
    return [tile.name for tile in dataset.tiles]


def test_training_uses_all_tiles_as_in_the_paper(inria):
    expected = [f"{city}{number}" for city in TRAIN_CITIES for number in range(1, 8)]
    assert names(open_one(inria)) == expected


def test_holdout_keeps_tiles_1_to_5_of_each_city_for_validation(inria):
    train, val = open_splits(settings(inria, holdout=True), ["train", "val"])
    assert names(train) == ["austin6", "austin7", "tyrol-w6", "tyrol-w7"]
    assert names(val) == [f"{city}{number}" for city in TRAIN_CITIES for number in range(1, 6)]


def test_tiles_are_ordered_by_number_and_not_by_letters(inria):
    write_pair(inria, "train", "austin10")
    assert names(open_one(inria))[:8] == [f"austin{n}" for n in (1, 2, 3, 4, 5, 6, 7, 10)]


def test_validation_without_holdout_says_how_to_get_it(inria):
    with pytest.raises(InputError, match=r"data\.holdout=true"):
        open_one(inria, "val")


@pytest.mark.parametrize(
    ("split", "kept", "said"), [("train", range(1, 6), "above 5"), ("val", (6, 7), "up to 5")]
)
def test_holdout_that_leaves_no_tile_is_named(tmp_path, split, kept, said):
    for number in kept:
        write_pair(tmp_path, "train", f"austin{number}")
    with pytest.raises(InputError, match=rf"no tile .*{split}.* n {said}"):
        open_one(tmp_path, split, holdout=True)


def test_the_root_may_be_the_unpacked_folder_or_the_one_above(inria):
    assert names(open_one(inria)) == names(open_one(inria.parent))


def test_cities_have_the_names_of_the_paper_s_table(inria):
    test = open_one(inria, "test")
    assert [test.groups[tile.group] for tile in test.tiles] == ["san_francisco", "east_tyrol"]
    train = open_one(inria)
    assert train.groups == ["austin", "west_tyrol"]
    assert train.crs() == ["EPSG:26914"]
    assert [train.groups[tile.group] for tile in train.tiles] == 7 * ["austin"] + 7 * ["west_tyrol"]


def test_a_training_sample_is_a_patch_of_image_and_mask_at_one_place(inria):
    train = open_one(inria)
    assert len(train) == 10
    for seed in range(5):
        sample = train.draw(0, np.random.default_rng(seed))
        assert sample["image"].shape == (32, 32, 3)
        tile = np.asarray(Image.open(inria / "train" / "images" / f"{sample['name']}.tif"))
        offsets = [
            (top, left)
            for top in range(SIZE - 31)
            for left in range(SIZE - 31)
            if np.array_equal(tile[top : top + 32, left : left + 32], sample["image"])
        ]
        (left,) = {left for _, left in offsets}
        building = np.broadcast_to(np.arange(left, left + 32) < SIZE // 2, (32, 32))
        assert np.array_equal(sample["label"], building.astype(np.uint8))


def test_test_tiles_without_masks_have_ignored_labels(inria):
    test = open_one(inria, "test")
    assert not test.labelled
    assert all((test[index]["label"] == 255).all() for index in range(len(test)))


def test_test_tiles_with_masks_are_labelled(inria):
    write_pair(inria, "test", "sfo3")
    write_pair(inria, "test", "tyrol-e3")
    test = open_one(inria, "test")
    assert test.labelled
    counts = sum(np.bincount(test[i]["label"].ravel(), minlength=256) for i in range(len(test)))
    assert counts[0] == counts[1] == SIZE * SIZE  # half of each of two tiles


def test_windows_shrink_their_halo_with_the_data(inria):
    cfg = settings(inria, scale=0.25)
    cfg.task.eval_halo = 60  # at a quarter: 15, so that the core of a window is 2 pixels wide
    (test,) = open_splits(cfg, ["test"])
    assert {window.left for _, window, _ in test.windows} == set(range(0, SIZE - 32 + 1, 2))
    cfg.task.eval_halo = 64
    with pytest.raises(InputError, match="a halo of 16 have no core"):
        open_splits(cfg, ["test"])


def test_identity_follows_the_files_and_not_their_place(inria, tmp_path):
    identity = open_one(inria).identity
    assert open_one(inria, holdout=True).identity != identity
    moved = inria.rename(tmp_path / "elsewhere")
    assert open_one(moved).identity == identity
    for kind in ("images", "gt"):
        (moved / "train" / kind / "austin4.tif").unlink()
    assert open_one(moved).identity != identity


def test_missing_dataset_names_place_archive_and_the_miniature(tmp_path):
    with pytest.raises(InputError) as error:
        open_one(tmp_path / "nowhere")
    for part in (
        "nowhere",
        "AerialImageDataset/train/images",
        "https://project.inria.fr/aerialimagelabeling/",
        "aerialimagelabeling.7z.001",
        "data=mini",
    ):
        assert part in str(error.value)


def test_only_the_folders_of_the_wanted_splits_are_needed(inria):
    (inria / "test").rename(inria / "not_unpacked")
    assert len(names(open_one(inria))) == 14
    with pytest.raises(InputError, match="no folder AerialImageDataset/test/images"):
        open_one(inria, "test")


@pytest.mark.parametrize(("gone", "said"), [("gt", "has no mask"), ("images", "has no image")])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_tile_without_mask_and_a_mask_without_tile_are_named(inria, split, gone, said):
    write_pair(inria, "test", "sfo3")
    write_pair(inria, "test", "tyrol-e3")
    name = {"train": "tyrol-w2.tif", "test": "sfo3.tif"}[split]
    (inria / split / gone / name).unlink()
    with pytest.raises(InputError, match=rf"{name} {said}: expected .*{split}/{gone}/{name}"):
        open_one(inria, split)


@pytest.mark.parametrize("name", ["austin", "7"])
def test_a_name_that_is_not_a_city_and_a_number_is_refused(inria, name):
    write_pair(inria, "train", name)
    with pytest.raises(InputError, match=rf"{name}\.tif is no tile"):
        open_one(inria)


def test_an_empty_folder_is_named(inria):
    for path in inria.glob("test/images/*"):
        path.unlink()
    with pytest.raises(InputError, match=r"no tile .*test/images; is the archive unpacked"):
        open_one(inria, "test")


@pytest.mark.parametrize(
    ("kind", "shape", "west", "said"),
    [
        ("images", (SIZE, SIZE, 4), 0.0, r"austin3\.tif has 4 bands"),
        ("gt", (SIZE, SIZE, 3), 0.0, r"austin3\.tif has 3 bands"),
        ("gt", (SIZE, SIZE // 2, 1), 0.0, r"austin3\.tif is 48 x 24 but its image is 48 x 48"),
        ("gt", (SIZE, SIZE, 1), 30.0, r"austin3\.tif covers another place"),
    ],
)
def test_tiles_that_do_not_fit_are_named_at_opening(inria, kind, shape, west, said):
    write_tile(inria / "train" / kind / "austin3.tif", np.zeros(shape, np.uint8), west)
    with pytest.raises(InputError, match=said):
        open_one(inria)


@pytest.mark.parametrize("kind", ["images", "gt"])
def test_opening_reads_no_pixels_and_reading_names_a_tile_cut_short(inria, kind):
    for path in (inria / "train" / kind).iterdir():
        content = path.read_bytes()
        path.write_bytes(content[: len(content) - SIZE * SIZE // 2])
    train = open_one(inria, crop=[SIZE, SIZE])
    with pytest.raises(InputError, match=rf"train/{kind}/\S+\.tif cannot be read"):
        train[0]


def test_a_mask_with_other_values_than_0_and_255_is_named(inria):
    mask = np.ones((SIZE, SIZE, 1), np.uint8)  # 0/1 masks, as some mirrors have
    for path in (inria / "train" / "gt").iterdir():
        write_tile(path, mask)
    with pytest.raises(InputError, match=r"train/gt/.*\.tif has the label value 1"):
        open_one(inria)[0]


def test_plot_shows_image_ground_truth_and_prediction(inria):
    train, test = open_splits(settings(inria), ["train", "test"])
    sample = train[0]
    figure = train.plot(sample, prediction=sample["label"])
    assert [ax.get_title() for ax in figure.axes] == ["input", "ground truth", "prediction"]
    shown = figure.axes[1].get_images()[0].get_array()
    assert np.array_equal(shown == 255, np.repeat(sample["label"][..., None] == 1, 3, -1))
    assert [ax.get_title() for ax in test.plot(test[0]).axes] == ["input"]


def test_real_tiles_load_and_every_pixel_counts_once(real_data):
    cfg = settings(real_data / "inria", holdout=True, crop=[128, 128])
    train, val = open_splits(cfg, ["train", "val"])
    assert names(train) == [
        f"{city}{n}" for city in ("westvirginianorth", "westvirginiasouth") for n in (6, 7, 8)
    ]
    assert train.groups == val.groups == ["westvirginianorth", "westvirginiasouth"]
    assert train[0]["image"].shape == (128, 128, 3)

    counts = np.zeros((2, 256), int)
    for sample in (val[index] for index in range(len(val))):
        counts[sample["group"]] += np.bincount(sample["label"].ravel(), minlength=256)
    folder = real_data / "inria" / "AerialImageDataset" / "train" / "gt"
    for group, city in enumerate(val.groups):
        masks = np.stack([Image.open(folder / f"{city}{n}.tif") for n in range(1, 6)])
        assert counts[group, 1] == (masks == 255).sum() > 0
        assert counts[group, 0] == (masks == 0).sum()
