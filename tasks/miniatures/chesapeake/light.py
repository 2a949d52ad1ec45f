"""Light: sun, cast shadows, clouds, and the flights that record it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.miniatures.chance import chance
from tasks.miniatures.chesapeake.land_map import SCENE, SIDE, SUPERSAMPLING
from tasks.miniatures.chesapeake.materials import FOREST, WATER, Material
from tasks.miniatures.chesapeake.noise import crowns, noise

OfMaterial = Callable[[Sequence[Any]], np.ndarray]
"""Takes a value (or several) of each material to float32 [side, side] (or [side, side, n])."""


GAIN = np.array([1.9, 1.9, 2.1, 1.3])  # usual gain of the sensor by band
SCATTERING = np.array([0.6, 0.8, 1.2, 0.15])  # of haze and sky: most in blue, least in infrared


@dataclass(frozen=True)
class Flight:
    """One pass of the aircraft, as it changes what the sensor records. Bands are R, G, B, NIR."""

    season: float  # 0 summer, 1 autumn
    sun: float  # direct light
    sky: np.ndarray  # light of the sky by band, which shade gets too
    haze: np.ndarray  # light added on the way by band
    gain: np.ndarray  # of the sensor by band
    gamma: float
    slope: float  # of brightness across the strip: the view angle


def photograph(
    numbers: np.ndarray, materials: Sequence[Material], rng: np.random.Generator
) -> np.ndarray:
    """The picture of a map, as the flights over it record it.

    Args:
        numbers: uint8 [side, side], index of each place's material.
        materials: by their index, each with its look in autumn.
        rng: decides about light and flights.

    Returns:
        uint8 [320, 320, 4]: red, green, blue, near-infrared.
    """
    strip, across, flights = _plan_flights(rng)

    def of_strip(values: Sequence[Any]) -> np.ndarray:
        return np.array(values, np.float32)[strip]

    def of_material(values: Sequence[Any]) -> np.ndarray:
        return np.array(values, np.float32)[numbers]

    canopy, tone = crowns(rng, SIDE, spacing=rng.uniform(2.6, 4.0) * SUPERSAMPLING)
    height = of_material([m.height for m in materials]) * SUPERSAMPLING
    wooded = of_material([m.code == FOREST for m in materials])
    height *= np.where(wooded, 0.35 + 0.65 * canopy, 1)
    water = of_material([m.code == WATER for m in materials])
    light = _sunlight(height, wooded, water > 0, rng)

    season = of_strip([f.season for f in flights])
    season = np.clip(season + wooded * (tone - 0.5) * 0.8 * (season > 0), 0, 1)[..., None]
    reflectance = of_material([m.summer for m in materials]) * (1 - season)
    reflectance += of_material([m.autumn for m in materials]) * season
    texture = _texture(materials, of_material, rng)
    reflectance *= (texture + 0.5 * (wooded * (tone - 0.5))).clip(0.3)[..., None]

    sun = light * of_strip([f.sun for f in flights])
    radiance = reflectance * (sun[..., None] + of_strip([f.sky for f in flights]))
    radiance *= (1 + across * of_strip([f.slope for f in flights]))[..., None]
    radiance += of_strip([f.haze for f in flights])
    radiance = radiance.reshape(SCENE, SUPERSAMPLING, SCENE, SUPERSAMPLING, 4).mean((1, 3))
    strip = strip[::SUPERSAMPLING, ::SUPERSAMPLING]
    signal = (radiance * of_strip([f.gain for f in flights])).clip(1e-4)
    signal = signal ** of_strip([f.gamma for f in flights])[..., None]
    signal += rng.normal(0, 0.012, signal.shape)
    return np.clip(255 * signal + 0.5, 0, 255).astype(np.uint8)


def _texture(
    materials: Sequence[Material], of_material: OfMaterial, rng: np.random.Generator
) -> np.ndarray:
    """Relative brightness [side, side] from rows and irregular ground."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) / SUPERSAMPLING
    angle = of_material([m.row_angle for m in materials])
    rows = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * math.pi / 3.5))
    texture = 1 + of_material([m.rows for m in materials]) * rows
    return texture + of_material([m.mottle for m in materials]) * noise(rng, SIDE, 0.8)


def _sunlight(
    height: np.ndarray, wooded: np.ndarray, level: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Direct sunlight [side, side], 1 on flat open ground: slopes, cast shadows, clouds.

    Args:
        height: of roofs and trees, in pixels of the map, [side, side].
        wooded: 1 in woods, else 0, [side, side].
        level: bool [side, side], where the ground has no slope.
        rng: decides about sun, relief and clouds.
    """
    elevation = math.radians(rng.uniform(35, 62))
    azimuth = math.radians(rng.uniform(110, 250))  # clockwise from the top, which is north
    to_sun = math.sin(azimuth), -math.cos(azimuth)  # x, y
    relief = rng.uniform(6, 14) * SUPERSAMPLING * noise(rng, SIDE, 2.2)
    down, right = np.gradient(relief + 0.35 * height * wooded)
    slope = np.where(level, 0, -(right * to_sun[0] + down * to_sun[1]))
    light = np.clip(1 + slope / math.tan(elevation), 0.15, 1.8)

    shaded = np.zeros(height.shape, bool)
    for step in range(1, math.ceil(height.max() / math.tan(elevation)) + 1):
        shift = -round(step * to_sun[1]), -round(step * to_sun[0])
        # Rolling wraps: what stands at one border shades the other, as any neighbour would.
        blocker = np.roll(height, shift, axis=(0, 1)) - step * math.tan(elevation)
        shaded |= blocker > height + 0.5
    light[shaded] = 0
    if chance(rng, 0.5):
        cloud = noise(rng, SIDE, 2.4)
        edge = np.quantile(cloud, rng.uniform(0.6, 0.85))
        light *= 1 - rng.uniform(0.4, 0.7) / (1 + np.exp(-(cloud - edge) / 0.08))
    return light


def _plan_flights(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[Flight]]:
    """Number of the strip and place across it in -1..1, both [side, side], and the flights."""
    seams = np.sort(rng.uniform(0.2, 0.8, rng.integers(1, 3)))
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) / SIDE
    x = x + rng.normal(0, 0.08) * (y - 0.5)
    strip = np.searchsorted(seams, x)
    edges = np.array([0, *seams, 1], np.float32)
    across = 2 * (x - edges[strip]) / (edges[strip + 1] - edges[strip]) - 1
    return strip, across, [_draw_flight(rng) for _ in range(len(seams) + 1)]


def _draw_flight(rng: np.random.Generator) -> Flight:
    haze = rng.uniform(0, 0.07)
    exposure = math.exp(rng.normal(0, 0.22))
    return Flight(
        season=float(rng.choice([0, 0, 0.3, 0.7, 1])),
        sun=rng.uniform(0.7, 1.1),
        sky=rng.uniform(0.12, 0.3) * SCATTERING,
        haze=haze * SCATTERING,
        gain=GAIN * exposure * np.exp(rng.normal(0, [0.12, 0.12, 0.12, 0.2])),
        gamma=rng.uniform(0.6, 0.85),
        slope=rng.normal(0, 0.15),
    )
