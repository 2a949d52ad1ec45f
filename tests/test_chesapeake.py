"""The Chesapeake files: what is read, and what is said of files that are not as they should be."""

import csv
import itertools
import subprocess
import sys

import numpy as np
import pytest
import rasterio
from omegaconf import OmegaConf
from rasterio.transform import Affine

from tasks.data import IGNORED, open_splits
from tasks.data.chesapeake import Chesapeake
from tasks.data.plots import colorize
from tasks.errors import InputError
from tasks.protocol import task_facts

RELEASE = "md_1m_2013_extended"
SIDE, TILE = 16, (40, 28)
CODES = [0, 1, 2, 3, 4, 5, 6, 15]


def config(root, crop=(SIDE, SIDE), name="full", scale=1.0, eval_halo=4):
    data = {"name": name, "root": str(root), "crop": list(crop), "scale": scale}
    task = {"name": "chesapeake", "eval_halo": eval_halo, "model": {"widths": [8]}}
    return OmegaConf.create({"data": data, "task": task})


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_raster(path, bands, transform=None, dtype="uint8"):
    transform = transform or Affine(1, 0, 350000, 0, -1, 4350000)
    count, height, width = bands.shape
    profile = {"count": count, "height": height, "width": width, "dtype": dtype}
    with rasterio.open(path, "w", driver="GTiff", transform=transform, **profile) as raster:
        raster.write(bands.astype(dtype))


@pytest.fixture
def root(tmp_path):
    """5 training and 2 validation patches of 16 x 16 and two test tiles of 40 x 28."""
    rng, root = np.random.default_rng(0), tmp_path / "chesapeake"
    for split, count in (("train", 5), ("val", 2)):
        folder = root / f"{RELEASE}-{split}_patches"
        folder.mkdir(parents=True)
        rows = []
        for index in range(count):
            array = rng.integers(0, 256, (1, 29, SIDE, SIDE)).astype(np.float32)
            array[0, 8] = rng.choice(CODES, (SIDE, SIDE))
            array[0, 10:28] += 0.5  # Landsat is not whole numbers
            np.savez_compressed(folder / f"{split}-{index}.npz", array)
            rows.append({"patch_id": index, "patch_fn": f"{folder.name}/{split}-{index}.npz"})
        write_csv(root / f"{folder.name}.csv", rows)
    folder = root / f"{RELEASE}-test_tiles"
    folder.mkdir()
    rows = []
    for index in range(2):
        names = {"naip-new": f"m_{index}_naip-new.tif", "lc": f"m_{index}_lc.tif"}
        write_raster(folder / names["naip-new"], rng.integers(0, 256, (4, *TILE)))
        write_raster(folder / names["lc"], rng.choice(CODES, (1, *TILE)))
        rows.append({"id": index} | {f"{k}_fn": f"{folder.name}/{n}" for k, n in names.items()})
    write_csv(root / f"{folder.name}.csv", rows)
    return root


def patch_file(root, index=0, split="train"):
    return root / f"{RELEASE}-{split}_patches/{split}-{index}.npz"


def tile_file(root, layer, index=0):
    return root / f"{RELEASE}-test_tiles/m_{index}_{layer}.tif"


def change(path, edit):
    """Rewrite a patch after `edit` has changed its array in place."""
    with np.load(path) as archive:
        array = archive["arr_0"].copy()
    edit(array[0])
    np.savez_compressed(path, array)


# ------------------------------------------------------------------------------ what is read


def test_a_patch_is_the_bytes_of_naip_and_the_classes_of_the_land_cover(root):
    dataset = Chesapeake(root, "train", (SIDE, SIDE))
    expected = {0: 255, 1: 0, 2: 1, 3: 2, 4: 3, 5: 3, 6: 3, 15: 255}
    for index in range(len(dataset)):
        sample = dataset[index]
        with np.load(patch_file(root, index)) as archive:
            array = archive["arr_0"][0]
        assert sample["name"] == f"train-{index}"
        assert sample["image"].shape == (SIDE, SIDE, 4)
        assert sample["image"].dtype == sample["label"].dtype == np.uint8
        np.testing.assert_array_equal(sample["image"], np.moveaxis(array[:4], 0, -1))
        for code, train_id in expected.items():
            assert (sample["label"][array[8] == code] == train_id).all(), code


def test_windows_count_every_pixel_of_the_test_tiles_once(root):
    (windows,) = open_splits(config(root), ["test"])
    counted = sum(
        np.bincount(windows[i]["label"].ravel(), minlength=256) for i in range(len(windows))
    )
    codes = np.zeros(256, int)
    for index in range(2):
        with rasterio.open(tile_file(root, "lc", index)) as raster:
            codes += np.bincount(raster.read(1).ravel(), minlength=256)
    expected = [codes[1], codes[2], codes[3], codes[4] + codes[5] + codes[6]]
    assert counted[:4].tolist() == expected
    assert {windows[i]["name"] for i in range(len(windows))} == {"m_0", "m_1"}
    assert windows[0]["image"].shape == (SIDE, SIDE, 4)


def test_the_halo_shrinks_with_the_scale_of_the_data(root):
    full, mini = (open_splits(config(root, scale=scale), ["test"])[0] for scale in (1.0, 0.25))
    assert len(mini) < len(full)  # a smaller halo leaves larger cores


def test_uncompressed_patches_are_read_too(root):
    before = Chesapeake(root, "train", (SIDE, SIDE))[2]
    with np.load(patch_file(root, 2)) as archive:
        array = archive["arr_0"]
    np.savez(patch_file(root, 2), array)
    after = Chesapeake(root, "train", (SIDE, SIDE))[2]
    np.testing.assert_array_equal(before["image"], after["image"])
    np.testing.assert_array_equal(before["label"], after["label"])


def test_identity_follows_the_files_and_not_their_place(root, tmp_path):
    identities = [
        dataset.identity for dataset in open_splits(config(root), ["train", "val", "test"])
    ]
    assert len(set(identities)) == 3
    moved = root.rename(tmp_path / "elsewhere")
    again = open_splits(config(moved), ["train", "val", "test"])
    assert [dataset.identity for dataset in again] == identities
    table = moved / f"{RELEASE}-train_patches.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]))
    assert Chesapeake(moved, "train", (SIDE, SIDE)).identity != identities[0]


def test_real_imagery_loads_as_numpy_loads_it(real_data):
    folder = real_data / "chesapeake"
    train, val, test = open_splits(
        config(folder, (256, 256), eval_halo=32), ["train", "val", "test"]
    )
    assert (len(train), len(val)) == (8, 8)
    for dataset in (train, val):
        for index in range(8):
            sample = dataset[index]
            path = folder / f"{RELEASE}-{dataset.split}_patches" / f"{sample['name']}.npz"
            with np.load(path) as archive:
                array = archive["arr_0"][0]
            np.testing.assert_array_equal(np.moveaxis(sample["image"], -1, 0), array[:4])
            np.testing.assert_array_equal(sample["label"] == 1, array[8] == 2)
    scored = sum((test[i]["label"] != IGNORED).sum() for i in range(len(test)))
    assert scored == 260 * 260


# ---------------------------------------------------------------------------------- pictures


def test_plot_shows_natural_and_false_colour_labels_and_prediction(root):
    for dataset in open_splits(config(root), ["val", "test"]):
        sample = dataset[0]
        figure = dataset.plot(sample)
        assert [ax.get_title() for ax in figure.axes] == [
            "natural colour",
            "false colour (NIR, R, G)",
            "ground truth",
        ]
        shown = figure.axes[1].images[0].get_array()
        np.testing.assert_array_equal(
            shown, np.stack([sample["image"][..., b] for b in (3, 0, 1)], -1)
        )
        figure = dataset.plot(sample, prediction=np.zeros((SIDE, SIDE), np.uint8))
        assert figure.axes[3].get_title() == "prediction"
        water = task_facts("chesapeake").classes["water"]
        assert (figure.axes[3].images[0].get_array() == water).all()


def test_ignored_pixels_are_black():
    assert colorize(np.array([[IGNORED]]), task_facts("chesapeake")).tolist() == [[[0, 0, 0]]]


COLOUR_VISION = {  # Machado, Oliveira, Fernandes 2009, severity 1, on linear RGB
    "normal": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def lab(colour, seen):
    """CIE L*a*b* of an sRGB colour as seen with a kind of colour vision."""
    colour = colour / 255
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ np.clip(np.array(seen) @ linear, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", COLOUR_VISION)
def test_class_colours_differ_for_every_colour_vision(vision):
    facts = task_facts("chesapeake")
    colours = np.array([*facts.classes.values(), facts.ignored_color])
    seen = [lab(colour, COLOUR_VISION[vision]) for colour in colours]
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(distances) > 30  # a difference of 2.3 is just noticeable


# ------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_missing_dataset_names_place_archive_and_the_miniature(tmp_path, split):
    with pytest.raises(InputError) as error:
        open_splits(config(tmp_path / "nowhere"), [split])
    for part in ("nowhere", f"extended-{split}_", "lila.science", "md_1m_2013.zip", "data=mini"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("table", "column"),
    [("train_patches", "patch_fn"), ("test_tiles", "naip-new_fn"), ("test_tiles", "lc_fn")],
)
def test_csv_without_a_column_is_named(root, table, column):
    path = root / f"{RELEASE}-{table}.csv"
    path.write_text(path.read_text().replace(column, "something"))
    with pytest.raises(InputError, match=rf"{path.name} has no column {column}"):
        open_splits(config(root), [table.split("_")[0]])


@pytest.mark.parametrize("content", [b"", b"patch_fn\n", b"\xff\xfe\x00", b"patch_fn\n\x00\n"])
def test_csv_that_lists_nothing_readable_is_named(root, content):
    path = root / f"{RELEASE}-train_patches.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=path.name):
        open_splits(config(root), ["train"])


def test_csv_that_points_nowhere_is_named_with_line_and_count(root):
    for index in (2, 4):
        patch_file(root, index).unlink()
    with pytest.raises(InputError) as error:
        open_splits(config(root), ["train"])
    for part in ("patches.csv, line 4,", str(patch_file(root, 2)), "2 of 5 files are missing"):
        assert part in str(error.value)


def test_missing_folder_and_empty_file_name_are_named(root):
    path = root / f"{RELEASE}-val_patches.csv"
    path.write_text("patch_fn,note\nno_such_folder/a.npz,\n")
    with pytest.raises(InputError, match=r"line 2, lists .*no_such_folder/a\.npz"):
        open_splits(config(root), ["val"])
    path.write_text(f"note,patch_fn\n,{RELEASE}-val_patches/val-0.npz\nshort\n")
    with pytest.raises(InputError, match="line 3, lacks a file name"):
        open_splits(config(root), ["val"])


def test_missing_test_label_is_named(root):
    tile_file(root, "lc", 1).unlink()
    with pytest.raises(InputError, match=r"line 3, lists .*m_1_lc\.tif"):
        open_splits(config(root), ["test"])


def test_npz_without_arr_0_is_named(root):
    np.savez(patch_file(root, 1), patch=np.zeros(3))
    dataset = Chesapeake(root, "train", (SIDE, SIDE))
    with pytest.raises(InputError, match=r"train-1\.npz has no array arr_0"):
        dataset[1]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((29, SIDE, SIDE), np.float32),
        np.zeros((1, 28, SIDE, SIDE), np.float32),
        np.zeros((1, SIDE, SIDE, 29), np.float32),
        np.zeros((1, 29, SIDE, SIDE), np.float64),
        np.asfortranarray(np.ones((1, 29, SIDE, SIDE), np.float32)),
    ],
    ids=["three axes", "28 channels", "channels last", "float64", "column order"],
)
def test_npz_of_another_shape_or_type_is_named(root, array):
    np.savez_compressed(patch_file(root, 1), array)
    dataset = Chesapeake(root, "train", (SIDE, SIDE))
    with pytest.raises(InputError, match=r"train-1\.npz holds float.*expected float32 \[1, 29,"):
        dataset[1]


@pytest.mark.parametrize("damage", ["truncated", "not a zip", "empty", "half of it zeroed"])
def test_unreadable_npz_is_named(root, damage):
    path = patch_file(root, 1)
    content = path.read_bytes()
    half = len(content) // 2
    broken = {
        "truncated": content[:half],
        "not a zip": b"hello",
        "empty": b"",
        "half of it zeroed": content[:200] + bytes(half) + content[200 + half :],
    }
    path.write_bytes(broken[damage])
    dataset = Chesapeake(root, "train", (SIDE, SIDE))
    with pytest.raises(InputError, match=r"train-1\.npz cannot be read"):
        dataset[1]


def test_the_first_patch_is_looked_at_when_the_data_is_opened(root):
    np.savez(patch_file(root, 0), patch=np.zeros(3))
    with pytest.raises(InputError, match=r"train-0\.npz has no array arr_0"):
        open_splits(config(root), ["train"])


def test_patches_of_another_size_than_the_crop_are_refused_with_the_remedy(root):
    with pytest.raises(InputError, match=r"is 16 x 16 .*set data\.crop=\[16,16\]"):
        open_splits(config(root, crop=(8, 8)), ["train"])


@pytest.mark.parametrize("value", [0.5, 256, -1, np.nan, np.inf])
def test_naip_that_is_no_byte_is_named(root, value):
    change(patch_file(root, 1), lambda channels: channels[2].__setitem__((3, 4), value))
    with pytest.raises(InputError, match=rf"train-1\.npz has the value {value:g} \(NAIP"):
        Chesapeake(root, "train", (SIDE, SIDE))[1]


@pytest.mark.parametrize("value", [7, 14, 254, 255, 2.5])
def test_unknown_land_cover_of_a_patch_is_named(root, value):
    change(patch_file(root, 1), lambda channels: channels[8].__setitem__((3, 4), value))
    with pytest.raises(InputError, match=rf"train-1\.npz has the .* {value}.*channel 8"):
        Chesapeake(root, "train", (SIDE, SIDE))[1]


def test_unknown_land_cover_of_a_tile_is_named(root):
    write_raster(tile_file(root, "lc"), np.full((1, *TILE), 7))
    with pytest.raises(InputError, match=r"m_0_lc\.tif has the label value 7"):
        open_splits(config(root), ["test"])[0][0]


def test_tile_with_another_number_of_bands_is_named(root):
    write_raster(tile_file(root, "naip-new"), np.zeros((3, *TILE)))
    with pytest.raises(InputError, match=r"m_0_naip-new\.tif has 3 bands"):
        open_splits(config(root), ["test"])


def test_image_and_labels_of_different_size_or_place_are_named(root):
    write_raster(tile_file(root, "lc"), np.zeros((1, 40, 30)))
    with pytest.raises(InputError, match=r"m_0_lc\.tif is 40 x 30 but its image is 40 x 28"):
        open_splits(config(root), ["test"])
    moved = Affine(1, 0, 350100, 0, -1, 4350000)
    write_raster(tile_file(root, "lc"), np.zeros((1, *TILE)), transform=moved)
    with pytest.raises(InputError, match=r"m_0_lc\.tif covers another place"):
        open_splits(config(root), ["test"])


def test_opening_imports_no_torch(root):
    code = (
        "import sys; from omegaconf import OmegaConf;"
        "from tasks.data import open_splits;"
        f"cfg = OmegaConf.create({OmegaConf.to_container(config(root))!r});"
        "open_splits(cfg, ['train', 'val', 'test']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
