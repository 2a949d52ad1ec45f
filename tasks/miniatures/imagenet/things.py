"""The ten classes, and how each thing is drawn."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tasks.miniatures.imagenet.sketch import Palette, Point, Sketch, around, ellipse


def bicycle(sketch: Sketch, rng: np.random.Generator, palette: Palette) -> None:
    radius = rng.uniform(0.36, 0.44)
    back, front = (-1 + radius, -0.9 + radius), (1 - radius, -0.9 + radius)
    spokes = int(rng.integers(7, 13))
    for x, y in (back, front):
        for angle in np.arange(spokes) * 2 * np.pi / spokes + rng.uniform(0, 1):
            sketch.stroke([(x, y), around(x, y, radius, angle)], 0.03, palette.second)
        sketch.ring(ellipse(x, y, radius - 0.04), 0.09, palette.main)
    pedals, seat, head = (-0.1, back[1]), (-0.25, 0.35), (0.42, 0.4)
    frame = rng.uniform(0.07, 0.11)
    for line in ([back, pedals, seat, back], [seat, head, pedals], [front, head, (0.38, 0.62)]):
        sketch.stroke(line, frame, palette.main)
    sketch.stroke([seat, (-0.3, 0.52)], frame, palette.main)
    sketch.stroke([(-0.44, 0.54), (-0.18, 0.54)], 0.12, palette.dark)
    sketch.stroke([(0.24, 0.72), (0.38, 0.62), (0.56, 0.68)], 0.08, palette.dark)
    sketch.polygon(ellipse(*pedals, 0.1), palette.second)


def fish(sketch: Sketch, rng: np.random.Generator, palette: Palette) -> None:
    depth = rng.uniform(0.36, 0.58)
    fork = rng.uniform(0.72, 0.85)
    sketch.polygon([(-0.4, 0), (-1, 0.5), (-fork, 0), (-1, -0.5)], palette.second)
    sketch.polygon([(-0.3, 0), (-0.15, depth + 0.32), (0.35, 0.2)], palette.second)
    sketch.polygon([(-0.1, 0), (-0.15, -depth - 0.25), (0.2, -0.2)], palette.second)
    body = ellipse(0.22, 0, 0.76, depth)
    sketch.polygon(body, palette.main)
    step = rng.uniform(0.15, 0.2)
    with sketch.inside(body):
        for row, y in enumerate(np.arange(-0.6, 0.6, step)):
            for x in np.arange(-0.6 + step / 2 * (row % 2), 0.45, step):
                sketch.stroke(ellipse(x, y, step / 2)[8:25], 0.025, palette.second)
        sketch.stroke(ellipse(0.9, 0, 0.42, 0.7)[8:25], 0.05, palette.dark)
    sketch.polygon(ellipse(0.72, 0.12, 0.1), palette.light)
    sketch.polygon(ellipse(0.74, 0.12, 0.055), palette.dark)
    sketch.stroke([(0.96, -0.1), (0.78, -0.14)], 0.03, palette.dark)


def tree(sketch: Sketch, rng: np.random.Generator, palette: Palette) -> None:
    trunk = rng.uniform(0.08, 0.14)
    sketch.polygon([(-trunk * 1.6, -1), (trunk * 1.6, -1), (trunk, 0), (-trunk, 0)], palette.second)
    for x, y in ((-0.45, 0.2), (0.5, 0.25), (0.1, 0.4)):
        sketch.stroke([(0, -0.35), (x, y)], 0.09, palette.second)
    lumps = [
        (*around(0, 0.3, rng.uniform(0.25, 0.5), angle), rng.uniform(0.26, 0.38))
        for angle in np.linspace(-0.4, np.pi + 0.4, 7)
    ]
    leaves = [(x, y, r * rng.uniform(0.5, 1)) for x, y, r in lumps for _ in range(14)]
    for x, y, r in (*lumps, (0, 0.35, 0.4)):
        sketch.polygon(ellipse(x, y, r), palette.main)
    for x, y, r in leaves:
        angle = rng.uniform(0, 2 * np.pi)
        shade = rng.uniform(0.55, 1.35)
        red, green, blue = (min(255, int(shade * c)) for c in palette.main)
        leaf = ellipse(*around(x, y, r, angle), 0.075, 0.045, rng.uniform(0, np.pi))
        sketch.polygon(leaf, (red, green, blue))


def house(sketch: Sketch, rng: np.random.Generator, palette: Palette) -> None:
    eaves, ridge = rng.uniform(0.0, 0.2), rng.uniform(0.75, 1.0)
    chimney = rng.uniform(0.25, 0.5)
    sketch.polygon(
        [(chimney, 0.2), (chimney + 0.2, 0.2), (chimney + 0.2, 0.9), (chimney, 0.9)], palette.dark
    )
    sketch.polygon([(-0.8, -0.9), (0.8, -0.9), (0.8, eaves), (-0.8, eaves)], palette.main)
    roof = [(-1, eaves), (1, eaves), (0.45, ridge), (-0.45, ridge)]
    if rng.uniform() < 0.5:
        roof = [(-1, eaves), (1, eaves), (0, ridge)]
    sketch.polygon(roof, palette.second)
    with sketch.inside(roof):
        for y in np.arange(eaves, ridge, 0.14):
            sketch.stroke([(-1, y), (1, y)], 0.03, palette.dark)
    columns, door = ((-0.55, 0.55), 0.0) if rng.uniform() < 0.5 else ((-0.5, 0.0), 0.5)
    sketch.polygon(_box(door, -0.62, 0.15, 0.28), palette.dark)
    for x in columns:
        sketch.polygon(_box(x, -0.35, 0.2, 0.22), palette.dark)
        sketch.polygon(_box(x, -0.35, 0.15, 0.17), palette.light)
        sketch.stroke([(x, -0.52), (x, -0.18)], 0.04, palette.dark)
        sketch.stroke([(x - 0.15, -0.35), (x + 0.15, -0.35)], 0.04, palette.dark)


def _box(x: float, y: float, half_width: float, half_height: float) -> list[Point]:
    left, right, low, high = x - half_width, x + half_width, y - half_height, y + half_height
    return [(left, low), (right, low), (right, high), (left, high)]


def ball(sketch: Sketch, rng: np.random.Generator, palette: Palette) -> None:
    outline = ellipse(0, 0, 0.95)
    sketch.polygon(outline, palette.light)
    turn, size = rng.uniform(0, 2 * np.pi), rng.uniform(0.24, 0.32)
    patches = [(0.0, 0.0)] + [around(0, 0, 0.78, turn + k * 2 * np.pi / 5) for k in range(5)]
    with sketch.inside(outline):
        for k, (x, y) in enumerate(patches):
            facing = turn + (0 if k == 0 else (k - 1) * 2 * np.pi / 5 + np.pi)
            corners = [around(x, y, size, facing + j * 2 * np.pi / 5) for j in range(5)]
            if k:
                sketch.stroke([(0, 0), (x, y)], 0.05, palette.dark)
            sketch.polygon(corners, palette.dark)
        for k in range(5):
            middle = turn + (k + 0.5) * 2 * np.pi / 5
            for angle in (middle - np.pi / 5, middle + np.pi / 5):
                sketch.stroke(
                    [around(0, 0, 0.62, middle), around(0, 0, 0.66, angle)], 0.05, palette.dark
                )
            sketch.stroke([around(0, 0, 0.62, middle), around(0, 0, 1, middle)], 0.05, palette.dark)


def zebra(sketch: Sketch, rng: np.random.Generator, palette: Palette) -> None:
    body = ellipse(-0.1, 0.1, 0.62, 0.3)
    neck = [(0.25, 0.1), (0.5, 0.75), (0.78, 0.7), (0.55, 0.0)]
    head = ellipse(0.8, 0.66, 0.28, 0.14, -0.5)
    outlines = [body, neck, head]
    for x in (-0.58, -0.38, 0.22, 0.42):
        foot = x + rng.uniform(-0.12, 0.12)
        outlines.append(
            [(x - 0.1, 0.1), (x + 0.1, 0.1), (foot + 0.06, -0.95), (foot - 0.06, -0.95)]
        )
    sketch.stroke([(-0.68, 0.2), (-0.85, -0.1), (-0.82, -0.35)], 0.06, palette.dark)
    sketch.polygon([(0.56, 0.75), (0.6, 1.0), (0.7, 0.78)], palette.light)
    for outline in outlines:
        sketch.polygon(outline, palette.light)
    gap = rng.uniform(0.15, 0.19)
    with sketch.inside(body, neck):
        for x in np.arange(-0.85, 0.9, gap):
            lean = 0.25 * math.sin(3 * x) + rng.uniform(-0.04, 0.04)
            sketch.stroke([(x - lean, -0.3), (x, 0.1), (x + lean, 0.9)], 0.075, palette.dark)
    with sketch.inside(*outlines[3:]):
        for y in np.arange(-0.9, -0.15, gap):
            sketch.stroke([(-1, y), (1, y + rng.uniform(-0.05, 0.05))], 0.07, palette.dark)
    sketch.stroke([(0.3, 0.3), (0.5, 0.8)], 0.09, palette.dark)
    sketch.polygon(ellipse(0.98, 0.55, 0.1, 0.08), palette.dark)
    sketch.polygon(ellipse(0.76, 0.74, 0.04), palette.dark)


def cup(sketch: Sketch, rng: np.random.Generator, palette: Palette) -> None:
    foot, low = rng.uniform(0.35, 0.6), rng.uniform(-0.9, -0.7)
    sketch.ring(ellipse(0.55, -0.1, 0.36, 0.42), 0.14, palette.main)
    wall = [(-0.75, 0.6), (0.55, 0.6), (foot - 0.1, low), (-foot - 0.1, low)]
    base = ellipse(-0.1, low, foot, 0.14)
    for outline in (wall, base):
        sketch.polygon(outline, palette.main)
    with sketch.inside(wall, base):
        for y in (0.25, 0.02):
            sketch.stroke(ellipse(-0.1, y, 0.75, 0.15)[15:33], 0.08, palette.second)
    sketch.polygon(ellipse(-0.1, 0.6, 0.66, 0.2), palette.light)
    sketch.polygon(ellipse(-0.1, 0.57, 0.56, 0.14), palette.dark)


def key(sketch: Sketch, rng: np.random.Generator, palette: Palette) -> None:
    bow = rng.uniform(0.28, 0.36)
    width = rng.uniform(0.12, 0.17)
    sketch.ring(ellipse(-1 + bow, 0, bow - 0.05, bow), width, palette.main)
    sketch.stroke([(-1 + 2 * bow, 0), (0.95, 0)], width, palette.main)
    for x in (-1 + 2 * bow + 0.08, -1 + 2 * bow + 0.25):
        sketch.stroke([(x, -0.13), (x, 0.13)], 0.07, palette.second)
    for x in np.linspace(0.42, 0.9, int(rng.integers(2, 5))):
        sketch.stroke([(x, 0), (x, -rng.uniform(0.25, 0.5))], 0.11, palette.main)


def ladder(sketch: Sketch, rng: np.random.Generator, palette: Palette) -> None:
    foot, top = rng.uniform(0.4, 0.55), rng.uniform(0.28, 0.45)
    for y in np.linspace(-0.8, 0.82, int(rng.integers(6, 9))):
        half = foot + (top - foot) * (y + 1) / 2
        sketch.stroke([(-half, y), (half, y)], 0.09, palette.second)
    for side in (-1, 1):
        sketch.stroke([(side * foot, -1), (side * top, 1)], 0.12, palette.main)


def flower(sketch: Sketch, rng: np.random.Generator, palette: Palette) -> None:
    sketch.stroke([(0, 0.1), (0.06, -0.5), (0, -1)], 0.08, palette.second)
    for side in (-1, 1):
        sketch.polygon(ellipse(side * 0.24, -0.62, 0.26, 0.1, side * 0.5), palette.second)
    petals = int(rng.integers(6, 11))
    length, breadth = rng.uniform(0.3, 0.36), 1.0 / petals
    start = rng.uniform(0, 2 * np.pi)
    for angle in start + np.arange(petals) * 2 * np.pi / petals:
        x, y = around(0, 0.3, 0.68 - length, angle)
        sketch.polygon(ellipse(x, y, length, breadth + 0.05, angle), palette.main)
        tip = around(0, 0.3, 0.62, angle)
        sketch.stroke([around(0, 0.3, 0.2, angle), tip], 0.03, palette.second)
    sketch.polygon(ellipse(0, 0.3, 0.2), palette.dark)
    for _ in range(12):
        dot = around(0, 0.3, 0.16 * math.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi))
        sketch.polygon(ellipse(*dot, 0.03), palette.light)


@dataclass(frozen=True)
class Kind:
    """A class: its common name, how far it is tilted (degrees), and how it is drawn."""

    name: str
    tilt: float
    draw: Callable[[Sketch, np.random.Generator, Palette], None]


CLASSES = {
    "n02391049": Kind("zebra", 15, zebra),
    "n02512053": Kind("fish", 35, fish),
    "n02778669": Kind("ball", 180, ball),
    "n02834778": Kind("bicycle", 15, bicycle),
    "n03147509": Kind("cup", 25, cup),
    "n03544360": Kind("house", 12, house),
    "n03613294": Kind("key", 90, key),
    "n03632277": Kind("ladder", 40, ladder),
    "n11669921": Kind("flower", 30, flower),
    "n13104059": Kind("tree", 12, tree),
}
"""The classes by wnid; the wnids are WordNet's own for these nouns."""
