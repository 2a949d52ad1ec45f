"""The map of a scene: which material lies where, drawn twice as fine as the picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from tasks.miniatures.chance import choose
from tasks.miniatures.chesapeake.materials import (
    ASPHALTS,
    COURT,
    CROPS,
    LAWN,
    PAVINGS,
    QUARRIES,
    ROOFS,
    WATERS,
    WOODS,
    Bands,
    Material,
)

SCENE = 320  # pixels, both sides of the picture
SUPERSAMPLING = 2
SIDE = SCENE * SUPERSAMPLING  # pixels of the map

Point = tuple[float, float]  # x to the right and y down, in pixels of the picture


@dataclass(frozen=True)
class Parcel:
    """A rectangle in the rotated frame of its scene, in pixels of the picture."""

    u0: float
    u1: float
    v0: float
    v1: float

    def inset(self, margin: float) -> "Parcel":
        """The parcel without a margin."""
        return Parcel(self.u0 + margin, self.u1 - margin, self.v0 + margin, self.v1 - margin)


class LandMap:
    """Material numbers, and the pen that draws them.

    A scene has its own shade of every material. Groups of them (`waters`, `woods` ...) hold their
    numbers; `materials` holds the shades themselves by number.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.angle = rng.uniform(-0.7, 0.7)  # of the parcels, radians
        self.materials: list[Material] = []
        self.image = Image.new("L", (SIDE, SIDE))
        self.pen = ImageDraw.Draw(self.image)
        self.waters = self._shades(WATERS)
        self.woods = self._shades(WOODS)
        self.asphalts = self._shades(ASPHALTS)
        self.pavings = self._shades(PAVINGS)
        self.roofs = self._shades(ROOFS)
        self.quarries = self._shades(QUARRIES)
        turns = (0, math.pi / 2)
        self.crops = self._shades(
            [replace(crop, row_angle=self.angle + turn) for crop in CROPS for turn in turns]
        )
        self.lawn, self.court = self._shades([LAWN, COURT])

    def _shades(self, group: Sequence[Material]) -> list[int]:
        """Draw the scene's own shades of some materials; returns their numbers."""
        first = len(self.materials)
        for material in group:
            tint = self.rng.normal(1, 0.12) * self.rng.normal(1, 0.03, 4)
            summer, autumn = material.summer, material.autumn or material.summer
            shade = replace(material, summer=_tinted(summer, tint), autumn=_tinted(autumn, tint))
            self.materials.append(shade)
        return list(range(first, len(self.materials)))

    def place(self, u: float, v: float) -> Point:
        """From the frame of the parcels to the picture."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return SCENE / 2 + u * cos - v * sin, SCENE / 2 + u * sin + v * cos

    def rectangle(self, p: Parcel, material: int) -> None:
        """Fill a parcel."""
        corners = [self.place(*c) for c in ((p.u0, p.v0), (p.u1, p.v0), (p.u1, p.v1), (p.u0, p.v1))]
        self.pen.polygon([(SUPERSAMPLING * x, SUPERSAMPLING * y) for x, y in corners], material)

    def line(self, points: list[Point], width: float, material: int) -> None:
        """Draw a line that is `width` pixels of the picture wide."""
        fine = [(SUPERSAMPLING * x, SUPERSAMPLING * y) for x, y in points]
        self.pen.line(fine, material, round(SUPERSAMPLING * width), joint="curve")

    def tree(self, point: Point, radius: float) -> None:
        """Draw one crown."""
        x, y, r = (SUPERSAMPLING * value for value in (*point, radius))
        self.pen.ellipse((x - r, y - r, x + r, y + r), choose(self.rng, self.woods))

    def fill(self, mask: Image.Image, material: int) -> None:
        """Set all pixels of a mask of the map's size."""
        self.image.paste(material, mask=mask)


def _tinted(bands: Bands, tint: np.ndarray) -> Bands:
    red, green, blue, infrared = np.clip(bands * tint, 0.01, 0.9)
    return red, green, blue, infrared
