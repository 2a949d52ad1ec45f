"""Tile mismatch: how much a map depends on where its tiles are cut.

The same place is predicted twice, from the tiles of one tiling and from those of another that is
shifted. Compared are pixels whose tile is whole in both: the smaller tiles at an image's border
depend on its size.
"""

import argparse
import csv
import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from torch import nn

from tasks.data import IGNORED, Dataset, open_splits
from tasks.data.tiles import Place, TileWindows, core_of, evaluation_halo, read, round_up
from tasks.errors import InputError
from tasks.prediction.network import Network, device_of, load_network, predict_tile
from tasks.prediction.source import Source, find_images
from tasks.prediction.tiling import Pair, Tile, Tiling
from tasks.protocol import TaskFacts

RECORDED_IMAGES, RECORDED_TILES = 8, 1
"""Of how many images, and of how many shifted tiles of each, a run records its tile mismatch."""

SHOWN_TILES = 25
"""The most shifted tiles of an image that its picture shows."""


@dataclass(frozen=True)
class Picture:
    """An image that is read by windows.

    Attributes:
        size: height and width.
        read: a rectangle inside of it, [h, w, bands].
    """

    size: Pair
    read: Callable[[Place], np.ndarray]


@dataclass(frozen=True)
class Mismatch:
    """How much the result at a place changes with the tile it is predicted from.

    Attributes:
        classes: share of pixels whose class changes, in percent: the tile mismatch.
        probability: mean over the pixels of the probability that moves from classes to others
            (half of the sum of all classes' changes), in percent.
        pixels: that were compared.
    """

    classes: float
    probability: float
    pixels: int


@dataclass(frozen=True)
class ComparedMap:
    """An image's part that is predicted from two tilings.

    Attributes:
        norm: the network's, its short name.
        facts: of its task: colours.
        image: that part, [h, w, bands].
        classes: of it, by the first tiling, uint8 [h, w].
        changes: which of them the other tiling changes, bool [h, w].
    """

    norm: str
    facts: TaskFacts
    image: np.ndarray
    classes: np.ndarray
    changes: np.ndarray


def tile_mismatch(
    network: Network,
    pictures: Iterable[Picture],
    core: Pair,
    halo: Pair = (0, 0),
    shift: Pair | None = None,
    limit: int | None = None,
) -> Mismatch:
    """The tile mismatch of a network on images.

    Args:
        network: a segmentation.
        pictures: the images.
        core: of a tile, height and width; at most half of an image, so that tiles fit into it. It
            and the shift are rounded down to multiples of the network's stride, the halo up.
        halo: around a core.
        shift: of the other tiling, down and to the right; None: half of a core.
        limit: how many shifted tiles of an image are compared, those nearest to its middle; None:
            all.

    Raises:
        InputError: the shift is smaller than the network's stride, or no image has room for two
            tiles.
    """
    changed = moved = 0.0
    pixels = 0
    for picture in pictures:
        for _, there, here in _compared(network, picture, core, halo, shift, limit):
            difference = np.abs(there.astype(np.float64) - here)
            changed += np.count_nonzero(there.argmax(0) != here.argmax(0))
            moved += difference.sum() / 2
            pixels += difference[0].size
    if not pixels:
        stride = max(network.stride)
        raise InputError(
            "no place of these images is predicted from two tiles: they need room for two, and a "
            f"shift of at least {stride} pixels that is no multiple of a tile"
        )
    return Mismatch(100 * changed / pixels, 100 * moved / pixels, pixels)


def compared_map(
    network: Network, picture: Picture, core: Pair, halo: Pair, shift: Pair | None
) -> ComparedMap | None:
    """A network's map of an image, and where it changes; None if it has no room for two tiles.

    Arguments are those of `tile_mismatch`. Of a large image these are `SHOWN_TILES` in its middle;
    what lies between them and is not compared has class `IGNORED`.
    """
    found = list(_compared(network, picture, core, halo, shift, SHOWN_TILES))
    if not found:
        return None
    places = [place for place, _, _ in found]
    top, left = min(place.top for place in places), min(place.left for place in places)
    bottom = max(place.top + place.height for place in places)
    right = max(place.left + place.width for place in places)
    whole = Place(top, left, bottom - top, right - left)
    classes = np.full((whole.height, whole.width), IGNORED, dtype=np.uint8)
    changes = np.zeros(classes.shape, dtype=bool)
    for place, there, here in found:
        inside = core_of(whole, place)
        classes[inside] = there.argmax(0)
        changes[inside] = there.argmax(0) != here.argmax(0)
    return ComparedMap(network.label, network.facts, picture.read(whole), classes, changes)


def fitting(core: Pair, size: Pair, stride: Pair) -> Pair | None:
    """The core, at most half of the image, in whole strides; None if not even one stride fits."""
    height, width = (
        min(side, length // 2) // step * step
        for side, length, step in zip(core, size, stride, strict=True)
    )
    return (height, width) if min(height, width) > 0 else None


def _compared(
    network: Network,
    picture: Picture,
    core: Pair,
    halo: Pair,
    shift: Pair | None,
    limit: int | None,
) -> Iterator[tuple[Place, np.ndarray, np.ndarray]]:
    """Cores of shifted tiles; their probabilities [classes, h, w] by other tiles, by themselves."""
    inside = fitting(core, picture.size, network.stride)
    if inside is None:
        return
    by = (inside[0] // 2, inside[1] // 2) if shift is None else shift
    tiling, shifted = (Tiling(picture.size, inside, halo, network.stride, s) for s in ((0, 0), by))
    assert tiling.core is not None
    ends = [size // core * core for size, core in zip(tiling.size, tiling.core, strict=True)]
    places = [t for t in shifted if _is_whole(t, tiling.core) and _ends_before(t.core, ends)]
    middle = tiling.size[0] / 2, tiling.size[1] / 2
    places.sort(key=lambda tile: math.dist(_centre(tile.core), middle))
    tiles = list(tiling)

    @cache
    def predicted(tile: Tile) -> np.ndarray:
        part = picture.read(tile.window.inside(picture.size))
        return predict_tile(network, part, tile, probabilities=True)

    for place in places[:limit]:
        others = [tile for tile in tiles if _overlap(tile.core, place.core)]
        if [tile.core for tile in others] == [place.core]:
            continue  # the shift is a multiple of the core: nothing is cut elsewhere
        here = predicted(place)
        there = np.empty_like(here)
        for tile in others:
            common = _overlap(tile.core, place.core)
            assert common is not None
            part = predicted(tile)[(slice(None), *core_of(tile.core, common))]
            there[(slice(None), *core_of(place.core, common))] = part
        yield place.core, there, here


def _is_whole(tile: Tile, core: Pair) -> bool:
    return (tile.core.height, tile.core.width) == core


def _ends_before(place: Place, ends: Sequence[int]) -> bool:
    return place.top + place.height <= ends[0] and place.left + place.width <= ends[1]


def _centre(place: Place) -> tuple[float, float]:
    return place.top + place.height / 2, place.left + place.width / 2


def _overlap(a: Place, b: Place) -> Place | None:
    top, left = max(a.top, b.top), max(a.left, b.left)
    bottom = min(a.top + a.height, b.top + b.height)
    right = min(a.left + a.width, b.left + b.width)
    return Place(top, left, bottom - top, right - left) if top < bottom and left < right else None


# The images of a dataset, and what a run records of them


def pictures_of(dataset: Dataset, count: int) -> list[Picture]:
    """So many images of a dataset, evenly spaced: whole tiles where its samples are windows."""
    if isinstance(dataset, TileWindows):
        every = [
            Picture(size, lambda place, path=tile.image: read(path, place))  # type: ignore[misc]
            for tile, size in zip(dataset.tiles, dataset.tile_sizes, strict=True)
        ]
        return [every[index] for index in _spread(len(every), count)]
    return [_of_array(dataset[index]["image"]) for index in _spread(len(dataset), count)]


def _spread(total: int, count: int) -> list[int]:
    count = min(total, count)
    return [index * total // count for index in range(count)]


def _of_array(image: np.ndarray) -> Picture:
    height, width = image.shape[:2]
    return Picture((height, width), lambda place: image[place.slices])


def evaluation_tile(cfg: DictConfig, stride: Pair) -> tuple[Pair, Pair]:
    """Core and halo of tiles of at most the training crop, with the halo of the evaluation."""
    wanted = evaluation_halo(cfg)
    height, width = (
        max(step, (side - 2 * round_up(wanted, step)) // step * step)
        for side, step in zip(cfg.data.crop, stride, strict=True)
    )
    return (height, width), (round_up(wanted, stride[0]), round_up(wanted, stride[1]))


def recorded_mismatch(
    cfg: DictConfig, model: nn.Module, dataset: Dataset, device: torch.device
) -> float:
    """The ``tile_mismatch`` of a run's ``result.json``, in percent.

    Tiles are those of `evaluation_tile`, the shift is half of a core, and compared is the tile in
    the middle of each of 8 images, evenly spaced over the split that the run is scored on.

    Raises:
        InputError: the network's tiles cannot be placed, or no image has room for two.
    """
    network = Network(model, cfg).to(device, next(model.parameters()).dtype)
    core, halo = evaluation_tile(cfg, network.stride)
    pictures = pictures_of(dataset, RECORDED_IMAGES)
    return round(tile_mismatch(network, pictures, core, halo, limit=RECORDED_TILES).classes, 4)


def evaluated_split(cfg: DictConfig) -> Dataset:
    """The split that a run of this configuration is scored on.

    Raises:
        InputError: its data is not there.
    """
    (dataset,) = open_splits(cfg, [cfg.task.test_split or cfg.data.eval_split])
    return dataset


# The table of `scripts/consistency.py`


@dataclass(frozen=True)
class Line:
    """A line of the table: a network, how its tiles are cut, and what that changes."""

    run: str
    norm: str
    core: Pair
    halo: int
    shift: Pair
    exact: bool
    mismatch: Mismatch


COLUMNS = (
    "run", "norm", "core", "halo", "shift", "exact", "tile_mismatch", "probability_change",
    "pixels",
)  # fmt: skip


def lines_of(
    runs: Sequence[Path],
    norms: Sequence[str],
    arguments: argparse.Namespace,
    maps: list[ComparedMap] | None = None,
) -> Iterator[Line]:
    """The lines of `scripts/consistency.py`: of each run, with its own norm and with ``norms``.

    Args:
        runs: directories or exports.
        norms: to convert to, as on the command line; values with commas are several norms.
        arguments: see the script.
        maps: gets each network's map of the first image with room for two tiles, with the first
            halo and the last shift.

    Raises:
        InputError: a run cannot be used, there are no images, or see `tile_mismatch`.
    """
    device = device_of(arguments.device)
    for run in runs:
        pictures: list[Picture] = []
        for norm in [[], *_every(norms)]:
            network = load_network(run, device, arguments.checkpoint, norm, arguments.convert)
            if network.kind != "segmentation":
                raise InputError(f"{run} is of {network.kind}: only segmentation has tiles")
            pictures = pictures or _pictures(network, arguments)
            height, width = [arguments.tile] * 2 if arguments.tile else network.cfg.data.crop
            core = fitting((height, width), (2 * height, 2 * width), network.stride)
            if core is None:
                raise InputError(
                    f"a tile of {height} x {width} pixels is smaller than the network's stride of "
                    f"{max(network.stride)}: raise --tile"
                )
            halos = arguments.halo or [core[0] * part // 4 for part in (0, 1, 2, 4)]
            shifts = arguments.shift or [max(network.stride), None]
            yield from measure(run.name, network, pictures, core, halos, shifts, arguments.limit)
            if maps is not None:
                shift = None if shifts[-1] is None else (shifts[-1], shifts[-1])
                halo = halos[0], halos[0]
                shown = (compared_map(network, each, core, halo, shift) for each in pictures)
                maps.append(next(filter(None, shown)))


def _every(overrides: Sequence[str]) -> list[list[str]]:
    """Overrides without commas, for each combination of their values."""
    if not overrides:
        return []
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise InputError(f"{' '.join(overrides)}: {str(error).splitlines()[0]}") from None
    values = [
        [f"{each.get_key_element()}={value}" for value in each.sweep_string_iterator()]
        if each.is_sweep_override()
        else [str(each.input_line)]
        for each in parsed
    ]
    return [list(each) for each in itertools.product(*values)]


def _pictures(network: Network, arguments: argparse.Namespace) -> list[Picture]:
    if not arguments.images:
        return pictures_of(evaluated_split(network.cfg), arguments.count)
    return [_of_file(path, len(network.bands)) for path in find_images(arguments.images)]


def _of_file(path: Path, bands: int) -> Picture:
    source = Source(path, None, bands)
    return Picture(source.size, lambda place: source.read(place)[0])


def measure(
    run: str,
    network: Network,
    pictures: Sequence[Picture],
    core: Pair,
    halos: Sequence[int],
    shifts: Sequence[int | None],
    limit: int | None,
) -> Iterator[Line]:
    """A line for each halo and shift (None: half of a core); see `tile_mismatch`.

    Raises:
        InputError: see there.
    """
    for shift in shifts:
        for halo in halos:
            pair = None if shift is None else (shift, shift)
            found = tile_mismatch(network, pictures, core, (halo, halo), pair, limit)
            sizes = {picture.size for picture in pictures}
            cut = (core[0] // 2, core[1] // 2) if pair is None else pair
            exact = all(
                Tiling(size, fitting(core, size, network.stride), (halo, halo), network.stride, by)
                .is_exact(network.audit(size).reach)
                for size in sizes for by in ((0, 0), cut)
            )  # fmt: skip
            yield Line(run, network.label, core, halo, cut, exact, found)


def cells(line: Line) -> tuple[str, ...]:
    """A line's values, in the order of `COLUMNS`."""
    found = line.mismatch
    return (
        line.run, line.norm, f"{line.core[0]}x{line.core[1]}", str(line.halo),
        f"{line.shift[0]}x{line.shift[1]}", "yes" if line.exact else "no",
        f"{found.classes:.4f}", f"{found.probability:.4f}", str(found.pixels),
    )  # fmt: skip


def as_csv(lines: Sequence[Line]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(map(cells, lines))
    return text.getvalue()
