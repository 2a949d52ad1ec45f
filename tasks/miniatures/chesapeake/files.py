"""Which scenes the miniature has, and how they are written."""

import csv
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine
from tqdm import tqdm

from tasks.miniatures import generate_once
from tasks.miniatures.chesapeake.land_map import SCENE
from tasks.miniatures.chesapeake.materials import (
    BARREN,
    CODES,
    FIELD,
    FOREST,
    IMPERVIOUS,
    NO_DATA,
    ROAD,
    WATER,
)
from tasks.miniatures.chesapeake.scene import draw_scene

VERSION = 1
SEED = 0
RELEASE = "md_1m_2013"
SCENES = {"train": 25, "val": 5, "test": 5}
PATCH, TILE = 64, 256  # pixels
METRES_PER_PIXEL = 4
NLCD_OF = {WATER: 11, FOREST: 41, FIELD: 82, BARREN: 31, IMPERVIOUS: 23, ROAD: 22, NO_DATA: 0}
NLCD_CODES = (
    0, 11, 12, 21, 22, 23, 24, 31, 41, 42, 43, 51, 52, 71, 72, 73, 74, 81, 82, 90, 95, 255,
)  # fmt: skip
LAYERS = ("naip-new", "naip-old", "lc", "nlcd", "landsat-leaf-on", "landsat-leaf-off", "buildings")
COARSE = 8  # pixels of a cell of NLCD and Landsat: 30 metres

Row = dict[str, int | str]  # of a csv file


def ensure(root: Path | str, seed: int = SEED) -> Path:
    """The miniature's folder, with the csv files in it; see `tasks.miniatures.generate_once`.

    The same seed gives the same bytes (with the same versions of numpy, Pillow and
    rasterio, on the same kind of processor).
    """
    return generate_once(root, "chesapeake", VERSION, seed, partial(_generate, seed))


def render(split: str, index: int, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene.

    Args:
        split: ``train``, ``val`` or ``test``.
        index: number of the scene in its split, from 0.
        seed: seed of the dataset.

    Returns:
        The image, uint8 ``[320, 320, 4]`` (red, green, blue, near-infrared), and its land-cover
        codes, uint8 ``[320, 320]``. Both depend on the arguments alone.

    Raises:
        ValueError: there is no such scene.
    """
    if index not in range(SCENES.get(split, 0)):
        raise ValueError(f"no scene {index} in split {split!r}; there are {SCENES}")
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    return draw_scene(index, rng)


def _generate(seed: int, folder: Path) -> None:
    """Write all files of the three splits under `folder`."""
    scenes = [(split, index) for split, count in SCENES.items() for index in range(count)]
    tables: dict[str, list[Row]] = {}
    for number, (split, index) in enumerate(tqdm(scenes, unit="scene", leave=False, disable=None)):
        kind, write = ("tiles", _write_tile) if split == "test" else ("patches", _write_patches)
        name = f"{RELEASE}_extended-{split}_{kind}"
        (folder / name).mkdir(parents=True, exist_ok=True)
        rows = write(folder / name, _quad(number), index, *render(split, index, seed))
        tables.setdefault(name, []).extend(rows)
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def _quad(number: int) -> str:
    """A name as of NAIP: degrees, number and quarter of the quadrangle, UTM zone, metres."""
    return f"m_39076{1 + number // 4:02d}_{('nw', 'ne', 'sw', 'se')[number % 4]}_18_1"


def _write_patches(
    folder: Path, quad: str, index: int, image: np.ndarray, label: np.ndarray
) -> list[Row]:
    """Cut the scene `index` of a split into patches side by side; returns their rows of the csv."""
    rows: list[Row] = []
    for number in range((SCENE // PATCH) ** 2):
        y, x = (PATCH * i for i in divmod(number, SCENE // PATCH))
        cut = slice(y, y + PATCH), slice(x, x + PATCH)
        channels = _channels(image[cut], label[cut])
        path = folder / f"{RELEASE}-{quad}-{number}.npz"
        np.savez_compressed(path, channels[None])
        count = {c: np.bincount(channels[c].astype(int).ravel(), minlength=256) for c in (8, 9)}
        row: Row = {"patch_id": index * (SCENE // PATCH) ** 2 + number}
        row |= {"patch_fn": f"{folder.name}/{path.name}", "tile_id": index}
        row |= {"x_coord": x, "y_coord": y, "size": PATCH}
        row |= {f"lc_class_{code}_count": int(count[8][code]) for code in CODES}
        row |= {f"nlcd_class_{code}_count": int(count[9][code]) for code in NLCD_CODES}
        rows.append(row)
    return rows


def _channels(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The 29 channels of a patch, float32 [29, 64, 64].

    NAIP twice (new and old), land cover, NLCD, Landsat 8 leaf-on and leaf-off (9 bands each),
    buildings. Nothing but NAIP and land cover is used by the task: the rest has the right codes and
    magnitudes, no more.
    """
    channels = np.zeros((29, PATCH, PATCH), dtype=np.float32)
    naip = np.moveaxis(image, -1, 0)
    channels[0:4] = channels[4:8] = naip
    channels[8] = label
    nlcd = np.vectorize(NLCD_OF.get)(label[COARSE // 2 :: COARSE, COARSE // 2 :: COARSE])
    cells = naip.reshape(4, PATCH // COARSE, COARSE, PATCH // COARSE, COARSE).mean((2, 4))
    coarse = np.ones((COARSE, COARSE), dtype=np.float32)
    channels[9] = np.kron(nlcd, coarse)
    channels[10:28] = np.kron(12 * cells[np.arange(18) % 4], coarse)
    channels[28] = label == IMPERVIOUS
    return channels


def _write_tile(
    folder: Path, quad: str, index: int, image: np.ndarray, label: np.ndarray
) -> list[Row]:
    """Write the scene `index` of a split, cut to a tile, as GeoTIFFs; returns its csv row."""
    east = 360000 + index * METRES_PER_PIXEL * TILE
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "width": TILE,
        "height": TILE,
        "compress": "lzw",
        "crs": "EPSG:26918",
        "transform": Affine(METRES_PER_PIXEL, 0, east, 0, -METRES_PER_PIXEL, 4370000),
    }
    layers = {"naip-new": np.moveaxis(image, -1, 0), "lc": label[None]}
    for layer, bands in layers.items():
        path = folder / f"{quad}_{layer}.tif"
        with rasterio.open(path, "w", count=len(bands), **profile) as raster:
            raster.write(bands[:, :TILE, :TILE])
    paths = {layer: f"{folder.name}/{quad}_{layer}.tif" for layer in layers}
    return [{"id": index} | {f"{layer}_fn": paths.get(layer, "") for layer in LAYERS}]
