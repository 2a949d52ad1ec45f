"""Damaged and hostile files of every dataset: named in one line, or read as what they hold."""

import io
import os
import random
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
import rasterio
import test_chesapeake
import test_coco
import test_imagenet
from conftest import write_cityscapes
from PIL import Image

from tasks.data.cityscapes import Cityscapes
from tasks.data.coco import Coco
from tasks.data.files import read_labels, read_rgb
from tasks.data.imagenet import ImageNet
from tasks.data.tiles import Place, open_raster, read
from tasks.errors import InputError

# ------------------------------------------------------------------- something else than a file


def be_folder(path):
    path.unlink()
    path.mkdir()


def be_fifo(path):
    path.unlink()
    os.mkfifo(path)


def link_to(target):
    def damage(path):
        path.unlink()
        path.symlink_to(target)

    return damage


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def forbid(path):
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")


NO_FILES = {
    "folder": be_folder, "FIFO": be_fifo, "device": link_to("/dev/zero"), "empty": empty,
    "dangling link": link_to("nowhere"), "cut short": cut, "forbidden": forbid,
}  # fmt: skip


def picture_of_cityscapes(tmp_path):
    root = write_cityscapes(tmp_path, {"train": 1})
    (path,) = root.glob("leftImg8bit/*/*/*.png")
    return path, lambda: Cityscapes(root, "train")[0]


def label_of_cityscapes(tmp_path):
    root = write_cityscapes(tmp_path, {"train": 1})
    (path,) = root.glob("gtFine/*/*/*.png")
    return path, lambda: Cityscapes(root, "train")[0]


def photograph_of_imagenet(tmp_path):
    path = test_imagenet.one_file(tmp_path)
    return path, lambda: ImageNet(tmp_path, "train")[0]


def solution_of_kaggle(tmp_path):
    test_imagenet.write(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    path = tmp_path / "LOC_val_solution.csv"
    path.write_text("ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764 1 2 3 4\n")
    return path, lambda: ImageNet(tmp_path, "val")[0]


def photograph_of_coco(tmp_path):
    path = test_coco.write(tmp_path) / "train2017" / "000000000010.jpg"
    return path, lambda: Coco(tmp_path, "train")[0]


def annotations_of_coco(tmp_path):
    path = test_coco.write(tmp_path) / "annotations" / "instances_train2017.json"
    return path, lambda: Coco(tmp_path, "train")[0]


def tile(tmp_path):
    path = tmp_path / "tile.tif"
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 28), np.uint8)
    test_chesapeake.write_raster(path, noise)
    return path, lambda: read(path, Place(0, 0, 40, 28))


def patch(tmp_path):
    path = tmp_path / "p.npz"
    array = np.random.default_rng(0).integers(0, 7, (1, 29, 16, 16)).astype(np.float32)
    np.savez_compressed(path, array)
    table = tmp_path / f"{test_chesapeake.RELEASE}-train_patches.csv"
    table.write_text("patch_fn\np.npz\n")
    return path, lambda: test_chesapeake.Chesapeake(tmp_path, "train", (16, 16))[0]


def table_of_chesapeake(tmp_path):
    _, load = patch(tmp_path)
    return tmp_path / f"{test_chesapeake.RELEASE}-train_patches.csv", load


READERS = [
    picture_of_cityscapes, label_of_cityscapes, photograph_of_imagenet, solution_of_kaggle,
    photograph_of_coco, annotations_of_coco, tile, patch, table_of_chesapeake,
]  # fmt: skip


@pytest.mark.parametrize("damage", NO_FILES)
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_what_is_no_readable_file_is_named_without_waiting(tmp_path, reader, damage):
    path, load = reader(tmp_path)
    load()
    NO_FILES[damage](path)
    with pytest.raises(InputError, match=path.name) as error:
        load()
    if path.suffix not in (".json", ".csv"):
        assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------- pictures


def chunk(kind, content):
    length, checksum = (struct.pack(">I", n) for n in (len(content), zlib.crc32(kind + content)))
    return length + kind + content + checksum


def png(depth=8, colour=2, size=(4, 4), rows=None, compressed=None):
    """A PNG written chunk by chunk: colour 0 grey, 2 RGB, 3 palette, 4 and 6 with alpha."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = rows or (b"\0" + bytes(range(1, 1 + size[0] * channels * depth // 8))) * size[1]
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(range(48))) if colour == 3 else b""
    data = chunk(b"IDAT", zlib.compress(rows) if compressed is None else compressed)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + data + chunk(b"IEND", b"")


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


BAD_PICTURES = {
    "16-bit grey": (png(16, 0), "more than 8 bits"),
    "16-bit RGB": (png(16, 2), "more than 8 bits"),
    "16-bit grey with alpha": (png(16, 4), "more than 8 bits"),
    "16-bit RGB with alpha": (png(16, 6), "more than 8 bits"),
    "bomb of 74 bytes": (png(size=(60_000, 60_000), rows=b"\0"), "limit of"),
    "bomb that Pillow only warns of": (png(size=(10_000, 10_000), rows=b"\0"), "limit of"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", "no PNG or JPEG"),
    "GIF": (encoded(Image.new("P", (4, 4)), "GIF"), "no PNG or JPEG"),
    "TIFF": (encoded(Image.new("RGB", (4, 4)), "TIFF"), "no PNG or JPEG"),
    "another checksum of the pixels": (png()[:-20] + b"\0\0\0\0" + png()[-16:], "cannot be read"),
    "no pixels": (png(compressed=b""), "cannot be read"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_picture_that_would_give_other_pixels_is_named(tmp_path, name):
    content, message = BAD_PICTURES[name]
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"x\.png .*{message}"):
        read_rgb(path, ["PNG", "JPEG"], "get it again")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(8, 2), [1, 2, 3]),
        (png(8, 0), [1, 1, 1]),
        (png(8, 4), [1, 1, 1]),
        (png(8, 6), [1, 2, 3]),
        (png(8, 3), [3, 4, 5]),
        (png(2, 0, rows=b"\0\x40\0\0\0\0\0\0"), [85, 85, 85]),
        (encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG"), [255, 255, 255]),
    ],
    ids=["RGB", "grey", "grey and alpha", "RGBA", "palette", "2-bit grey", "CMYK"],
)
def test_the_modes_of_the_datasets_give_their_colours(tmp_path, content, expected):
    (tmp_path / "x.png").write_bytes(content)
    assert read_rgb(tmp_path / "x.png", ["PNG", "JPEG"], "")[0, 0].tolist() == expected


def test_labels_are_stored_bytes_or_refused(tmp_path):
    path = tmp_path / "x.png"
    for colour in (0, 3):
        path.write_bytes(png(8, colour))
        assert read_labels(path, "")[0].tolist() == [1, 2, 3, 4]
    for content in (png(2, 0), png(8, 2), png(16, 0)):  # 2 bits: Pillow multiplies them by 85
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.png"):
            read_labels(path, "")


def flipped(content, seed):
    """The same bytes but for one bit."""
    rng, damaged = random.Random(seed), bytearray(content)
    bit = rng.randrange(8 * len(content))
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def check_flips(path, load, count):
    """Whatever bit of a file is flipped: the same values or a message."""
    content, named = path.read_bytes(), 0
    expected = load()
    for seed in range(count):
        path.write_bytes(flipped(content, seed))
        try:
            found = load()
        except InputError as error:
            named += path.name in str(error)
        else:
            for key, value in expected.items():
                assert np.array_equal(found[key], value), (seed, key)
    assert named > count // 2


def test_a_flipped_bit_of_a_png_never_gives_other_pixels(tmp_path):
    check_flips(*picture_of_cityscapes(tmp_path), 300)


def test_a_flipped_bit_of_a_patch_never_gives_other_pixels(tmp_path):
    check_flips(*patch(tmp_path), 300)


# ----------------------------------------------------------------------------------- rasters


def test_a_raster_that_is_no_tiff_is_not_opened(tmp_path):
    _, load = tile(tmp_path)
    load()
    path = tmp_path / "virtual.tif"
    path.write_text(
        '<VRTDataset rasterXSize="28" rasterYSize="40"><VRTRasterBand dataType="Byte" band="1">'
        '<SimpleSource><SourceFilename relativeToVRT="1">tile.tif</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with rasterio.open(path) as opened:  # GDAL itself follows it
        assert opened.read(1).any()
    Image.new("L", (9, 9)).save(tmp_path / "picture.png")
    shutil.copy(tmp_path / "picture.png", tmp_path / "picture.tif")
    for name in ("virtual.tif", "picture.tif"):
        with pytest.raises(InputError, match=rf"{name} cannot be read"):
            open_raster(tmp_path / name)


def test_a_tiff_of_one_huge_block_is_named_before_it_fills_the_memory(tmp_path):
    path = tmp_path / "huge.tif"
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 1, "width": 20_000, "height": 20_000}
    options = {"tiled": True, "blockxsize": 20_000, "blockysize": 20_000, "sparse_ok": True}
    with rasterio.open(path, "w", **profile, **options):
        pass
    with pytest.raises(InputError, match=r"huge\.tif keeps 381 MiB in one block"):
        read(path, Place(0, 0, 8, 8))


# ------------------------------------------------------------------------- Chesapeake's patches


def npy(shape="(1, 29, 16, 16)", descr="'<f4'", order="False", size=4 * 29 * 256):
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + bytes(size)


def zipped(content, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("arr_0.npy", content)
    return file.getvalue()


def marked(content, offset, value):
    """A zip with two bytes changed in both of its records of a member."""
    damaged = bytearray(content)
    for signature, shift in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
        at = content.index(signature) + offset + shift
        damaged[at : at + 2] = struct.pack("<H", value)
    return bytes(damaged)


BAD_PATCHES = {
    "encrypted": (marked(zipped(npy()), 6, 1), "encrypted"),
    "lzma": (zipped(npy(), zipfile.ZIP_LZMA), "compressed in another way"),
    "bzip2": (zipped(npy(), zipfile.ZIP_BZIP2), "compressed in another way"),
    "unknown method": (marked(zipped(npy()), 8, 99), "cannot be read"),
    "bomb": (zipped(npy("(1, 29, 10000, 10000)", size=0)), "10000 x 10000 pixels but data.crop"),
    "more bytes than its shape": (zipped(npy(size=4 * 29 * 257)), "not those of its shape"),
    "fewer bytes than its shape": (zipped(npy(size=4 * 9 * 256)), "not those of its shape"),
    "pickled objects": (zipped(npy(descr="'|O'")), "holds object"),
    "float64": (zipped(npy(descr="'<f8'")), "holds float64"),
    "big-endian": (zipped(npy(descr="'>f4'")), "holds >f4"),
    "column order": (zipped(npy(order="True")), "C order"),
    "no numbers as shape": (zipped(npy("('a', 1)")), "cannot be read"),
    "code as header": (zipped(npy("__import__('os').abort()")), "cannot be read"),
    "deep header": (zipped(npy("(" * 3000)), "cannot be read"),
    "another version": (zipped(npy().replace(b"NUMPY\1", b"NUMPY\2", 1)), "version"),
}


@pytest.mark.parametrize("name", BAD_PATCHES)
def test_a_patch_that_is_not_as_numpy_writes_it_is_named(tmp_path, name):
    content, message = BAD_PATCHES[name]
    path, load = patch(tmp_path)
    path.write_bytes(zipped(npy()))
    assert not load()["image"].any()
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"p\.npz .*{message}"):
        load()


def test_a_patch_that_changes_later_is_verified_again(tmp_path):
    path, _ = patch(tmp_path)
    dataset = test_chesapeake.Chesapeake(tmp_path, "train", (16, 16))
    content = bytearray(zipped(npy(), zipfile.ZIP_STORED))
    content[-200] ^= 1  # in channel 28, which is not read
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"p\.npz cannot be read \(Bad CRC"):
        dataset[0]


# -------------------------------------------------------------------- tables, names, leftovers


@pytest.mark.parametrize("content", [b"patch_fn\np.npz\0\n", "patch_fn\nä.npz\n".encode("latin-1")])
def test_a_table_that_is_no_utf_8_is_named(tmp_path, content):
    path, load = table_of_chesapeake(tmp_path)
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path.name} cannot be read"):
        load()


def test_leftovers_of_other_systems_are_no_data(tmp_path):
    root = write_cityscapes(tmp_path, {"train": 2})
    identity = Cityscapes(root, "train").identity
    for top, suffix in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        (root / top / "train" / "town" / f"._town_000000_000000_{suffix}.png").write_bytes(b"\0")
        (root / top / "train" / "town" / "Thumbs.db").write_bytes(b"\0")
        (root / top / "train" / ".DS_Store").write_bytes(b"\0")
        (root / top / "train" / "__MACOSX").mkdir()
        (root / top / "train" / "__MACOSX" / f"x_{suffix}.png").write_bytes(b"\0")
    assert Cityscapes(root, "train").identity == identity
