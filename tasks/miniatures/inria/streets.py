"""Streets and the cars parked along them."""

import math

import numpy as np
from PIL import Image, ImageDraw

from tasks.miniatures.inria.grid import CELL, CELLS, EXTENT, Box
from tasks.miniatures.inria.site import Site

_PAINTS = ((0.7, 0.7, 0.7), (0.06, 0.06, 0.07), (0.3, 0.31, 0.33), (0.35, 0.08, 0.07))


def plan_streets(site: Site) -> list[np.ndarray]:
    """Centre lines [points, 2] of x and y, from one side of the tile to the other."""
    streets = []
    middle, reach = EXTENT / 2, EXTENT * 0.75
    along = np.arange(-reach, reach, 8.0)
    phase, period = site.rng.uniform(0, 2 * math.pi), site.draw((220, 380))
    for turn, spacing in enumerate(site.city.streets.spacing):
        if not spacing:
            continue
        angle = site.angle + turn * math.pi / 2
        c, s = math.cos(angle), math.sin(angle)
        for offset in np.arange(-reach + site.rng.uniform(0, spacing), reach, spacing):
            # Neighbours bend alike, or they would meet.
            wave = np.sin(along / period * 2 * math.pi + phase + offset / 900)
            across = offset + site.city.streets.bend * wave
            line = np.stack([middle + along * c - across * s, middle + along * s + across * c])
            streets.append(line.T)
    return streets


def draw_streets(site: Site, streets: list[np.ndarray]) -> None:
    """Pavements, carriageways and parked cars."""
    land, width = site.city.land, site.city.streets.width
    for colour, metres in ((land.paving, width + 3), (land.asphalt, width)):
        canvas = Image.new("L", (CELLS, CELLS))
        pen = ImageDraw.Draw(canvas)
        for street in streets:
            points = [(x, y) for x, y in (street / CELL).tolist()]
            pen.line(points, 255, round(metres / CELL))
        where = np.asarray(canvas) > 0
        site.albedo[where] = site.near((colour,), 0.08) * (0.9 + 0.2 * site.grain[where, None])
        site.height[where] = 0
        site.taken |= where
    for street in streets:
        for place, following in zip(street[:-1:2], street[1::2], strict=False):
            if site.chance(0.2):
                angle = math.atan2(following[1] - place[1], following[0] - place[0])
                side = site.sign() * (width / 2 - 1.4)
                park_car(site, Box(place[0], place[1], angle, 2.3, 0.9).inner(0, side, 2.3, 0.9))


def park_car(site: Site, box: Box) -> None:
    """A car that fills a box."""
    site.pave(box, site.near(_PAINTS), 1.5)
