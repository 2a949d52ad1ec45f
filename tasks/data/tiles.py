"""Large georeferenced images, read by windows: patches to train on, windows to evaluate.

No torch here, and no tile is ever held whole: a 5000 x 5000 image costs the memory of one window.
"""

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
from omegaconf import DictConfig
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from tasks.data import IGNORED, Sample, TiledDataset
from tasks.data.files import reading, require_file, translated
from tasks.data.plots import label_figure
from tasks.errors import InputError
from tasks.protocol import TaskFacts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNKNOWN = 254
_AGAIN = "get the file again"
_LARGEST_BLOCK = 2**28  # bytes that are decoded at once to read a single pixel


@dataclass(frozen=True)
class Tile:
    """An image file, its label file if there is one, and the group (a city) it is scored in."""

    name: str
    image: Path
    label: Path | None
    group: int = 0


@dataclass(frozen=True)
class TileSet:
    """The tiles of a split, and how they are read.

    Attributes:
        tiles: the tiles.
        bands: number of bands of every image.
        train_ids: label value to class id (`class_table`).
        identity: see `tasks.data.Dataset`.
        facts: of the task: classes and their colours.
        groups: names of the groups (cities) of the tiles.
    """

    tiles: Sequence[Tile]
    bands: int
    train_ids: np.ndarray
    identity: str
    facts: TaskFacts
    groups: Sequence[str] = ("all",)


@dataclass(frozen=True)
class Place:
    """A rectangle of a tile in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def inside(self, size: tuple[int, int]) -> "Place":
        """What of it lies inside an image of that height and width."""
        height, width = min(self.height, size[0] - self.top), min(self.width, size[1] - self.left)
        return Place(self.top, self.left, height, width)


def class_table(classes: dict[int, int], ignored: Sequence[int] = ()) -> np.ndarray:
    """uint8 [256]: label value to class id; `IGNORED` for ``ignored``, `UNKNOWN` for all others."""
    table = np.full(256, UNKNOWN, dtype=np.uint8)
    table[list(classes)] = list(classes.values())
    table[list(ignored)] = IGNORED
    return table


def check_tiles(tiles: Sequence[Tile], bands: int) -> list[tuple[int, int]]:
    """Height and width of every tile, from the files' headers alone.

    Raises:
        InputError: a file cannot be opened, has another number of bands or is not uint8, or image
            and label differ in size or transform.
    """
    return [_check_tile(tile, bands) for tile in tiles]


def _check_tile(tile: Tile, bands: int) -> tuple[int, int]:
    with open_raster(tile.image) as image:
        _check_bands(image, tile.image, bands)
        size = (image.height, image.width)
        if tile.label is not None:
            with open_raster(tile.label) as label:
                _check_bands(label, tile.label, 1)
                if (label.height, label.width) != size:
                    raise InputError(
                        f"{tile.label} is {label.height} x {label.width} but its image is "
                        f"{size[0]} x {size[1]} (height x width); take both from the same release "
                        f"({tile.image})"
                    )
                if not label.transform.almost_equals(image.transform, precision=1e-3):
                    raise InputError(
                        f"{tile.label} covers another place than its image: transform "
                        f"{tuple(label.transform)[:6]} instead of {tuple(image.transform)[:6]}; "
                        f"take both from the same release ({tile.image})"
                    )
    return size


def _check_bands(raster: rasterio.DatasetReader, path: Path, bands: int) -> None:
    if raster.count != bands or any(kind != "uint8" for kind in raster.dtypes):
        raise InputError(
            f"{path} has {raster.count} bands of {raster.dtypes[0]}; expected {bands} of uint8"
        )


def open_raster(path: Path) -> rasterio.DatasetReader:
    """An open TIFF file. Other formats, such as VRT, would read further files or the network.

    Raises:
        InputError: it does not exist, is no TIFF, or keeps so much in one block that a window of it
            would fill the memory.
    """
    require_file(path, _AGAIN)
    with reading(path, _AGAIN), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        raster = rasterio.open(path, driver="GTiff")
        block = max(height * width for height, width in raster.block_shapes) * raster.count
        if block > _LARGEST_BLOCK:
            raster.close()
            raise InputError(
                f"{path} keeps {block / 2**20:,.0f} MiB in one block; write it anew in "
                "small blocks: gdal_translate -co TILED=YES"
            )
        return raster


def read(path: Path, place: Place) -> np.ndarray:
    """A rectangle of a raster file, uint8 [height, width, bands].

    Raises:
        InputError: it cannot be read.
    """
    window = Window(place.left, place.top, place.width, place.height)
    with open_raster(path) as raster, reading(path, _AGAIN):
        return np.moveaxis(raster.read(window=window), 0, -1)


def read_sample(tile: Tile, place: Place, train_ids: np.ndarray) -> Sample:
    """``image`` uint8 [h, w, bands], ``label`` uint8 [h, w] of class ids, ``name``, ``group``.

    Without a label file every pixel is `IGNORED`.

    Raises:
        InputError: a file cannot be read, or a label value is unknown.
    """
    if tile.label is None:
        label = np.full((place.height, place.width), IGNORED, dtype=np.uint8)
    else:
        values = read(tile.label, place)[..., 0]
        label = translated(values, train_ids)
        if (label == UNKNOWN).any():
            known = ", ".join(str(value) for value in np.flatnonzero(train_ids != UNKNOWN))
            raise InputError(
                f"{tile.label} has the label value {values[label == UNKNOWN][0]}; expected {known}"
            )
    image = read(tile.image, place)
    return {"image": image, "label": label, "name": tile.name, "group": tile.group}


class _OfTiles(TiledDataset):
    """What patches and windows of a set of tiles have in common."""

    def __init__(self, tile_set: TileSet):
        self.tile_set, self.tiles = tile_set, list(tile_set.tiles)
        self.identity, self.groups = tile_set.identity, tile_set.groups
        self.class_names = tile_set.facts.class_names
        self.labelled = all(tile.label is not None for tile in self.tiles)
        self.tile_sizes = check_tiles(self.tiles, tile_set.bands)

    def crs(self) -> list[str]:
        found = set()
        for tile in self.tiles:
            with open_raster(tile.image) as image:
                found |= {image.crs.to_string()} if image.crs is not None else set()
        return sorted(found)

    def covered(self, size: tuple[int, int]) -> "TileWindows":
        return TileWindows(self.tile_set, size, halo=0)

    def plot(self, sample: Sample, prediction: np.ndarray | None = None) -> "Figure":
        return label_figure(sample, prediction, self.tile_set.facts)


class RandomPatches(_OfTiles):
    """Patches at random places of random tiles, another one at every draw.

    Args:
        tile_set: what to draw from, each tile with the same probability.
        size: height and width of a patch in pixels.
        per_epoch: number of draws that count as one epoch.

    Raises:
        InputError: a tile is not as it should be, or smaller than a patch.
    """

    def __init__(self, tile_set: TileSet, size: tuple[int, int], per_epoch: int):
        super().__init__(tile_set)
        self.size, self.per_epoch = size, per_epoch
        for tile, (height, width) in zip(self.tiles, self.tile_sizes, strict=True):
            if height < size[0] or width < size[1]:
                raise InputError(
                    f"{tile.image} is {height} x {width} pixels, smaller than a patch of "
                    f"{size[0]} x {size[1]}: lower data.crop"
                )

    def __len__(self) -> int:
        return self.per_epoch

    def choose(self, rng: np.random.Generator) -> tuple[Tile, Place]:
        """A tile and a place in it that follow from ``rng`` alone."""
        number = int(rng.integers(len(self.tiles)))
        free = [have - need for have, need in zip(self.tile_sizes[number], self.size, strict=True)]
        top, left = (int(rng.integers(room + 1)) for room in free)
        return self.tiles[number], Place(top, left, *self.size)

    def draw(self, index: int, rng: np.random.Generator) -> Sample:
        """A sample as of `read_sample`, at a place that follows from ``rng`` alone."""
        return read_sample(*self.choose(rng), self.tile_set.train_ids)

    def __getitem__(self, index: int) -> Sample:
        """The draw that follows from ``index`` alone."""
        return self.draw(index, np.random.default_rng(index))


def scored_windows(cfg: DictConfig, tile_set: TileSet) -> "TileWindows":
    """The windows in which a run's network predicts tiles: of the patches' size."""
    size = (int(cfg.data.crop[0]), int(cfg.data.crop[1]))
    return TileWindows(tile_set, size, evaluation_halo(cfg), total_stride(cfg.task.model))


def window_size(cfg: DictConfig) -> tuple[int, int]:
    """Height and width of the windows of `scored_windows`, of tiles that are not smaller."""
    stride = total_stride(cfg.task.model)
    height, width = (round_up(side, stride) for side in cfg.data.crop)
    return height, width


def evaluation_halo(cfg: DictConfig) -> int:
    """Pixels around a core, at least, in the evaluation of tiles."""
    halo = round(cfg.task.get("eval_halo", 0) * cfg.data.scale)
    return max(halo, cfg.task.model.get("margin", 0))  # what a network without padding needs


def total_stride(model: DictConfig) -> int:
    """Of the networks for tiles: a U-Net halves its map between levels, others do it five times."""
    return 2 ** (len(model.widths) - 1) if "widths" in model else 32


class TileWindows(_OfTiles):
    """Overlapping windows that cover whole tiles; each pixel counts in exactly one of them.

    A tile is padded at the right and bottom, by repeating its last row and column, to multiples of
    the network's total stride. Windows and their cores begin and end at such multiples, and no
    window leaves the padded tile: a network whose reach from there is at most ``halo`` gives in a
    core what it gives of the whole tile. All windows of a tile have one size. Labels outside of
    the core are `IGNORED`, so that a confusion matrix over all windows is the one over the whole
    tiles.

    Args:
        tile_set: the tiles to cover.
        size: height and width of a window in pixels, rounded up to multiples of the stride; a
            smaller tile gives smaller windows.
        halo: pixels around a core, at least, but for the tile's own border; rounded up likewise.
        stride: the network's total stride.

    Raises:
        InputError: a tile is not as it should be, or the halo leaves no core.
    """

    def __init__(self, tile_set: TileSet, size: tuple[int, int], halo: int, stride: int = 1):
        height, width = (round_up(side, stride) for side in size)
        if 2 * round_up(halo, stride) >= min(height, width):
            raise InputError(
                f"windows of {height} x {width} pixels with a halo of {round_up(halo, stride)} "
                "have no core: lower task.eval_halo or raise data.crop"
            )
        super().__init__(tile_set)
        self.windows = self._cut(size, halo, stride)
        if self.windows != self._cut(size, halo, 1):
            self.identity += (
                f"/{stride}"  # results differ from those of windows that begin anywhere
            )

    def _cut(self, size: tuple[int, int], halo: int, stride: int) -> list[tuple[int, Place, Place]]:
        """Tile, window and core each."""
        return [
            (number, *place)
            for number, tile in enumerate(self.tile_sizes)
            for place in _places(tile, size, halo, stride)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def size_of(self, index: int) -> tuple[int, int]:
        """Height and width of a window; those of a tile smaller than ``size`` are smaller."""
        _, window, _ = self.windows[index]
        return window.height, window.width

    def parts(self) -> list[list[int]]:
        """The indices of every tile's windows."""
        numbers = [number for number, _, _ in self.windows]
        return [
            [index for index, _ in group]
            for _, group in itertools.groupby(enumerate(numbers), key=lambda item: item[1])
        ]

    def __getitem__(self, index: int) -> Sample:
        """A sample as of `read_sample`, with ``index``; `IGNORED` outside the core."""
        number, window, core = self.windows[index]
        there = window.inside(self.tile_sizes[number])
        sample = read_sample(self.tiles[number], there, self.tile_set.train_ids)
        missing = ((0, window.height - there.height), (0, window.width - there.width))
        image = np.pad(sample["image"], (*missing, (0, 0)), mode="edge")
        label = np.full(image.shape[:2], IGNORED, dtype=np.uint8)
        inside = core_of(window, core)
        label[inside] = sample["label"][inside]
        return sample | {"image": image, "label": label, "index": index}


def core_of(window: Place, core: Place) -> tuple[slice, slice]:
    """Where the core lies within its window."""
    return replace(core, top=core.top - window.top, left=core.left - window.left).slices


def _places(
    tile: tuple[int, int], size: tuple[int, int], halo: int, stride: int
) -> list[tuple[Place, Place]]:
    """Window and core each, row by row."""
    rows, columns = (cover(*sides, halo, stride) for sides in zip(tile, size, strict=True))
    return [
        (
            Place(top, left, bottom - top, right - left),
            Place(core_top, core_left, core_bottom - core_top, core_right - core_left),
        )
        for top, bottom, core_top, core_bottom in rows
        for left, right, core_left, core_right in columns
    ]


def cover(length: int, size: int, halo: int, stride: int = 1) -> list[tuple[int, int, int, int]]:
    """Windows over one axis: (start, end, core start, core end) each, see `TileWindows`.

    Cores have neither gap nor overlap and end at ``length``; windows end at its next multiple of
    ``stride`` at the latest.
    """
    size, halo, end = (round_up(pixels, stride) for pixels in (size, halo, length))
    if end <= size:
        return [(0, end, 0, length)]
    starts = [*range(0, end - size, size - 2 * halo), end - size]
    edges = [
        (left + size + right) // 2 // stride * stride for left, right in itertools.pairwise(starts)
    ]
    edges = [0, *edges, length]
    return [
        (start, start + size, core, stop)
        for start, core, stop in zip(starts, edges[:-1], edges[1:], strict=True)
    ]


def round_up(length: int, multiple: int) -> int:
    """The next multiple."""
    return -(-length // multiple) * multiple
