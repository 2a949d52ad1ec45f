"""Miniature INRIA aerial images: generated towns in INRIA's own files, layout and city names.

A stand-in for the INRIA Aerial Image Labeling dataset at 1/4 of its resolution (1.2 m instead of
0.3 m a pixel) and 1/10 of its tile size (500 x 500 pixels, 600 m), for trying the pipeline and for
comparing normalizations in minutes. No real image is used. Five training cities of six tiles,
five other test cities of two; cities differ in roofs, light, density, streets and ground. Unlike
the real test tiles, these have masks (`test/gt`), so that they can be scored.

Files, under the folder that `ensure` returns::

    AerialImageDataset/{train,test}/images/<city><n>.tif    8-bit RGB GeoTIFF
    AerialImageDataset/{train,test}/gt/<city><n>.tif        8-bit GeoTIFF, 0 or 255 (building)

How a tile is made: a scene holds the height above ground, the reflectance and the footprints at
twice the tile's resolution. Streets are drawn first; buildings, yards, parking lots and sports
courts are then put along them, trees and cars where there is room. Light follows from the heights
alone (slopes towards the sun are bright, and everything casts its shadow), so that roofs are told
from the flat pavements, courts and fields of the same colour. Clouds, haze and the seam of two
flights change the light within a tile.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image, ImageDraw
from rasterio import Affine
from tqdm import tqdm

from tasks.miniatures import generate_once

VERSION = 1
SEED = 0
SIZE = 500  # pixels, both sides of a tile
GROUND_SAMPLING = 1.2  # metres per pixel
TILES_PER_CITY = {"train": 6, "test": 2}
CITIES = {
    "train": ("austin", "chicago", "kitsap", "tyrol-w", "vienna"),
    "test": ("bellingham", "bloomington", "innsbruck", "sfo", "tyrol-e"),
}

SUPERSAMPLING = 2
MARGIN = 15  # pixels drawn around the tile: what stands there casts shadows into it
CELL = GROUND_SAMPLING / SUPERSAMPLING  # metres, as everything below that is not in pixels
CELLS = (SIZE + 2 * MARGIN) * SUPERSAMPLING
EXTENT = CELLS * CELL

Colour = tuple[float, float, float]


def ensure(root: Path | str, seed: int = SEED) -> Path:
    """The folder with `AerialImageDataset`; see `tasks.miniatures.generate_once`.

    The same seed gives the same bytes (with the same versions of numpy, Pillow and rasterio).
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
    return Scene(STYLES[city], rng).render()


# ------------------------------------------------------------------------------------- cities


@dataclass(frozen=True)
class Light:
    """Sun, air and camera of one city's flight. Colours are RGB factors."""

    elevation: float  # of the sun, degrees
    azimuth: float  # of the sun, degrees clockwise from north
    sky: float  # share of the light on open ground that shade gets too
    tint: Colour  # white balance
    exposure: float
    haze: float  # share of haze in a pixel's light, mean over the tile
    clouds: float  # share of the tile in cloud shadow, at most
    gamma: float
    saturation: float


@dataclass(frozen=True)
class Streets:
    """A grid of streets, which `bend` turns into winding roads."""

    spacing: tuple[float, float]  # of the streets of the two directions; 0: none
    width: float
    bend: float  # metres that a street strays from its line


@dataclass(frozen=True)
class Town:
    """What stands along the streets."""

    frontage: tuple[float, float]  # length of a building along the street
    depth: tuple[float, float]
    gap: tuple[float, float]  # between neighbours; 0 makes closed rows
    setback: tuple[float, float]
    height: tuple[float, float]  # of the eaves
    density: float  # share of lots that are built on
    villages: float  # 0: evenly built; 1: in clusters only
    roofs: dict[str, float]  # shapes (see `_roof`) and how frequent they are
    pitch: float  # rise per metre
    colours: tuple[Colour, ...]  # of roofs
    wings: float  # share of buildings of L shape
    halls: float  # share of lots with a large hall or a parking lot


@dataclass(frozen=True)
class Land:
    """Ground and plants. Colours are reflectances."""

    grass: tuple[Colour, ...]
    yard: Colour
    asphalt: Colour
    paving: Colour
    foliage: tuple[Colour, ...]
    trees: float  # single ones per hectare
    forest: float = 0.0  # share of the ground
    farmed: float = 0.0  # share of the ground
    fields: tuple[Colour, ...] = ()


@dataclass(frozen=True)
class City:
    """What all tiles of one city share."""

    epsg: int  # of the coordinate system, metres
    corner: tuple[float, float]  # of the first tile: easting of its west, northing of its north
    light: Light
    streets: Streets
    town: Town
    land: Land


_TILE_RED, _TILE_BROWN = (0.46, 0.22, 0.15), (0.33, 0.22, 0.17)
_SLATE, _GREY, _PALE = (0.2, 0.21, 0.23), (0.36, 0.36, 0.36), (0.62, 0.61, 0.58)
_TAN, _WHITE = (0.47, 0.39, 0.3), (0.8, 0.8, 0.78)
_BLUE, _GREEN = (0.24, 0.31, 0.4), (0.24, 0.34, 0.3)

STYLES = {
    "austin": City(
        epsg=26914, corner=(616_500, 3_348_000),
        light=Light(
            elevation=62, azimuth=150, sky=0.3, tint=(1.04, 1.0, 0.95), exposure=1.12, haze=0.03,
            clouds=0.0, gamma=2.1, saturation=1.1,
        ),
        streets=Streets(spacing=(78, 190), width=9, bend=14),
        town=Town(
            frontage=(12, 18), depth=(10, 15), gap=(3, 8), setback=(6, 10), height=(3, 4.5),
            density=0.88, villages=0.1, roofs={"hip": 0.65, "gable": 0.25, "flat": 0.1},
            pitch=0.45, colours=(_TAN, _GREY, _TILE_BROWN, _PALE), wings=0.45, halls=0.05,
        ),
        land=Land(
            grass=((0.36, 0.34, 0.2), (0.28, 0.32, 0.15)), yard=(0.4, 0.36, 0.26),
            asphalt=(0.34, 0.34, 0.34), paving=(0.58, 0.56, 0.52),
            foliage=((0.12, 0.19, 0.08), (0.17, 0.22, 0.1)), trees=16,
        ),
    ),
    "chicago": City(
        epsg=26916, corner=(443_000, 4_640_000),
        light=Light(
            elevation=45, azimuth=200, sky=0.42, tint=(0.97, 1.0, 1.05), exposure=0.85, haze=0.09,
            clouds=0.3, gamma=2.0, saturation=0.8,
        ),
        streets=Streets(spacing=(70, 200), width=11, bend=0),
        town=Town(
            frontage=(6.5, 8.5), depth=(15, 21), gap=(0.8, 3), setback=(4, 6), height=(6, 9),
            density=0.85, villages=0.0, roofs={"flat": 0.7, "gable": 0.3}, pitch=0.5,
            colours=(_GREY, _SLATE, _PALE, _TILE_BROWN), wings=0.0, halls=0.07,
        ),
        land=Land(
            grass=((0.2, 0.27, 0.13), (0.25, 0.27, 0.17)), yard=(0.22, 0.27, 0.15),
            asphalt=(0.3, 0.3, 0.31), paving=(0.48, 0.48, 0.47),
            foliage=((0.1, 0.17, 0.07), (0.14, 0.2, 0.09)), trees=12,
        ),
    ),
    "kitsap": City(
        epsg=26910, corner=(520_000, 5_271_000),
        light=Light(
            elevation=38, azimuth=165, sky=0.25, tint=(0.95, 1.02, 1.03), exposure=0.8, haze=0.03,
            clouds=0.35, gamma=2.3, saturation=1.0,
        ),
        streets=Streets(spacing=(115, 0), width=7, bend=50),
        town=Town(
            frontage=(11, 18), depth=(9, 13), gap=(8, 22), setback=(8, 18), height=(3, 5.5),
            density=0.8, villages=0.25, roofs={"gable": 0.75, "hip": 0.25}, pitch=0.55,
            colours=(_GREY, _SLATE, _TILE_BROWN, _GREEN), wings=0.35, halls=0.04,
        ),
        land=Land(
            grass=((0.25, 0.31, 0.13), (0.33, 0.32, 0.18)), yard=(0.32, 0.29, 0.22),
            asphalt=(0.28, 0.28, 0.28), paving=(0.42, 0.42, 0.4),
            foliage=((0.07, 0.13, 0.06), (0.09, 0.15, 0.08)), forest=0.35, trees=22,
        ),
    ),
    "tyrol-w": City(
        epsg=31254, corner=(40_000, 230_500),
        light=Light(
            elevation=52, azimuth=140, sky=0.22, tint=(1.0, 1.0, 1.0), exposure=1.1, haze=0.02,
            clouds=0.4, gamma=2.0, saturation=1.0,
        ),
        streets=Streets(spacing=(95, 160), width=6, bend=45),
        town=Town(
            frontage=(13, 21), depth=(11, 16), gap=(6, 16), setback=(3, 9), height=(5, 8),
            density=0.92, villages=0.45, roofs={"gable": 0.85, "hip": 0.15}, pitch=0.4,
            colours=(_TILE_RED, _TILE_BROWN, _SLATE, _GREY), wings=0.3, halls=0.05,
        ),
        land=Land(
            grass=((0.26, 0.38, 0.1), (0.3, 0.4, 0.13)), yard=(0.34, 0.36, 0.2),
            asphalt=(0.38, 0.38, 0.38), paving=(0.56, 0.55, 0.52),
            foliage=((0.06, 0.13, 0.05), (0.12, 0.2, 0.07)),
            fields=((0.33, 0.42, 0.14), (0.42, 0.4, 0.2), (0.36, 0.27, 0.18), (0.22, 0.34, 0.1)),
            farmed=0.6, forest=0.12, trees=8,
        ),
    ),
    "vienna": City(
        epsg=31256, corner=(1_000, 341_000),
        light=Light(
            elevation=40, azimuth=175, sky=0.38, tint=(1.05, 1.0, 0.95), exposure=0.95, haze=0.08,
            clouds=0.15, gamma=2.2, saturation=0.95,
        ),
        streets=Streets(spacing=(95, 120), width=13, bend=4),
        town=Town(
            frontage=(15, 26), depth=(11, 14), gap=(0, 0), setback=(0.5, 1.5), height=(14, 20),
            density=0.93, villages=0.0, roofs={"gable": 0.7, "flat": 0.2, "hip": 0.1}, pitch=0.6,
            colours=(_TILE_RED, _TILE_BROWN, _GREY, _SLATE), wings=0.25, halls=0.03,
        ),
        land=Land(
            grass=((0.25, 0.3, 0.15), (0.38, 0.36, 0.3)), yard=(0.37, 0.36, 0.31),
            asphalt=(0.33, 0.33, 0.33), paving=(0.45, 0.43, 0.4),
            foliage=((0.11, 0.19, 0.08), (0.17, 0.24, 0.1)), trees=14,
        ),
    ),
    "bellingham": City(
        epsg=26910, corner=(538_000, 5_401_000),
        light=Light(
            elevation=33, azimuth=190, sky=0.5, tint=(0.94, 1.02, 1.06), exposure=0.72, haze=0.12,
            clouds=0.3, gamma=2.2, saturation=0.85,
        ),
        streets=Streets(spacing=(85, 130), width=9, bend=10),
        town=Town(
            frontage=(10, 16), depth=(9, 13), gap=(4, 12), setback=(6, 11), height=(4, 6),
            density=0.82, villages=0.2, roofs={"gable": 0.65, "hip": 0.2, "flat": 0.15},
            pitch=0.55, colours=(_SLATE, _GREY, _TILE_BROWN, _BLUE), wings=0.35, halls=0.06,
        ),
        land=Land(
            grass=((0.24, 0.32, 0.14), (0.28, 0.31, 0.17)), yard=(0.27, 0.29, 0.18),
            asphalt=(0.31, 0.31, 0.32), paving=(0.45, 0.45, 0.44),
            foliage=((0.08, 0.15, 0.07), (0.11, 0.18, 0.08)), forest=0.15, trees=20,
        ),
    ),
    "bloomington": City(
        epsg=26916, corner=(540_000, 4_336_000),
        light=Light(
            elevation=28, azimuth=215, sky=0.22, tint=(1.08, 1.0, 0.88), exposure=1.15, haze=0.04,
            clouds=0.2, gamma=2.1, saturation=0.9,
        ),
        streets=Streets(spacing=(95, 210), width=8, bend=30),
        town=Town(
            frontage=(12, 19), depth=(9, 13), gap=(6, 16), setback=(8, 14), height=(3, 5),
            density=0.75, villages=0.3, roofs={"gable": 0.6, "hip": 0.25, "flat": 0.15}, pitch=0.5,
            colours=(_TILE_BROWN, _GREY, _PALE, _TAN), wings=0.4, halls=0.07,
        ),
        land=Land(
            grass=((0.36, 0.33, 0.2), (0.4, 0.35, 0.24)), yard=(0.38, 0.33, 0.24),
            asphalt=(0.36, 0.35, 0.34), paving=(0.56, 0.54, 0.5),
            foliage=((0.3, 0.2, 0.1), (0.22, 0.17, 0.11), (0.14, 0.17, 0.09)),
            fields=((0.42, 0.35, 0.24), (0.36, 0.34, 0.2)), farmed=0.15, forest=0.18, trees=18,
        ),
    ),
    "innsbruck": City(
        epsg=31254, corner=(80_000, 237_000),
        light=Light(
            elevation=47, azimuth=160, sky=0.3, tint=(0.93, 0.99, 1.1), exposure=1.0, haze=0.2,
            clouds=0.3, gamma=2.0, saturation=0.95,
        ),
        streets=Streets(spacing=(85, 125), width=10, bend=18),
        town=Town(
            frontage=(14, 24), depth=(11, 14), gap=(0, 9), setback=(1, 5), height=(9, 15),
            density=0.85, villages=0.2, roofs={"gable": 0.45, "hip": 0.25, "flat": 0.3},
            pitch=0.45, colours=(_TILE_RED, _SLATE, _PALE, _GREY, _GREEN), wings=0.3, halls=0.06,
        ),
        land=Land(
            grass=((0.25, 0.36, 0.12), (0.29, 0.36, 0.15)), yard=(0.34, 0.35, 0.25),
            asphalt=(0.36, 0.36, 0.37), paving=(0.52, 0.51, 0.5),
            foliage=((0.09, 0.17, 0.07), (0.13, 0.21, 0.08)),
            fields=((0.31, 0.4, 0.14), (0.4, 0.37, 0.22)), farmed=0.25, forest=0.05, trees=14,
        ),
    ),
    "sfo": City(
        epsg=26910, corner=(548_000, 4_180_500),
        light=Light(
            elevation=55, azimuth=230, sky=0.35, tint=(1.02, 1.0, 0.98), exposure=1.3, haze=0.16,
            clouds=0.0, gamma=2.3, saturation=0.7,
        ),
        streets=Streets(spacing=(75, 150), width=14, bend=0),
        town=Town(
            frontage=(7, 9), depth=(15, 20), gap=(0, 0.6), setback=(0.5, 3), height=(7, 12),
            density=0.93, villages=0.0, roofs={"flat": 0.85, "shed": 0.1, "gable": 0.05},
            pitch=0.3, colours=(_PALE, _WHITE, _GREY, _TAN), wings=0.1, halls=0.04,
        ),
        land=Land(
            grass=((0.34, 0.34, 0.22), (0.29, 0.32, 0.18)), yard=(0.36, 0.34, 0.27),
            asphalt=(0.37, 0.37, 0.37), paving=(0.62, 0.6, 0.57),
            foliage=((0.12, 0.19, 0.09), (0.16, 0.22, 0.11)), trees=7,
        ),
    ),
    "tyrol-e": City(
        epsg=31254, corner=(180_000, 190_500),
        light=Light(
            elevation=30, azimuth=115, sky=0.18, tint=(1.06, 1.0, 0.92), exposure=0.95, haze=0.05,
            clouds=0.35, gamma=2.2, saturation=1.0,
        ),
        streets=Streets(spacing=(105, 0), width=6, bend=60),
        town=Town(
            frontage=(12, 22), depth=(10, 16), gap=(6, 16), setback=(3, 10), height=(4, 8),
            density=0.92, villages=0.5, roofs={"gable": 0.9, "shed": 0.1}, pitch=0.5,
            colours=(_TILE_BROWN, _GREY, _SLATE, _TILE_RED), wings=0.2, halls=0.06,
        ),
        land=Land(
            grass=((0.32, 0.36, 0.14), (0.38, 0.37, 0.18)), yard=(0.4, 0.37, 0.26),
            asphalt=(0.4, 0.39, 0.38), paving=(0.56, 0.54, 0.5),
            foliage=((0.06, 0.12, 0.05), (0.1, 0.16, 0.06)),
            fields=((0.42, 0.4, 0.18), (0.46, 0.38, 0.24), (0.3, 0.36, 0.14)), farmed=0.65,
            forest=0.2, trees=8,
        ),
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------ texture


SMOOTH, PATCHY, GRAINY = 2.0, 1.4, 0.9
"""Exponents of `_noise`."""


@lru_cache(maxsize=3)
def _noise(exponent: float) -> np.ndarray:
    """Periodic noise [CELLS, CELLS] of spectrum f^-exponent: float32, uniform in 0..1.

    The same for all tiles and seeds; a scene moves and turns it.
    """
    rng = np.random.default_rng(7)
    fy, fx = np.fft.fftfreq(CELLS)[:, None], np.fft.rfftfreq(CELLS)[None]
    radius = np.maximum(np.hypot(fy, fx), 1 / CELLS)
    white = np.fft.rfft2(rng.standard_normal((CELLS, CELLS)))
    noise = np.fft.irfft2(white / radius**exponent, s=(CELLS, CELLS))
    uniform = np.empty(CELLS * CELLS, np.float32)
    uniform[np.argsort(noise, axis=None)] = np.linspace(0, 1, CELLS * CELLS, dtype=np.float32)
    return uniform.reshape(CELLS, CELLS)


@lru_cache(maxsize=1)
def _canopy() -> np.ndarray:
    """Periodic heights of a closed forest [CELLS, CELLS]: float32 domes, 0..1."""
    pitch = 10  # cells between trees; divides CELLS
    count = CELLS // pitch
    rng = np.random.default_rng(8)
    centre = rng.uniform(0, pitch, (2, count, count)).astype(np.float32)
    tall = rng.uniform(0.55, 1, (count, count)).astype(np.float32)
    cell_y, cell_x = np.indices((CELLS, CELLS)) // pitch
    in_y, in_x = (np.indices((CELLS, CELLS), np.float32)) % pitch
    canopy = np.zeros((CELLS, CELLS), np.float32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            y, x = (cell_y + dy) % count, (cell_x + dx) % count
            distance = (dy * pitch + centre[0, y, x] - in_y) ** 2
            distance += (dx * pitch + centre[1, y, x] - in_x) ** 2
            dome = tall[y, x] * np.sqrt(np.maximum(0, 1 - distance / (0.9 * pitch) ** 2))
            np.maximum(canopy, dome, out=canopy)
    return canopy


# -------------------------------------------------------------------------------------- scene


@dataclass(frozen=True)
class Box:
    """A rectangle on the ground: centre, direction of its first axis, half its two sides."""

    x: float
    y: float  # to the south, as rows count
    angle: float
    half_u: float
    half_v: float

    def at(self, u: float, v: float) -> tuple[float, float]:
        """The place of the box's own coordinates (u, v)."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        return self.x + u * c - v * s, self.y + u * s + v * c

    def inner(self, u: float, v: float, half_u: float, half_v: float, turn: float = 0) -> Box:
        """A box around the place (u, v) of this one."""
        return Box(*self.at(u, v), self.angle + turn, half_u, half_v)

    def ridged(self) -> Box:
        """The same rectangle with its longer side first."""
        if self.half_u >= self.half_v:
            return self
        return Box(self.x, self.y, self.angle + math.pi / 2, self.half_v, self.half_u)


@dataclass(frozen=True)
class Patch:
    """The cells around a box: where they are, their place along its axes, which lie in it."""

    window: tuple[slice, slice]
    u: np.ndarray
    v: np.ndarray
    inside: np.ndarray


def _patch(box: Box, grow: float = 0.0) -> Patch:
    c, s = math.cos(box.angle), math.sin(box.angle)
    reach_x = abs(box.half_u * c) + abs(box.half_v * s) + grow
    reach_y = abs(box.half_u * s) + abs(box.half_v * c) + grow

    def cells(middle: float, reach: float) -> slice:
        low, high = (math.floor((middle + side * reach) / CELL) for side in (-1, 1))
        return slice(min(max(low, 0), CELLS), min(max(high + 1, 0), CELLS))

    rows, columns = cells(box.y, reach_y), cells(box.x, reach_x)
    y = ((np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) * CELL - box.y)[:, None]
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5) * CELL - box.x
    u, v = x * c + y * s, y * c - x * s
    inside = (np.abs(u) <= box.half_u + grow) & (np.abs(v) <= box.half_v + grow)
    return Patch((rows, columns), u, v, inside)


def _roof(shape: str, pitch: float, box: Box, patch: Patch) -> np.ndarray:
    """Height of a roof above its eaves; the ridge runs along the box's first axis."""
    across, along = box.half_v - np.abs(patch.v), box.half_u - np.abs(patch.u)
    if shape == "gable":
        return pitch * across
    if shape == "hip":
        return pitch * np.minimum(across, along)
    if shape == "shed":
        return 0.5 * pitch * (box.half_v - patch.v)
    if shape == "saw":  # of a factory
        return 0.5 * ((patch.u + box.half_u) % 8)
    return np.where(np.minimum(across, along) < 0.7, 0.9, 0.0)  # flat, with a parapet


class Scene:
    """Everything on one tile; `render` draws it once."""

    def __init__(self, city: City, rng: np.random.Generator) -> None:
        self.city, self.rng = city, rng
        self.height = np.zeros((CELLS, CELLS), np.float32)
        self.albedo = np.zeros((CELLS, CELLS, 3), np.float32)
        self.building = np.zeros((CELLS, CELLS), bool)
        self.taken = np.zeros((CELLS, CELLS), bool)  # by streets, buildings and the like
        self.settled = self._field(SMOOTH)
        self.grain = self._field(GRAINY)
        self.angle = rng.uniform(-0.5, 0.5) + rng.integers(2) * math.pi / 2

    def render(self) -> tuple[np.ndarray, np.ndarray]:
        """See the module's `render` for what is returned."""
        self._draw_ground()
        streets = self._plan_streets()
        self._draw_streets(streets)
        for street in streets:
            for side in (-1, 1):
                self._build_along(street, side)
        self._plant_trees()
        image = self._develop(self._light())
        mask = self._shrink(self.building.astype(np.float32)) >= 0.5
        return image, np.where(mask, 255, 0).astype(np.uint8)

    # ---- chance

    def _chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def _sign(self) -> int:
        return 2 * int(self.rng.integers(2)) - 1

    def _draw(self, span: tuple[float, float]) -> float:
        return float(self.rng.uniform(*span))

    def _near(self, colours: tuple[Colour, ...], spread: float = 0.12) -> np.ndarray:
        """One of the colours, brighter or darker and slightly tinted."""
        colour = np.array(colours[self.rng.integers(len(colours))], np.float32)
        factor = np.exp(self.rng.normal(0, spread) + self.rng.normal(0, spread / 4, 3))
        return (colour * factor).astype(np.float32)

    def _field(self, exponent: float) -> np.ndarray:
        """A view of the periodic noise, moved and turned at random."""
        noise = np.roll(_noise(exponent), self.rng.integers(CELLS, size=2), (0, 1))
        noise = np.rot90(noise, self.rng.integers(4))
        return noise[::-1] if self._chance(0.5) else noise

    # ---- ground

    def _draw_ground(self) -> None:
        land = self.city.land
        first, second = self._near(land.grass), self._near(land.grass)
        blend = self._field(PATCHY)[..., None]
        self.albedo[:] = first + (second - first) * blend
        if land.farmed:
            self._draw_fields()
        if land.forest:
            self._draw_forest()
        self.albedo *= (0.8 + 0.4 * self.grain)[..., None]

    def _draw_fields(self) -> None:
        """Strips of grassland, crops and bare soil, in the direction of the streets."""
        land, rng = self.city.land, self.rng
        box = Box(EXTENT / 2, EXTENT / 2, self.angle + rng.normal(0, 0.2), EXTENT, EXTENT)
        patch = _patch(box)
        column = (np.floor(patch.u / self._draw((70, 130))).astype(np.int32)) & 63
        shift, width = rng.uniform(0, 40, 64), rng.uniform(18, 55, 64)
        row = (patch.v + shift.astype(np.float32)[column]) / width.astype(np.float32)[column]
        key = (column * 7 + np.floor(row).astype(np.int32) * 13) & 63
        colours = np.stack([self._near(land.fields) for _ in range(64)])
        ridges = rng.uniform(0, 0.1, 64).astype(np.float32)
        furrows = 1 + ridges[key] * np.sin(patch.v * np.float32(2 * math.pi / 4))
        farmed = (rng.random(64) < land.farmed)[key]
        self.albedo[farmed] = (colours[key] * furrows[..., None])[farmed]

    def _draw_forest(self) -> None:
        forest = self._field(SMOOTH) < self.city.land.forest
        canopy = np.roll(_canopy(), self.rng.integers(CELLS, size=2), (0, 1))[forest]
        self.height[forest] = self._draw((9, 15)) * canopy
        self.albedo[forest] = self._near(self.city.land.foliage) * (0.8 + 0.4 * canopy[:, None])

    # ---- streets

    def _plan_streets(self) -> list[np.ndarray]:
        """Centre lines [points, 2] of x and y, from one side of the tile to the other."""
        streets = []
        middle, reach = EXTENT / 2, EXTENT * 0.75
        along = np.arange(-reach, reach, 8.0)
        phase, period = self.rng.uniform(0, 2 * math.pi), self._draw((220, 380))
        for turn, spacing in enumerate(self.city.streets.spacing):
            if not spacing:
                continue
            angle = self.angle + turn * math.pi / 2
            c, s = math.cos(angle), math.sin(angle)
            for offset in np.arange(-reach + self.rng.uniform(0, spacing), reach, spacing):
                # Neighbours bend alike, or they would meet.
                wave = np.sin(along / period * 2 * math.pi + phase + offset / 900)
                across = offset + self.city.streets.bend * wave
                line = np.stack([middle + along * c - across * s, middle + along * s + across * c])
                streets.append(line.T)
        return streets

    def _draw_streets(self, streets: list[np.ndarray]) -> None:
        """Pavements, carriageways and parked cars."""
        land, width = self.city.land, self.city.streets.width
        for colour, metres in ((land.paving, width + 3), (land.asphalt, width)):
            canvas = Image.new("L", (CELLS, CELLS))
            pen = ImageDraw.Draw(canvas)
            for street in streets:
                points = [tuple(point) for point in street / CELL]
                pen.line(points, 255, round(metres / CELL))
            where = np.asarray(canvas) > 0
            self.albedo[where] = self._near((colour,), 0.08) * (0.9 + 0.2 * self.grain[where, None])
            self.height[where] = 0
            self.taken |= where
        for street in streets:
            for place, nxt in zip(street[:-1:2], street[1::2], strict=False):
                if self._chance(0.2):
                    angle = math.atan2(nxt[1] - place[1], nxt[0] - place[0])
                    side = self._sign() * (width / 2 - 1.4)
                    self._park(Box(*place, angle, 2.3, 0.9).inner(0, side, 2.3, 0.9))

    def _park(self, box: Box) -> None:
        paints = ((0.7, 0.7, 0.7), (0.06, 0.06, 0.07), (0.3, 0.31, 0.33), (0.35, 0.08, 0.07))
        self._pave(box, self._near(paints), 1.5)

    def _pave(self, box: Box, colour: np.ndarray, height: float = 0.0) -> None:
        """Fill a box with one colour; it keeps no roof of its own."""
        patch = _patch(box)
        inside = patch.inside & ~self.building[patch.window]
        grain = self.grain[patch.window][inside, None]
        self.albedo[patch.window][inside] = colour * (0.92 + 0.16 * grain)
        self.height[patch.window][inside] = height

    # ---- along a street

    def _build_along(self, street: np.ndarray, side: int) -> None:
        """Divide one side of a street into lots and use each of them."""
        town = self.city.town
        steps = np.hypot(*np.diff(street, axis=0).T)
        at = np.concatenate([[0.0], np.cumsum(steps)])
        here = self._draw((0, 12))
        while here < at[-1]:
            hall = self._chance(town.halls)
            length = self._draw((30, 55)) if hall else self._draw(town.frontage)
            depth = self._draw((22, 32)) if hall else self._draw(town.depth)
            middle = here + length / 2
            here += length + self._draw(town.gap)
            x, y = (np.interp(middle, at, street[:, axis]) for axis in (0, 1))
            index = min(int(np.searchsorted(at, middle)), len(street) - 1)
            dx, dy = street[index] - street[index - 1]
            kerb = Box(x, y, math.atan2(dy, dx), length / 2, 0)
            setback = self.city.streets.width / 2 + 2 + self._draw(town.setback)
            lot = kerb.inner(0, side * (setback + depth / 2), length / 2, depth / 2)
            if 0 < lot.x < EXTENT and 0 < lot.y < EXTENT:
                self._use(lot, hall, side)

    def _use(self, lot: Box, hall: bool, side: int) -> None:
        """A hall, a parking lot, a house with its yard, a sports court, or nothing."""
        town, land = self.city.town, self.city.land
        settled = self.settled[int(lot.y / CELL), int(lot.x / CELL)] > town.villages
        if not settled or not self._free(lot):
            return
        if hall:
            if self._chance(0.5):
                self._build(lot, self._choose({"flat": 0.6, "saw": 0.2, "gable": 0.2}), 0.15)
            else:
                self._draw_parking(lot)
        elif self._chance(town.density):
            yard = lot.inner(0, 0, lot.half_u + 2, lot.half_v + 4)
            self._pave(yard, self._near((land.yard, *land.grass)))
            if self._chance(0.6):
                drive = lot.inner(lot.half_u * 0.6, -side * lot.half_v, 1.6, lot.half_v)
                self._pave(drive, self._near((land.paving,)))
            turn = self.rng.normal(0, 0.04) if town.gap[1] > 1 else 0.0
            self._build(lot.inner(0, 0, lot.half_u, lot.half_v, turn), self._choose(town.roofs))
        elif self._chance(0.6):
            self._draw_court(lot)

    def _choose(self, weights: dict[str, float]) -> str:
        names = list(weights)
        return names[self.rng.choice(len(names), p=[*weights.values()])]

    def _free(self, box: Box) -> bool:
        patch = _patch(box, -0.3)
        return bool(patch.inside.any()) and not (patch.inside & self.taken[patch.window]).any()

    def _take(self, box: Box) -> None:
        patch = _patch(box)
        self.taken[patch.window] |= patch.inside

    def _draw_parking(self, lot: Box) -> None:
        self._pave(lot, self._near((self.city.land.asphalt,)))
        self._take(lot)
        for v in np.arange(-lot.half_v + 3, lot.half_v - 2, 8):
            for u in np.arange(-lot.half_u + 2, lot.half_u - 1, 2.7):
                if self._chance(0.5):
                    self._park(lot.inner(u, v, 0.9, 2.2))

    def _draw_court(self, lot: Box) -> None:
        """A flat rectangle in the colour of a roof, sometimes with a bright line around."""
        self._pave(lot, self._near(self.city.town.colours))
        self._take(lot)
        if self._chance(0.5):
            patch = _patch(lot)
            edge = np.minimum(lot.half_u - np.abs(patch.u), lot.half_v - np.abs(patch.v))
            self.albedo[patch.window][patch.inside & (np.abs(edge - 1.5) < 0.5)] = 0.7

    # ---- buildings

    def _build(self, lot: Box, shape: str, pitch: float | None = None) -> None:
        town = self.city.town
        pitch = (town.pitch if pitch is None else pitch) * self._draw((0.8, 1.2))
        eaves, colour = self._draw(town.height), self._near(town.colours, 0.2)
        main = lot.ridged()
        parts = [main]
        if self._chance(town.wings):
            half = main.half_v * self._draw((0.55, 0.8))
            end = self._sign() * (main.half_u - half)
            side = self._sign() * main.half_v
            wing = main.inner(end, side, main.half_v * self._draw((0.9, 1.3)), half, math.pi / 2)
            if self._free(wing):
                parts.append(wing)
        for part in parts:
            self._raise(part, shape, pitch, eaves, colour)
        self._furnish(main, flat=shape in ("flat", "saw"))

    def _raise(self, box: Box, shape: str, pitch: float, eaves: float, colour: np.ndarray) -> None:
        """Put one roof over a box; where roofs meet, the higher one is seen."""
        patch = _patch(box)
        roof = eaves + _roof(shape, pitch, box, patch)
        height = self.height[patch.window]
        over = patch.inside & ~(self.building[patch.window] & (height >= roof))
        grain = self.grain[patch.window]
        streaks = 1 + 0.05 * np.sin(patch.u * 2.1) if shape != "flat" else 1.0
        texture = (0.9 + 0.2 * grain) * streaks
        self.albedo[patch.window][over] = colour * texture[over, None]
        height[over] = roof[over]
        self.building[patch.window] |= patch.inside
        self.taken[patch.window] |= patch.inside

    def _furnish(self, box: Box, flat: bool) -> None:
        """Chimneys and skylights on pitched roofs, machines on flat ones."""
        count = self.rng.poisson(box.half_u * box.half_v / (25 if flat else 40))
        for _ in range(min(count, 12)):
            u = self.rng.uniform(-0.75, 0.75) * box.half_u
            v = self.rng.uniform(-0.75, 0.75) * box.half_v
            thing = box.inner(u, v, self._draw((0.5, 1.5)), self._draw((0.5, 1.2)))
            patch = _patch(thing)
            inside = patch.inside & self.building[patch.window]
            rise = self._draw((0.8, 2.0)) if self._chance(0.7) else 0.1
            self.height[patch.window][inside] += rise
            self.albedo[patch.window][inside] = self._near(((0.6, 0.6, 0.6), (0.15, 0.15, 0.16)))

    # ---- plants

    def _plant_trees(self) -> None:
        land = self.city.land
        for _ in range(int(land.trees * (EXTENT / 100) ** 2)):
            x, y = self.rng.uniform(0, EXTENT, 2)
            radius = self._draw((1.6, 4.2))
            tall = radius * self._draw((1.4, 2.6))
            if self.taken[int(y / CELL), int(x / CELL)]:
                continue
            patch = _patch(Box(x, y, 0, radius, radius))
            window = patch.window
            ragged = radius**2 * (0.7 + 0.5 * self.grain[window])
            distance = (patch.u**2 + patch.v**2) / ragged
            crown = tall * np.sqrt(np.maximum(0, 1 - distance))
            seen = (crown > self.height[window]) & ~self.building[window]
            self.height[window][seen] = crown[seen]
            self.albedo[window][seen] = self._near(land.foliage, 0.15)

    # ---- light

    def _sun(self) -> tuple[float, float, float]:
        """Unit vector to the sun: east, south, up."""
        light = self.city.light
        elevation = math.radians(light.elevation + self.rng.normal(0, 1.5))
        azimuth = math.radians(light.azimuth + self.rng.normal(0, 4))
        flat = math.cos(elevation)
        return flat * math.sin(azimuth), -flat * math.cos(azimuth), math.sin(elevation)

    def _light(self) -> np.ndarray:
        """Light from every cell, [SIZE, SIZE, 3]; reflectance 1 in full sun gives 1."""
        light, sun = self.city.light, self._sun()
        slope_y, slope_x = np.gradient(self.height, CELL)
        wall = np.hypot(slope_x, slope_y) > 1.8
        slope_x[wall], slope_y[wall] = 0, 0
        facing = sun[2] - slope_x * sun[0] - slope_y * sun[1]
        facing = np.maximum(facing, 0) / np.sqrt(1 + slope_x**2 + slope_y**2) / sun[2]
        direct = facing * (1 - self._shadow(sun)) * self._clouds()
        return self._shrink(self.albedo * (light.sky + (1 - light.sky) * direct)[..., None])

    def _shadow(self, sun: tuple[float, float, float]) -> np.ndarray:
        """How far every cell lies in a shadow, 0 to 1.

        A cell is in shadow if something towards the sun stands higher than the ray to it. The
        highest obstacle within 2k cells is the higher one of that within k cells and of that
        within k cells of the place k cells further, less the ray's rise until there.
        """
        flat = math.hypot(sun[0], sun[1])
        step_x, step_y, rise = sun[0] / flat, sun[1] / flat, sun[2] / flat * CELL
        obstacle, reach = self.height.copy(), 1
        while reach * rise < self.height.max():
            moved = np.roll(obstacle, (-round(reach * step_y), -round(reach * step_x)), (0, 1))
            obstacle = np.maximum(obstacle, moved - reach * rise)
            reach *= 2
        return np.clip((obstacle - self.height - 0.2) / 0.5, 0, 1)

    def _clouds(self) -> np.ndarray:
        """Share of the sun that reaches every cell through broken clouds."""
        share = self._draw((0, self.city.light.clouds))
        cover = np.clip((share - self._field(SMOOTH)) / 0.05 + 0.5, 0, 1) * (share > 0.02)
        return 1 - self._draw((0.55, 0.8)) * cover

    def _shrink(self, cells: np.ndarray) -> np.ndarray:
        """Means over the cells of every pixel, without the margin."""
        n, k = SIZE + 2 * MARGIN, SUPERSAMPLING
        pixels = cells.reshape(n, k, n, k, -1).mean((1, 3)).squeeze()
        return pixels[MARGIN:-MARGIN, MARGIN:-MARGIN]

    def _develop(self, radiance: np.ndarray) -> np.ndarray:
        """What the camera makes of the light: haze, exposure of two flights, 8 bits."""
        light, rng = self.city.light, self.rng
        pixel = slice(MARGIN * SUPERSAMPLING, -MARGIN * SUPERSAMPLING, SUPERSAMPLING)
        haze = 2 * light.haze * self._field(SMOOTH)[pixel, pixel, None]
        radiance = radiance * (1 - haze) + haze * np.array((0.5, 0.53, 0.58))
        y, x = np.indices((SIZE, SIZE)) - rng.uniform(0.25, 0.75, 2)[:, None, None] * SIZE
        seam = rng.uniform(0, 2 * math.pi)
        other = np.clip(x * math.cos(seam) + y * math.sin(seam), -3, 3)[..., None] / 6 + 0.5
        gain = np.exp(rng.normal(0, 0.1) + rng.normal(0, 0.03, 3)) - 1
        exposure = light.exposure * np.exp(rng.normal(0, 0.06)) * np.array(light.tint)
        radiance = radiance * exposure * (1 + gain * other)
        grey = radiance.mean(-1, keepdims=True)
        radiance = np.maximum(grey + (radiance - grey) * light.saturation, 0)
        shown = radiance ** (1 / light.gamma) + rng.normal(0, 0.012, radiance.shape)
        return (np.clip(shown, 0, 1) * 255).round().astype(np.uint8)
