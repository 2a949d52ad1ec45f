"""Which images the miniature has, and how they are written."""

import zlib
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from tasks.miniatures import generate_once
from tasks.miniatures.cityscapes.city import CITIES, style_of
from tasks.miniatures.cityscapes.scene import draw_image

VERSION = 1
SEED = 0
IMAGES_PER_CITY = {"train": 25, "val": 10}


def ensure(root: Path | str, seed: int = SEED) -> Path:
    """The folder with `leftImg8bit` and `gtFine`; see `tasks.miniatures.generate_once`.

    The same seed gives the same bytes (with the same versions of numpy and Pillow, on the
    same kind of processor).
    """
    return generate_once(root, "cityscapes", VERSION, seed, partial(_generate, seed))


def _generate(seed: int, folder: Path) -> None:
    """Write all images of both splits under `folder`."""
    jobs = [
        (split, city, index)
        for split, cities in CITIES.items()
        for city in cities
        for index in range(IMAGES_PER_CITY[split])
    ]
    for split, city, index in tqdm(jobs, unit="image", leave=False, disable=None):
        image, labels = render(split, city, index, seed)
        stem = f"{city}_{index:06d}_000019"  # the 20th frame of a sequence, as in Cityscapes
        for kind, name, pixels in (
            ("leftImg8bit", f"{stem}_leftImg8bit.png", image),
            ("gtFine", f"{stem}_gtFine_labelIds.png", labels),
        ):
            path = folder / kind / split / city / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def render(split: str, city: str, index: int, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image.

    Args:
        split: "train" or "val".
        city: a name from `CITIES[split]`.
        index: number of the image in its city, from 0.
        seed: seed of the dataset.

    Returns:
        The image, uint8 `[128, 256, 3]`, and its Cityscapes labelIds, uint8 `[128, 256]`. Both
        depend on the arguments alone, not on what was drawn before.

    Raises:
        ValueError: `city` is not a city of `split`.
    """
    if city not in CITIES.get(split, ()):
        raise ValueError(f"no city {city!r} in split {split!r}; the cities are {CITIES}")
    rng = np.random.default_rng([seed, zlib.crc32(f"{split}/{city}".encode()), index + 1])
    return draw_image(style_of(split, city, seed), index, rng)
