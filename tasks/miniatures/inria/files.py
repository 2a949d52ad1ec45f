"""Which tiles the miniature has, and how they are written."""

import zlib
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from rasterio import Affine
from tqdm import tqdm

from tasks.miniatures import generate_once
from tasks.miniatures.inria.cities import CITIES, STYLES, City
from tasks.miniatures.inria.grid import GROUND_SAMPLING, SIZE
from tasks.miniatures.inria.scene import draw_tile

VERSION = 1
SEED = 0
TILES_PER_CITY = {"train": 6, "test": 2}


def ensure(root: Path | str, seed: int = SEED) -> Path:
    """The folder with `AerialImageDataset`; see `tasks.miniatures.generate_once`.

    The same seed gives the same bytes (with the same versions of numpy, Pillow and
    rasterio, on the same kind of processor).
    """
    return generate_once(root, "inria", VERSION, seed, partial(_generate, seed))


def _generate(seed: int, folder: Path) -> None:
    """Write all tiles of both splits under `folder`."""
    jobs = [
        (split, city, number)
        for split, cities in CITIES.items()
        for city in cities
        for number in range(1, TILES_PER_CITY[split] + 1)
    ]
    for split, city, number in tqdm(jobs, unit="tile", leave=False, disable=None):
        image, mask = render(split, city, number, seed)
        for kind, pixels in (("images", image), ("gt", mask[..., None])):
            path = folder / "AerialImageDataset" / split / kind / f"{city}{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_geotiff(path, pixels, STYLES[city], number)


def _write_geotiff(path: Path, pixels: np.ndarray, city: City, number: int) -> None:
    """Write uint8 [H, W, bands]; the tiles of a city lie side by side, from west to east."""
    east, north = city.corner
    west = east + (number - 1) * SIZE * GROUND_SAMPLING
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "count": pixels.shape[2],
        "crs": f"EPSG:{city.epsg}",
        "transform": Affine(GROUND_SAMPLING, 0, west, 0, -GROUND_SAMPLING, north),
    }
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(np.moveaxis(pixels, -1, 0))


def render(split: str, city: str, number: int, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Draw one tile.

    Args:
        split: "train" or "test".
        city: a name from `CITIES[split]`.
        number: of the tile in its city, from 1.
        seed: seed of the dataset.

    Returns:
        The image, uint8 `[500, 500, 3]`, and its mask, uint8 `[500, 500]` of 0 and 255. Both depend
        on the arguments alone, not on what was drawn before.

    Raises:
        ValueError: `city` is not a city of `split`.
    """
    if city not in CITIES.get(split, ()):
        raise ValueError(f"no city {city!r} in split {split!r}; the cities are {CITIES}")
    rng = np.random.default_rng([seed, zlib.crc32(f"{split}/{city}".encode()), number])
    return draw_tile(STYLES[city], rng)
