"""Drawing a thing in coordinates of its own."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]  # red, green, blue, 0..255
Point = tuple[float, float]


@dataclass(frozen=True)
class Palette:
    """The colours of one thing: two that differ in brightness, and a dark and a light one."""

    main: Colour
    second: Colour
    dark: Colour
    light: Colour


class Sketch:
    """Draws in the coordinates of a thing that fills [-1, 1] x [-1, 1], x right and y up.

    Args:
        size: width and height of the canvas in pixels.
        pose: float [2, 3], takes (x, y, 1) to pixels.
    """

    def __init__(self, size: tuple[int, int], pose: np.ndarray):
        self.pose = pose
        self.colour = Image.new("RGB", size)
        self.mask = Image.new("L", size)

    def polygon(self, points: list[Point], colour: Colour) -> None:
        pixels = self._pixels(points)
        ImageDraw.Draw(self.colour).polygon(pixels, fill=colour)
        ImageDraw.Draw(self.mask).polygon(pixels, fill=255)

    def stroke(self, points: list[Point], width: float, colour: Colour) -> None:
        """A line of that width with round joints and ends."""
        for (x0, y0), (x1, y1) in pairwise(points):
            length = math.hypot(x1 - x0, y1 - y0) or 1.0
            dx, dy = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
            self.polygon(
                [(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)],
                colour,
            )
        for x, y in points:
            self.polygon(ellipse(x, y, width / 2), colour)

    def ring(self, points: list[Point], width: float, colour: Colour) -> None:
        """The outline of a closed curve."""
        self.stroke([*points, points[0]], width, colour)

    @contextmanager
    def inside(self, *outlines: list[Point]) -> Iterator[None]:
        """What is drawn meanwhile shows within the outlines only."""
        colour, mask = self.colour.copy(), self.mask.copy()
        yield
        window = Image.new("L", self.mask.size)
        for outline in outlines:
            ImageDraw.Draw(window).polygon(self._pixels(outline), fill=255)
        self.colour = Image.composite(self.colour, colour, window)
        self.mask = Image.composite(self.mask, mask, window)

    def _pixels(self, points: list[Point]) -> list[float]:
        return (np.asarray(points) @ self.pose[:, :2].T + self.pose[:, 2]).ravel().tolist()


_TURN = np.arange(32) * 2 * np.pi / 32
_CIRCLE = np.column_stack([np.cos(_TURN), np.sin(_TURN)])


def ellipse(
    x: float, y: float, rx: float, ry: float | None = None, angle: float = 0
) -> list[Point]:
    """32 points around (x, y), turned by `angle` radians; of a circle without `ry`."""
    c, s = math.cos(angle), math.sin(angle)
    axes = np.array([[c, s], [-s, c]]) * [[rx], [rx if ry is None else ry]]
    return (_CIRCLE @ axes + (x, y)).tolist()


def around(x: float, y: float, radius: float, angle: float) -> Point:
    """The point at `angle` radians on a circle around (x, y)."""
    return x + radius * math.cos(angle), y + radius * math.sin(angle)
