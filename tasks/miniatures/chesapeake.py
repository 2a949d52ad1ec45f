"""Miniature Chesapeake land cover: generated four-band aerial scenes in the dataset's own files.

A stand-in for the Maryland 2013 part at 1/4 of its linear size: patches of 64 x 64 pixels instead
of 256 x 256, tiles of 256 x 256, 4 metres a pixel. No real image is used. 25 scenes give 625
training patches, 5 others 125 validation patches, 5 others are the test tiles.

Files, under the folder that `ensure` returns (columns as in the real csv files)::

    md_1m_2013_extended-{train,val}_patches.csv
    md_1m_2013_extended-{train,val}_patches/md_1m_2013-<quad>-<n>.npz   arr_0: [1, 29, 64, 64]
    md_1m_2013_extended-test_tiles.csv
    md_1m_2013_extended-test_tiles/<quad>_naip-new.tif                  R, G, B, NIR, 8 bit
    md_1m_2013_extended-test_tiles/<quad>_lc.tif                        land-cover codes, 8 bit

How a scene is made: parcels, woods, water, roads, houses and trees are drawn into one map of
materials. A material has a land-cover code, a height and reflectances in four bands, in summer and
in autumn. Then the sun lights the heights, which shade one another, and strips of flight lines,
each with its own date, haze, view angle and sensor gains, turn reflectance into bytes.

Near-infrared decides where visible colours do not: a pond is as green as a crop or a shaded wood,
a metal roof as green as grass, gravel as brown as stubble; plants alone are bright in it. What one
band alone says is spoilt by light: the same material differs between flight lines and, by relief,
cloud and cast shadow, within one scene.
"""

from __future__ import annotations

import csv
import math
import zlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image, ImageDraw
from rasterio.transform import Affine
from tqdm import tqdm

from tasks.miniatures import generate_once

VERSION = 1
SEED = 0
RELEASE = "md_1m_2013"
SCENES = {"train": 25, "val": 5, "test": 5}
PATCH, TILE, SCENE = 64, 256, 320  # pixels
SUPERSAMPLING = 2
METRES_PER_PIXEL = 4

WATER, FOREST, FIELD, BARREN, IMPERVIOUS, ROAD, NO_DATA = 1, 2, 3, 4, 5, 6, 15  # land-cover codes
CODES = (WATER, FOREST, FIELD, BARREN, IMPERVIOUS, ROAD, NO_DATA)
NLCD_OF = {WATER: 11, FOREST: 41, FIELD: 82, BARREN: 31, IMPERVIOUS: 23, ROAD: 22, NO_DATA: 0}
NLCD_CODES = (
    0, 11, 12, 21, 22, 23, 24, 31, 41, 42, 43, 51, 52, 71, 72, 73, 74, 81, 82, 90, 95, 255,
)  # fmt: skip
LAYERS = ("naip-new", "naip-old", "lc", "nlcd", "landsat-leaf-on", "landsat-leaf-off", "buildings")
COARSE = 8  # pixels of a cell of NLCD and Landsat: 30 metres

Bands = tuple[float, float, float, float]  # red, green, blue, near-infrared
Point = tuple[float, float]  # x to the right and y down, in pixels of the finished picture


def ensure(root: Path | str, seed: int = SEED) -> Path:
    """The miniature's folder, with the csv files in it; see `tasks.miniatures.generate_once`.

    The same seed gives the same bytes (with the same versions of numpy, Pillow and rasterio).
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
    return Scene(np.random.default_rng([seed, zlib.crc32(split.encode()), index]), index).render()


# -------------------------------------------------------------------------------------- files


def _generate(seed: int, folder: Path) -> None:
    """Write all files of the three splits under `folder`."""
    scenes = [(split, index) for split, count in SCENES.items() for index in range(count)]
    tables: dict[str, list[dict]] = {}
    for number, (split, index) in enumerate(tqdm(scenes, unit="scene", leave=False, disable=None)):
        kind, write = ("tiles", _write_tile) if split == "test" else ("patches", _write_patches)
        name = f"{RELEASE}_extended-{split}_{kind}"
        (folder / name).mkdir(parents=True, exist_ok=True)
        rows = write(folder / name, _quad(number), index, *render(split, index, seed))
        tables.setdefault(name, []).extend(rows)
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def _quad(number: int) -> str:
    """A name as of NAIP: degrees, number and quarter of the quadrangle, UTM zone, metres."""
    return f"m_39076{1 + number // 4:02d}_{('nw', 'ne', 'sw', 'se')[number % 4]}_18_1"


def _write_patches(
    folder: Path, quad: str, index: int, image: np.ndarray, label: np.ndarray
) -> list[dict[str, int | str]]:
    """Cut the scene `index` of a split into patches side by side; returns their rows of the csv."""
    rows = []
    for number in range((SCENE // PATCH) ** 2):
        y, x = (PATCH * i for i in divmod(number, SCENE // PATCH))
        cut = slice(y, y + PATCH), slice(x, x + PATCH)
        channels = _channels(image[cut], label[cut])
        path = folder / f"{RELEASE}-{quad}-{number}.npz"
        np.savez_compressed(path, channels[None])
        count = {c: np.bincount(channels[c].astype(int).ravel(), minlength=256) for c in (8, 9)}
        rows.append(
            {"patch_id": index * (SCENE // PATCH) ** 2 + number}
            | {"patch_fn": f"{folder.name}/{path.name}", "tile_id": index}
            | {"x_coord": x, "y_coord": y, "size": PATCH}
            | {f"lc_class_{code}_count": int(count[8][code]) for code in CODES}
            | {f"nlcd_class_{code}_count": int(count[9][code]) for code in NLCD_CODES}
        )
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
) -> list[dict[str, int | str]]:
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
        with rasterio.open(
            folder / f"{quad}_{layer}.tif", "w", count=len(bands), **profile
        ) as raster:
            raster.write(bands[:, :TILE, :TILE])
    paths = {layer: f"{folder.name}/{quad}_{layer}.tif" for layer in layers}
    return [{"id": index} | {f"{layer}_fn": paths.get(layer, "") for layer in LAYERS}]


# ---------------------------------------------------------------------------------- materials


@dataclass(frozen=True)
class Material:
    """What a surface is made of. Reflectances are 0..1."""

    code: int
    summer: Bands
    autumn: Bands | None = None  # None: as in summer
    height: float = 0.0  # pixels, of canopy or roof
    mottle: float = 0.08  # relative amplitude of irregular texture
    rows: float = 0.0  # relative amplitude of sowing or parking rows
    row_angle: float = 0.0  # radians


LAWN = Material(FIELD, (0.09, 0.15, 0.06, 0.44), (0.16, 0.18, 0.08, 0.37))
WATERS = (
    Material(WATER, (0.035, 0.055, 0.055, 0.02), mottle=0.04),
    Material(WATER, (0.05, 0.085, 0.045, 0.025), mottle=0.05),
    Material(WATER, (0.17, 0.15, 0.10, 0.055), mottle=0.05),
    Material(WATER, (0.08, 0.13, 0.055, 0.06), mottle=0.1),
)
WOODS = (
    Material(FOREST, (0.06, 0.10, 0.045, 0.44), (0.22, 0.15, 0.06, 0.34), height=3.2),
    Material(FOREST, (0.05, 0.09, 0.045, 0.38), (0.16, 0.14, 0.06, 0.34), height=2.6),
    Material(FOREST, (0.04, 0.07, 0.04, 0.27), height=3.6),
)
CROPS = (
    Material(FIELD, (0.10, 0.15, 0.07, 0.42), (0.21, 0.20, 0.11, 0.36), mottle=0.14),
    Material(FIELD, (0.055, 0.095, 0.045, 0.46), (0.29, 0.25, 0.15, 0.36), rows=0.08),
    Material(FIELD, (0.32, 0.27, 0.17, 0.36), rows=0.1),
    Material(FIELD, (0.21, 0.17, 0.12, 0.27), (0.10, 0.15, 0.07, 0.40), rows=0.12),
    Material(FIELD, (0.20, 0.21, 0.10, 0.40), (0.27, 0.24, 0.14, 0.36), mottle=0.12),
)
ASPHALTS = (
    Material(ROAD, (0.17, 0.17, 0.165, 0.165)),
    Material(ROAD, (0.08, 0.08, 0.08, 0.085)),
    Material(ROAD, (0.34, 0.33, 0.30, 0.31)),
)
PAVINGS = (
    Material(IMPERVIOUS, (0.15, 0.15, 0.148, 0.15), rows=0.12),
    Material(IMPERVIOUS, (0.07, 0.075, 0.075, 0.075), rows=0.2),
    Material(IMPERVIOUS, (0.36, 0.34, 0.30, 0.31)),
    Material(IMPERVIOUS, (0.32, 0.28, 0.19, 0.25)),
    Material(IMPERVIOUS, (0.08, 0.145, 0.08, 0.10)),
)
COURT = PAVINGS[4]
ROOFS = (
    Material(IMPERVIOUS, (0.20, 0.20, 0.20, 0.20), height=1.5),
    Material(IMPERVIOUS, (0.09, 0.085, 0.08, 0.09), height=1.5),
    Material(IMPERVIOUS, (0.55, 0.55, 0.54, 0.50), height=1.8),
    Material(IMPERVIOUS, (0.27, 0.16, 0.12, 0.24), height=1.5),
    Material(IMPERVIOUS, (0.08, 0.14, 0.075, 0.11), height=1.5),
)
QUARRIES = (
    Material(BARREN, (0.36, 0.29, 0.20, 0.30), mottle=0.25),
    Material(BARREN, (0.30, 0.27, 0.22, 0.26), mottle=0.2),
)


# -------------------------------------------------------------------------------------- scene


@dataclass(frozen=True)
class Parcel:
    """A rectangle in the rotated frame of its scene, in pixels."""

    u0: float
    u1: float
    v0: float
    v1: float

    def inset(self, margin: float) -> Parcel:
        return Parcel(self.u0 + margin, self.u1 - margin, self.v0 + margin, self.v1 - margin)


@dataclass(frozen=True)
class Flight:
    """One pass of the aircraft, as it changes what the sensor records. Bands are R, G, B, NIR."""

    season: float  # 0 summer, 1 autumn
    sun: float  # direct light
    sky: np.ndarray  # light of the sky by band, which shade gets too
    haze: np.ndarray  # light added on the way by band
    gain: np.ndarray  # of the sensor by band
    gamma: float
    slope: float  # of brightness across the strip: the view angle


THEMES = {  # shares of the kinds of parcels; share of water
    "rural": ({"crop": 0.62, "wood": 0.2, "farm": 0.12, "homes": 0.06}, 0.02),
    "wooded": ({"crop": 0.3, "wood": 0.5, "farm": 0.08, "homes": 0.08, "quarry": 0.04}, 0.02),
    "shore": ({"crop": 0.4, "wood": 0.22, "farm": 0.08, "homes": 0.3}, 0.28),
    "suburb": ({"crop": 0.22, "wood": 0.12, "homes": 0.48, "shops": 0.14, "quarry": 0.04}, 0.03),
    "town": ({"crop": 0.08, "wood": 0.1, "homes": 0.42, "shops": 0.36, "quarry": 0.04}, 0.03),
}


class Scene:
    """One landscape and its light; `render` draws it once."""

    def __init__(self, rng: np.random.Generator, index: int):
        self.rng = rng
        self.kinds, self.water_share = list(THEMES.values())[index % len(THEMES)]
        self.side = SCENE * SUPERSAMPLING
        self.angle = rng.uniform(-0.7, 0.7)
        self.materials: list[Material] = []
        self.map = Image.new("L", (self.side, self.side))
        self.pen = ImageDraw.Draw(self.map)
        self.waters, self.woods, self.asphalts, self.pavings, self.roofs, self.quarries = (
            [self._local(material) for material in group]
            for group in (WATERS, WOODS, ASPHALTS, PAVINGS, ROOFS, QUARRIES)
        )
        self.crops = [
            self._local(replace(crop, row_angle=self.angle + turn))
            for crop in CROPS
            for turn in (0, math.pi / 2)
        ]
        self.lawn, self.court = self._local(LAWN), self._local(COURT)

    def render(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw everything; see the module's `render` for what is returned."""
        parcels, roads = self._parcels()
        kinds = self.rng.choice(list(self.kinds), len(parcels), p=list(self.kinds.values()))
        for parcel, kind in zip(parcels, kinds, strict=True):
            self._draw_ground(parcel, kind)
        self._draw_woods()
        lakes = self._lakes()
        self._draw_river()
        for parcel, kind in zip(parcels, kinds, strict=True):
            self._draw_buildings(parcel, kind)
        for line, width in roads:
            self._line(line, width, self._choose(self.asphalts))
        self._draw_trees(parcels, kinds)
        for lake in lakes:  # last: only rivers have bridges
            self._fill(lake, self._choose(self.waters))
        material = np.asarray(self.map)
        codes = np.array([material.code for material in self.materials], np.uint8)
        label = codes[material[1::SUPERSAMPLING, 1::SUPERSAMPLING]]
        return self._develop(material), self._hide(label)

    # ---- materials and pen

    def _local(self, material: Material) -> int:
        """The scene's own shade of a material; returns its number in the map."""
        tint = self.rng.normal(1, 0.12) * self.rng.normal(1, 0.03, 4)
        autumn = material.autumn or material.summer
        self.materials.append(
            replace(
                material,
                summer=tuple(np.clip(material.summer * tint, 0.01, 0.9)),
                autumn=tuple(np.clip(autumn * tint, 0.01, 0.9)),
            )
        )
        return len(self.materials) - 1

    def _choose(self, options):
        return options[int(self.rng.integers(len(options)))]

    def _chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def _place(self, u: float, v: float) -> Point:
        """From the frame of the parcels to the picture."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return SCENE / 2 + u * cos - v * sin, SCENE / 2 + u * sin + v * cos

    def _rectangle(self, p: Parcel, material: int) -> None:
        corners = [
            self._place(*c) for c in ((p.u0, p.v0), (p.u1, p.v0), (p.u1, p.v1), (p.u0, p.v1))
        ]
        self.pen.polygon([(SUPERSAMPLING * x, SUPERSAMPLING * y) for x, y in corners], material)

    def _line(self, points: list[Point], width: float, material: int) -> None:
        points = [(SUPERSAMPLING * x, SUPERSAMPLING * y) for x, y in points]
        self.pen.line(points, material, round(SUPERSAMPLING * width), joint="curve")

    def _tree(self, point: Point, radius: float) -> None:
        x, y, r = (SUPERSAMPLING * value for value in (*point, radius))
        self.pen.ellipse((x - r, y - r, x + r, y + r), self._choose(self.woods))

    def _fill(self, mask: Image.Image, material: int) -> None:
        self.map.paste(material, mask=mask)

    # ---- what lies where

    def _parcels(self) -> tuple[list[Parcel], list[tuple[list[Point], float]]]:
        """Cut the land in two again and again; many cuts are roads (line, width)."""
        parcels, roads = [], []
        reach = 0.75 * SCENE  # the rotated square covers the picture

        def cut(p: Parcel, depth: int) -> None:
            wide = p.u1 - p.u0 > p.v1 - p.v0
            low, high = (p.u0, p.u1) if wide else (p.v0, p.v1)
            if high - low < self.rng.uniform(45, 95):
                parcels.append(p)
                return
            at = low + (high - low) * self.rng.uniform(0.35, 0.65)
            ends = ((at, p.v0), (at, p.v1)) if wide else ((p.u0, at), (p.u1, at))
            if self._chance(0.85 if depth < 4 else 0.45):
                width = self.rng.uniform(3, 5) if depth < 3 else self.rng.uniform(2, 3)
                roads.append(([self._place(*end) for end in ends], width))
            halves = (
                (replace(p, u1=at), replace(p, u0=at)) if wide
                else (replace(p, v1=at), replace(p, v0=at))
            )  # fmt: skip
            for half in halves:
                cut(half, depth + 1)

        cut(Parcel(-reach, reach, -reach, reach), 0)
        return parcels, roads[::-1]  # the widest last, over the others

    def _draw_ground(self, parcel: Parcel, kind: str) -> None:
        if kind == "wood":
            self._rectangle(parcel, self._choose(self.woods))
        elif kind in ("homes", "shops"):
            self._rectangle(parcel, self.lawn)
        else:
            self._rectangle(parcel, self._choose(self.crops))

    def _draw_woods(self) -> None:
        shape = _noise(self.rng, self.side, 1.6)
        share = self.rng.uniform(0.06, 0.2)
        wooded = shape > np.quantile(shape, 1 - share)
        self._fill(Image.fromarray(wooded), self._choose(self.woods))

    def _lakes(self) -> list[Image.Image]:
        """Masks of a bay and of ponds; woods are drawn around the bay."""
        shape = _noise(self.rng, self.side, 2.2)
        share = self.water_share * self.rng.uniform(0.7, 1.4)
        level, bank = np.quantile(shape, [share, share + 0.05])
        if self._chance(0.6):
            self._fill(Image.fromarray(shape < bank), self._choose(self.woods))
        return [Image.fromarray(shape < level), *(self._pond() for _ in range(3))]

    def _pond(self) -> Image.Image:
        turns = np.linspace(0, 2 * math.pi, 24, endpoint=False)
        wobble = 1 + 0.2 * np.cos(2 * turns + self.rng.uniform(0, 6)) + 0.1 * np.cos(3 * turns)
        radius = self.rng.uniform(4, 15) * wobble
        x, y = self.rng.uniform(0, SCENE, 2)
        outline = np.stack([x + radius * np.cos(turns), y + 0.7 * radius * np.sin(turns)], axis=-1)
        mask = Image.new("1", self.map.size)
        ImageDraw.Draw(mask).polygon((SUPERSAMPLING * outline).ravel().tolist(), 1)
        return mask

    def _draw_river(self) -> None:
        if self._chance(0.25):
            return
        along = np.linspace(-0.8 * SCENE, 0.8 * SCENE, 60)
        bends = 0.12 * SCENE * np.interp(along, along[::6], self.rng.normal(0, 1, 10))
        bends = np.convolve(np.pad(bends, 4, mode="edge"), np.ones(9) / 9, mode="valid")
        turn, offset = self.rng.uniform(0, math.pi), self.rng.uniform(-0.3, 0.3) * SCENE
        across = bends + offset
        x = SCENE / 2 + along * math.cos(turn) - across * math.sin(turn)
        y = SCENE / 2 + along * math.sin(turn) + across * math.cos(turn)
        course = list(zip(x.tolist(), y.tolist(), strict=True))
        width = self.rng.uniform(4, 14)
        if self._chance(0.6):
            self._line(course, width + self.rng.uniform(8, 20), self._choose(self.woods))
        self._line(course, width, self._choose(self.waters))

    # ---- what is built

    def _draw_buildings(self, parcel: Parcel, kind: str) -> None:
        if kind == "homes":
            self._draw_homes(parcel)
        elif kind == "shops":
            self._draw_shops(parcel)
        elif kind == "farm":
            self._draw_farm(parcel)
        elif kind == "quarry":
            self._rectangle(parcel.inset(self.rng.uniform(4, 10)), self._choose(self.quarries))

    def _draw_homes(self, parcel: Parcel) -> None:
        """Rows of houses along two sides, each with a drive to the road."""
        pitch, roof = self.rng.uniform(8, 13), self._choose(self.roofs)
        drive = self._choose(self.pavings[:4])
        for u in np.arange(parcel.u0 + 8, parcel.u1 - 6, pitch):
            for edge, inward in ((parcel.v0, 1), (parcel.v1, -1)):
                if self._chance(0.15):
                    continue
                depth = self.rng.uniform(6, 9)
                v = edge + inward * depth
                self._line([self._place(u + 2, edge), self._place(u + 2, v)], 1.5, drive)
                half = self.rng.uniform(1.8, 3.0), self.rng.uniform(1.5, 2.4)
                house = Parcel(u - half[0], u + half[0], v - half[1], v + half[1])
                self._rectangle(house, roof if self._chance(0.5) else self._choose(self.roofs))

    def _draw_shops(self, parcel: Parcel) -> None:
        """A car park with one or two large buildings, sometimes a sports court."""
        lot = parcel.inset(self.rng.uniform(4, 8))
        if lot.u1 - lot.u0 < 12 or lot.v1 - lot.v0 < 12:
            return
        self._rectangle(lot, self._choose(self.pavings[:3]))
        middle = lot.u0 + (lot.u1 - lot.u0) * self.rng.uniform(0.35, 0.6)
        top = lot.v0 + (lot.v1 - lot.v0) * self.rng.uniform(0.3, 0.5)
        self._rectangle(Parcel(lot.u0 + 2, middle, lot.v0 + 2, top), self._choose(self.roofs))
        if self._chance(0.5):
            hall = Parcel(middle + 4, lot.u1 - 2, lot.v0 + 2, lot.v0 + 12)
            self._rectangle(hall, self._choose(self.roofs))
        if self._chance(0.6):
            court = Parcel(lot.u0 + 2, lot.u0 + 16, lot.v1 - 12, lot.v1 - 2)
            self._rectangle(court, self.court)

    def _draw_farm(self, parcel: Parcel) -> None:
        """A yard of gravel, a house and a barn."""
        yard = Parcel(parcel.u0 + 3, parcel.u0 + 22, parcel.v0 + 3, parcel.v0 + 18)
        self._rectangle(yard, self.pavings[3])
        for u, v in ((6, 5), (14, 10)):
            u, v = yard.u0 + u, yard.v0 + v
            barn = Parcel(u - self.rng.uniform(2, 3), u + 3, v - 2, v + self.rng.uniform(1.5, 4))
            self._rectangle(barn, self._choose(self.roofs))

    def _draw_trees(self, parcels: list[Parcel], kinds: list[str]) -> None:
        """Single trees on lawns and fields, and hedges along edges."""
        trees_on = {"homes": 22, "shops": 8, "farm": 6, "crop": 1, "quarry": 3, "wood": 0}
        for parcel, kind in zip(parcels, kinds, strict=True):
            for _ in range(self.rng.poisson(trees_on[kind])):
                u = self.rng.uniform(parcel.u0 + 3, parcel.u1 - 3)
                v = self.rng.uniform(parcel.v0 + 3, parcel.v1 - 3)
                self._tree(self._place(u, v), self.rng.uniform(1.2, 3))
            if self._chance(0.3):
                for u in np.arange(parcel.u0 + 3, parcel.u1 - 3, 2.5):
                    v = parcel.v0 + 4 + self.rng.normal(0, 0.5)
                    self._tree(self._place(u, v), self.rng.uniform(1.5, 2.5))

    def _hide(self, label: np.ndarray) -> np.ndarray:
        """Some scenes reach beyond the mapped land: a corner has no label."""
        if self._chance(0.4):
            height, width = self.rng.integers(20, 60, 2)
            label = label.copy()
            label[:height, :width] = NO_DATA
        return label

    # ---- light

    def _develop(self, material: np.ndarray) -> np.ndarray:
        """Material numbers [side, side] to the picture, uint8 [320, 320, 4]."""
        rng, side = self.rng, self.side
        strip, across, flights = self._flights()

        def of_strip(values: list) -> np.ndarray:
            return np.array(values, np.float32)[strip]

        def of_material(values: list) -> np.ndarray:
            return np.array(values, np.float32)[material]

        canopy, tone = _crowns(rng, side, spacing=rng.uniform(2.6, 4.0) * SUPERSAMPLING)
        height = of_material([m.height for m in self.materials]) * SUPERSAMPLING
        wooded = of_material([m.code == FOREST for m in self.materials])
        height *= np.where(wooded, 0.35 + 0.65 * canopy, 1)
        water = of_material([m.code == WATER for m in self.materials])
        light = self._light(height, wooded, level=water > 0)

        season = of_strip([f.season for f in flights])
        season = np.clip(season + wooded * (tone - 0.5) * 0.8 * (season > 0), 0, 1)[..., None]
        reflectance = of_material([m.summer for m in self.materials]) * (1 - season)
        reflectance += of_material([m.autumn for m in self.materials]) * season
        reflectance *= self._texture(of_material, wooded * (tone - 0.5))[..., None]

        sun = light * of_strip([f.sun for f in flights])
        radiance = reflectance * (sun[..., None] + of_strip([f.sky for f in flights]))
        radiance *= (1 + across * of_strip([f.slope for f in flights]))[..., None]
        radiance += of_strip([f.haze for f in flights])
        radiance = radiance.reshape(SCENE, SUPERSAMPLING, SCENE, SUPERSAMPLING, 4).mean((1, 3))
        strip = strip[::SUPERSAMPLING, ::SUPERSAMPLING]
        signal = (radiance * of_strip([f.gain for f in flights])).clip(1e-4)
        signal = signal ** of_strip([f.gamma for f in flights])[..., None]
        signal += rng.normal(0, 0.012, signal.shape)
        return np.clip(255 * signal + 0.5, 0, 255).astype(np.uint8)

    def _texture(self, of_material, tree_tone: np.ndarray) -> np.ndarray:
        """Relative brightness [side, side] from rows, irregular ground and single crowns."""
        y, x = np.mgrid[: self.side, : self.side].astype(np.float32) / SUPERSAMPLING
        angle = of_material([m.row_angle for m in self.materials])
        rows = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * math.pi / 3.5))
        texture = 1 + of_material([m.rows for m in self.materials]) * rows
        texture += of_material([m.mottle for m in self.materials]) * _noise(
            self.rng, self.side, 0.8
        )
        return (texture + 0.5 * tree_tone).clip(0.3)

    def _light(self, height: np.ndarray, wooded: np.ndarray, level: np.ndarray) -> np.ndarray:
        """Direct sunlight [side, side], 1 on flat open ground: slopes, cast shadows, clouds."""
        rng = self.rng
        elevation = math.radians(rng.uniform(35, 62))
        azimuth = math.radians(
            rng.uniform(110, 250)
        )  # clockwise from north, the top of the picture
        to_sun = math.sin(azimuth), -math.cos(azimuth)  # x, y
        relief = rng.uniform(6, 14) * SUPERSAMPLING * _noise(rng, self.side, 2.2)
        down, right = np.gradient(relief + 0.35 * height * wooded)
        slope = np.where(level, 0, -(right * to_sun[0] + down * to_sun[1]))
        light = np.clip(1 + slope / math.tan(elevation), 0.15, 1.8)

        shaded = np.zeros(height.shape, bool)
        for step in range(1, math.ceil(height.max() / math.tan(elevation)) + 1):
            shift = -round(step * to_sun[1]), -round(step * to_sun[0])
            # Rolling wraps: what stands at one border shades the other, as any neighbour would.
            blocker = np.roll(height, shift, axis=(0, 1)) - step * math.tan(elevation)
            shaded |= blocker > height + 0.5
        light[shaded] = 0
        if self._chance(0.5):
            cloud = _noise(rng, self.side, 2.4)
            edge = np.quantile(cloud, rng.uniform(0.6, 0.85))
            light *= 1 - rng.uniform(0.4, 0.7) / (1 + np.exp(-(cloud - edge) / 0.08))
        return light

    def _flights(self) -> tuple[np.ndarray, np.ndarray, list[Flight]]:
        """Number of the strip and place across it in -1..1, both [side, side], and the flights."""
        rng = self.rng
        seams = np.sort(rng.uniform(0.2, 0.8, rng.integers(1, 3)))
        y, x = np.mgrid[: self.side, : self.side].astype(np.float32) / self.side
        x = x + rng.normal(0, 0.08) * (y - 0.5)
        strip = np.searchsorted(seams, x)
        edges = np.array([0, *seams, 1], np.float32)
        across = 2 * (x - edges[strip]) / (edges[strip + 1] - edges[strip]) - 1
        return strip, across, [self._flight() for _ in range(len(seams) + 1)]

    def _flight(self) -> Flight:
        rng = self.rng
        haze = rng.uniform(0, 0.07)
        blue = np.array([0.6, 0.8, 1.2, 0.15])  # haze and sky scatter blue most, infrared least
        exposure = math.exp(rng.normal(0, 0.22))
        return Flight(
            season=float(rng.choice([0, 0, 0.3, 0.7, 1])),
            sun=rng.uniform(0.7, 1.1),
            sky=rng.uniform(0.12, 0.3) * blue,
            haze=haze * blue,
            gain=np.array([1.9, 1.9, 2.1, 1.3])
            * exposure
            * np.exp(rng.normal(0, [0.12, 0.12, 0.12, 0.2])),
            gamma=rng.uniform(0.6, 0.85),
            slope=rng.normal(0, 0.15),
        )


def _noise(rng: np.random.Generator, side: int, power: float) -> np.ndarray:
    """Periodic float32 [side, side] noise of mean 0 and variance 1 with a 1/f**power spectrum."""
    white = np.fft.rfft2(rng.standard_normal((side, side), dtype=np.float32))
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    radius[0, 0] = np.inf
    noise = np.fft.irfft2(white / radius**power, s=(side, side))
    return (noise / noise.std()).astype(np.float32)


def _crowns(rng: np.random.Generator, side: int, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Tree crowns that touch: height in 0..1 and one random tone in 0..1 per crown, [side, side].

    One crown stands in every cell of a jittered grid; a pixel belongs to the nearest.
    """
    cells = math.ceil(side / spacing) + 2
    offset, tones = rng.uniform(0, 1, (2, cells, cells)), rng.random((cells, cells))
    y, x = np.mgrid[:side, :side] / spacing
    row, column = y.astype(int), x.astype(int)
    nearest, tone = np.full((side, side), np.inf), np.zeros((side, side))
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            r, c = (row + down) % cells, (column + right) % cells
            distance = (row + down + offset[0, r, c] - y) ** 2
            distance += (column + right + offset[1, r, c] - x) ** 2
            closer = distance < nearest
            nearest[closer], tone[closer] = distance[closer], tones[r, c][closer]
    return np.clip(1 - nearest, 0, 1).astype(np.float32), tone.astype(np.float32)
