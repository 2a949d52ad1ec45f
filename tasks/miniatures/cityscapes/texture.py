"""Noise, and the surfaces of houses, walls, hedges and fences."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from tasks.miniatures.cityscapes.city import GLASS, SIGNS, City
from tasks.miniatures.cityscapes.world import AnyColour

Seen = np.ndarray | tuple[np.ndarray, np.ndarray]
Texture = Callable[[np.ndarray, np.ndarray, np.ndarray], Seen]
"""Maps positions along a surface, heights and metres per canvas pixel, [n] each, to colours [n, 3].

A surface that can be seen through gives a pair: the colours, and where they are, bool [n].
"""


@lru_cache(maxsize=1)
def _noise_tiles() -> tuple[np.ndarray, np.ndarray]:
    """Two periodic float32 [256, 256] tiles in 0..1: cloudy (1/f spectrum) and white noise."""
    rng = np.random.default_rng(7)
    white = rng.random((256, 256))
    fy, fx = np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None]
    radius = np.maximum(np.hypot(fy, fx), 1 / 256)
    smooth = np.fft.irfft2(np.fft.rfft2(white - 0.5) / radius**1.3, s=(256, 256))
    smooth = 0.5 + 0.2 * smooth / smooth.std()
    return np.clip(smooth, 0, 1).astype(np.float32), white.astype(np.float32)


def cloudy(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Smooth noise in 0..1 at coordinates in cells of the tile."""
    return _noise_tiles()[0][a.astype(np.int32) & 255, b.astype(np.int32) & 255]


def white(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """White noise in 0..1: the same value wherever the integer parts of `a` and `b` agree."""
    a, b = np.floor(a).astype(np.int32), np.floor(b).astype(np.int32)
    return _noise_tiles()[1][(a * 7 + b * 3) & 255, (a * 5 + b * 11) & 255]


def rgb(colour: AnyColour) -> np.ndarray:
    """A colour as float32 [3]."""
    return np.array(colour, np.float32)


def mix(texture: np.ndarray, where: np.ndarray, colour: AnyColour) -> np.ndarray:
    """Blend `colour` into `texture` [..., 3]; `where` [...] is a mask or a weight in 0..1."""
    weight = np.asarray(where, np.float32)[..., None]
    return texture + weight * (np.asarray(colour, np.float32) - texture)


def _pick(colours: Sequence[AnyColour], tone: int) -> AnyColour:
    return colours[tone % len(colours)]


def facade(city: City, tone: int, height: float, bare: bool = False) -> Texture:
    """A house front: floors, windows, doors, shops; `bare` has few windows."""
    look = np.random.default_rng([tone, 1])
    base = rgb(_pick(city.facades, tone)) * np.float32(look.uniform(0.85, 1.1))
    bay, floor = look.uniform(1.6, 3.2), look.uniform(2.7, 3.6)
    half_width, half_height = (np.array(city.windows) * look.uniform(0.8, 1.2, 2)).tolist()
    shop, street_floor = look.random() < 0.5, look.uniform(3.0, 4.0)
    trim = np.clip(base + np.float32(look.choice([-0.15, 0.15])), 0, 1)
    sign = SIGNS[int(look.integers(len(SIGNS)))][0]
    wall, ledge, glass, sky, curtain, board, door, plinth, goods = range(9)
    colours = (base, trim, GLASS, (0.55, 0.62, 0.7), (0.75, 0.72, 0.66), sign)
    materials = np.stack([rgb(c) for c in (*colours, trim * 0.5, base * 0.75, GLASS)])
    top = street_floor + floor * math.floor((height - street_floor) / floor)

    def texture(s: np.ndarray, y: np.ndarray, pixel: np.ndarray) -> np.ndarray:
        i, j = np.floor(s / bay), np.floor((y - street_floor) / floor)
        a, b = np.abs(s / bay - i - 0.5), (y - street_floor) / floor - j - 0.52
        hit = white(i + tone, j)  # one number per window
        upper = (y > street_floor) & (y < top)
        if bare:
            upper &= white(i + tone, 0 * i) < 0.25
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
        shade = 0.9 + 0.2 * cloudy(s * 4 + tone, y * 4) + 0.06 * (white(s * 15, y * 15) - 0.5)
        if city.brick > 0.05:
            course = np.floor(y / 0.3)
            joint = (y / 0.3 - course < 0.25) | ((s / 0.6 + course / 2) % 1 < 0.12)
            shade -= city.brick * (joint & (pixel < 0.15) & (material == wall))
        shade = np.where(material == glass, 0.8 + 1.3 * hit, shade)
        shelf = material == goods
        shade[shelf] = 1 + 2 * (white(s * 2, y * 2) * white(s, y + 9))[shelf]
        return materials[material] * shade[:, None]

    return texture


def masonry(city: City, tone: int) -> Texture:
    """Blocks of stone in rows."""
    base = np.array(_pick(city.facades, tone + 2)) * (0.75 + tone % 5 * 0.06)
    size = 0.35 + tone % 3 * 0.25

    def texture(s: np.ndarray, y: np.ndarray, pixel: np.ndarray) -> np.ndarray:
        a, b = s / (1.7 * size) + 0.5 * (np.floor(y / size) % 2), y / size
        joint = ((a % 1) < 0.08) | ((b % 1) < 0.12)
        blocks = 0.8 + 0.22 * white(a, b) + 0.25 * cloudy(s * 8, y * 8 + tone)
        grey = blocks - 0.2 * joint * (pixel < 0.2)
        return base * np.clip(grey, 0, 1.2)[..., None]

    return texture


def leaves(city: City, tone: int) -> Texture:
    """A clipped hedge."""
    base = rgb(_pick(city.foliage, tone))

    def texture(s: np.ndarray, y: np.ndarray, pixel: np.ndarray) -> np.ndarray:
        light = 0.35 + 0.5 * white(s * 7, y * 7) + 0.5 * cloudy(s * 14 + tone, y * 14)
        return np.clip(base * light[..., None], 0, 1)

    return texture


def bars(city: City, tone: int, height: float) -> Texture:
    """Pickets, railings or mesh, with gaps that can be seen through."""
    paints = (city.post, (0.4, 0.3, 0.2), (0.75, 0.75, 0.73), (0.25, 0.27, 0.25))
    base, gap = rgb(_pick(paints, tone)), (0.16, 0.3, 0.22)[tone % 3]
    share = (0.75, 0.35, 0.5)[tone % 3]

    def texture(s: np.ndarray, y: np.ndarray, pixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fine = pixel > 0.4 * gap  # bars thinner than pixels: a dithered veil
        pickets = np.where(fine, white(s / pixel, y / pixel) < share, (s / gap % 1) < share)
        rails = (np.abs(y - 0.25) < 0.05) | (np.abs(y - height + 0.1) < 0.07) | (s % 2.4 < 0.12)
        shade = 0.85 + 0.25 * white(s / gap, 0 * s)
        return base * shade[..., None], pickets | rails

    return texture
