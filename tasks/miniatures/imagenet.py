"""Miniature ImageNet: generated pictures of ten kinds of things in ImageNet's own files.

A stand-in for ImageNet at 1/4 of its linear size (short side 64 to 90 pixels), for trying the
pipeline and for comparing normalizations in minutes. No real image is used. 50 training and 20
validation images of each class; the class is in the shape, the parts and the pattern of the thing,
while colours, background, light, pose and size are drawn from the same distributions for all.

Files, under the folder that `ensure` returns::

    train/<wnid>/<wnid>_<number>.JPEG              8-bit JPEG of quality 85
    val/<wnid>/ILSVRC2012_val_<8 digits>.JPEG

As in the real set, a few training images are odd: one is CMYK, some are greyscale, and one is a
PNG in spite of its name.

How an image is made: a cluttered background, and over it the thing with its shadow, are drawn at
three times the size and reduced; then the light on the scene (direction, a shade with a soft edge),
the camera's exposure, white balance and contrast, and noise are applied.
"""

from __future__ import annotations

import colorsys
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from tqdm import tqdm

from tasks.miniatures import generate_once

VERSION = 1
SEED = 0
IMAGES_PER_CLASS = {"train": 50, "val": 20}
SUPERSAMPLING = 3
QUALITY = 85

Colour = tuple[int, int, int]
Point = tuple[float, float]


def ensure(root: Path | str, seed: int = SEED) -> Path:
    """The miniature's folder, with `train` and `val` in it; see `tasks.miniatures.generate_once`.

    The same seed gives the same bytes (with the same versions of numpy and Pillow).
    """
    return generate_once(root, "imagenet", VERSION, seed, partial(_generate, seed))


def _generate(seed: int, folder: Path) -> None:
    """Write all images of both splits under `folder`."""
    jobs = [
        (split, wnid, index)
        for split, count in IMAGES_PER_CLASS.items()
        for index in range(count)
        for wnid in CLASSES
    ]
    for split, wnid, index in tqdm(jobs, unit="image", leave=False, disable=None):
        number = index * len(CLASSES) + list(CLASSES).index(wnid) + 1
        stem = f"{wnid}_{number}" if split == "train" else f"ILSVRC2012_val_{number:08d}"
        path = folder / split / wnid / f"{stem}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(Image.fromarray(render(split, wnid, index, seed)), path, _file_kind(split, number))


def _file_kind(split: str, number: int) -> str:
    """How the `number`-th image of a split is stored: the odd ones of ImageNet are in train."""
    odd = {7: "CMYK", 18: "PNG", 33: "L", 101: "L", 212: "L", 275: "L", 346: "L", 489: "L"}
    return odd.get(number, "RGB") if split == "train" else "RGB"


def _save(image: Image.Image, path: Path, kind: str) -> None:
    if kind == "PNG":
        image.save(path, format="PNG")
    else:
        image.convert(kind).save(path, format="JPEG", quality=QUALITY)


def render(split: str, wnid: str, index: int, seed: int = SEED) -> np.ndarray:
    """Draw one image.

    Args:
        split: "train" or "val".
        wnid: a name from `CLASSES`.
        index: number of the image in its class, from 0.
        seed: seed of the dataset.

    Returns:
        uint8 `[H, W, 3]`, the shorter side 64 to 90. It depends on the arguments alone, not on what
        was drawn before.

    Raises:
        ValueError: there is no such split or class.
    """
    if split not in IMAGES_PER_CLASS or wnid not in CLASSES:
        raise ValueError(f"no class {wnid!r} in split {split!r}; the classes are {[*CLASSES]}")
    rng = np.random.default_rng([seed, zlib.crc32(f"{split}/{wnid}".encode()), index])
    short = int(rng.integers(64, 91))
    size = (short, int(short * rng.uniform(1, 1.4)))[:: rng.choice((-1, 1))]
    canvas = (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING)
    background = _background(rng, canvas)
    kind = CLASSES[wnid]
    sketch = Sketch(canvas, _pose(rng, canvas, kind.tilt))
    kind.draw(sketch, rng, _palette(rng, background))
    scene = _over(rng, background, sketch).reduce(SUPERSAMPLING)
    return _photograph(rng, np.asarray(scene, dtype=np.float32) / 255)


# ------------------------------------------------------------------------------------- drawing


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


def _pose(rng: np.random.Generator, size: tuple[int, int], tilt: float) -> np.ndarray:
    """Where the thing lies: 70 to 100 % of the shorter side, perhaps mirrored, tilted, sheared."""
    width, height = size
    extent = rng.uniform(0.7, 1) * min(size)
    angle = math.radians(rng.uniform(-tilt, tilt))
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shape = np.array([[rng.choice((-1.0, 1.0)), rng.uniform(-0.2, 0.2)], [0, rng.uniform(0.85, 1)]])
    matrix = extent / 2 * (np.diag([1.0, -1.0]) @ rotation @ shape)
    room = np.array([width, height]) - extent
    centre = np.array([width, height]) / 2 + rng.uniform(-0.4, 0.4, 2) * room
    return np.column_stack([matrix, centre])


def _colour(
    rng: np.random.Generator, low: float = 0.1, high: float = 1.0, saturation: float = 0.85
) -> Colour:
    """Any hue, from grey up to `saturation`, of a brightness (HSV value) from `low` to `high`."""
    rgb = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0, saturation), rng.uniform(low, high))
    return tuple(round(255 * channel) for channel in rgb)


def _luma(colour: Colour) -> float:
    return float(np.dot(colour, (0.299, 0.587, 0.114))) / 255


def _palette(rng: np.random.Generator, background: Image.Image) -> Palette:
    """Colours that are seen before this background and beside each other."""
    behind = _luma(np.asarray(background.reduce(8)).mean((0, 1)))
    main = second = _colour(rng)
    while abs(_luma(main) - behind) < 0.28:
        main = _colour(rng)
    while abs(_luma(main) - _luma(second)) < 0.3:
        second = _colour(rng)
    return Palette(main, second, _colour(rng, 0.02, 0.2), _colour(rng, 0.85, 1.0))


# ------------------------------------------------------------------------------------- things


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
        sketch.polygon(
            ellipse(*around(x, y, r, angle), 0.075, 0.045, rng.uniform(0, np.pi)),
            tuple(min(255, int(shade * c)) for c in palette.main),
        )


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


# --------------------------------------------------------------------- background, light, camera


def _noise(rng: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise in [-1, 1], float [H, W], `cells` knots along the longer side."""
    columns, rows = (max(2, round(cells * side / max(size))) for side in size)
    grid = rng.uniform(-1, 1, (rows, columns))
    picture = Image.fromarray(grid.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    return np.clip(np.asarray(picture), -1, 1)


def _background(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Ground and wall or sky, each with a grain, and out-of-focus clutter before them."""
    width, height = size
    parts = [np.array(_colour(rng, 0.25, 0.95, 0.5), dtype=np.float32) for _ in range(2)]
    horizon = rng.uniform(0.2, 0.9) * height + rng.uniform(-0.2, 0.2) * np.arange(width)
    ground = np.arange(height)[:, None] > horizon
    grain = 0.2 * _noise(rng, size, 4) + rng.uniform(0.05, 0.2) * _noise(rng, size, 24)
    scene = np.where(ground[..., None], *parts) * (1 + grain[..., None])
    picture = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(1, 6)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        outline = ellipse(x, y, *rng.uniform(0.04, 0.25, 2) * width, rng.uniform(0, np.pi))
        draw.polygon(outline[:: rng.integers(1, 11)], fill=_colour(rng, 0.2, 0.9, 0.6))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(2, 6)))


def _over(rng: np.random.Generator, background: Image.Image, sketch: Sketch) -> Image.Image:
    """The thing, with a grain of its own and a cast shadow, over the background."""
    size = background.size
    grain = 1 + 0.15 * _noise(rng, size, 5) + 0.06 * _noise(rng, size, 40)
    surface = np.asarray(sketch.colour) * grain[..., None]
    surface = Image.fromarray(np.clip(surface, 0, 255).astype(np.uint8))
    dx, dy = (rng.uniform(-0.05, 0.05, 2) * size).round().astype(int)
    blur = ImageFilter.GaussianBlur(rng.uniform(2, 8))
    shadow = ImageChops.offset(sketch.mask, int(dx), int(dy)).filter(blur)
    strength = rng.uniform(0.2, 0.6)
    shadow = shadow.point(lambda value: int(value * strength))
    scene = Image.composite(Image.new("RGB", size), background, shadow)
    return Image.composite(surface, scene, sketch.mask)


def _photograph(rng: np.random.Generator, scene: np.ndarray) -> np.ndarray:
    """The scene (float [H, W, 3] in 0..1) in some light, as a camera stores it: uint8 [H, W, 3]."""
    height, width, _ = scene.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    across = x * math.cos(angle) + y * math.sin(angle)
    light = 1 + rng.uniform(0, 0.35) * across
    if rng.uniform() < 0.5:
        edge = across + 0.3 * _noise(rng, (width, height), 3) - rng.uniform(-0.5, 0.5)
        light = light * (1 - rng.uniform(0.3, 0.7) / (1 + np.exp(-edge / rng.uniform(0.03, 0.2))))
    picture = scene**2.2 * light[..., None] * rng.uniform(0.6, 1.4, 3)
    picture = np.clip(picture * 2 ** rng.uniform(-1.5, 0.7), 0, 1) ** (1 / 2.2)
    contrast, haze = rng.uniform(0.65, 1), rng.uniform() * rng.uniform(0.6, 1, 3)
    picture = contrast * picture + (1 - contrast) * haze
    picture = picture + rng.normal(0, rng.uniform(0.005, 0.03), picture.shape)
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
