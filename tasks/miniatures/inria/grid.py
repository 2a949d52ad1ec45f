"""The grid of cells that a tile is drawn on: its measures, rectangles on it, and noise over it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SIZE = 500  # pixels, both sides of a tile
GROUND_SAMPLING = 1.2  # metres per pixel
SUPERSAMPLING = 2  # cells per pixel, both ways
MARGIN = 15  # pixels drawn around the tile: what stands there casts shadows into it
CELL = GROUND_SAMPLING / SUPERSAMPLING  # metres, as all lengths that are not in pixels or cells
CELLS = (SIZE + 2 * MARGIN) * SUPERSAMPLING
EXTENT = CELLS * CELL


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
    """The cells around a box."""

    window: tuple[slice, slice]  # rows and columns of the grid
    u: np.ndarray  # float [h, w], places of the cells' centres along the box's axes, metres
    v: np.ndarray
    inside: np.ndarray  # bool [h, w], which of them lie in the box


def patch_around(box: Box, grow: float = 0.0) -> Patch:
    """The cells around a box that is larger by `grow` metres on every side."""
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


SMOOTH, PATCHY, GRAINY = 2.0, 1.4, 0.9
"""Exponents of `noise`."""


@lru_cache(maxsize=3)
def noise(exponent: float) -> np.ndarray:
    """Periodic noise [CELLS, CELLS] of spectrum f^-exponent: float32, uniform in 0..1.

    The same for all tiles and seeds; a tile moves and turns it.
    """
    rng = np.random.default_rng(7)
    fy, fx = np.fft.fftfreq(CELLS)[:, None], np.fft.rfftfreq(CELLS)[None]
    radius = np.maximum(np.hypot(fy, fx), 1 / CELLS)
    white = np.fft.rfft2(rng.standard_normal((CELLS, CELLS)))
    rough = np.fft.irfft2(white / radius**exponent, s=(CELLS, CELLS))
    uniform = np.empty(CELLS * CELLS, np.float32)
    uniform[np.argsort(rough, axis=None)] = np.linspace(0, 1, CELLS * CELLS, dtype=np.float32)
    return uniform.reshape(CELLS, CELLS)


@lru_cache(maxsize=1)
def canopy() -> np.ndarray:
    """Periodic heights of a closed forest [CELLS, CELLS]: float32 domes, 0..1."""
    pitch = 10  # cells between trees; divides CELLS
    count = CELLS // pitch
    rng = np.random.default_rng(8)
    centre = rng.uniform(0, pitch, (2, count, count)).astype(np.float32)
    tall = rng.uniform(0.55, 1, (count, count)).astype(np.float32)
    cell_y, cell_x = np.indices((CELLS, CELLS)) // pitch
    in_y, in_x = (np.indices((CELLS, CELLS), np.float32)) % pitch
    heights = np.zeros((CELLS, CELLS), np.float32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            y, x = (cell_y + dy) % count, (cell_x + dx) % count
            distance = (dy * pitch + centre[0, y, x] - in_y) ** 2
            distance += (dx * pitch + centre[1, y, x] - in_x) ** 2
            dome = tall[y, x] * np.sqrt(np.maximum(0, 1 - distance / (0.9 * pitch) ** 2))
            np.maximum(heights, dome, out=heights)
    return heights
