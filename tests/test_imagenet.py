"""The ImageNet files: what is read, and what is said of files that are not as they should be."""

import base64
import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig
from PIL import Image

from tasks.config import compose
from tasks.data import open_splits
from tasks.data.imagenet import DEVKIT, KAGGLE, ImageNet
from tasks.errors import InputError

TENCH, SETTER, FOX = "n01440764", "n02100735", "n02119789"

META_MAT = base64.b64decode("""
TUFUTEFCIDUuMCBNQVQtZmlsZSBQbGF0Zm9ybTogcG9zaXgsIENyZWF0ZWQgb246IFN1biBOb3YgMjIgMTg6MTQ6MTAg
MjAyNgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABSU0PAAAArgEAAHic
7ZVBT8IwFMeLIkKiiJ449uiBw4ZT8MQSNYHEGKMGj8scZW3cillLkG/gB/CD8hFspYPSoCPsykvetv9b/r/ubW9bFQBw
XgGgJPZlkXtgHgdKF0UWVB6KZFPKEGfifBGcqvqXyN79c//ppmnZTa93KwGvD/P9IiajZMD0QhiN2EqBjmMvwCQaJIj+
FlZEyqCIexiREHNl4YlPqEdiP0QMVEWxDZb9lIx+ClrKqKj6PGYd6Xc1f3GNv6L5a0pTq2nb1632tapLTjeDUzc4Ur8T
Doejzwbsj6MPxGDsB8mIE7bJdVUNntQs9qMIhgmaSizIeX/mfusffxq6P/XlXXdr/+O3m3N9N89cWFbr4lLrI4uz7jne
0TAiDEPx8nGUbMapGRyZPoUp6i1BaLCbh23WL+eYB9txrNaVo/WR9Z04MzhSc0QD3IAvhAY+5HK75GVd14nBk3qYIIYn
vpgtOBTDsftObLV+LcdciLBbjvVHH+s4JYMjNaKc8Olmc3Bs+KXm2OdwgkmAIWF576d6T7oZ/n3DX1/4Zx114Oq8vP93
3V/N8B+B1fn6ARLWcSc=
""")
"""A devkit's meta.mat with three classes and one high-level synset, as SciPy's savemat writes it:
ids 1 to 4 are FOX, SETTER, TENCH, n00001740."""


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A smooth picture, so that JPEG keeps its colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def write(path: Path, image: Image.Image | None = None, format: str = "JPEG", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture()).save(path, format=format, **options)
    return path


def read(path: Path) -> np.ndarray:
    """What the dataset makes of the one file of a class; every warning is an error."""
    dataset = ImageNet(path.parents[2], path.parents[1].name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return dataset[0]["image"]


def one_file(root: Path, **how) -> Path:
    return write(root / "train" / TENCH / f"{TENCH}_1.JPEG", **how)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Three classes, two images of each in train and one in val."""
    root = tmp_path / "imagenet"
    for wnid in (FOX, TENCH, SETTER):
        for number in (12, 7):
            write(root / "train" / wnid / f"{wnid}_{number}.JPEG", picture(number))
    for number, wnid in enumerate((SETTER, FOX, TENCH, SETTER), start=1):
        write(root / "val" / wnid / f"ILSVRC2012_val_{number:08d}.JPEG", picture(100 + number))
    return root


@pytest.fixture
def flat(tiny: Path) -> Path:
    """The same with val as it is distributed: no class folders, the ground truth in the devkit."""
    for path in (tiny / "val").glob("*/*.JPEG"):
        path.rename(tiny / "val" / path.name)
    for folder in (tiny / "val").glob("n*"):
        folder.rmdir()
    (tiny / DEVKIT).mkdir(parents=True)
    (tiny / DEVKIT / "meta.mat").write_bytes(META_MAT)
    write_truth(tiny, [2, 1, 3, 2])
    return tiny


def write_truth(root: Path, ids: list) -> None:
    lines = "".join(f"{id}\n" for id in ids)
    (root / DEVKIT / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)


def config(root: Path, name: str = "full") -> DictConfig:
    return compose(["task=imagenet", f"data={name}", f"data.root={root}"])


def labels(dataset: ImageNet) -> list[tuple[str, int]]:
    samples = [dataset[index] for index in range(len(dataset))]
    return [(sample["name"], sample["label"]) for sample in samples]


# ------------------------------------------------------------------------- layout and labels


def test_labels_are_places_in_the_sorted_wnids_of_train(tiny):
    train, val = open_splits(config(tiny), ["train", "val"])
    assert train.class_names == val.class_names == [TENCH, SETTER, FOX]
    assert labels(train) == [
        (f"train/{wnid}/{wnid}_{number}.JPEG", label)
        for label, wnid in enumerate([TENCH, SETTER, FOX])
        for number in (12, 7)
    ]
    sample = val[0]
    assert sample["image"].dtype == np.uint8
    assert sample["image"].shape == (30, 40, 3)
    assert type(sample["label"]) is int


def test_a_split_alone_is_enough(tiny, tmp_path):
    expected = labels(ImageNet(tiny, "val"))
    (tiny / "train").rename(tmp_path / "put away")
    (val,) = open_splits(config(tiny), ["val"])
    assert val.class_names == [TENCH, SETTER, FOX]
    assert labels(val) == expected
    (tmp_path / "put away").rename(tiny / "train")
    (tiny / "val").rename(tmp_path / "put away")
    assert len(*open_splits(config(tiny), ["train"])) == 6


@pytest.mark.parametrize("extension", [".jpg", ".jpeg", ".JPG", ".png", ".PNG", ".Jpeg"])
def test_extensions_are_read_in_any_case(tmp_path, extension):
    write(tmp_path / "train" / TENCH / f"x{extension}")
    assert len(ImageNet(tmp_path, "train")) == 1


def test_hidden_files_and_other_files_are_left_alone(tiny):
    """macOS writes ``._name`` beside every file it unpacks; it is no image."""
    expected = labels(ImageNet(tiny, "train"))
    (tiny / "train" / FOX / f"._{FOX}_7.JPEG").write_bytes(b"\0")
    (tiny / "train" / FOX / "wnid.txt").write_text("kit fox")
    (tiny / "train" / ".cache").mkdir()
    (tiny / "train" / "README").write_text("")
    assert labels(ImageNet(tiny, "train")) == expected


def test_identity_follows_the_files_and_not_their_place(tiny, tmp_path):
    identity = ImageNet(tiny, "train").identity
    assert identity != ImageNet(tiny, "val").identity
    moved = tiny.rename(tmp_path / "elsewhere")
    assert ImageNet(moved, "train").identity == identity
    path = moved / "train" / FOX / f"{FOX}_7.JPEG"
    path.rename(moved / "train" / TENCH / path.name)
    assert ImageNet(moved, "train").identity != identity


# ------------------------------------------------------------------------------- odd files


def test_cmyk_becomes_the_colours_that_its_inks_print(tmp_path):
    """Adobe stores inks inverted, and marks it: 255 stands for no ink."""
    inks = {(0, 255, 255, 0): (255, 0, 0), (255, 0, 0, 0): (0, 255, 255), (0, 0, 0, 255): (0, 0, 0)}
    for ink, rgb in inks.items():
        path = one_file(tmp_path, image=Image.new("CMYK", (16, 16), ink), quality=95)
        assert b"Adobe" in path.read_bytes()
        assert np.abs(read(path).astype(int) - rgb).max() <= 3


def test_greyscale_becomes_three_equal_channels(tmp_path):
    grey = picture().convert("L")
    image = read(one_file(tmp_path, image=grey, quality=95))
    assert image.shape == (30, 40, 3)
    assert (image == image[..., :1]).all()
    assert np.abs(image[..., 0].astype(int) - np.asarray(grey)).max() < 8


def test_png_named_jpeg_is_read_as_it_is(tmp_path):
    assert np.array_equal(read(one_file(tmp_path, format="PNG")), np.asarray(picture()))


def test_palette_with_transparency_keeps_its_colours(tmp_path):
    palette = picture().quantize(16)
    path = one_file(tmp_path, image=palette, format="PNG", transparency=bytes([0, 128] * 8))
    with Image.open(path) as stored, pytest.warns(UserWarning, match="Transparency"):
        stored.convert("RGB")
    assert np.array_equal(read(path), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "LA", "RGBA"])
def test_other_modes_become_rgb(tmp_path, mode):
    other = picture().convert(mode)
    image = read(one_file(tmp_path, image=other, format="PNG"))
    assert np.array_equal(image, np.asarray(other.convert("RGB")))


def test_sixteen_bit_pictures_are_refused_because_pillow_makes_them_white(tmp_path):
    deep = Image.fromarray(np.full((8, 8), 1000, np.uint16))
    with pytest.raises(InputError, match=r"n01440764_1\.JPEG cannot be read.*8 bits"):
        read(one_file(tmp_path, image=deep, format="PNG"))


def test_damaged_exif_is_read_in_silence(tmp_path):
    entry = b"\x1a\x01\x05\x00\x01\x00\x00\x00\xff\x00\x00\x00"  # resolution, beyond the block
    exif = b"Exif\0\0" + b"II*\0\x08\0\0\0" + b"\x03\x00" + entry + b"\x0f"
    path = one_file(tmp_path, exif=exif)
    with pytest.warns(UserWarning, match="Truncated"), Image.open(path):
        pass
    assert read(path).shape == (30, 40, 3)


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    upright = read(one_file(tmp_path, quality=95))
    assert np.array_equal(read(one_file(tmp_path, exif=exif, quality=95)), upright)


# ------------------------------------------------------------------------------ bad input


def test_missing_dataset_names_place_archives_and_the_miniature(tmp_path):
    with pytest.raises(InputError) as error:
        open_splits(config(tmp_path / "nowhere"), ["train", "val"])
    for part in (
        "no folder train and no folder val in",
        "nowhere",
        "https://www.image-net.org/download.php",
        "ILSVRC2012_img_train.tar",
        "ILSVRC2012_img_val.tar",
        "python train.py task=imagenet data=mini",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg_cut_short_is_named(tmp_path, kept, options):
    path = one_file(tmp_path, image=picture(size=(200, 150)), quality=95, **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=r"n01440764_1\.JPEG cannot be read.*again"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_named(tmp_path, content):
    path = one_file(tmp_path)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"n01440764_1\.JPEG cannot be read"):
        read(path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_empty_class_folder_is_named(tiny, split):
    for path in (tiny / split / SETTER).iterdir():
        path.unlink()
    with pytest.raises(InputError, match=rf"{split}/{SETTER} has no images \(1 of 3 class folders"):
        ImageNet(tiny, split)


def test_class_sets_that_differ_are_named(tiny):
    (tiny / "val" / FOX).rename(tiny / "val" / "n00000001")
    with pytest.raises(InputError, match="different classes") as error:
        open_splits(config(tiny), ["train", "val"])
    assert f"1 only in train: {FOX}" in str(error.value)
    assert "1 only in val: n00000001" in str(error.value)


def test_a_split_without_images_is_named(tiny):
    (tiny / "test").mkdir()
    with pytest.raises(InputError, match=r"no images in .*imagenet/test: expected <wnid>/\*\.JPEG"):
        ImageNet(tiny, "test")


def test_class_archives_that_were_not_unpacked_are_named(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "n01440764.tar").write_bytes(b"")
    with pytest.raises(InputError, match="holds archives, not images; unpack each"):
        ImageNet(tmp_path, "train")


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_outside_class_folders_are_named(tiny, split):
    write(tiny / split / "stray.JPEG")
    with pytest.raises(InputError, match=rf"{split} has images outside class folders \(stray"):
        ImageNet(tiny, split)


# ------------------------------------------------------------------- val without class folders


def test_val_without_class_folders_is_labelled_by_the_devkit(flat):
    val = ImageNet(flat, "val")
    assert sorted(labels(val)) == [
        ("val/ILSVRC2012_val_00000001.JPEG", 1),
        ("val/ILSVRC2012_val_00000002.JPEG", 2),
        ("val/ILSVRC2012_val_00000003.JPEG", 0),
        ("val/ILSVRC2012_val_00000004.JPEG", 1),
    ]


def test_val_without_class_folders_is_the_same_data_as_with_them(tiny, request):
    sorted_val = ImageNet(tiny, "val")
    images = [sorted_val[index]["image"] for index in range(len(sorted_val))]
    flat_val = ImageNet(request.getfixturevalue("flat"), "val")
    assert flat_val.identity == sorted_val.identity
    for index, image in enumerate(images):
        assert np.array_equal(flat_val[index]["image"], image)


def test_val_without_class_folders_needs_no_train(flat, tmp_path):
    (flat / "train").rename(tmp_path / "put away")
    assert ImageNet(flat, "val").class_names == [TENCH, SETTER, FOX]


def test_kaggle_s_ground_truth_does_as_well(flat, tmp_path):
    expected = labels(ImageNet(flat, "val"))
    (flat / "ILSVRC2012_devkit_t12").rename(tmp_path / "put away")
    rows = [
        ("ILSVRC2012_val_00000004", f"{SETTER} 85 1 499 272 "),
        ("ILSVRC2012_val_00000001", f"{SETTER} 131 0 499 254 {SETTER} 0 0 9 9 "),
        ("ILSVRC2012_val_00000002", f"{FOX} 0 14 216 299 "),
        ("ILSVRC2012_val_00000003", f"{TENCH} 72 0 287 499 "),
    ]
    text = "ImageId,PredictionString\n" + "".join(f"{image},{boxes}\n" for image, boxes in rows)
    (flat / KAGGLE).write_text(text)
    assert labels(ImageNet(flat, "val")) == expected


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "ImageId,PredictionString\nILSVRC2012_val_1\n"])
def test_damaged_ground_truth_of_kaggle_is_named(flat, tmp_path, text):
    (flat / "ILSVRC2012_devkit_t12").rename(tmp_path / "put away")
    (flat / KAGGLE).write_text(text)
    with pytest.raises(InputError, match=r"LOC_val_solution\.csv is not the list"):
        ImageNet(flat, "val")


def test_missing_ground_truth_is_named(flat, tmp_path):
    (flat / "ILSVRC2012_devkit_t12").rename(tmp_path / "put away")
    with pytest.raises(InputError, match=r"no ground truth .* ILSVRC2012_devkit_t12\.tar\.gz"):
        ImageNet(flat, "val")


def test_wrong_count_of_the_ground_truth_is_named(flat):
    write_truth(flat, [2, 1, 3])
    with pytest.raises(InputError, match=r"4 images, .* 3; not in .*: ILSVRC2012_val_00000004"):
        ImageNet(flat, "val")
    write_truth(flat, [2, 1, 3, 2, 1, 1])
    with pytest.raises(InputError, match=r"4 images, .* 6; not in the folder: .*_val_00000005"):
        ImageNet(flat, "val")


def test_unknown_id_in_the_ground_truth_is_named(flat):
    write_truth(flat, [2, 1, 1861, 2])
    with pytest.raises(InputError, match="has the id 1861"):
        ImageNet(flat, "val")


@pytest.mark.parametrize("damage", ["missing", "empty", "cut short", "another file"])
def test_damaged_devkit_is_named(flat, damage):
    meta = flat / DEVKIT / "meta.mat"
    meta.unlink()
    contents = {"empty": b"", "cut short": META_MAT[:-100], "another file": b"hello" * 100}
    if damage in contents:
        meta.write_bytes(contents[damage])
    with pytest.raises(InputError, match=r"meta\.mat cannot be read .*devkit_t12.*again"):
        ImageNet(flat, "val")


def test_ground_truth_that_is_no_list_of_ids_is_named(flat):
    write_truth(flat, [2, 1, "x", 2])
    with pytest.raises(InputError, match=r"devkit's as distributed .*'x'"):
        ImageNet(flat, "val")


# ----------------------------------------------------------------------------------- the rest


def test_real_photographs_load(real_data):
    train, val = open_splits(config(real_data / "imagenet"), ["train", "val"])
    assert len(train) == len(val) == len(train.class_names) == 40
    assert train.class_names == val.class_names == sorted(train.class_names)
    for index in range(0, 40, 5):
        sample = val[index]
        assert sample["label"] == index
        assert train.class_names[index] in sample["name"]
        assert sample["image"].ndim == 3
        assert sample["image"].std() > 10


def test_plot_names_truth_and_prediction(tiny):
    dataset = ImageNet(tiny, "val")
    (axes,) = dataset.plot(dataset[0]).axes
    assert axes.get_title() == f"ground truth: {TENCH}"
    figure = dataset.plot(dataset[0], prediction=2)
    assert figure.axes[0].get_title() == f"ground truth: {TENCH}\nprediction: {FOX}"
    figure.savefig(io.BytesIO())


def test_importing_the_module_imports_no_torch():
    code = "import sys, tasks.data.imagenet; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
