"""Miniature Cityscapes: generated street scenes in Cityscapes' own files and label codes.

A stand-in for Cityscapes at 1/8 of its linear size (128 x 256 pixels), for trying the pipeline
and for comparing normalizations in minutes. No real image is used. 8 training cities of 25 images
and 5 validation cities of 10; every city has its own camera, light, haze, white balance and
palettes, and no city is in both splits. One image can be lit by sun and shade that differ several
times in brightness.

Files, under the folder that `ensure` returns::

    leftImg8bit/{train,val}/<city>/<city>_<seq>_<frame>_leftImg8bit.png       8-bit RGB
    gtFine/{train,val}/<city>/<city>_<seq>_<frame>_gtFine_labelIds.png        8-bit, labelIds

How an image is made: a pinhole camera looks along a street of the world frame (x to the right
and y up, in metres, origin on the road's centre line below the camera; z along the street). Sky,
ground and facades are ray-cast per pixel, everything else is drawn as projected polygons from far
to near, always into the colours and the labels at once. Colours are kept as square roots of
radiance until the final exposure, so that 8 bits are enough for sun and shade.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from tasks.miniatures import generate_once

VERSION = 1
SEED = 0
HEIGHT, WIDTH = 128, 256
CITIES = {
    "train": (
        "minialder", "minibeech", "minicedar", "minielm",
        "minifir", "minihazel", "minilarch", "minimaple",
    ),
    "val": ("minioak", "minipine", "minirowan", "miniwillow", "miniyew"),
}  # fmt: skip
IMAGES_PER_CITY = {"train": 25, "val": 10}

# Cityscapes labelIds. The first six are void in the evaluation, the other 19 are its classes.
UNLABELED, EGO_VEHICLE, OUT_OF_ROI, STATIC, DYNAMIC, GROUND = 0, 1, 3, 4, 5, 6
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN = (
    7,
    8,
    11,
    12,
    13,
    17,
    19,
    20,
)
VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR, TRUCK, BUS = 21, 22, 23, 24, 25, 26, 27, 28
TRAIN, MOTORCYCLE, BICYCLE = 31, 32, 33

SUPERSAMPLING = 2
LANE = 3.2  # metres, as everything below that is not in pixels
NEAR, FAR = 0.6, 170.0

Colour = tuple[float, float, float]


def ensure(root: Path | str, seed: int = SEED) -> Path:
    """The folder with `leftImg8bit` and `gtFine`; see `tasks.miniatures.generate_once`.

    The same seed gives the same bytes (with the same versions of numpy and Pillow).
    """
    return generate_once(root, "cityscapes", VERSION, seed, partial(_generate, seed))


def _generate(seed: int, folder: Path) -> None:
    """Write all images of both splits under `folder`."""
    jobs = [
        (split, city, index)
        for split, cities in CITIES.items()
        for city in cities
        for index in range(IMAGES_PER_CITY[split])
    ]
    for split, city, index in tqdm(jobs, unit="image", leave=False, disable=None):
        image, labels = render(split, city, index, seed)
        stem = f"{city}_{index:06d}_000019"  # the 20th frame of a sequence, as in Cityscapes
        for kind, name, pixels in (
            ("leftImg8bit", f"{stem}_leftImg8bit.png", image),
            ("gtFine", f"{stem}_gtFine_labelIds.png", labels),
        ):
            path = folder / kind / split / city / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def render(split: str, city: str, index: int, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image.

    Args:
        split: "train" or "val".
        city: a name from `CITIES[split]`.
        index: number of the image in its city, from 0.
        seed: seed of the dataset.

    Returns:
        The image, uint8 `[128, 256, 3]`, and its Cityscapes labelIds, uint8 `[128, 256]`. Both
        depend on the arguments alone, not on what was drawn before.

    Raises:
        ValueError: `city` is not a city of `split`.
    """
    if city not in CITIES.get(split, ()):
        raise ValueError(f"no city {city!r} in split {split!r}; the cities are {CITIES}")
    style = _city(split, city, seed)
    rng = np.random.default_rng([seed, zlib.crc32(f"{split}/{city}".encode()), index + 1])
    return Scene(style, rng, index).render()


# ------------------------------------------------------------------------------------- cities


@dataclass(frozen=True)
class City:
    """What all images of one city share. Colours are RGB in 0..1, as displayed at full light."""

    sun_elevation: float  # degrees above the horizon
    sun: Colour  # light of the sun on a surface facing it
    ambient: Colour  # light of the sky, which shade gets too
    sky: tuple[Colour, Colour]  # zenith, horizon
    cloud: float  # share of the sky
    haze: float  # metres after which 63 % of the light is haze
    white_balance: Colour
    gamma: float
    saturation: float
    exposure: float
    noise: float
    focal: float  # in pixels of the image
    camera_height: float
    horizon: float  # row of the image
    frame: bool  # a one-pixel border outside the region of interest
    facades: tuple[Colour, ...]
    roof: Colour
    asphalt: Colour
    paving: Colour
    paving_size: float
    marking: Colour
    foliage: tuple[Colour, ...]
    grass: Colour
    paints: tuple[Colour, ...]  # of cars and trucks
    public: tuple[Colour, Colour]  # of buses, of trams
    post: Colour
    building_height: float
    greenery: float  # share of plots and kerbs with plants
    parking: float  # share of parking bays that are taken
    sidewalk: float
    strip: float  # grass between kerb and sidewalk
    lanes: tuple[int, ...]
    windows: tuple[float, float]  # half width and height as shares of bay and floor
    brick: float


def _city(split: str, name: str, seed: int) -> City:
    """Draw a city's style. Every split has cities of every kind of light."""
    number = CITIES[split].index(name)
    rng = np.random.default_rng([seed, zlib.crc32(f"{split}/{name}".encode()), 0])
    light = _LIGHTS[(number + 2 * (split == "val")) % len(_LIGHTS)]

    def draw(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def near(colour: Colour, spread: float = 0.045) -> Colour:
        grey = rng.normal(0, spread)
        return tuple(
            float(np.clip(c + grey + rng.normal(0, spread / 3), 0.02, 0.98)) for c in colour
        )

    def pick(colours: tuple[Colour, ...], count: int, spread: float = 0.045) -> tuple[Colour, ...]:
        return tuple(near(colours[i], spread) for i in rng.choice(len(colours), count))

    warmth = rng.normal(0, 0.035)
    return City(
        sun_elevation=draw(*light["elevation"]),
        sun=light["sun"],
        ambient=light["ambient"],
        sky=(near(light["sky"][0], 0.04), near(light["sky"][1], 0.04)),
        cloud=draw(*light["cloud"]),
        haze=draw(*light["haze"]),
        white_balance=(1 + warmth, 1 + rng.normal(0, 0.02), 1 - warmth),
        gamma=draw(1.8, 2.3),
        saturation=draw(1.2, 1.55),
        exposure=draw(0.85, 1.2),
        noise=draw(0.005, 0.014),
        focal=draw(195, 265),
        camera_height=draw(1.2, 1.75),
        horizon=draw(50, 63),
        frame=bool(rng.random() < 0.5),
        facades=pick(_FACADES, 5),
        roof=near(_ROOFS[rng.integers(len(_ROOFS))]),
        asphalt=near((0.4, 0.4, 0.42), 0.045),
        paving=near(_PAVINGS[rng.integers(len(_PAVINGS))]),
        paving_size=draw(0.35, 0.9),
        marking=near((0.85, 0.85, 0.82), 0.06),
        foliage=pick(_FOLIAGE, 3, 0.04),
        grass=near(_GRASS[rng.integers(len(_GRASS))]),
        paints=pick(_PAINTS, 6),
        public=(pick(_PUBLIC, 1)[0], pick(_PUBLIC, 1)[0]),
        post=near(((0.3, 0.32, 0.32), (0.55, 0.56, 0.57), (0.2, 0.28, 0.24))[rng.integers(3)]),
        building_height=draw(8, 18),
        greenery=draw(0.25, 0.85),
        parking=draw(0.25, 0.7),
        sidewalk=draw(2.2, 4.5),
        strip=draw(1.5, 4.0) if rng.random() < 0.75 else 0.0,
        lanes=((2,), (2, 2, 4), (2, 4))[rng.integers(3)],
        windows=(draw(0.18, 0.36), draw(0.22, 0.34)),
        brick=draw(0, 0.16),
    )


_LIGHTS = (
    {  # clear: hard shadows, shade about five times darker than sun
        "elevation": (35, 55), "sun": (1.0, 0.96, 0.88), "ambient": (0.11, 0.125, 0.155),
        "sky": ((0.36, 0.55, 0.86), (0.78, 0.86, 0.95)), "cloud": (0.05, 0.35), "haze": (250, 500),
    },
    {  # low sun: warm, long shadows
        "elevation": (17, 27), "sun": (1.15, 0.95, 0.68), "ambient": (0.1, 0.105, 0.125),
        "sky": ((0.45, 0.58, 0.8), (0.97, 0.88, 0.72)), "cloud": (0.1, 0.4), "haze": (150, 320),
    },
    {  # overcast
        "elevation": (40, 60), "sun": (0.12, 0.12, 0.12), "ambient": (0.6, 0.62, 0.65),
        "sky": ((0.72, 0.75, 0.8), (0.88, 0.89, 0.9)), "cloud": (0.5, 0.9), "haze": (180, 400),
    },
    {  # broken clouds
        "elevation": (28, 48), "sun": (0.85, 0.82, 0.75), "ambient": (0.18, 0.195, 0.22),
        "sky": ((0.42, 0.56, 0.8), (0.82, 0.85, 0.89)), "cloud": (0.4, 0.7), "haze": (200, 420),
    },
    {  # mist
        "elevation": (20, 35), "sun": (0.4, 0.38, 0.34), "ambient": (0.38, 0.4, 0.43),
        "sky": ((0.68, 0.73, 0.78), (0.85, 0.86, 0.85)), "cloud": (0.2, 0.6), "haze": (80, 150),
    },
)  # fmt: skip
_FACADES = (
    (0.8, 0.68, 0.48), (0.64, 0.36, 0.27), (0.68, 0.64, 0.6), (0.84, 0.77, 0.64), (0.5, 0.4, 0.3),
    (0.76, 0.54, 0.36), (0.6, 0.62, 0.66), (0.82, 0.58, 0.44), (0.5, 0.32, 0.25), (0.7, 0.66, 0.46),
)  # fmt: skip
_ROOFS = ((0.55, 0.3, 0.24), (0.33, 0.34, 0.37), (0.42, 0.36, 0.32))
_PAVINGS = ((0.62, 0.6, 0.57), (0.66, 0.5, 0.43), (0.68, 0.61, 0.49), (0.7, 0.68, 0.64))
_FOLIAGE = (
    (0.25, 0.42, 0.15), (0.34, 0.48, 0.17), (0.18, 0.34, 0.15), (0.46, 0.48, 0.16), (0.5, 0.4, 0.2),
    (0.28, 0.4, 0.2),
)  # fmt: skip
_GRASS = ((0.42, 0.58, 0.22), (0.5, 0.56, 0.25), (0.55, 0.53, 0.3), (0.36, 0.5, 0.2))
_PAINTS = (
    (0.1, 0.1, 0.11), (0.18, 0.19, 0.21), (0.28, 0.29, 0.31), (0.6, 0.62, 0.64), (0.85, 0.85, 0.84),
    (0.13, 0.18, 0.36), (0.5, 0.12, 0.12), (0.72, 0.74, 0.77), (0.3, 0.34, 0.36), (0.35, 0.4, 0.5),
)  # fmt: skip
_PUBLIC = (
    (0.85, 0.2, 0.12), (0.92, 0.75, 0.15), (0.85, 0.45, 0.12), (0.15, 0.4, 0.7), (0.2, 0.55, 0.3),
)  # fmt: skip
_CLOTHES = (
    (0.12, 0.12, 0.15), (0.16, 0.24, 0.5), (0.7, 0.14, 0.14), (0.85, 0.82, 0.76), (0.5, 0.4, 0.26),
    (0.15, 0.45, 0.35), (0.85, 0.6, 0.15), (0.75, 0.35, 0.5), (0.4, 0.2, 0.5),
)  # fmt: skip
_SKIN = ((0.85, 0.66, 0.54), (0.7, 0.5, 0.38), (0.45, 0.3, 0.22))
_SIGNS = (  # face, rim
    ((0.85, 0.85, 0.85), (0.75, 0.1, 0.1)), ((0.1, 0.25, 0.65), (0.85, 0.85, 0.9)),
    ((0.9, 0.75, 0.1), (0.9, 0.9, 0.9)), ((0.75, 0.1, 0.1), (0.9, 0.9, 0.9)),
    ((0.1, 0.4, 0.25), (0.85, 0.9, 0.85)),
)  # fmt: skip
_GLASS = (0.17, 0.19, 0.22)
_RUBBER = (0.09, 0.09, 0.09)


# ------------------------------------------------------------------------------------ texture


@lru_cache(maxsize=1)
def _noise_tiles() -> tuple[np.ndarray, np.ndarray]:
    """Two periodic float32 [256, 256] tiles in 0..1: cloudy (1/f spectrum) and white noise."""
    rng = np.random.default_rng(7)
    white = rng.random((256, 256))
    fy, fx = np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None]
    radius = np.maximum(np.hypot(fy, fx), 1 / 256)
    cloudy = np.fft.irfft2(np.fft.rfft2(white - 0.5) / radius**1.3, s=(256, 256))
    cloudy = 0.5 + 0.2 * cloudy / cloudy.std()
    return np.clip(cloudy, 0, 1).astype(np.float32), white.astype(np.float32)


def _cloudy(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Smooth noise in 0..1 at coordinates in cells of the tile."""
    return _noise_tiles()[0][a.astype(np.int32) & 255, b.astype(np.int32) & 255]


def _white(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """White noise in 0..1: the same value wherever the integer parts of `a` and `b` agree."""
    a, b = np.floor(a).astype(np.int32), np.floor(b).astype(np.int32)
    return _noise_tiles()[1][(a * 7 + b * 3) & 255, (a * 5 + b * 11) & 255]


def _rgb(colour: Colour) -> np.ndarray:
    return np.array(colour, np.float32)


def _mix(texture: np.ndarray, where: np.ndarray, colour) -> np.ndarray:
    """Blend `colour` into [h, w, 3] `texture`; `where` is a mask or a weight in 0..1."""
    weight = np.asarray(where, np.float32)[..., None]
    return texture + weight * (np.asarray(colour, np.float32) - texture)


# -------------------------------------------------------------------------------------- scene


@dataclass(frozen=True)
class Plot:
    """A stretch of one side of the street; `kind` is building, yard, park, wall or crossing."""

    kind: str
    z0: float
    z1: float
    height: float  # of what stands at the street, for its shadow
    tone: int  # selects colours


@dataclass(frozen=True)
class Thing:
    """An object in the street: drawn by `draw` in the order of `depth`, shades its footprint."""

    depth: float
    draw: Callable[[], None]
    footprint: tuple[float, float, float, float, float] = (0, 0, 0, 0, 0)  # x, z, half x, half z, h


class Scene:
    """One street, its camera and its light; `render` draws it once."""

    def __init__(self, city: City, rng: np.random.Generator, index: int) -> None:
        self.city, self.rng, self.index = city, rng, index
        self._set_camera()
        self._plan_street()
        self._set_light()
        size = (WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING)
        self.colours = Image.new("RGB", size)
        self.labels = Image.new("L", size, SKY)
        self.colour_pen = ImageDraw.Draw(self.colours)
        self.label_pen = ImageDraw.Draw(self.labels)

    def render(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw everything from far to near; see the module's `render` for what is returned."""
        things = sorted(self._plan_things(), key=lambda thing: -thing.depth)
        self._draw_sky()
        self._draw_backdrop()
        self._draw_ground(self._object_shadows(things))
        for x, plots in ((-self.left, self.plots[0]), (self.right, self.plots[1])):
            for plot in reversed(plots):
                self._draw_plot(x, plot)
        for thing in things:
            thing.draw()
        self._draw_ego_vehicle()
        return self._develop()

    # ---- set-up

    def _chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def _choose(self, options):
        return options[int(self.rng.integers(len(options)))]

    def _set_camera(self) -> None:
        city, rng = self.city, self.rng
        self.lanes = self._choose(city.lanes)
        self.camera_x = (int(rng.integers(self.lanes // 2)) + 0.5) * LANE + rng.normal(0, 0.25)
        self.camera_y = city.camera_height
        self.focal = city.focal * SUPERSAMPLING
        self.center_u = (WIDTH / 2 + rng.normal(0, 4)) * SUPERSAMPLING
        self.center_v = (city.horizon + rng.normal(0, 2)) * SUPERSAMPLING
        yaw = rng.normal(0, 0.07)
        self.cos, self.sin = math.cos(yaw), math.sin(yaw)

    def _plan_street(self) -> None:
        city, rng = self.city, self.rng
        self.bays = [self._chance(0.5), self._chance(0.55)]  # parking on the left, on the right
        self.kerbs = [self.lanes / 2 * LANE + 2.1 * bay for bay in self.bays]
        self.walk = city.sidewalk * rng.uniform(0.8, 1.3)
        self.strip = city.strip if self._chance(0.75) else 0.0
        self.left, self.right = (kerb + self.strip + self.walk for kerb in self.kerbs)
        self.rails = self.index % 5 == 2 or self._chance(0.1)
        self.crossing = rng.uniform(9, 45) if self._chance(0.55) else rng.uniform(45, 80)
        self.zebra = self.crossing - 4.5 if self._chance(0.6) else None
        self.plots = [self._plan_plots(), self._plan_plots()]

    def _plan_plots(self) -> list[Plot]:
        """One side of the street from behind the camera to `FAR`, nearest first."""
        rng, plots, z = self.rng, [], -30.0
        green = self.city.greenery
        kinds, shares = (
            ("building", "yard", "park", "wall"),
            np.array([3.2, 0.6 * green + 0.6, 1.1 * green, 0.7]),
        )
        while z < FAR:
            if z < self.crossing < z + 12:
                plots.append(Plot("crossing", z, self.crossing + 9, 0.0, 0))
            else:
                kind = str(rng.choice(kinds, p=shares / shares.sum()))
                end = z + rng.uniform(9, 24)
                if z < self.crossing < end:
                    end = self.crossing
                height = {
                    "building": max(4.0, self.city.building_height * rng.lognormal(0, 0.3)),
                    "yard": 1.0,
                    "park": 4.0,
                    "wall": rng.uniform(1.8, 3.2),
                }[kind]
                plots.append(Plot(kind, z, end, height, int(rng.integers(1000))))
            z = plots[-1].z1
        return plots

    def _set_light(self) -> None:
        city, rng = self.city, self.rng
        elevation = math.radians(city.sun_elevation + rng.normal(0, 3))
        azimuth = math.radians(rng.uniform(20, 75))
        self.to_sun = (
            math.cos(elevation) * math.sin(azimuth) * self._choose((-1, 1)),
            math.sin(elevation),
            math.cos(elevation) * math.cos(azimuth) * self._choose((-1, 1)),
        )
        strength = rng.uniform(0.75, 1.1)
        self.sun = np.array(city.sun) * strength
        self.ambient = np.array(city.ambient) * rng.uniform(0.85, 1.15)
        self.haze_colour = 0.5 * (np.array(city.sky[0]) + np.array(city.sky[1]))
        sunny_side = self.to_sun[0] > 0
        self.sun_wall = self.right if sunny_side else -self.left
        plots = self.plots[1 if sunny_side else 0]
        self.sun_wall_ends = np.array([plot.z1 for plot in plots], np.float32)
        self.sun_wall_heights = np.array([plot.height for plot in plots] + [12.0], np.float32)

    # ---- light

    def _sunlit(self, x, y, z):
        """Share of the sun's light, 0..1, that passes the houses on its side; soft at the edge."""
        way = np.maximum((self.sun_wall - x) / self.to_sun[0], 0)
        plot = np.searchsorted(self.sun_wall_ends, z + way * self.to_sun[2])
        clearance = y + way * self.to_sun[1] - self.sun_wall_heights[plot]
        lit = np.clip(0.5 + clearance / (0.5 + 0.06 * way), 0, 1)
        return lit if isinstance(lit, np.ndarray) else float(lit)

    def _light(self, normal, sunlit):
        """RGB light on a surface: [3], or [h, w, 3] for an array `sunlit`."""
        facing = max(0.0, sum(n * s for n, s in zip(normal, self.to_sun, strict=True)))
        sky = (self.ambient * (0.8 + 0.2 * normal[1])).astype(np.float32)
        if isinstance(sunlit, float):
            return sky + self.sun * (facing * sunlit)
        return sky + (self.sun * facing).astype(np.float32) * sunlit[..., None]

    def _radiance(self, colour, light, depth):
        """Canvas values (0..255, square root of radiance) of lit colours behind the haze."""
        air = np.exp(-depth / self.city.haze)[..., None]
        haze = self.haze_colour.astype(np.float32)
        return np.clip(255 * (colour * np.sqrt(light) * air + haze * (1 - air)), 0, 255)

    def _flat(self, colour, light, depth) -> tuple[int, int, int]:
        air = math.exp(-depth / self.city.haze)
        lit = [float(c) * math.sqrt(l) * air for c, l in zip(colour, light, strict=True)]
        mixed = [c + h * (1 - air) for c, h in zip(lit, self.haze_colour.tolist(), strict=True)]
        r, g, b = (int(255 * min(1.0, c)) for c in mixed)
        return r, g, b

    # ---- drawing

    def _to_camera(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        x -= self.camera_x
        return x * self.cos - z * self.sin, y - self.camera_y, x * self.sin + z * self.cos

    def _project(self, points) -> list[tuple[float, float]]:
        """World points [(x, y, z)] of a polygon -> pixels (u, v), clipped at the near plane."""
        points = [self._to_camera(*point) for point in points]
        if min(point[2] for point in points) < NEAR:
            clipped = []
            for a, b in zip(points, points[1:] + points[:1], strict=True):
                if a[2] >= NEAR:
                    clipped.append(a)
                if (a[2] >= NEAR) != (b[2] >= NEAR):
                    w = (NEAR - a[2]) / (b[2] - a[2])
                    clipped.append(tuple(p + w * (q - p) for p, q in zip(a, b, strict=True)))
            points = clipped
        return [
            (self.center_u + self.focal * x / z, self.center_v - self.focal * y / z)
            for x, y, z in points
        ]

    def _polygon(self, points, fill, label: int | None) -> None:
        """Draw a polygon of world points; no `fill` draws its label alone, no label its colour."""
        pixels = self._project(points)
        if len(pixels) < 3:
            return
        if fill is not None:
            self.colour_pen.polygon(pixels, fill=fill)
        if label is not None:
            self.label_pen.polygon(pixels, fill=label)

    def _line(self, points, metres: float, fill, label: int | None) -> None:
        """Draw a line of world points that is `metres` thick; posts keep one pixel of the image."""
        depth = self._to_camera(*points[0])[2]
        if min(self._to_camera(*point)[2] for point in points) < NEAR:
            return
        width = max(SUPERSAMPLING if label == POLE else 1, round(metres * self.focal / depth))
        pixels = self._project(points)
        if fill is not None:
            self.colour_pen.line(pixels, fill=fill, width=width)
        if label is not None:
            self.label_pen.line(pixels, fill=label, width=width)

    def _ellipse(self, x, y, z, rx, ry, fill, label: int | None) -> None:
        """Draw an ellipse that faces the camera; radii in metres."""
        depth = self._to_camera(x, y, z)[2]
        if depth < NEAR:
            return
        (u, v), scale = self._project([(x, y, z)])[0], self.focal / depth
        box = (u - rx * scale, v - ry * scale, u + rx * scale, v + ry * scale)
        if fill is not None:
            self.colour_pen.ellipse(box, fill=fill)
        if label is not None:
            self.label_pen.ellipse(box, fill=label)

    def _paste(self, corner, where, radiance, label, coloured=True) -> None:
        """Put ray-cast pixels onto the canvas.

        where: bool [h, w], the n pixels of a box that are set. radiance: [n, 3] for them.
        label: one, or [n]. coloured: bool [n], False where what lies behind shows through.
        """
        for canvas, values, mask in (
            (self.colours, radiance, coloured),
            (self.labels, label, True),
        ):
            patch = np.zeros((*where.shape, 3) if canvas.mode == "RGB" else where.shape, np.uint8)
            patch[where] = values
            shown = where.astype(np.uint8)
            shown[where] = np.multiply(mask, 255)
            canvas.paste(Image.fromarray(patch), corner, Image.fromarray(shown))

    def _rays(self, box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World directions (x, y, z), each [h, w] at camera depth 1, of a box of canvas pixels."""
        u0, v0, u1, v1 = box
        a = (np.arange(u0, u1, dtype=np.float32) + (0.5 - self.center_u))[None] / self.focal
        b = ((self.center_v - 0.5) - np.arange(v0, v1, dtype=np.float32))[:, None] / self.focal
        x, z = a * self.cos + self.sin, -a * self.sin + self.cos
        return np.broadcast_arrays(x, b, z)

    def _box_of(self, pixels) -> tuple[int, int, int, int] | None:
        """Canvas pixels that a polygon can touch, or None."""
        if len(pixels) < 3:
            return None
        us, vs = zip(*pixels, strict=True)
        u0, u1 = max(0, math.floor(min(us))), min(self.colours.width, math.ceil(max(us)) + 1)
        v0, v1 = max(0, math.floor(min(vs))), min(self.colours.height, math.ceil(max(vs)) + 1)
        return (u0, v0, u1, v1) if u0 < u1 and v0 < v1 else None

    def _upright(self, axis: str, at: float, span, heights, texture, label: int) -> None:
        """Ray-cast an upright rectangle.

        axis: "x" for a plane x = `at` along the street, "z" for z = `at` across it.
        span: from, to along the plane. heights: from, to.
        texture: maps (position along the plane, height, metres per canvas pixel), [n] each, to
            colours [n, 3], or to a pair of colours and a mask if it can be seen through.
        """
        (s0, s1), (y0, y1) = span, heights
        corners = [(s0, y0), (s1, y0), (s1, y1), (s0, y1)]
        points = [(at, y, s) if axis == "x" else (s, y, at) for s, y in corners]
        box = self._box_of(self._project(points))
        if box is None:
            return
        dx, dy, dz = self._rays(box)
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = (at - self.camera_x) / dx if axis == "x" else at / dz
            s = depth * dz if axis == "x" else self.camera_x + depth * dx
            y = self.camera_y + depth * dy
            inside = (depth > NEAR / 2) & (s >= s0) & (s < s1) & (y >= y0) & (y < y1)
        if not inside.any():
            return
        depth, s, y = depth[inside], s[inside], y[inside]
        seen = texture(s, y, depth / self.focal)
        colour, mask = seen if isinstance(seen, tuple) else (seen, True)
        normal = (-math.copysign(1, at - self.camera_x), 0, 0) if axis == "x" else (0, 0, -1)
        x, z = (np.full_like(s, at), s) if axis == "x" else (s, np.full_like(s, at))
        light = self._light(normal, self._sunlit(x, y, z))
        light = light * (0.7 + 0.3 * np.clip(y / 3, 0, 1))[..., None]  # less sky near the ground
        self._paste(box[:2], inside, self._radiance(colour, light, depth), label, mask)

    # ---- sky and ground

    def _draw_sky(self) -> None:
        city, rng = self.city, self.rng
        rows = min(self.colours.height, int(self.center_v) + 2)
        dx, dy, _ = self._rays((0, 0, self.colours.width, rows))
        up = np.clip(dy, 0.004, None)
        sky = _mix(
            np.broadcast_to(_rgb(city.sky[1]), (*up.shape, 3)),
            np.clip(up / 0.35, 0, 1) ** 0.7,
            city.sky[0],
        )
        shift = rng.uniform(0, 256, 2).tolist()
        clouds = _cloudy(shift[0] + dx / (up + 0.1) * 24, shift[1] + 30 / (up + 0.1))
        sky = _mix(
            sky, np.clip((clouds - 0.75 + 0.5 * city.cloud) * 5, 0, 0.85), (0.93, 0.93, 0.94)
        )
        glow = np.exp(
            -(((dx - 0.8 * self.to_sun[0]) / 0.35) ** 2) - (up - self.to_sun[1]) ** 2 / 0.1
        )
        sky = _mix(sky, 0.7 * glow * (self.to_sun[2] > 0) * min(1, self.sun[0]), (1, 0.98, 0.92))
        brightness = np.sqrt(np.clip(self.ambient.mean() * 2 + 0.25 * self.sun.mean(), 0.3, 1.0))
        pixels = (np.clip(sky * brightness, 0, 1) * 255).reshape(-1, 3)
        self._paste((0, 0), np.ones(up.shape, bool), pixels, SKY)

    def _draw_backdrop(self) -> None:
        """What closes the street far away: houses and trees."""
        rng, x = self.rng, -90.0
        while x < 90:
            width = rng.uniform(8, 22)
            if self._chance(0.75):
                tone = int(rng.integers(1000))
                height = rng.uniform(5, 16)
                texture = self._facade(tone, height)
                self._upright("z", FAR, (x, x + width), (0, height), texture, BUILDING)
            for _ in range(int(rng.integers(3))):
                self._crown(
                    x + rng.uniform(0, width), rng.uniform(2, 4), FAR - 5, rng.uniform(3, 6)
                )
            x += width

    def _object_shadows(self, things: list[Thing]) -> tuple[np.ndarray, np.ndarray]:
        """Shadows that things cast on the ground: by the sun and right below, [H, W] in 0..1."""
        images = [Image.new("L", self.colours.size) for _ in range(2)]
        cast, contact = (ImageDraw.Draw(image) for image in images)
        for thing in things:
            x, z, half_x, half_z, height = thing.footprint
            if not height:
                continue
            corners = [
                (x + i * half_x, z + j * half_z) for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))
            ]
            reach = min(height / self.to_sun[1], 12.0)
            far = [(a - reach * self.to_sun[0], b - reach * self.to_sun[2]) for a, b in corners]
            for i in range(4):
                j = (i + 1) % 4
                pixels = self._project(
                    [(a, 0, b) for a, b in (corners[i], corners[j], far[j], far[i])]
                )
                if len(pixels) > 2:
                    cast.polygon(pixels, fill=255)
            pixels = self._project([(a, 0, b) for a, b in corners])
            if len(pixels) > 2:
                contact.polygon(pixels, fill=255)
        return tuple(
            np.asarray(image.filter(ImageFilter.GaussianBlur(2)), np.float32) / 255
            for image in images
        )

    def _draw_ground(self, shadows: tuple[np.ndarray, np.ndarray]) -> None:
        top = max(0, int(self.center_v) + 1)
        box = (0, top, self.colours.width, self.colours.height)
        dx, dy, dz = self._rays(box)
        depth = self.camera_y / np.maximum(-dy, 1e-3)
        x, z = self.camera_x + depth * dx, depth * dz
        beyond = np.where(x > 0, x - self.kerbs[1], -x - self.kerbs[0])  # metres past the kerb
        crossing = (z > self.crossing) & (z < self.crossing + 9)
        strip = (beyond > 0.18) & (beyond < self.strip) & (_white(z / 14, np.sign(x)) > 0.15)
        plot = beyond > self.strip + self.walk

        kinds = self._plot_kinds(x, z)
        labels = np.where((beyond < 0) | crossing, ROAD, SIDEWALK)
        labels[(strip | (plot & (kinds > 0))) & ~crossing] = TERRAIN
        labels[plot & (kinds == 2) & ~crossing] = GROUND
        colour = np.zeros((*x.shape, 3), np.float32)
        for texture, covered in (
            (self._road, labels == ROAD),
            (self._paving, labels == SIDEWALK),
            (self._grass, (labels == TERRAIN) | (labels == GROUND)),
        ):
            colour[covered] = texture(x[covered], z[covered], depth[covered])
        colour[(labels == SIDEWALK) & (beyond < 0.18)] = _rgb(self.city.paving) + 0.12

        cast, contact = (shadow[top:] for shadow in shadows)
        light = self._light((0, 1, 0), self._sunlit(x, 0 * x, z) * (1 - cast))
        light = light * (1 - 0.6 * contact)[..., None]
        radiance = self._radiance(colour, light, depth)
        visible = depth < FAR
        self._paste((0, top), visible, radiance[visible], labels[visible])

    def _plot_kinds(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Ground of the plots: 0 paved, 1 grass, 2 bare yard."""
        kinds = np.zeros(x.shape, np.int8)
        codes = {"building": 0, "yard": 1, "park": 1, "wall": 2, "crossing": 0}
        for side, plots in ((x < 0, self.plots[0]), (x >= 0, self.plots[1])):
            number = np.searchsorted([plot.z1 for plot in plots], z).clip(0, len(plots) - 1)
            kinds = np.where(side, np.array([codes[plot.kind] for plot in plots])[number], kinds)
        return kinds

    def _road(self, x: np.ndarray, z: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Asphalt with patches, cracks, wheel tracks, rails and markings."""
        city = self.city
        grain = 0.92 + 0.14 * _cloudy(x * 9 + 40, z * 5) + 0.1 * (_white(x * 16, z * 9) - 0.5)
        grain *= np.where(_white(x / 1.9 + 50, z / 5.5) < 0.07, 0.88, 1)
        grain *= np.where(np.abs(_cloudy(x * 6, z * 6 + 90) - 0.45) < 0.008, 0.75, 1)
        grain *= 1 + 0.04 * np.cos(2 * np.pi * 2 * x / LANE)
        colour = _rgb(city.asphalt) * grain[..., None]
        pixel = depth / self.focal
        half = np.maximum(0.07, 0.6 * pixel)
        if self.rails:
            bed = np.abs(np.abs(x) - LANE / 2) < 1.2
            colour = _mix(colour, 0.5 * bed * (_white(x * 3, z * 3) > 0.2), city.paving)
            for offset in (-0.72, 0.72):
                colour = _mix(
                    colour, np.abs(np.abs(x) - LANE / 2 + offset) < half, (0.25, 0.24, 0.24)
                )
        lane = np.abs(x / LANE - np.round(x / LANE)) * LANE
        inner = np.abs(x) < (self.lanes / 2 - 0.5) * LANE
        line = (lane < half) & inner & ((z + self.index) % 6 < 3)
        line |= np.abs(np.abs(x) - (self.lanes / 2 * LANE - 0.1)) < half
        line &= (z < self.crossing) | (z > self.crossing + 9)
        if self.zebra is not None:
            zebra = (z > self.zebra) & (z < self.zebra + 3)
            line = np.where(zebra, (x % 1.0) < 0.5, line) | (
                (z > self.zebra - 1.6) & (z < self.zebra - 1.2) & (x > 0)
            )
        wear = np.clip(1.3 * _cloudy(x * 12, z * 12 + 30) + 0.2, 0, 1)
        return _mix(colour, line * wear, city.marking)

    def _paving(self, x: np.ndarray, z: np.ndarray, _: np.ndarray) -> np.ndarray:
        size = self.city.paving_size
        row = np.floor(z / size)
        a, b = x / size + 0.5 * (row % 2), z / size
        tone = 0.88 + 0.14 * _white(a, b) + 0.16 * _cloudy(x * 7, z * 7)
        joint = ((a % 1) < 0.09) | ((b % 1) < 0.09)
        return _rgb(self.city.paving) * (tone * np.where(joint, 0.86, 1))[..., None]

    def _grass(self, x: np.ndarray, z: np.ndarray, _: np.ndarray) -> np.ndarray:
        tone = 0.7 + 0.35 * _cloudy(x * 10, z * 8) + 0.35 * (_white(x * 20, z * 12) - 0.4)
        bare = np.clip((_cloudy(x * 5 + 70, z * 5) - 0.6) * 6, 0, 0.8)
        return _mix(_rgb(self.city.grass) * tone[..., None], bare, (0.46, 0.4, 0.32))

    # ---- plots

    def _draw_plot(self, x: float, plot: Plot) -> None:
        """Draw what stands on a plot behind the facade line at `x`."""
        if plot.z1 < 1 or plot.kind == "crossing":
            return
        rng, away = (
            np.random.default_rng([plot.tone, int(plot.z1 * 1000) & 0xFFFF]),
            math.copysign(1, x),
        )
        z0, z1 = max(plot.z0, 0.3), plot.z1
        if plot.kind == "building":
            self._house(x, away, plot.z0, z1, plot.height, plot.tone)
            return
        if rng.random() < 0.6:
            setback = x + away * rng.uniform(6, 12)
            self._house(setback, away, plot.z0 + 2, z1 - 2, rng.uniform(5, 12), plot.tone + 1)
        for _ in range(int(rng.integers(1, 4)) * (1 + (plot.kind == "park"))):
            depth = rng.uniform(1.5, 7)
            where = (x + away * depth, rng.uniform(plot.z0 + 1, z1 - 1))
            if where[1] > 4:
                self._tree(*where, rng.uniform(4, 9))
        if plot.kind == "wall":
            self._upright("x", x, (z0, z1), (0, plot.height), self._masonry(plot.tone), WALL)
        elif plot.kind == "yard" or rng.random() < 0.3:
            high = rng.uniform(1.2, 2.2)
            if rng.random() < 0.3:
                self._upright("x", x, (z0, z1), (0, 0.5), self._masonry(plot.tone), WALL)
            self._upright("x", x, (z0, z1), (0, high), self._bars(plot.tone, high), FENCE)
        elif rng.random() < 0.45:  # a hedge; else an open lawn
            high = rng.uniform(0.6, 2.2)
            self._upright("x", x, (z0, z1), (0, high), self._leaves(plot.tone), VEGETATION)

    def _house(self, x: float, away: float, z0: float, z1: float, height: float, tone: int) -> None:
        if z1 < 1:
            return
        if z0 > 1:  # the side towards the camera
            span = (min(x, x + away * 11), max(x, x + away * 11))
            self._upright(
                "z", z0, span, (0, height), self._facade(tone + 7, height, bare=True), BUILDING
            )
        texture = self._facade(tone, height)
        self._upright("x", x, (max(z0, 0.3), z1), (0, height), texture, BUILDING)
        if tone % 3:  # a pitched roof
            top, back = height + 2.5, x + away * 4
            light = self._light((-away * 0.5, 0.8, 0), 1.0)
            fill = self._flat(self.city.roof, light, max(4.0, (z0 + z1) / 2))
            roof = [
                (x, height, max(z0, 0.3)),
                (x, height, z1),
                (back, top, z1),
                (back, top, max(z0, 0.3)),
            ]
            self._polygon(roof, fill, BUILDING)
            if z0 > 1:
                gable = [(x, height, z0), (back, top, z0), (x + away * 8, height, z0)]
                base = self.city.facades[tone % len(self.city.facades)]
                self._polygon(gable, self._flat(base, self._light((0, 0, -1), 0.5), z0), BUILDING)

    def _facade(self, tone: int, height: float, bare: bool = False):
        """Texture of a house front: floors, windows, doors, shops; `bare` has few windows."""
        city, look = self.city, np.random.default_rng([tone, 1])
        base = _rgb(city.facades[tone % len(city.facades)]) * np.float32(look.uniform(0.85, 1.1))
        bay, floor = look.uniform(1.6, 3.2), look.uniform(2.7, 3.6)
        half_width, half_height = (np.array(city.windows) * look.uniform(0.8, 1.2, 2)).tolist()
        shop, street_floor = look.random() < 0.5, look.uniform(3.0, 4.0)
        trim = np.clip(base + np.float32(look.choice([-0.15, 0.15])), 0, 1)
        sign = _SIGNS[int(look.integers(len(_SIGNS)))][0]
        wall, ledge, glass, sky, curtain, board, door, plinth, goods = range(9)
        colours = (base, trim, _GLASS, (0.55, 0.62, 0.7), (0.75, 0.72, 0.66), sign)
        materials = np.stack([_rgb(c) for c in (*colours, trim * 0.5, base * 0.75, _GLASS)])
        top = street_floor + floor * math.floor((height - street_floor) / floor)

        def texture(s, y, pixel):
            i, j = np.floor(s / bay), np.floor((y - street_floor) / floor)
            a, b = np.abs(s / bay - i - 0.5), (y - street_floor) / floor - j - 0.52
            hit = _white(i + tone, j)  # one number per window
            upper = (y > street_floor) & (y < top)
            if bare:
                upper &= _white(i + tone, 0 * i) < 0.25
            material = np.full(s.shape, wall, np.int8)
            height_within = np.abs(b)
            material[upper & (a < half_width + 0.06) & (height_within < half_height + 0.07)] = ledge
            pane = upper & (a < half_width) & (height_within < half_height) & (a > 0.02)
            material[pane] = glass
            material[pane & (hit < 0.25)] = sky
            material[pane & (hit > 0.8) & (b > 0.05)] = curtain
            material[(np.abs(y - street_floor) < 0.15) | (y > height - 0.35)] = ledge
            if shop and not bare:
                material[(y > 0.4) & (y < 2.6) & (a < 0.45)] = goods
                awning = (y > 2.7) & (y < street_floor - 0.25) & (np.floor(s / 7) % 3 > 0)
                material[awning] = board
            elif not bare:
                material[(y > 1) & (y < 2.4) & (a < half_width) & (hit > 0.3)] = glass
                material[y < 0.6] = plinth
            if not bare:
                material[(hit < 0.3) & (a < 0.27) & (y < 2.3)] = door
            shade = 0.9 + 0.2 * _cloudy(s * 4 + tone, y * 4) + 0.06 * (_white(s * 15, y * 15) - 0.5)
            if city.brick > 0.05:
                course = np.floor(y / 0.3)
                joint = (y / 0.3 - course < 0.25) | ((s / 0.6 + course / 2) % 1 < 0.12)
                shade -= city.brick * (joint & (pixel < 0.15) & (material == wall))
            shade = np.where(material == glass, 0.8 + 1.3 * hit, shade)
            shelf = material == goods
            shade[shelf] = 1 + 2 * (_white(s * 2, y * 2) * _white(s, y + 9))[shelf]
            return materials[material] * shade[:, None]

        return texture

    def _masonry(self, tone: int):
        base = np.array(self.city.facades[(tone + 2) % len(self.city.facades)]) * (
            0.75 + tone % 5 * 0.06
        )
        size = 0.35 + tone % 3 * 0.25

        def texture(s, y, pixel):
            a, b = s / (1.7 * size) + 0.5 * (np.floor(y / size) % 2), y / size
            joint = ((a % 1) < 0.08) | ((b % 1) < 0.12)
            grey = (
                0.8
                + 0.22 * _white(a, b)
                + 0.25 * _cloudy(s * 8, y * 8 + tone)
                - 0.2 * joint * (pixel < 0.2)
            )
            return base * np.clip(grey, 0, 1.2)[..., None]

        return texture

    def _leaves(self, tone: int):
        base = _rgb(self.city.foliage[tone % len(self.city.foliage)])

        def texture(s, y, pixel):
            light = 0.35 + 0.5 * _white(s * 7, y * 7) + 0.5 * _cloudy(s * 14 + tone, y * 14)
            return np.clip(base * light[..., None], 0, 1)

        return texture

    def _bars(self, tone: int, high: float):
        """See-through texture: pickets, railings or mesh."""
        paints = (self.city.post, (0.4, 0.3, 0.2), (0.75, 0.75, 0.73), (0.25, 0.27, 0.25))
        base, gap = _rgb(paints[tone % 4]), (0.16, 0.3, 0.22)[tone % 3]
        share = (0.75, 0.35, 0.5)[tone % 3]

        def texture(s, y, pixel):
            fine = pixel > 0.4 * gap  # bars thinner than pixels: a dithered veil
            bars = np.where(fine, _white(s / pixel, y / pixel) < share, (s / gap % 1) < share)
            rails = (np.abs(y - 0.25) < 0.05) | (np.abs(y - high + 0.1) < 0.07) | (s % 2.4 < 0.12)
            tone_ = 0.85 + 0.25 * _white(s / gap, 0 * s)
            return base * tone_[..., None], bars | rails

        return texture

    # ---- plants

    def _crown(self, x: float, y: float, z: float, radius: float, squeeze: float = 1.0) -> None:
        """A ragged ball of leaves, lit from the sun's side and from above."""
        depth = self._to_camera(x, y, z)[2]
        if depth < 1.5:
            return
        (u, v), r = self._project([(x, y, z)])[0], radius * self.focal / depth
        ru, rv = 1.3 * r, 1.3 * r * squeeze
        box = self._box_of([(u - ru, v - rv), (u + ru, v + rv), (u, v)])
        if box is None:
            return
        du = np.arange(box[0], box[2], dtype=np.float32)[None] + (0.5 - u)
        dv = np.arange(box[1], box[3], dtype=np.float32)[:, None] + (0.5 - v)
        a, b = np.broadcast_arrays(du / r, dv / (r * squeeze))
        shift = self.rng.uniform(0, 256, 2).tolist()
        lumps = _cloudy(a * 22 + shift[0], b * 22 + shift[1])
        grain = max(1.0, r / 20)  # canvas pixels per tuft of leaves
        tufts = _white(du / grain + shift[1], dv / grain + shift[0])
        inside = a * a + b * b + 1.3 * (lumps - 0.5) + 0.35 * (tufts - 0.5) < 0.95
        a, b, lumps, tufts = a[inside], b[inside], lumps[inside], tufts[inside]
        solid = (lumps > 0.27) | (tufts < 0.3) | (a * a + b * b < 0.3)
        towards = 1 if self.to_sun[0] * self.cos > 0 else -1
        shape = np.clip(0.55 - 0.3 * b + 0.25 * a * towards, 0.15, 1)
        base = _rgb(self.city.foliage[int(shift[0]) % len(self.city.foliage)])
        colour = base * (0.25 + 0.6 * tufts + 0.5 * lumps)[:, None]
        sunlit = (self.sun * 0.8 * self._sunlit(x, y, z)).astype(np.float32)
        light = (_rgb(self.ambient) + sunlit * shape[:, None]) * (0.55 + 0.45 * shape)[:, None]
        radiance = self._radiance(colour, light, np.float32(depth))
        self._paste(box[:2], inside, radiance, VEGETATION, solid)

    def _tree(self, x: float, z: float, height: float) -> None:
        light = self._light((0, 0, -1), self._sunlit(x, 1.0, z)) * 0.8
        bark = self._flat((0.33, 0.27, 0.22), light, z)
        self._line(
            [(x, 0, z), (x + 0.03 * height, 0.5 * height, z)],
            0.03 * height + 0.08,
            bark,
            VEGETATION,
        )
        radius = 0.3 * height
        for _ in range(3 if z < 60 else 1):
            dx, dy = self.rng.normal(0, 0.35 * radius, 2)
            size = radius * self.rng.uniform(0.65, 1.0)
            self._crown(x + dx, 0.7 * height + dy, z, size, self.rng.uniform(0.8, 1.2))

    # ---- things

    def _plan_things(self) -> list[Thing]:
        """Everything that stands or moves in the street; each fifth image has each rare kind."""
        self.things: list[Thing] = []
        self._plan_parked()
        self._plan_traffic()
        self._plan_furniture()
        self._plan_people()
        return self.things

    def _add(
        self, x: float, z: float, draw: Callable[[], None], half_x=0.0, half_z=0.0, height=0.0
    ) -> None:
        depth = self._to_camera(x, 0, z)[2]
        if depth > 1.5:
            self.things.append(Thing(depth, draw, (x, z, half_x, half_z, height)))

    def _add_vehicle(self, kind: str, x: float, z: float, heading: float) -> None:
        """`heading` 0 drives away from the camera, in radians clockwise from above."""
        length, width, height = _SIZES[kind]
        draw = {"car": self._car, "truck": self._truck, "bus": self._bus, "train": self._tram}[kind]
        along = abs(math.cos(heading)) > 0.5
        half_x, half_z = (width / 2, length / 2) if along else (length / 2, width / 2)
        self._add(x, z, lambda: draw(Solid(self, x, z, heading)), half_x, half_z, height)

    def _plan_parked(self) -> None:
        rng = self.rng
        for side, bay, kerb in (
            (-1, self.bays[0], self.kerbs[0]),
            (1, self.bays[1], self.kerbs[1]),
        ):
            z = rng.uniform(3, 9)
            while bay and z < 90:
                in_crossing = self.crossing - 5 < z < self.crossing + 13
                if self._chance(self.city.parking) and not in_crossing:
                    heading = (0 if side > 0 else math.pi) + rng.normal(0, 0.04)
                    kind = "truck" if self._chance(0.02) else "car"
                    self._add_vehicle(
                        kind, side * (kerb - 1.05), z + 2 * (kind == "truck"), heading
                    )
                    z += 3 * (kind == "truck")
                z += rng.uniform(5.0, 6.5)

    def _plan_traffic(self) -> None:
        """Vehicles in the lanes, and across the street at the crossing."""
        rng = self.rng
        rare = ("bus", "truck", "train", None, None)[self.index % 5]
        for lane in range(-self.lanes // 2, self.lanes // 2):
            x, oncoming = (lane + 0.5) * LANE, lane < 0
            z = rng.uniform(10, 40) if not oncoming else rng.uniform(6, 35)
            wanted = rare if lane == (-1 if rare == "train" or self._chance(0.6) else 0) else None
            while z < 110:
                kind = wanted or str(rng.choice(["car", "truck", "bus"], p=[0.95, 0.03, 0.02]))
                if wanted:
                    z, rare, wanted = rng.uniform(8, 17), None, None
                if kind == "train":
                    x = math.copysign(LANE / 2, x)
                z += _SIZES[kind][0] / 2
                heading = rng.normal(0, 0.03) + math.pi * oncoming
                self._add_vehicle(kind, x + rng.normal(0, 0.2), z, heading)
                z += _SIZES[kind][0] / 2 + rng.uniform(6, 45)
        if rare:  # no lane took it: it crosses
            self._add_vehicle(rare, rng.uniform(-6, 6), self.crossing + 6, math.pi / 2)
        elif self._chance(0.35):
            side = self._choose((-1, 1))
            self._add_vehicle(
                "car", rng.uniform(-9, 9), self.crossing + 4.5 - 2 * side, side * math.pi / 2
            )

    def _plan_furniture(self) -> None:
        """What stands along the kerbs."""
        rng = self.rng
        for side, kerb in ((-1, self.kerbs[0]), (1, self.kerbs[1])):
            x = side * (kerb + 0.55)
            self._plan_trees(x)
            for z in np.arange(rng.uniform(5, 20), 75, rng.uniform(16, 30)):
                self._add(x, z, partial(self._lamp, x, z, -side), 0.08, 0.08, 7)
            for z in rng.uniform(5, 40, rng.poisson(1.8)):
                self._add(x, z, partial(self._sign, x, z), 0.07, 0.07, 3)
            for z in rng.uniform(5, 40, rng.poisson(0.5)):
                self._add(x, z, partial(self._bin, x, z), 0.3, 0.3, 1)
            for start in rng.uniform(5, 30, rng.poisson(0.4)):
                for z in start + 1.2 * np.arange(rng.integers(1, 5)):
                    self._add(x, z, partial(self._bollard, x, z), 0.08, 0.08, 1)
            self._plan_parked_two_wheelers(x + side * 0.4, certain=side > 0)
            if self._chance(0.12):
                self._plan_railing(side * (kerb + 0.3))
        if self.zebra is not None or self._chance(0.3):
            z = self.crossing - 5
            for x in (-self.kerbs[0] - 0.4, self.kerbs[1] + 0.4):
                self._add(x, z, partial(self._signal, x, z), 0.1, 0.1, 3.5)

    def _plan_trees(self, x: float) -> None:
        rng = self.rng
        row = self._chance(0.15 + 0.85 * self.city.greenery)
        z, step = rng.uniform(3, 12), rng.uniform(7, 14)
        while row and z < 120:
            if not self.crossing - 3 < z < self.crossing + 12 and self._chance(0.85):
                height = rng.uniform(4.5, 8)
                self._add(x, z, partial(self._tree, x, z, height), 0.9, 0.9, height)
            z += step * rng.uniform(0.8, 1.2)

    def _plan_parked_two_wheelers(self, x: float, certain: bool) -> None:
        """Groups of bicycles, and a motorcycle: on the `certain` side in each fifth image."""
        rng = self.rng
        for start in rng.uniform(5, 25, rng.poisson(0.7)):
            angle = rng.uniform(0, math.pi)
            for z in start + 0.8 * np.arange(rng.integers(1, 4)):
                self._add(x, z, partial(self._two_wheeler, x, z, angle, False, False), 0.5, 0.3, 1)
        if self._chance(0.18) or (self.index % 5 == 4 and certain):
            z, angle = rng.uniform(6, 18), rng.uniform(0, math.pi)
            self._add(x, z, partial(self._two_wheeler, x, z, angle, True, False), 0.5, 0.3, 1)

    def _plan_railing(self, x: float) -> None:
        """A low fence between road and sidewalk."""
        z0 = self.rng.uniform(5, 40)
        tone, z1 = int(self.rng.integers(1000)), z0 + self.rng.uniform(6, 25)
        self._add(
            x, z1, lambda: self._upright("x", x, (z0, z1), (0, 1.1), self._bars(tone, 1.1), FENCE)
        )

    def _plan_people(self) -> None:
        rng = self.rng
        for side, kerb in ((-1, self.kerbs[0]), (1, self.kerbs[1])):
            for z in rng.uniform(4.5, 38, rng.poisson(4.5)):
                x = side * (kerb + self.strip + rng.uniform(0.7, max(0.8, self.walk - 0.4)))
                for i in range(1 + int(rng.random() < 0.3)):
                    self._add_person(x + 0.55 * i, z)
        if self.zebra is not None:
            for _ in range(rng.poisson(1.2)):
                self._add_person(
                    rng.uniform(-self.kerbs[0], self.kerbs[1]), self.zebra + rng.uniform(0.5, 2.5)
                )
        riders = rng.poisson(0.8) + (self.index % 5 == 3)
        for i in range(riders):
            side = self._choose((-1, 1))
            x = side * (self.lanes / 2 * LANE - rng.uniform(0.3, 1.0))
            z, angle = rng.uniform(6, 22), (0 if side > 0 else math.pi) + rng.normal(0, 0.25)
            if self._chance(0.3):
                angle += math.pi / 2 * self._choose((-1, 1))
            motor = self._chance(0.25) or (i == 0 and self.index % 10 == 3)
            self._add(
                x,
                z,
                lambda p=(x, z), a=angle, m=motor: self._two_wheeler(*p, a, m, True),
                0.3,
                0.6,
                1.6,
            )

    def _add_person(self, x: float, z: float) -> None:
        self._add(x, z, lambda: self._person(x, z), 0.25, 0.2, 1.7)

    # ---- street furniture

    def _facing(self, x: float, y: float, z: float) -> np.ndarray:
        """Light on something upright that faces the camera."""
        lit = float(self._sunlit(x, y, z))
        return self.ambient * 0.9 + self.sun * lit * (0.35 + 0.5 * max(0.0, -self.to_sun[2]))

    def _post(self, x: float, z: float, high: float, thick: float) -> None:
        for low, top in ((0.0, high / 2), (high / 2, high)):
            fill = self._flat(self.city.post, self._facing(x, (low + top) / 2, z), z)
            self._line([(x, low, z), (x, top, z)], thick, fill, POLE)

    def _lamp(self, x: float, z: float, inward: int) -> None:
        high = 6.5
        self._post(x, z, high, 0.22)
        light = self._facing(x, high, z)
        tip = x + inward * 1.6
        self._line(
            [(x, high, z), (tip, high + 0.3, z)], 0.1, self._flat(self.city.post, light, z), POLE
        )
        self._ellipse(tip, high + 0.25, z, 0.4, 0.12, self._flat((0.6, 0.6, 0.58), light, z), POLE)

    def _panel(self, x, y, z, half_w, half_h, colour, label: int, shape: str = "box") -> None:
        """A flat board facing the camera; shape is box, disc or triangle."""
        fill = self._flat(np.minimum(colour, 1), self._facing(x, y, z), z)
        if shape == "disc":
            self._ellipse(x, y, z, half_w, half_h, fill, label)
            return
        a, b = half_w * self.cos, half_w * self.sin
        points = [(x - a, y - half_h, z + b), (x + a, y - half_h, z - b)]
        points += (
            [(x, y + half_h, z)]
            if shape == "triangle"
            else [(x + a, y + half_h, z - b), (x - a, y + half_h, z + b)]
        )
        self._polygon(points, fill, label)

    def _sign(self, x: float, z: float) -> None:
        rng = self.rng
        high = rng.uniform(2.2, 3.2)
        self._post(x, z, high, 0.15)
        face, rim = self._choose(_SIGNS)
        shape = self._choose(("disc", "disc", "triangle", "box"))
        half_w, half_h = (
            (0.5, 0.5) if shape != "box" else (rng.uniform(0.35, 0.9), rng.uniform(0.3, 0.5))
        )
        self._panel(x, high, z, half_w, half_h, rim, TRAFFIC_SIGN, shape)
        self._panel(x, high, z, half_w * 0.72, half_h * 0.72, face, TRAFFIC_SIGN, shape)
        if shape != "triangle":
            self._panel(x, high, z, half_w * 0.45, half_h * 0.15, rim, TRAFFIC_SIGN)
        if self._chance(0.35):
            self._panel(x, high - 0.75, z, 0.32, 0.22, self._choose(_SIGNS)[0], TRAFFIC_SIGN)

    def _signal(self, x: float, z: float) -> None:
        high = 3.1
        self._post(x, z, high, 0.15)
        places = [(x, high + 0.2)]
        if self._chance(0.5):  # a second one over the road
            tip = x - math.copysign(3.2, x)
            fill = self._flat(self.city.post, self._facing(x, 5, z), z)
            self._line([(x, high, z), (x, 5.4, z), (tip, 5.4, z)], 0.12, fill, POLE)
            places.append((tip, 5.2))
        lit = int(self.rng.integers(3))
        for x_, y in places:
            self._panel(x_, y, z, 0.28, 0.64, (0.1, 0.11, 0.1), TRAFFIC_LIGHT)
            for i, colour in enumerate(((0.95, 0.15, 0.1), (0.95, 0.7, 0.1), (0.15, 0.9, 0.5))):
                glow = colour if i == lit else tuple(0.25 * c for c in colour)
                fill = tuple(int(255 * c * (1.0 if i == lit else 0.7)) for c in glow)
                self._ellipse(x_, y + 0.36 * (1 - i), z, 0.15, 0.15, fill, TRAFFIC_LIGHT)

    def _bin(self, x: float, z: float) -> None:
        colour = self._choose(
            ((0.2, 0.3, 0.22), (0.5, 0.5, 0.5), (0.6, 0.35, 0.15), (0.25, 0.25, 0.3))
        )
        self._panel(x, 0.5, z, 0.3, 0.5, colour, DYNAMIC if self._chance(0.5) else STATIC)

    def _bollard(self, x: float, z: float) -> None:
        self._post(x, z, 0.95, 0.14)

    # ---- people and two-wheelers

    def _person(self, x: float, z: float) -> None:
        rng = self.rng
        k = rng.uniform(0.92, 1.08) if self._chance(0.85) else rng.uniform(0.6, 0.8)
        light = self._facing(x, 1.0, z)
        coat, trousers = self._choose(_CLOTHES), self._choose(_CLOTHES)
        top, bottom = self._flat(coat, light, z), self._flat(np.multiply(trousers, 0.8), light, z)
        step, swing = rng.uniform(0.02, 0.3), rng.uniform(-0.15, 0.15)

        def at(a: float, b: float) -> tuple[float, float, float]:
            return x + a * k * self.cos, b * k, z - a * k * self.sin

        for side in (-1, 1):
            foot = at(side * step + swing * 0.3, 0.04)
            self._line(
                [at(side * 0.08, 0.9), at(side * (0.1 + step / 2), 0.45), foot],
                0.17 * k,
                bottom,
                PERSON,
            )
        if self._chance(0.3):  # a skirt or a long coat
            self._polygon(
                [at(-0.16, 1.0), at(0.16, 1.0), at(0.25, 0.5), at(-0.25, 0.5)], top, PERSON
            )
        torso = [
            at(-0.16, 0.85),
            at(0.16, 0.85),
            at(0.23, 1.38),
            at(0.12, 1.5),
            at(-0.12, 1.5),
            at(-0.23, 1.38),
        ]
        self._polygon(torso, top, PERSON)
        sleeve = self._flat(np.multiply(coat, 0.8), light, z)
        for side in (-1, 1):
            hand = at(side * 0.3 + swing, 0.8)
            self._line(
                [at(side * 0.23, 1.38), at(side * 0.29, 1.08), hand], 0.11 * k, sleeve, PERSON
            )
        if self._chance(0.35):
            bag = self._flat(self._choose(_CLOTHES), light, z)
            self._ellipse(
                *at(self._choose((-0.27, 0.0, 0.27)), 1.1), 0.14 * k, 0.2 * k, bag, PERSON
            )
        self._head(at(0, 1.64), k, light, z, PERSON)

    def _head(self, at, k: float, light, z: float, label: int, helmet: bool = False) -> None:
        hair = self._choose(((0.12, 0.09, 0.07), (0.35, 0.25, 0.15), (0.6, 0.55, 0.5)))
        if helmet:
            hair = self._choose(_CLOTHES)
        self._ellipse(*at, 0.12 * k, 0.15 * k, self._flat(self._choose(_SKIN), light, z), label)
        x, y, z_ = at
        self._ellipse(x, y + 0.07 * k, z_, 0.13 * k, 0.1 * k, self._flat(hair, light, z), label)

    def _two_wheeler(self, x: float, z: float, heading: float, motor: bool, ridden: bool) -> None:
        """A bicycle or motorcycle, with its rider if `ridden`. Wheels are labelled as discs."""
        solid, light = Solid(self, x, z, heading), self._facing(x, 0.7, z)
        label = MOTORCYCLE if motor else BICYCLE
        rubber, metal = self._flat(_RUBBER, light, z), self._flat((0.45, 0.46, 0.48), light, z)
        paint = self._flat(self._choose(self.city.paints), light, z)
        base, radius = (0.68, 0.31) if motor else (0.53, 0.34)

        def at(l: float, y: float, w: float = 0.0) -> tuple[float, float, float]:
            return solid.world(l, y, w)

        for l in (-base, base):
            rim = [at(l + radius * c, radius * (1 + s)) for c, s in _CIRCLE]
            self._polygon(rim, metal if motor else None, label)
            self._line([*rim, rim[0]], 0.14 if motor else 0.07, rubber, label)
            self._line([at(l, 0), at(l, 2 * radius)], 0.13 if motor else 0.06, rubber, label)
        if motor:
            self._polygon(
                [at(-0.5, 0.35), at(0.4, 0.35), at(0.5, 0.8), at(-0.3, 0.75)], metal, label
            )
            self._line([at(-0.75, 0.82), at(-0.1, 0.78), at(0.35, 0.95)], 0.27, paint, label)
            self._line([at(base, radius), at(0.45, 1.05)], 0.12, metal, label)
            self._line([at(0.42, 1.05, -0.35), at(0.42, 1.05, 0.35)], 0.08, rubber, label)
        else:
            frame = [at(-base, radius), at(-0.18, 0.72), at(0.36, 0.75), at(-0.05, radius)]
            self._polygon(frame, None, label)
            self._line([*frame, frame[0]], 0.06, paint, label)
            self._line([at(base, radius), at(0.36, 0.75), at(0.32, 1.0)], 0.06, paint, label)
            self._line([at(-0.05, radius), at(-0.22, 0.9)], 0.06, paint, label)
            self._line([at(-0.36, 0.92), at(-0.12, 0.92)], 0.09, rubber, label)
            self._line([at(0.34, 1.02, -0.28), at(0.34, 1.02, 0.28)], 0.06, rubber, label)
        if ridden:
            self._rider(at, light, z, motor)

    def _rider(self, at, light, z: float, motor: bool) -> None:
        coat, trousers = self._choose(_CLOTHES), self._choose(_CLOTHES)
        top, bottom = self._flat(coat, light, z), self._flat(np.multiply(trousers, 0.8), light, z)
        hip, neck = (-0.2, 0.95), ((0.12, 1.45) if motor else (0.1, 1.5))
        for side in (-1, 1):
            knee = at(0.18, 0.72 + 0.12 * side, 0.14 * side)
            foot = at(0.0, 0.3 + 0.1 * side, 0.14 * side)
            self._line([at(*hip, 0.1 * side), knee, foot], 0.16, bottom, RIDER)
            self._line([at(*neck, 0.2 * side), at(0.36, 1.08, 0.26 * side)], 0.11, top, RIDER)
        torso = [at(*hip, -0.16), at(*hip, 0.16), at(*neck, 0.22), at(*neck, -0.22)]
        self._polygon(torso, top, RIDER)
        self._line([at(*hip), at(*neck)], 0.27, top, RIDER)
        self._head(
            at(neck[0] + 0.1, neck[1] + 0.2),
            1.05,
            light,
            z,
            RIDER,
            helmet=motor or self._chance(0.5),
        )

    # ---- vehicles

    def _car(self, solid: Solid) -> None:
        rng = self.rng
        paint = self._choose(self.city.paints)
        kind = self._choose(("sedan", "hatch", "hatch", "van"))
        length, roof = {"sedan": (4.5, 1.42), "hatch": (4.0, 1.48), "van": (4.7, 1.95)}[kind]
        half, wide = length / 2, 0.88
        solid.size(half, wide)
        belt = 0.92 if kind != "van" else 1.05
        solid.wheels((-0.31 * length, 0.31 * length), 0.32, CAR)
        body = [
            (-half, 0.28),
            (half, 0.28),
            (half + 0.04, 0.6),
            (half - 0.12, 0.82),
            (0.1 * length, belt),
        ]
        body += [(-half + 0.05, belt), (-half - 0.04, 0.6)]
        solid.extrude(body, wide, wide, paint, paint, CAR)
        solid.wheels((-0.31 * length, 0.31 * length), 0.32, CAR, proud=True)
        back = {"sedan": 0.75, "hatch": 0.08, "van": 0.0}[kind]
        front = 0.12 * length if kind != "van" else 0.3 * length
        cabin = [
            (-half + back, belt - 0.03),
            (front, belt - 0.06),
            (front - 0.65, roof),
            (-half + back + 0.35, roof),
        ]
        edges = [None, _GLASS, paint, _GLASS]
        solid.extrude(cabin, wide - 0.04, wide - 0.17, paint, edges, CAR)
        glass = [
            (-half + back + 0.2, belt),
            (front - 0.15, belt),
            (front - 0.7, roof - 0.1),
            (-half + back + 0.4, roof - 0.1),
        ]
        solid.side(glass, _GLASS, CAR, wide - 0.1)
        pillar = -half + back + 0.5 * (front + half - back)
        solid.side(
            [
                (pillar - 0.05, belt),
                (pillar + 0.05, belt),
                (pillar + 0.03, roof),
                (pillar - 0.03, roof),
            ],
            paint,
            CAR,
            wide - 0.1,
        )
        for w in (-1, 1):
            solid.end(-1, w * 0.66, 0.7, 0.18, 0.1, (0.65, 0.1, 0.08), CAR)
            solid.end(1, w * 0.62, 0.66, 0.2, 0.09, (0.9, 0.9, 0.85), CAR)
        solid.end(-1, 0, 0.62, 0.26, 0.06, (0.9, 0.9, 0.88), CAR)
        solid.end(1, 0, 0.5, 0.5, 0.1, (0.1, 0.1, 0.1), CAR)
        if rng.random() < 0.5:
            solid.end(-1, 0, 0.38, 0.8, 0.06, (0.12, 0.12, 0.12), CAR)

    def _truck(self, solid: Solid) -> None:
        rng = self.rng
        length, wide, high = 7.5, 1.2, rng.uniform(2.6, 3.5)
        paint, box = (
            self._choose(self.city.paints),
            self._choose((*self.city.paints, (0.8, 0.8, 0.78))),
        )
        half = length / 2
        solid.size(half, wide)
        split = half - 2.0
        parts = [
            (lambda: self._cargo(solid, box, -half, split - 0.15, high, wide)),
            (lambda: self._cab(solid, paint, split, half, min(high, 2.6), wide - 0.05)),
        ]
        solid.wheels((-half + 1.2, half - 1.0), 0.48, TRUCK)
        for part in parts if solid.camera[0] > split else reversed(parts):
            part()
        solid.wheels((-half + 1.2, half - 1.0), 0.48, TRUCK, proud=True)

    def _cargo(self, solid: Solid, paint, l0: float, l1: float, high: float, wide: float) -> None:
        solid.extrude(
            [(l0, 0.5), (l1, 0.5), (l1, 0.9), (l0, 0.9)],
            wide - 0.1,
            wide - 0.1,
            (0.15, 0.15, 0.16),
            (0.15, 0.15, 0.16),
            TRUCK,
        )
        solid.extrude(
            [(l0, 0.9), (l1, 0.9), (l1, high), (l0, high)], wide, wide, paint, paint, TRUCK
        )
        stripe = self._choose(_PUBLIC)
        if self._chance(0.6):
            solid.side(
                [(l0 + 0.5, 1.4), (l1 - 0.5, 1.4), (l1 - 0.5, high - 0.7), (l0 + 0.5, high - 0.7)],
                stripe,
                TRUCK,
                wide,
            )
        solid.end(-1, 0, (0.9 + high) / 2, 0.02, (high - 0.9) / 2, (0.2, 0.2, 0.2), TRUCK)
        for w in (-1, 1):
            solid.end(-1, w * 0.95, 0.72, 0.15, 0.1, (0.65, 0.1, 0.08), TRUCK)

    def _cab(self, solid: Solid, paint, l0: float, l1: float, high: float, wide: float) -> None:
        cab = [(l0, 0.45), (l1, 0.45), (l1, 1.4), (l1 - 0.25, high), (l0, high)]
        solid.extrude(cab, wide, wide, paint, [None, paint, _GLASS, paint, paint], TRUCK)
        solid.side(
            [(l0 + 0.5, 1.4), (l1 - 0.15, 1.4), (l1 - 0.35, 2.1), (l0 + 0.5, 2.1)],
            _GLASS,
            TRUCK,
            wide,
        )
        solid.end(1, 0, 0.9, 0.7, 0.2, (0.12, 0.12, 0.12), TRUCK)
        for w in (-1, 1):
            solid.end(1, w * 0.9, 0.7, 0.18, 0.12, (0.9, 0.9, 0.85), TRUCK)

    def _bus(self, solid: Solid) -> None:
        length, wide, high = _SIZES["bus"][0], 1.25, 3.0
        solid.size(length / 2, wide)
        self._coach(solid, self.city.public[0], -length / 2, length / 2, high, wide, BUS, 1.05)
        solid.wheels((-length / 2 + 2.6, length / 2 - 2.4), 0.5, BUS, proud=True)

    def _tram(self, solid: Solid) -> None:
        """Three coupled cars without visible wheels, with a pantograph."""
        length, wide, high = _SIZES["train"][0], 1.2, 3.4
        solid.size(length / 2, wide)
        third = length / 3
        starts = [-length / 2 + i * third for i in range(3)]
        starts.sort(key=lambda l: -abs(l + third / 2 - solid.camera[0]))
        for l in starts:
            self._coach(
                solid, self.city.public[1], l + 0.15, l + third - 0.15, high, wide, TRAIN, 1.3
            )
        fill = self._flat((0.2, 0.2, 0.22), self.ambient, 15)
        arm = [solid.world(0, high), solid.world(0.9, high + 0.6), solid.world(0, high + 1.1)]
        self._line(arm, 0.08, fill, TRAIN)

    def _coach(
        self,
        solid: Solid,
        paint,
        l0: float,
        l1: float,
        high: float,
        wide: float,
        label: int,
        sill: float,
    ) -> None:
        """A long body with a band of windows, doors and a destination display."""
        nose = 0.5 if label == TRAIN else 0.12
        body = [(l0, 0.3), (l1, 0.3), (l1, sill), (l1 - nose, high), (l0 + nose, high), (l0, sill)]
        grey = (0.5, 0.5, 0.5)
        solid.extrude(body, wide, wide, paint, [None, paint, _GLASS, grey, _GLASS, paint], label)
        solid.side(
            [(l0, 0.3), (l1, 0.3), (l1, 0.62), (l0, 0.62)],
            tuple(0.5 * c for c in paint),
            label,
            wide,
        )
        top = high - 0.55
        count = max(2, round((l1 - l0 - 1) / 1.5))
        pitch = (l1 - l0 - 2 * nose) / count
        for i in range(count):
            a = l0 + nose + i * pitch
            low = 0.45 if i % 3 == 1 else sill
            solid.side(
                [(a + 0.1, low), (a + pitch - 0.1, low), (a + pitch - 0.1, top), (a + 0.1, top)],
                _GLASS,
                label,
                wide,
            )
        for direction in (-1, 1):
            solid.end(direction, 0, high - 0.25, 0.8, 0.14, (0.85, 0.6, 0.15), label)
            for w in (-1, 1):
                lamp = (0.9, 0.9, 0.85) if direction > 0 else (0.65, 0.1, 0.08)
                solid.end(direction, w * 0.9, 0.75, 0.2, 0.12, lamp, label)

    # ---- the camera's own

    def _draw_ego_vehicle(self) -> None:
        """The bonnet at the bottom, reflecting some sky."""
        width, height = self.colours.size
        look = np.random.default_rng([zlib.crc32(str(self.city.focal).encode())])
        rise = look.uniform(0.05, 0.09) * height
        u = np.linspace(-20, width + 20, 24)
        v = height - rise * (1 - 0.55 * ((u - width / 2) / (width / 2)) ** 2)
        outline = [
            *zip(u.tolist(), v.tolist(), strict=True),
            (width + 20, height + 9),
            (-20, height + 9),
        ]
        light = self.ambient + self.sun * 0.3 * float(self._sunlit(self.camera_x, 1, 2))
        paint = np.array(self._choose(self.city.paints[:1]))
        self.colour_pen.polygon(outline, fill=self._flat(paint * 0.8, light, 0))
        shine = [(a, b + 0.3 * rise) for a, b in zip(u.tolist(), v.tolist(), strict=True)]
        self.colour_pen.line(
            shine[5:-5], fill=self._flat(np.clip(paint + 0.3, 0, 1), light, 0), width=3
        )
        self.label_pen.polygon(outline, fill=EGO_VEHICLE)

    def _develop(self) -> tuple[np.ndarray, np.ndarray]:
        """Expose the canvas: optics, exposure, white balance, tone curve, noise, 8 bits."""
        city, rng = self.city, self.rng
        canvas = (np.asarray(self.colours, np.float32) / 255) ** 2
        radiance = canvas.reshape(HEIGHT, SUPERSAMPLING, WIDTH, SUPERSAMPLING, 3).mean((1, 3))
        labels = _majority(np.asarray(self.labels))
        y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j].astype(np.float32)
        slope = rng.normal(0, 0.18, 2).tolist()
        shift = rng.uniform(0, 256, 2).tolist()
        local = (
            slope[0] * x
            + slope[1] * y
            + 0.7 * (_cloudy(x * 20 + shift[0], y * 10 + shift[1]) - 0.5)
        )
        radiance = radiance * (np.exp(local) * (1 - 0.22 * (x * x + y * y)))[..., None]
        middle = np.exp(np.log(radiance[labels != SKY] + 0.01).mean())
        radiance = radiance * (0.17 * city.exposure * rng.lognormal(0, 0.15) / middle)
        radiance = radiance * np.array(city.white_balance) + 0.004
        radiance = radiance + rng.normal(0, city.noise, radiance.shape) * np.sqrt(radiance)
        radiance = np.clip(radiance, 0, None)
        display = np.clip(1.12 * (1 - np.exp(-1.5 * radiance)), 0, 1) ** (1 / city.gamma)
        grey = display.mean(-1, keepdims=True)
        display = np.clip(grey + city.saturation * (display - grey), 0, 1)
        image = Image.fromarray((255 * display).astype(np.uint8))
        image = np.array(image.filter(ImageFilter.GaussianBlur(0.35)))
        if city.frame:
            for edge in (np.s_[:1], np.s_[-1:], np.s_[:, :1], np.s_[:, -1:]):
                image[edge], labels[edge] = 0, OUT_OF_ROI
        return image, labels


def _majority(labels: np.ndarray) -> np.ndarray:
    """The most frequent label of each 2 x 2 block, uint8 [2h, 2w] -> [h, w]."""
    a, b, c, d = labels[::2, ::2], labels[::2, 1::2], labels[1::2, ::2], labels[1::2, 1::2]
    rest = np.where((b == c) | (b == d), b, np.where(c == d, c, a))
    a_has_two = (a == b) | (a == c) | (a == d)
    return np.where(a_has_two & ~((b == c) & (c == d)), a, rest).astype(np.uint8)


_SIZES = {
    "car": (4.3, 1.8, 1.4),
    "truck": (7.5, 2.4, 3.0),
    "bus": (11.0, 2.5, 3.0),
    "train": (22.0, 2.4, 3.4),
}
_CIRCLE = [
    (math.cos(t), math.sin(t)) for t in np.linspace(0, 2 * math.pi, 12, endpoint=False).tolist()
]


class Solid:
    """A vehicle's own frame: l forward, y up, w to its right, in metres from its centre."""

    def __init__(self, scene: Scene, x: float, z: float, heading: float) -> None:
        self.scene, self.x, self.z = scene, x, z
        self.cos, self.sin = math.cos(heading), math.sin(heading)
        dx, dz = scene.camera_x - x, -z
        self.camera = (dx * self.sin + dz * self.cos, scene.camera_y, dx * self.cos - dz * self.sin)
        self.depth = max(1.0, scene._to_camera(x, 0, z)[2])
        self.size(1.0, 0.5)

    def size(self, half_length: float, half_width: float) -> None:
        """Set the extent, which decides where the ends are and which sides are seen."""
        self.half_length, self.half_width = half_length, half_width
        self.sunlit = [
            float(self.scene._sunlit(*self.world(l, 1.0))) for l in (-half_length, half_length)
        ]

    def world(self, l: float, y: float, w: float = 0.0) -> tuple[float, float, float]:
        return self.x + l * self.sin + w * self.cos, y, self.z + l * self.cos - w * self.sin

    def fill(self, colour, nl: float, ny: float, nw: float) -> tuple[int, int, int]:
        """Colour of a face with the normal (nl, ny, nw) in this frame."""
        normal = (nl * self.sin + nw * self.cos, ny, nl * self.cos - nw * self.sin)
        sunlit = self.sunlit[nl > 0] if abs(nl) > 0.5 else sum(self.sunlit) / 2
        light = self.scene._light(normal, sunlit) + 0.12 * self.scene.sun * sunlit
        return self.scene._flat(colour, light, self.depth)

    def extrude(self, outline, low: float, high: float, side, edges, label: int) -> None:
        """Draw what is seen of a convex (l, y) outline, counter-clockwise seen from the right side.

        low, high: half widths at its lowest and highest point.
        side: colour of the two sides. edges: one colour for all edges, or one for each (or None).
        """
        ys = [y for _, y in outline]

        def half(y: float) -> float:
            return low + (high - low) * (y - min(ys)) / (max(ys) - min(ys))

        for i, (a, b) in enumerate(zip(outline, outline[1:] + outline[:1], strict=True)):
            colour = edges[i] if isinstance(edges, list) else edges
            nl, ny = b[1] - a[1], a[0] - b[0]  # outward normal of a counter-clockwise outline
            if colour is None or nl * (self.camera[0] - a[0]) + ny * (self.camera[1] - a[1]) <= 0:
                continue
            size = math.hypot(nl, ny)
            quad = [self.world(*a, -half(a[1])), self.world(*a, half(a[1]))]
            quad += [self.world(*b, half(b[1])), self.world(*b, -half(b[1]))]
            self.scene._polygon(quad, self.fill(colour, nl / size, ny / size, 0), label)
        if abs(self.camera[2]) > low:
            sign = math.copysign(1, self.camera[2])
            points = [self.world(l, y, sign * half(y)) for l, y in outline]
            self.scene._polygon(points, self.fill(side, 0, 0.1, sign), label)

    def side(self, outline, colour, label: int, wide: float) -> None:
        """Draw an (l, y) outline on the side that is seen, `wide` from the middle."""
        if abs(self.camera[2]) > wide:
            sign = math.copysign(1, self.camera[2])
            points = [self.world(l, y, sign * wide) for l, y in outline]
            self.scene._polygon(points, self.fill(colour, 0, 0.1, sign), label)

    def end(
        self, direction: int, w: float, y: float, half_w: float, half_y: float, colour, label: int
    ) -> None:
        """Draw a rectangle on the front (direction 1) or the rear (-1) where it is seen."""
        if direction * self.camera[0] > self.half_length:
            l = direction * (self.half_length + 0.04)
            corners = ((-1, -1), (1, -1), (1, 1), (-1, 1))
            points = [self.world(l, y + j * half_y, w + i * half_w) for i, j in corners]
            self.scene._polygon(points, self.fill(colour, direction, 0, 0), label)

    def wheels(self, places, radius: float, label: int, proud: bool = False) -> None:
        """Draw the wheels at `places` along l; the near side is drawn once more over the body."""
        sign = math.copysign(1, self.camera[2])
        for l in places:
            if proud and abs(self.camera[2]) <= self.half_width:
                continue
            w = sign * self.half_width * (1.01 if proud else 0.85)
            for share, colour in ((1.0, _RUBBER), (0.55, (0.4, 0.4, 0.42))):
                rim = [
                    self.world(l + share * radius * c, radius * (1 + share * s), w)
                    for c, s in _CIRCLE
                ]
                self.scene._polygon(rim, self.fill(colour, 0, 0, sign), label)
            if not proud:
                for tyre in (-0.8, 0.8):
                    middle = tyre * self.half_width
                    quad = [
                        self.world(l, y, middle + s * 0.11)
                        for y, s in ((0, -1), (0, 1), (2 * radius, 1), (2 * radius, -1))
                    ]
                    self.scene._polygon(quad, self.fill(_RUBBER, 0, 0, 0), label)
