"""What the images of one city have in common: light, camera, colours and habits of building."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.miniatures.cityscapes.world import Colour

CITIES = {
    "train": (
        "minialder", "minibeech", "minicedar", "minielm",
        "minifir", "minihazel", "minilarch", "minimaple",
    ),
    "val": ("minioak", "minipine", "minirowan", "miniwillow", "miniyew"),
}  # fmt: skip


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


@dataclass(frozen=True)
class Weather:
    """A kind of light. Spans are drawn from; sun, ambient and sky are as in `City`."""

    elevation: tuple[float, float]
    sun: Colour
    ambient: Colour
    sky: tuple[Colour, Colour]
    cloud: tuple[float, float]
    haze: tuple[float, float]


def style_of(split: str, name: str, seed: int) -> City:
    """Draw a city's style. Every split has cities in every kind of weather."""
    number = CITIES[split].index(name)
    rng = np.random.default_rng([seed, zlib.crc32(f"{split}/{name}".encode()), 0])
    weather = _WEATHERS[(number + 2 * (split == "val")) % len(_WEATHERS)]

    def draw(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def near(colour: Colour, spread: float = 0.045) -> Colour:
        grey = rng.normal(0, spread)
        red, green, blue = (
            float(np.clip(c + grey + rng.normal(0, spread / 3), 0.02, 0.98)) for c in colour
        )
        return red, green, blue

    def pick(colours: Sequence[Colour], count: int, spread: float = 0.045) -> tuple[Colour, ...]:
        return tuple(near(colours[i], spread) for i in rng.choice(len(colours), count))

    # The order of these lines is the order of the draws: changing it changes every image.
    warmth = rng.normal(0, 0.035)
    return City(
        sun_elevation=draw(*weather.elevation),
        sun=weather.sun,
        ambient=weather.ambient,
        sky=(near(weather.sky[0], 0.04), near(weather.sky[1], 0.04)),
        cloud=draw(*weather.cloud),
        haze=draw(*weather.haze),
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
        public=(pick(PUBLIC, 1)[0], pick(PUBLIC, 1)[0]),
        post=near(_POSTS[rng.integers(len(_POSTS))]),
        building_height=draw(8, 18),
        greenery=draw(0.25, 0.85),
        parking=draw(0.25, 0.7),
        sidewalk=draw(2.2, 4.5),
        strip=draw(1.5, 4.0) if rng.random() < 0.75 else 0.0,
        lanes=_LANES[rng.integers(len(_LANES))],
        windows=(draw(0.18, 0.36), draw(0.22, 0.34)),
        brick=draw(0, 0.16),
    )


_WEATHERS = (
    Weather(  # clear: hard shadows, shade about five times darker than sun
        elevation=(35, 55), sun=(1.0, 0.96, 0.88), ambient=(0.11, 0.125, 0.155),
        sky=((0.36, 0.55, 0.86), (0.78, 0.86, 0.95)), cloud=(0.05, 0.35), haze=(250, 500),
    ),
    Weather(  # low sun: warm, long shadows
        elevation=(17, 27), sun=(1.15, 0.95, 0.68), ambient=(0.1, 0.105, 0.125),
        sky=((0.45, 0.58, 0.8), (0.97, 0.88, 0.72)), cloud=(0.1, 0.4), haze=(150, 320),
    ),
    Weather(  # overcast
        elevation=(40, 60), sun=(0.12, 0.12, 0.12), ambient=(0.6, 0.62, 0.65),
        sky=((0.72, 0.75, 0.8), (0.88, 0.89, 0.9)), cloud=(0.5, 0.9), haze=(180, 400),
    ),
    Weather(  # broken clouds
        elevation=(28, 48), sun=(0.85, 0.82, 0.75), ambient=(0.18, 0.195, 0.22),
        sky=((0.42, 0.56, 0.8), (0.82, 0.85, 0.89)), cloud=(0.4, 0.7), haze=(200, 420),
    ),
    Weather(  # mist
        elevation=(20, 35), sun=(0.4, 0.38, 0.34), ambient=(0.38, 0.4, 0.43),
        sky=((0.68, 0.73, 0.78), (0.85, 0.86, 0.85)), cloud=(0.2, 0.6), haze=(80, 150),
    ),
)  # fmt: skip
_LANES: tuple[tuple[int, ...], ...] = ((2,), (2, 2, 4), (2, 4))
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
_POSTS = ((0.3, 0.32, 0.32), (0.55, 0.56, 0.57), (0.2, 0.28, 0.24))

# Colours that are the same in every city.
PUBLIC = (  # buses and trams
    (0.85, 0.2, 0.12), (0.92, 0.75, 0.15), (0.85, 0.45, 0.12), (0.15, 0.4, 0.7), (0.2, 0.55, 0.3),
)  # fmt: skip
SIGNS = (  # face, rim
    ((0.85, 0.85, 0.85), (0.75, 0.1, 0.1)), ((0.1, 0.25, 0.65), (0.85, 0.85, 0.9)),
    ((0.9, 0.75, 0.1), (0.9, 0.9, 0.9)), ((0.75, 0.1, 0.1), (0.9, 0.9, 0.9)),
    ((0.1, 0.4, 0.25), (0.85, 0.9, 0.85)),
)  # fmt: skip
GLASS = (0.17, 0.19, 0.22)
RUBBER = (0.09, 0.09, 0.09)
