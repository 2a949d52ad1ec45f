"""The generated miniature of Chesapeake: its files, its light, and what near-infrared adds."""

import csv
import subprocess
import sys

import numpy as np
import pytest
import rasterio

from tasks.miniatures.chesapeake import SCENES, ensure, files, render

CODES = {1, 2, 3, 4, 5, 6, 15}
CLASS_OF = np.array([-1, 0, 1, 2, 3, 3, 3, *[-1] * 9])  # by land-cover code; -1 is ignored
RELEASE = "md_1m_2013_extended"


@pytest.fixture(scope="module")
def scenes():
    """Ten training and five test scenes: every theme, twice and once."""
    return {
        split: [render(split, i) for i in range(n)] for split, n in (("train", 10), ("test", 5))
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The files of one scene per split, generated twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "SCENES", {"train": 1, "val": 1, "test": 1})
        return [ensure(tmp_path_factory.mktemp("mini")) for _ in range(2)]


def rows_of(root, table):
    with (root / f"{RELEASE}-{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------ scenes


def test_a_scene_depends_on_its_arguments_alone():
    first = render("val", 1)
    render("val", 2)
    again = render("val", 1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (render("val", 1, seed=1), render("train", 1), render("test", 1)):
        assert not np.array_equal(first[1], other[1])


def test_a_scene_has_four_bands_of_bytes_and_one_code_per_pixel():
    image, label = render("train", 0)
    assert (image.shape, image.dtype) == ((320, 320, 4), np.uint8)
    assert (label.shape, label.dtype) == ((320, 320), np.uint8)


@pytest.mark.parametrize(("split", "index"), [("train", 25), ("train", -1), ("extra", 0)])
def test_an_unknown_scene_is_refused(split, index):
    with pytest.raises(ValueError, match="no scene"):
        render(split, index)


def test_every_land_cover_code_occurs_and_no_other(scenes):
    labels = [label for pairs in scenes.values() for _, label in pairs]
    assert set(np.unique(labels).tolist()) == CODES


def test_every_class_has_its_share_and_little_is_without_label(scenes):
    for pairs in scenes.values():
        labels = np.stack([label for _, label in pairs])
        share = np.bincount(labels.ravel(), minlength=16) / labels.size
        assert share[1] > 0.05
        assert share[2] > 0.2
        assert share[3] > 0.2
        assert share[4:7].sum() > 0.08
        assert share[15] < 0.03


def test_light_differs_between_scenes_and_within_one(scenes):
    between, within = [], []
    for image, label in scenes["train"]:
        field = image[..., 1].astype(float)
        field[label != 3] = np.nan
        blocks = [block for row in np.split(field, 5) for block in np.split(row, 5, axis=1)]
        blocks = [np.nanmean(block) for block in blocks if np.isfinite(block).any()]
        between.append(np.nanmean(blocks))
        within.append(np.nanstd(blocks) / np.nanmean(blocks))
    assert np.std(between) / np.mean(between) > 0.15
    assert np.mean(within) > 0.1


def test_labels_follow_the_edges_of_the_image(scenes):
    """Across a label edge bands jump more than they do a few pixels beside it."""
    at_edge, beside = [], []
    for image, label in scenes["test"]:
        jump = np.abs(np.diff(image.astype(float), axis=1)).sum(-1)
        edge = np.diff(label.astype(int), axis=1) != 0
        at_edge.append(jump[edge].mean())
        beside.append(jump[np.roll(edge, 4, axis=1)].mean())
    assert np.mean(at_edge) > 1.5 * np.mean(beside)


def pixels(pairs, bands):
    image = np.concatenate([image.reshape(-1, 4)[::7] for image, _ in pairs])[:, bands] / 255
    classes = CLASS_OF[np.concatenate([label.ravel()[::7] for _, label in pairs])]
    return image[classes >= 0], classes[classes >= 0]


def discriminant(train, test):
    """Accuracy and intersection over union of linear discriminant analysis, pixel by pixel."""
    (x, y), (x_test, y_test) = train, test
    means = np.stack([x[y == c].mean(0) for c in range(4)])
    weights = np.linalg.solve(np.cov((x - means[y]).T), means.T)
    bias = np.log(np.bincount(y) / len(y)) - 0.5 * (means * weights.T).sum(1)
    confusion = np.zeros((4, 4))
    np.add.at(confusion, (y_test, (x_test @ weights + bias).argmax(1)), 1)
    hit = np.diag(confusion)
    return hit.sum() / confusion.sum(), hit / (confusion.sum(0) + confusion.sum(1) - hit)


def test_near_infrared_tells_classes_apart_that_look_alike(scenes):
    scores = {}
    for name, bands in (("visible", [0, 1, 2]), ("all", [0, 1, 2, 3])):
        scores[name] = discriminant(*(pixels(scenes[split], bands) for split in ("train", "test")))
    accuracy = {name: score[0] for name, score in scores.items()}
    assert accuracy["all"] > accuracy["visible"] + 0.08
    assert (scores["all"][1] > scores["visible"][1]).all()
    assert scores["all"][1][0] > scores["visible"][1][0] + 0.2  # water above all
    assert accuracy["all"] < 0.85  # what is left is texture, shape and light


# ------------------------------------------------------------------------------------- files


def test_splits_have_the_documented_sizes():
    assert SCENES == {"train": 25, "val": 5, "test": 5}


def test_the_same_seed_writes_the_same_bytes(small):
    first, second = (
        {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in small
    )
    assert len(first) == 3 + 2 * 25 + 2
    assert first == second
    assert f"v{files.VERSION}" in small[0].name
    assert str(files.SEED) in small[0].name


@pytest.mark.parametrize("table", ["train_patches", "val_patches", "test_tiles"])
def test_csv_columns_are_those_of_the_real_files(small, real_data, table):
    real, mini = rows_of(real_data / "chesapeake", table), rows_of(small[0], table)
    assert list(mini[0]) == list(real[0])


def test_patches_hold_what_their_row_says(small):
    rows = rows_of(small[0], "train_patches")
    assert [int(row["patch_id"]) for row in rows] == list(range(25))
    image, label = render("train", 0)
    for row in rows:
        with np.load(small[0] / row["patch_fn"]) as archive:
            assert archive.files == ["arr_0"]
            array = archive["arr_0"]
        assert (array.shape, array.dtype) == ((1, 29, 64, 64), np.float32)
        y, x = int(row["y_coord"]), int(row["x_coord"])
        np.testing.assert_array_equal(
            array[0, :4], np.moveaxis(image[y : y + 64, x : x + 64], -1, 0)
        )
        np.testing.assert_array_equal(array[0, 8], label[y : y + 64, x : x + 64])
        for channel, prefix in ((8, "lc"), (9, "nlcd")):
            counted = {k: int(n) for k, n in row.items() if k.startswith(f"{prefix}_class_")}
            assert sum(counted.values()) == 64 * 64
            for key, count in counted.items():
                assert (array[0, channel] == int(key.split("_")[2])).sum() == count, key


def test_tiles_are_georeferenced_and_lie_beside_one_another(small):
    (row,) = rows_of(small[0], "test_tiles")
    image, label = render("test", 0)
    with (
        rasterio.open(small[0] / row["naip-new_fn"]) as naip,
        rasterio.open(small[0] / row["lc_fn"]) as cover,
    ):
        assert (naip.count, cover.count) == (4, 1)
        assert naip.dtypes[0] == cover.dtypes[0] == "uint8"
        assert naip.crs == cover.crs == "EPSG:26918"
        assert naip.transform == cover.transform
        assert naip.res == (4, 4)
        assert naip.compression == cover.compression == rasterio.enums.Compression.lzw
        np.testing.assert_array_equal(naip.read(), np.moveaxis(image, -1, 0)[:, :256, :256])
        np.testing.assert_array_equal(cover.read(1), label[:256, :256])


def test_names_are_in_the_style_of_the_release_and_all_differ(small):
    names = [
        row["patch_fn"]
        for table in ("train", "val")
        for row in rows_of(small[0], f"{table}_patches")
    ]
    stems = [name.rpartition("/")[2] for name in names]
    assert len(set(stems)) == len(stems) == 50
    for stem in stems:
        assert stem.startswith("md_1m_2013-m_39076")
        assert len(stem.split("_")) == 7


def test_importing_the_module_imports_no_torch():
    code = "import sys, tasks.miniatures.chesapeake; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
