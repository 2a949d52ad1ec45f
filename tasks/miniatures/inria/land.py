"""Open land: grass, fields, forest and single trees."""

import math

import numpy as np

from tasks.miniatures.inria.grid import (
    CELL,
    CELLS,
    EXTENT,
    PATCHY,
    SMOOTH,
    Box,
    canopy,
    patch_around,
)
from tasks.miniatures.inria.site import Site, random_field


def draw_land(site: Site) -> None:
    """Grass everywhere, and over it fields and forest."""
    land = site.city.land
    first, second = site.near(land.grass), site.near(land.grass)
    blend = random_field(site.rng, PATCHY)[..., None]
    site.albedo[:] = first + (second - first) * blend
    if land.farmed:
        _draw_fields(site)
    if land.forest:
        _draw_forest(site)
    site.albedo *= (0.8 + 0.4 * site.grain)[..., None]


def _draw_fields(site: Site) -> None:
    """Strips of grassland, crops and bare soil, in the direction of the streets."""
    land, rng = site.city.land, site.rng
    box = Box(EXTENT / 2, EXTENT / 2, site.angle + rng.normal(0, 0.2), EXTENT, EXTENT)
    patch = patch_around(box)
    column = (np.floor(patch.u / site.draw((70, 130))).astype(np.int32)) & 63
    shift, width = rng.uniform(0, 40, 64), rng.uniform(18, 55, 64)
    row = (patch.v + shift.astype(np.float32)[column]) / width.astype(np.float32)[column]
    key = (column * 7 + np.floor(row).astype(np.int32) * 13) & 63
    colours = np.stack([site.near(land.fields) for _ in range(64)])
    ridges = rng.uniform(0, 0.1, 64).astype(np.float32)
    furrows = 1 + ridges[key] * np.sin(patch.v * np.float32(2 * math.pi / 4))
    farmed = (rng.random(64) < land.farmed)[key]
    site.albedo[farmed] = (colours[key] * furrows[..., None])[farmed]


def _draw_forest(site: Site) -> None:
    forest = random_field(site.rng, SMOOTH) < site.city.land.forest
    crowns = np.roll(canopy(), site.rng.integers(CELLS, size=2), (0, 1))[forest]
    site.height[forest] = site.draw((9, 15)) * crowns
    site.albedo[forest] = site.near(site.city.land.foliage) * (0.8 + 0.4 * crowns[:, None])


def plant_trees(site: Site) -> None:
    """Single trees where there is room."""
    land = site.city.land
    for _ in range(int(land.trees * (EXTENT / 100) ** 2)):
        x, y = site.rng.uniform(0, EXTENT, 2)
        radius = site.draw((1.6, 4.2))
        tall = radius * site.draw((1.4, 2.6))
        if site.taken[int(y / CELL), int(x / CELL)]:
            continue
        patch = patch_around(Box(x, y, 0, radius, radius))
        window = patch.window
        ragged = radius**2 * (0.7 + 0.5 * site.grain[window])
        distance = (patch.u**2 + patch.v**2) / ragged
        crown = tall * np.sqrt(np.maximum(0, 1 - distance))
        seen = (crown > site.height[window]) & ~site.building[window]
        site.height[window][seen] = crown[seen]
        site.albedo[window][seen] = site.near(land.foliage, 0.15)
