"""The miniatures stay what they are: recorded looks, digests of pixels, digests of whole folders.

A changed miniature changes every result on it. To change one on purpose, raise its VERSION and
record anew: ``python tests/test_mini_bytes.py`` prints the looks and the digests of pixels.
"""

import hashlib
import importlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from tasks.miniatures import chesapeake, cityscapes, coco, ensure_for_task, imagenet, inria

Arrays = list[np.ndarray]  # of one picture: the picture, then its labels or masks


def of_coco(split: str, index: int) -> Arrays:
    picture, instances = coco.render(split, index)
    return [picture, *(instance.mask for instance in instances)]


# Together they show every kind of thing: of Cityscapes a bus, a truck, a tram, riders and parked
# two-wheelers; of ImageNet each class; of COCO a crowd; of Chesapeake each theme.
DRAWN: dict[str, Callable[[], list[Arrays]]] = {
    "cityscapes": lambda: [
        [*cityscapes.render(split, cities[k], k)]
        for split, cities in cityscapes.CITIES.items()
        for k in range(5)
    ],
    "coco": lambda: [of_coco(split, index) for split in ("train", "val") for index in range(8)],
    "imagenet": lambda: [[imagenet.render("val", wnid, 3)] for wnid in imagenet.CLASSES],
    "inria": lambda: [[*inria.render("train", "tyrol-w", 1)], [*inria.render("test", "sfo", 1)]],
    "chesapeake": lambda: [[*chesapeake.render("val", index)] for index in range(5)],
}
# sha256 of all arrays of DRAWN.
PIXELS = {
    "cityscapes": "ea9300ec96e2888cb48d67091a1eb491d0afb8e9d03b6e80e94738ca2912cb0f",
    "coco": "5e1cae443ccdaa9fab3b3622c91debf1983c038e68b5f754aae59a11545d7ed9",
    "imagenet": "2f8bd78c4dd5e7e8d5cbe113d60bbdb0ca1643f9c42f82cd4d9692e9881b17e0",
    "inria": "9af8eaa4e64dd6d4a6a289369fa14cd230b5db88ed0c9d54aa3cd001f619deec",
    "chesapeake": "5a0bde7a864419a4685ff5aa1a8dc3c3ea2563462b630d4aadea601e579d6c49",
}
# Mean brightness of each picture of DRAWN in the cells of a 2 x 2 grid, 0..255.
LOOKS = {
    "cityscapes": [
        [170, 130, 144, 140], [153, 154, 101, 117], [125, 115, 107, 139], [154, 127, 127, 154],
        [154, 123, 88, 91], [125, 145, 117, 116], [107, 128, 133, 122], [116, 128, 108, 147],
        [137, 92, 123, 117], [211, 165, 94, 100],
    ],
    "coco": [
        [53, 52, 72, 58], [89, 93, 78, 76], [217, 217, 191, 186], [52, 51, 79, 77],
        [80, 60, 90, 66], [135, 195, 119, 175], [97, 98, 93, 103], [150, 113, 155, 87],
        [75, 109, 64, 92], [160, 83, 189, 81], [49, 40, 46, 46], [75, 64, 72, 75],
        [117, 120, 88, 94], [116, 105, 109, 102], [91, 94, 122, 134], [88, 99, 78, 96],
    ],
    "imagenet": [
        [96, 99, 107, 99], [114, 102, 75, 67], [78, 91, 77, 71], [129, 133, 89, 89],
        [68, 56, 59, 62], [107, 118, 100, 99], [133, 151, 95, 76], [139, 133, 126, 103],
        [56, 53, 94, 91], [73, 88, 63, 55],
    ],
    "inria": [
        [123, 135, 148, 143], [195, 187, 173, 172],
    ],
    "chesapeake": [
        [70, 133, 86, 132], [92, 83, 86, 94], [56, 75, 44, 86], [100, 98, 115, 114],
        [100, 101, 105, 96],
    ],
}  # fmt: skip
# sha256 over all files, sorted by name: relative path, a zero byte, sha256 of the content.
FOLDERS = {
    "cityscapes": "52229731ee1fd2534390bd38aaf7f99b107689c3d18d5c518464f0fc4918a00b",
    "coco": "b89124545a66731e51cd3e2216dd4bae14d9d42f6298ef6c987d09fd755f03e0",
    "imagenet": "eda2da5a6f15b91eb5b2d8534012c87ac3e3e567f248e26506cda62259ed6a64",
    "inria": "0cd96ee4ee43b9b51ed311c012426e9211312f2fe0e126e691723f74a17d24ac",
    "chesapeake": "3ea573799a319d0a49bde452118cbe8b9fe4ab6cad21043eeb36d1cf0fcbadd3",
}
# Where they were recorded: what numpy and Pillow compute there, and who encoded the files.
ARITHMETIC = "5e96601e2c207c0f0176510f9a26c3e0d998fee8716463bcf56c36ef22caa753"
ENCODERS = {"numpy": "2.4.6", "pillow": "13.0.0", "rasterio": "1.4.4"}


def digest(arrays: Arrays) -> str:
    """Of sizes, dtypes and contents."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.shape}{array.dtype}".encode() + array.tobytes())
    return found.hexdigest()


def look(picture: np.ndarray) -> list[int]:
    """Mean brightness of the four quarters of a picture [H, W, C]."""
    halves = np.array_split(picture.mean(-1), 2)
    return [round(float(cell.mean())) for half in halves for cell in np.array_split(half, 2, 1)]


def arithmetic() -> str:
    """Digest of what numpy and Pillow compute: processors differ in the last bits of `exp`, say."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.01, 20, 10_000)
    functions = (np.exp, np.log, np.sin, np.cos, np.sqrt, np.arctan2, np.hypot, np.power)
    arrays = [
        np.asarray(function(*[values] * function.nin))
        for values in (x / 10, (x / 10).astype(np.float32))
        for function in functions
    ]
    arrays += [np.fft.irfft2(np.fft.rfft2(rng.random((64, 64)))), rng.normal(size=1000)]
    image = Image.new("RGB", (64, 64))
    pen = ImageDraw.Draw(image)
    pen.polygon([(3.2, 4.1), (60.3, 9.7), (31.5, 62.2)], fill=(250, 3, 77))
    pen.line([(3.7, 60.2), (50.1, 11.6), (62.3, 40.9)], fill=(9, 200, 30), width=5, joint="curve")
    pen.ellipse((20.5, 11.2, 55.1, 33.7), fill=(70, 80, 190))
    image = image.filter(ImageFilter.GaussianBlur(1.3))
    small = image.resize((23, 17), Image.Resampling.BICUBIC)
    return digest([*arrays, np.asarray(image), np.asarray(small), np.asarray(image.reduce(3))])


@pytest.fixture(scope="module", params=list(DRAWN))
def drawn(request: pytest.FixtureRequest) -> tuple[str, list[Arrays]]:
    return request.param, DRAWN[request.param]()


def test_pictures_look_as_recorded(drawn):
    """On every machine. Coarse: a change of light or layout is seen, of a small thing is not."""
    name, pictures = drawn
    found = [look(picture) for picture, *_ in pictures]
    np.testing.assert_allclose(found, LOOKS[name], atol=1)


def test_pixels_are_the_recorded_ones(drawn):
    name, pictures = drawn
    if arithmetic() != ARITHMETIC:
        pytest.skip("numpy or Pillow compute other last bits here than where this was recorded")
    assert digest([array for arrays in pictures for array in arrays]) == PIXELS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_files_are_the_recorded_ones(name, tmp_path):
    here = {package: importlib.metadata.version(package) for package in ENCODERS}
    if here != ENCODERS or arithmetic() != ARITHMETIC:
        pytest.skip("this machine computes or encodes otherwise than where this was recorded")
    folder = ensure_for_task(name, tmp_path)
    assert folder_digest(folder) == FOLDERS[name]


def folder_digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = hashlib.sha256(path.read_bytes()).digest()
            found.update(str(path.relative_to(folder)).encode() + b"\0" + content)
    return found.hexdigest()


if __name__ == "__main__":
    print("ARITHMETIC =", repr(arithmetic()))
    for name, draw in DRAWN.items():
        pictures = draw()
        print(name, digest([array for arrays in pictures for array in arrays]))
        print([look(picture) for picture, *_ in pictures])
