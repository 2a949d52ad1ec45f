"""One picture: a thing in some pose and colours before a background, in some light."""

import colorsys
import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from tasks.miniatures.imagenet.sketch import Colour, Palette, Sketch, ellipse
from tasks.miniatures.imagenet.things import Kind

SUPERSAMPLING = 3


def draw_picture(kind: Kind, rng: np.random.Generator) -> np.ndarray:
    """Draw a thing of a class.

    The order of the steps is the order of the random draws: changing it changes every picture.

    Args:
        kind: the class.
        rng: everything else follows from it.

    Returns:
        uint8 [H, W, 3], the shorter side 64 to 90.
    """
    short = int(rng.integers(64, 91))
    size = (short, int(short * rng.uniform(1, 1.4)))[:: rng.choice((-1, 1))]
    canvas = (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING)
    background = _background(rng, canvas)
    sketch = Sketch(canvas, _pose(rng, canvas, kind.tilt))
    kind.draw(sketch, rng, _palette(rng, background))
    scene = _over(rng, background, sketch).reduce(SUPERSAMPLING)
    return _photograph(rng, np.asarray(scene, dtype=np.float32) / 255)


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
    red, green, blue = (round(255 * channel) for channel in rgb)
    return red, green, blue


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
        rx, ry = rng.uniform(0.04, 0.25, 2) * width
        outline = ellipse(x, y, rx, ry, rng.uniform(0, np.pi))
        draw.polygon(outline[:: rng.integers(1, 11)], fill=_colour(rng, 0.2, 0.9, 0.6))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(2, 6)))


def _over(rng: np.random.Generator, background: Image.Image, sketch: Sketch) -> Image.Image:
    """The thing, with a grain of its own and a cast shadow, over the background."""
    size = background.size
    grain = 1 + 0.15 * _noise(rng, size, 5) + 0.06 * _noise(rng, size, 40)
    colours = np.asarray(sketch.colour) * grain[..., None]
    surface = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
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
