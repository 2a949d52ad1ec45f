"""Light: sun, shadows, clouds, haze and the camera."""

import math

import numpy as np

from tasks.miniatures.inria.grid import CELL, MARGIN, SIZE, SMOOTH, SUPERSAMPLING
from tasks.miniatures.inria.site import Site, random_field


def _sun(site: Site) -> tuple[float, float, float]:
    """Unit vector to the sun: east, south, up."""
    light = site.city.light
    elevation = math.radians(light.elevation + site.rng.normal(0, 1.5))
    azimuth = math.radians(light.azimuth + site.rng.normal(0, 4))
    flat = math.cos(elevation)
    return flat * math.sin(azimuth), -flat * math.cos(azimuth), math.sin(elevation)


def radiance_of(site: Site) -> np.ndarray:
    """Light from every cell, [SIZE, SIZE, 3]; reflectance 1 in full sun gives 1."""
    light, sun = site.city.light, _sun(site)
    slope_y, slope_x = np.gradient(site.height, CELL)
    wall = np.hypot(slope_x, slope_y) > 1.8
    slope_x[wall], slope_y[wall] = 0, 0
    facing = sun[2] - slope_x * sun[0] - slope_y * sun[1]
    facing = np.maximum(facing, 0) / np.sqrt(1 + slope_x**2 + slope_y**2) / sun[2]
    direct = facing * (1 - _shadow(site.height, sun)) * _clouds(site)
    return shrink(site.albedo * (light.sky + (1 - light.sky) * direct)[..., None])


def _shadow(height: np.ndarray, sun: tuple[float, float, float]) -> np.ndarray:
    """How far every cell lies in a shadow, 0 to 1.

    A cell is in shadow if something towards the sun stands higher than the ray to it. The
    highest obstacle within 2k cells is the higher one of that within k cells and of that
    within k cells of the place k cells further, less the ray's rise until there.
    """
    flat = math.hypot(sun[0], sun[1])
    step_x, step_y, rise = sun[0] / flat, sun[1] / flat, sun[2] / flat * CELL
    obstacle, reach = height.copy(), 1
    while reach * rise < height.max():
        moved = np.roll(obstacle, (-round(reach * step_y), -round(reach * step_x)), (0, 1))
        obstacle = np.maximum(obstacle, moved - reach * rise)
        reach *= 2
    return np.clip((obstacle - height - 0.2) / 0.5, 0, 1)


def _clouds(site: Site) -> np.ndarray:
    """Share of the sun that reaches every cell through broken clouds."""
    share = site.draw((0, site.city.light.clouds))
    cover = np.clip((share - random_field(site.rng, SMOOTH)) / 0.05 + 0.5, 0, 1) * (share > 0.02)
    return 1 - site.draw((0.55, 0.8)) * cover


def shrink(cells: np.ndarray) -> np.ndarray:
    """Means over the cells of every pixel, without the margin."""
    n, k = SIZE + 2 * MARGIN, SUPERSAMPLING
    pixels = cells.reshape(n, k, n, k, -1).mean((1, 3)).squeeze()
    return pixels[MARGIN:-MARGIN, MARGIN:-MARGIN]


def develop(site: Site, radiance: np.ndarray) -> np.ndarray:
    """What the camera makes of the light: haze, exposure of two flights, 8 bits."""
    light, rng = site.city.light, site.rng
    pixel = slice(MARGIN * SUPERSAMPLING, -MARGIN * SUPERSAMPLING, SUPERSAMPLING)
    haze = 2 * light.haze * random_field(site.rng, SMOOTH)[pixel, pixel, None]
    radiance = radiance * (1 - haze) + haze * np.array((0.5, 0.53, 0.58))
    y, x = np.indices((SIZE, SIZE)) - rng.uniform(0.25, 0.75, 2)[:, None, None] * SIZE
    seam = rng.uniform(0, 2 * math.pi)
    other = np.clip(x * math.cos(seam) + y * math.sin(seam), -3, 3)[..., None] / 6 + 0.5
    gain = np.exp(rng.normal(0, 0.1) + rng.normal(0, 0.03, 3)) - 1
    exposure = light.exposure * np.exp(rng.normal(0, 0.06)) * np.array(light.tint)
    radiance = radiance * exposure * (1 + gain * other)
    grey = radiance.mean(-1, keepdims=True)
    radiance = np.maximum(grey + (radiance - grey) * light.saturation, 0)
    shown = radiance ** (1 / light.gamma) + rng.normal(0, 0.012, radiance.shape)
    return (np.clip(shown, 0, 1) * 255).round().astype(np.uint8)
