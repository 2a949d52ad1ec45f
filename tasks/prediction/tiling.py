"""Where a large image is cut, and how for a network and a memory: pure arithmetic, no torch.

A network's *whole result* is defined on the image padded at the right and bottom, by repeating its
last row and column, to multiples of the network's total stride (networks that resize to given
sizes, such as HRNet, are the same at all such sizes, and at no others). Tiles lie inside the padded
image, begin and end at multiples of the stride, and end where the padded image ends: at a true
border the network sees what it sees in the whole image. So a tile's core is the whole result's as
soon as the halo is at least the network's reach.
"""

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tasks.data.tiles import Place, round_up
from tasks.errors import InputError

if TYPE_CHECKING:
    from tasks.prediction.network import Network

Pair = tuple[int, int]
Reach = tuple[float, float] | None  # rows and columns; None: not known


@dataclass(frozen=True)
class Tile:
    """A part of the padded image, ``window``, and the part of the image it decides, ``core``."""

    index: int
    window: Place
    core: Place

    def whole(self, size: Pair) -> "Tile":
        """The same window, whose core is all of it that lies in an image of that size."""
        return Tile(self.index, self.window, self.window.inside(size))


@dataclass(frozen=True)
class Tiling:
    """All tiles of an image, row by row; pairs are of rows and columns, in pixels.

    Args:
        size: of the image.
        core: of a tile; rounded up to a multiple of the stride. None: the whole image is one tile.
        halo: around the core, on each side; rounded up to a multiple of the stride.
        stride: the network's total stride.
        shift: what the first core of each axis is shorter by; rounded down to a multiple of the
            stride. Another shift cuts the same image elsewhere.
        blend: whether a pixel is a mean over all tiles that hold it, see `weights`; its tile's
            core alone decides otherwise.
    """

    size: Pair
    core: Pair | None
    halo: Pair
    stride: Pair
    shift: Pair = (0, 0)
    blend: bool = False

    @property
    def padded(self) -> Pair:
        """Size of the padded image."""
        return round_up(self.size[0], self.stride[0]), round_up(self.size[1], self.stride[1])

    @property
    def bands(self) -> list[list[Tile]]:
        """The tiles by rows of tiles, from the top."""
        rows, columns = self._axis(0), self._axis(1)
        return [
            [
                Tile(row * len(columns) + column, _place(r[:2], c[:2]), _place(r[2:], c[2:]))
                for column, c in enumerate(columns)
            ]
            for row, r in enumerate(rows)
        ]

    def __iter__(self) -> Iterator[Tile]:
        return (tile for band in self.bands for tile in band)

    def __len__(self) -> int:
        return len(self._axis(0)) * len(self._axis(1))

    @property
    def largest(self) -> Pair:
        """Height and width of the largest tile."""
        height, width = (max(end - start for start, end, *_ in self._axis(axis)) for axis in (0, 1))
        return height, width

    def is_exact(self, reach: Reach) -> bool:
        """Whether tiles give the whole result: a tile's border is the image's own or
        at least the reach away from the core.

        Args:
            reach: of the network, None if it is not known.
        """
        return all(
            (start == 0 or core_start - start >= far)
            and (end >= self.size[axis] or end - core_end >= far)
            for axis, far in enumerate(reach or (math.inf, math.inf))
            for start, end, core_start, core_end in self._axis(axis)
        )

    def weights(self, axis: int) -> list[np.ndarray]:
        """What a blended tile counts at its pixels within the image, by rows or columns of tiles.

        From 0 to 1 along half a cosine wave that is centred on the border between two cores; all
        tiles together count 1 at every pixel. A pixel's weight is the product of both axes'.
        """
        length, tiles = self.size[axis], self._axis(axis)
        weights = []
        for start, end, core_start, core_end in tiles:
            pixels = np.arange(start, min(end, length)) + 0.5
            up = _ramp(pixels - core_start, core_start - start)
            down = _ramp(core_end - pixels, end - core_end if core_end < length else 0)
            weights.append(up * down)
        total = np.zeros(length)
        for (start, end, *_), weight in zip(tiles, weights, strict=True):
            total[start:end] += weight
        return [w / total[start:end] for (start, end, *_), w in zip(tiles, weights, strict=True)]

    def _axis(self, axis: int) -> list[tuple[int, int, int, int]]:
        core = self.core[axis] if self.core else self.size[axis]
        return cut_axis(self.size[axis], core, self.halo[axis], self.stride[axis], self.shift[axis])


def cut_axis(
    length: int, core: int, halo: int, stride: int, shift: int = 0
) -> list[tuple[int, int, int, int]]:
    """Tiles along one axis: (start, end, core start, core end) each, see `Tiling`.

    Cores have neither gap nor overlap and end at ``length``; tiles end at its next multiple of
    ``stride`` at the latest.
    """
    if min(length, core, stride) < 1 or halo < 0:
        raise ValueError(f"length {length}, core {core} and stride {stride} must be at least 1")
    core, halo = round_up(core, stride), round_up(halo, stride)
    shift = shift % core // stride * stride
    end = round_up(length, stride)
    starts = [0, *range(core - shift, length, core)]
    return [
        (max(0, start - halo), min(end, stop + halo), start, min(stop, length))
        for start, stop in zip(starts, [*starts[1:], end], strict=True)
    ]


def _ramp(distance: np.ndarray, halo: int) -> np.ndarray:
    """Weights at signed distances to a core's border, inside positive; without a halo all are 1."""
    if halo == 0:
        return np.ones_like(distance)
    return np.sin(np.pi / 4 * np.clip(1 + distance / halo, 0, 2)) ** 2


def _place(rows: tuple[int, int], columns: tuple[int, int]) -> Place:
    return Place(rows[0], columns[0], rows[1] - rows[0], columns[1] - columns[0])


# The tiles for a network and a memory

DEFAULT_CORE = 512
DEFAULT_MEMORY = 2 * 2**30
_MEASURE = "scripts/consistency.py measures how many classes change with the tiles"


@dataclass(frozen=True)
class Choice:
    """How an image is cut, whether the result is exact, and a sentence that says so."""

    tiling: Tiling
    exact: bool
    message: str


def choose_tiling(
    network: "Network",
    size: Pair,
    halo: int | None = None,
    core: int | None = None,
    memory: float = DEFAULT_MEMORY,
    shift: Pair = (0, 0),
    blend: bool = False,
    masked: bool = False,
) -> Choice:
    """Tiles for an image of a size.

    Args:
        network: a segmentation.
        size: height and width of the image.
        halo: pixels around a core; None: the network's reach if such a tile fits the memory, else
            the largest halo that does, up to half a core. Then an image that fits it whole is one
            tile.
        core: height and width of a core; None: 512, or twice the halo where the memory has room.
        memory: bytes that the tensors of a tile may take.
        shift: see `Tiling`.
        blend: see `Tiling`; left out where tiles are exact without it.
        masked: pixels may have no data, which takes more memory.

    Raises:
        InputError: not even a tile without a halo fits the memory.
    """
    stride, reach = network.stride, network.audit(size).reach
    pixels = memory / network.bytes_per_pixel(masked)

    def cut(pair: Pair, side: int | None = core or DEFAULT_CORE) -> Tiling:
        return Tiling(size, None if side is None else (side, side), pair, stride, shift)

    def fits(tiling: Tiling) -> bool:
        return math.prod(tiling.largest) <= pixels

    if halo is not None:
        tiling = cut((halo, halo))
    elif core is None and fits(cut((0, 0), None)):
        tiling = cut((0, 0), None)
    else:
        tiling = _chosen(cut, fits, core, size, math.lcm(*stride), reach)
    exact = tiling.is_exact(reach)
    if blend and not exact:
        if max(tiling.halo) == 0:
            raise InputError("--blend needs a halo: lower --tile, or raise --memory or --halo")
        tiling = replace(tiling, blend=True)
    return Choice(tiling, exact, _explained(network, tiling, reach, exact))


def _chosen(
    cut: Callable[..., Tiling],
    fits: Callable[[Tiling], bool],
    core: int | None,
    size: Pair,
    step: int,
    reach: Reach,
) -> Tiling:
    """With the reach as the halo if that fits, else with the largest square halo up to half a core.

    A core that is not given becomes twice the halo as far as the memory has room: each pixel is
    then computed four times, not more.
    """

    def last(choices: Sequence[int], tiling: Callable[[int], Tiling]) -> Tiling:
        """The last choice that fits, or the first; larger ones need more."""
        fitting = bisect.bisect_left(choices, True, key=lambda c: not fits(tiling(c)))
        return tiling(choices[max(0, fitting - 1)])

    least = core or DEFAULT_CORE
    if reach is not None and math.isfinite(min(reach)):
        halo = [
            side if math.isinf(far) else math.ceil(far)
            for side, far in zip(size, reach, strict=True)
        ]
        most = least if core else max(least, 2 * round_up(max(halo), step))
        exact = last(range(least, most + 1, step), lambda side: cut((halo[0], halo[1]), side))
        if fits(exact):
            return exact
    half = round_up(least // 2, step)
    found = last(range(0, half + 1, step), lambda halo: cut((halo, halo), least))
    if not fits(found):
        height, width = found.largest
        raise InputError(
            f"a tile of {height} x {width} pixels does not fit the memory: lower --tile or raise "
            "--memory"
        )
    if core is None and found.halo[0] == half:
        halos = range(half, max(half, *size) + 1, step)
        found = last(halos, lambda halo: cut((halo, halo), 2 * halo))
    return found


def _explained(network: "Network", tiling: Tiling, reach: Reach, exact: bool) -> str:
    if len(tiling) == 1:
        return "exact: the whole image at once"
    halo = max(round_up(h, s) for h, s in zip(tiling.halo, tiling.stride, strict=True))
    count = f"{len(tiling)} tiles with a halo of {halo} pixels{', blended' * tiling.blend}"
    if exact and reach is None:
        return f"exact: {count}, each of which sees the whole image"
    if reach is not None and exact:
        return f"exact: {count}, the network's reach is {max(reach):g}"
    measure = _MEASURE
    if network.tile_mismatch is not None:
        measure = f"its evaluation had a tile mismatch of {network.tile_mismatch:.2g} %; {_MEASURE}"
    if reach is None:
        return f"not known to be exact: {count}, the network's reach is not known; {measure}"
    found = network.audit(tiling.size).network
    if math.isinf(max(reach)):
        names = list(found.unlimited_by)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return (
            f"not exact: {count}, and no halo is enough: {', '.join(names[:3])}{more} of "
            f"{network.label} see the whole map; {measure}"
        )
    return f"not exact: {count}, the network's reach is {max(reach):g}; raise --memory; {measure}"
