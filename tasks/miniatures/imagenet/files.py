"""Which images the miniature has, and how they are written."""

import zlib
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from tasks.miniatures import generate_once
from tasks.miniatures.imagenet.scene import draw_picture
from tasks.miniatures.imagenet.things import CLASSES

VERSION = 1
SEED = 0
IMAGES_PER_CLASS = {"train": 50, "val": 20}
QUALITY = 85  # of JPEG


def ensure(root: Path | str, seed: int = SEED) -> Path:
    """The miniature's folder, with `train` and `val` in it; see `tasks.miniatures.generate_once`.

    The same seed gives the same bytes (with the same versions of numpy and Pillow, on the
    same kind of processor).
    """
    return generate_once(root, "imagenet", VERSION, seed, partial(_generate, seed))


def _generate(seed: int, folder: Path) -> None:
    """Write all images of both splits under `folder`."""
    jobs = [
        (split, wnid, index)
        for split, count in IMAGES_PER_CLASS.items()
        for index in range(count)
        for wnid in CLASSES
    ]
    for split, wnid, index in tqdm(jobs, unit="image", leave=False, disable=None):
        number = index * len(CLASSES) + list(CLASSES).index(wnid) + 1
        stem = f"{wnid}_{number}" if split == "train" else f"ILSVRC2012_val_{number:08d}"
        path = folder / split / wnid / f"{stem}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(Image.fromarray(render(split, wnid, index, seed)), path, _file_kind(split, number))


def _file_kind(split: str, number: int) -> str:
    """How the `number`-th image of a split is stored: the odd ones of ImageNet are in train."""
    odd = {7: "CMYK", 18: "PNG", 33: "L", 101: "L", 212: "L", 275: "L", 346: "L", 489: "L"}
    return odd.get(number, "RGB") if split == "train" else "RGB"


def _save(image: Image.Image, path: Path, kind: str) -> None:
    if kind == "PNG":
        image.save(path, format="PNG")
    else:
        image.convert(kind).save(path, format="JPEG", quality=QUALITY)


def render(split: str, wnid: str, index: int, seed: int = SEED) -> np.ndarray:
    """Draw one image.

    Args:
        split: "train" or "val".
        wnid: a name from `CLASSES`.
        index: number of the image in its class, from 0.
        seed: seed of the dataset.

    Returns:
        uint8 `[H, W, 3]`, the shorter side 64 to 90. It depends on the arguments alone, not on what
        was drawn before.

    Raises:
        ValueError: there is no such split or class.
    """
    if split not in IMAGES_PER_CLASS or wnid not in CLASSES:
        raise ValueError(f"no class {wnid!r} in split {split!r}; the classes are {[*CLASSES]}")
    rng = np.random.default_rng([seed, zlib.crc32(f"{split}/{wnid}".encode()), index])
    return draw_picture(CLASSES[wnid], rng)
