"""Miniature COCO: generated pictures of objects in COCO's own files and category numbers.

A stand-in for COCO at 1/4 of its linear size (160 x 120 and 120 x 160 pixels), for trying the
pipeline and for comparing normalizations in minutes. No real image is used. 120 training and 40
validation images of people, cars, bottles, chairs and clocks, of any colour: only their shape tells
what they are. They stand close together and hide parts of each other; light, contrast and colour
differ between images, and most images have a shadow across them.

Files, under the folder that `ensure` returns::

    {train,val}2017/<image id as 12 digits>.jpg               8-bit RGB
    annotations/instances_{train,val}2017.json                boxes, masks, categories

Masks are the visible part, exactly: polygons along pixel edges, several where something in front
divides an object; a crowd of people is one region in run lengths with ``iscrowd`` 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from tasks.miniatures import generate_once
from tasks.miniatures.coco_masks import polygons, run_lengths

VERSION = 1
SEED = 0
IMAGES = {"train": 120, "val": 40}
LONG_SIDE, SHORT_SIDE = 160, 120  # pixels
CATEGORIES = [
    {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "vehicle", "id": 3, "name": "car"},
    {"supercategory": "kitchen", "id": 44, "name": "bottle"},
    {"supercategory": "furniture", "id": 62, "name": "chair"},
    {"supercategory": "indoor", "id": 85, "name": "clock"},
]
PERSON = 1

SUPERSAMPLING = 3
EMPTY_EVERY, CROWD_EVERY = 20, 12  # images
LEAST_VISIBLE = 40  # pixels of an object, below which it is not in the picture

Shape = list[tuple[np.ndarray, np.ndarray]]  # polygons [K, 2] in a unit square, y down; RGB in 0..1


def ensure(root: Path | str, seed: int = SEED) -> Path:
    """The miniature's folder, with `train2017`, `val2017` and `annotations` in it.

    The same seed gives the same bytes (with the same versions of numpy and Pillow, on the
    same kind of processor); see
    `tasks.miniatures.generate_once`.
    """
    return generate_once(root, "coco", VERSION, seed, partial(_generate, seed))


def _generate(seed: int, folder: Path) -> None:
    """Write all images and annotations under `folder`."""
    (folder / "annotations").mkdir(parents=True)
    for split, count in IMAGES.items():
        (folder / f"{split}2017").mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in tqdm(range(count), unit="image", leave=False, disable=None):
            pixels, instances = render(split, index, seed)
            image_id = _image_id(split, index)
            name = f"{image_id:012d}.jpg"
            Image.fromarray(pixels).save(folder / f"{split}2017" / name, quality=92)
            height, width = pixels.shape[:2]
            images.append(
                {"license": 1, "file_name": name, "height": height, "width": width, "id": image_id}
            )
            for instance in instances:
                number = len(annotations) + 1 + 1_000_000 * (split == "val")
                annotations.append(_annotation(instance, number, image_id))
        content = {
            "info": {"description": "miniature of COCO 2017, generated", "version": str(VERSION)},
            "licenses": [{"id": 1, "name": "generated, no rights reserved", "url": ""}],
            "images": images,
            "annotations": annotations,
            "categories": CATEGORIES,
        }
        path = folder / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(content), encoding="utf-8")


def _image_id(split: str, index: int) -> int:
    """As in COCO: with gaps, and no number in both splits."""
    return 139 + 146 * index + 73 * (split == "val")


@dataclass(frozen=True)
class Instance:
    """An object in an image: its category and the mask of its visible part, bool [H, W]."""

    category_id: int
    mask: np.ndarray
    crowd: bool = False


def _annotation(instance: Instance, number: int, image_id: int) -> dict[str, Any]:
    """An object as COCO's json describes it; `number` is its id."""
    mask = instance.mask
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "segmentation": run_lengths(mask) if instance.crowd else polygons(mask),
        "area": float(mask.sum()),
        "iscrowd": int(instance.crowd),
        "image_id": image_id,
        "bbox": [float(v) for v in (left, top, columns[-1] + 1 - left, rows[-1] + 1 - top)],
        "category_id": instance.category_id,
        "id": number,
    }


# ------------------------------------------------------------------------------------- shapes


def _person(rng: np.random.Generator) -> Shape:
    skin, shirt, trousers = (_colour(rng) for _ in range(3))
    spread, lift = rng.uniform(0.05, 0.25, 2), rng.uniform(-0.1, 0.45, 2)
    parts: Shape = []
    for side, leg in ((-1, spread[0]), (1, spread[1])):
        hip, foot = 0.5 + side * 0.1, 0.5 + side * (0.1 + leg)
        parts.append((_line((hip, 0.5), (foot, 1.0), 0.17), trousers))
    parts.append((_points((0.27, 0.2), (0.73, 0.2), (0.66, 0.56), (0.34, 0.56)), shirt))
    for side, height in ((-1, lift[0]), (1, lift[1])):
        hand = (0.5 + side * 0.42, 0.5 - height)
        parts.append((_line((0.5 + side * 0.2, 0.24), hand, 0.13), shirt * 0.85))
    parts.append((_ellipse(0.5, 0.1, 0.17, 0.1), skin))
    return parts


def _car(rng: np.random.Generator) -> Shape:
    paint, roof = _colour(rng), rng.uniform(0.0, 0.12)
    body = _points((0, 0.8), (0.01, 0.5), (0.2, 0.42), (0.8, 0.42), (0.99, 0.55), (1, 0.8))
    cabin = _points((0.17, 0.45), (0.3, roof), (0.67, roof), (0.84, 0.45))
    glass = [
        _points((0.23, 0.42), (0.33, roof + 0.08), (0.47, roof + 0.08), (0.47, 0.42)),
        _points((0.52, 0.42), (0.52, roof + 0.08), (0.65, roof + 0.08), (0.77, 0.42)),
    ]
    parts = [(body, paint), (cabin, paint * 0.9)]
    parts += [(window, np.array([0.15, 0.19, 0.24])) for window in glass]
    for x in (0.22, 0.77):
        parts.append((_ellipse(x, 0.79, 0.11, 0.21), np.full(3, 0.06)))
        parts.append((_ellipse(x, 0.79, 0.05, 0.1), np.full(3, 0.6)))
    return parts


def _bottle(rng: np.random.Generator) -> Shape:
    glass, label, cap = (_colour(rng) for _ in range(3))
    shoulder = rng.uniform(0.3, 0.45)
    outline = _points(
        (0.36, 0.05), (0.64, 0.05), (0.64, shoulder - 0.1), (0.95, shoulder + 0.07),
        (0.95, 0.97), (0.85, 1), (0.15, 1), (0.05, 0.97), (0.05, shoulder + 0.07),
        (0.36, shoulder - 0.1),
    )  # fmt: skip
    top = rng.uniform(0.52, 0.6)
    return [
        (outline, glass),
        (_points((0.05, top), (0.95, top), (0.95, top + 0.25), (0.05, top + 0.25)), label),
        (_points((0.13, 0.5), (0.25, 0.48), (0.25, 0.95), (0.13, 0.95)), glass * 0.6 + 0.4),
        (_points((0.32, 0), (0.68, 0), (0.68, 0.08), (0.32, 0.08)), cap),
    ]


def _chair(rng: np.random.Generator) -> Shape:
    wood, seat = _colour(rng), rng.uniform(0.5, 0.58)
    dark = wood * 0.7
    parts = [
        (_line((0.2, seat), (0.2, 0.92), 0.09), dark),
        (_line((0.72, seat), (0.72, 0.92), 0.09), dark),
        (_points((0.08, 0), (0.68, 0), (0.74, seat), (0.14, seat)), wood * 0.9),
    ]
    for x in (0.25, 0.42, 0.59):
        parts.append((_line((x, 0.08), (x + 0.04, seat - 0.1), 0.05), dark))
    parts.append((_points((0.1, seat), (0.76, seat), (1, seat + 0.13), (0.3, seat + 0.13)), wood))
    for x in (0.35, 0.93):
        parts.append((_line((x, seat + 0.1), (x, 1), 0.1), wood))
    return parts


def _clock(rng: np.random.Generator) -> Shape:
    rim, face = _colour(rng), 0.55 + 0.45 * _colour(rng)
    parts = [(_ellipse(0.5, 0.5, 0.5, 0.5), rim), (_ellipse(0.5, 0.5, 0.4, 0.4), face)]
    for angle in np.arange(12) * np.pi / 6:
        outward = np.array([math.cos(angle), math.sin(angle)])
        parts.append((_line(0.5 + 0.31 * outward, 0.5 + 0.37 * outward, 0.04), rim * 0.4))
    for length, width in ((0.22, 0.07), (0.32, 0.05)):
        angle = rng.uniform(0, 2 * np.pi)
        tip = (0.5 + length * math.cos(angle), 0.5 + length * math.sin(angle))
        parts.append((_line((0.5, 0.5), tip, width), np.full(3, 0.05)))
    return parts


@dataclass(frozen=True)
class Kind:
    """How a category looks: shape, width over height, height as a share of the short side."""

    shape: Callable[[np.random.Generator], Shape]
    aspect: float
    height: tuple[float, float]
    hangs: bool = False  # anywhere in the upper part, not on the ground


KINDS = {
    1: Kind(_person, 0.45, (0.5, 0.85)),
    3: Kind(_car, 2.1, (0.24, 0.42)),
    44: Kind(_bottle, 0.34, (0.4, 0.7)),
    62: Kind(_chair, 0.7, (0.4, 0.7)),
    85: Kind(_clock, 1.0, (0.25, 0.45), hangs=True),
}


def _points(*corners: tuple[float, float]) -> np.ndarray:
    return np.array(corners)


def _ellipse(x: float, y: float, half_width: float, half_height: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    return np.stack([x + half_width * np.cos(angles), y + half_height * np.sin(angles)], axis=1)


def _line(start: ArrayLike, end: ArrayLike, width: float) -> np.ndarray:
    """A bar between two points."""
    a, b = np.asarray(start), np.asarray(end)
    along = (b - a) / max(1e-6, float(np.hypot(*(b - a))))
    across = width / 2 * np.array([-along[1], along[0]])
    return np.stack([a + across, b + across, b - across, a - across])


def _colour(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.08, 0.95, 3)


# -------------------------------------------------------------------------------------- scene


def render(split: str, index: int, seed: int = SEED) -> tuple[np.ndarray, list[Instance]]:
    """Draw one image.

    Args:
        split: "train" or "val".
        index: number of the image in its split, from 0.
        seed: seed of the dataset.

    Returns:
        The image, uint8 `[H, W, 3]`, and its instances, none in every 20th image. Both depend on
        the arguments alone, not on what was drawn before.
    """
    rng = np.random.default_rng([seed, list(IMAGES).index(split), index])
    portrait = rng.random() < 0.25
    size = (SHORT_SIDE, LONG_SIDE) if portrait else (LONG_SIDE, SHORT_SIDE)
    canvas = Canvas(size, rng)
    canvas.draw_background()
    if index % EMPTY_EVERY == EMPTY_EVERY // 2:
        return canvas.photograph(), []
    categories = [0]  # of each number in the canvas; 0 is the background
    if index % CROWD_EVERY == CROWD_EVERY // 2:
        canvas.draw_crowd(1)
        categories.append(PERSON)
    crowds = len(categories) - 1
    for category, box in _arrangement(size, rng):
        canvas.draw(KINDS[category].shape(rng), box, len(categories))
        categories.append(category)
    instances = [
        Instance(category, canvas.visible(number), crowd=1 <= number <= crowds)
        for number, category in enumerate(categories)
        if number and canvas.visible(number).sum() >= LEAST_VISIBLE
    ]
    return canvas.photograph(), instances


def _arrangement(
    size: tuple[int, int], rng: np.random.Generator
) -> list[tuple[int, tuple[float, float, float, float]]]:
    """Categories and boxes x, y, width, height in pixels, from back to front."""
    things = []
    previous: tuple[float, float] | None = None  # centre and width of the one before
    for _ in range(rng.integers(2, 6)):
        category = int(rng.choice(list(KINDS)))
        kind = KINDS[category]
        height = SHORT_SIDE * rng.uniform(*kind.height) * (0.35 if rng.random() < 0.12 else 1)
        width = height * kind.aspect * rng.uniform(0.85, 1.15)
        x = rng.uniform(0.05, 0.95) * size[0]
        if previous is not None and rng.random() < 0.5:  # beside the one before, or overlapping it
            gap = rng.uniform(0.55, 1.0) * (width + previous[1]) / 2
            x = previous[0] + gap * rng.choice([-1, 1])
        x = float(np.clip(x, width * 0.35, size[0] - width * 0.35))
        low, high = (0.3, 0.65) if kind.hangs else (0.75, 1.03)
        bottom = rng.uniform(low, high) * size[1]
        previous = (x, width)
        things.append((category, (x - width / 2, bottom - height, width, height)))
    return sorted(things, key=lambda thing: thing[1][1] + thing[1][3])


class Canvas:
    """Picture and instance numbers, drawn at once and `SUPERSAMPLING` times as fine as the image.

    Args:
        size: width and height in pixels.
    """

    def __init__(self, size: tuple[int, int], rng: np.random.Generator):
        self.size, self.rng = size, rng
        fine = (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING)
        self.picture = Image.new("RGB", fine)
        self.numbers = Image.new("L", fine)

    def draw_background(self) -> None:
        """Wall and ground, each with a texture, and flat patches that are no object."""
        width, height = self.picture.size
        horizon = int(height * self.rng.uniform(0.35, 0.65))
        drawing = ImageDraw.Draw(self.picture)
        for top, bottom in ((0, horizon), (horizon, height)):
            drawing.rectangle((0, top, width, bottom), _bytes(_colour(self.rng) * 0.7 + 0.15))
        for _ in range(self.rng.integers(3, 8)):
            x, y = self.rng.uniform(0, width), self.rng.uniform(0, height)
            corners = self.rng.uniform(-0.2, 0.2, (self.rng.integers(3, 6), 2)) * height + (x, y)
            drawing.polygon(_flat(corners), _bytes(_colour(self.rng) * 0.7 + 0.15))
        coarse = 128 + self.rng.normal(0, 18, (height // 4, width // 4))
        speckle = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
        grain = np.asarray(speckle.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        picture = np.asarray(self.picture, np.int16) + grain[..., None] - 128
        self.picture = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))

    def draw(self, shape: Shape, box: tuple[float, float, float, float], number: int) -> None:
        """A shape into a box in pixels, mirrored and slanted at random, as instance `number`."""
        x, y, width, height = box
        mirror, slant = self.rng.random() < 0.5, self.rng.normal(0, 0.04)
        picture, numbers = ImageDraw.Draw(self.picture), ImageDraw.Draw(self.numbers)
        for polygon, colour in shape:
            u, v = polygon.T
            u = (1 - u if mirror else u) + slant * (0.5 - v) * height / width
            corners = np.stack([x + u * width, y + v * height], axis=1) * SUPERSAMPLING
            picture.polygon(_flat(corners), _bytes(colour))
            numbers.polygon(_flat(corners), number)

    def draw_crowd(self, number: int) -> None:
        """A row of small people in the distance, all as one instance."""
        height = 0.2 * SHORT_SIDE
        left, ground = self.rng.uniform(0, 0.3) * self.size[0], 0.6 * self.size[1]
        for position in range(self.rng.integers(8, 13)):
            x = left + position * 0.3 * height + self.rng.normal(0, 1)
            y = ground - height + self.rng.normal(0, 2)
            self.draw(_person(self.rng), (x, y, KINDS[PERSON].aspect * height, height), number)

    def visible(self, number: int) -> np.ndarray:
        """The pixels whose centre shows instance `number`, bool [H, W]."""
        centre = SUPERSAMPLING // 2
        return np.asarray(self.numbers)[centre::SUPERSAMPLING, centre::SUPERSAMPLING] == number

    def photograph(self) -> np.ndarray:
        """The image, uint8 [H, W, 3]: lit, shaded, tinted and exposed at random."""
        rng = self.rng
        small = self.picture.filter(ImageFilter.GaussianBlur(0.8)).resize(
            self.size, Image.Resampling.BOX
        )
        light = (np.asarray(small, np.float32) / 255) ** 2 * self._illumination()[..., None]
        light = light * rng.uniform(0.75, 1.25, 3)  # white balance
        light = np.sqrt(light * 2 ** rng.uniform(-1.6, 0.5))
        light = rng.uniform(0, 0.2) + rng.uniform(0.55, 1) * light
        light = light + rng.normal(0, 0.012, light.shape)
        return _bytes_of(light)

    def _illumination(self) -> np.ndarray:
        """Light in 0..1, [H, W]: a slope over the image, and often a shadow with a soft edge."""
        rng, (width, height) = self.rng, self.size
        y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j].astype(np.float32)

        def along(angle: float) -> np.ndarray:
            return x * math.cos(angle) + y * math.sin(angle)

        light = 1 + rng.uniform(0, 0.8) * along(rng.uniform(0, 2 * np.pi))
        if rng.random() < 0.7:
            distance = along(rng.uniform(0, 2 * np.pi)) - rng.uniform(-0.25, 0.25)
            share = np.clip(0.5 + distance / rng.uniform(0.02, 0.2), 0, 1)
            light = light * (1 - share * rng.uniform(0.5, 0.88))
        return light


def _flat(corners: np.ndarray) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in corners]


def _bytes(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (round(255 * min(1.0, float(c))) for c in colour)
    return red, green, blue


def _bytes_of(picture: np.ndarray) -> np.ndarray:
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
