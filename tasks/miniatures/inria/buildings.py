"""What is built along the streets: houses, halls, parking lots and sports courts.

A roof is "gable", "hip", "shed", "saw" (of a factory) or "flat".
"""

import math

import numpy as np

from tasks.miniatures.inria.grid import CELL, EXTENT, Box, Patch, patch_around
from tasks.miniatures.inria.site import Site
from tasks.miniatures.inria.streets import park_car


def build_along(site: Site, street: np.ndarray, side: int) -> None:
    """Divide one side of a street, -1 or 1, into lots and use each of them."""
    town = site.city.town
    steps = np.hypot(*np.diff(street, axis=0).T)
    at = np.concatenate([[0.0], np.cumsum(steps)])
    here = site.draw((0, 12))
    while here < at[-1]:
        hall = site.chance(town.halls)
        length = site.draw((30, 55)) if hall else site.draw(town.frontage)
        depth = site.draw((22, 32)) if hall else site.draw(town.depth)
        middle = here + length / 2
        here += length + site.draw(town.gap)
        x, y = (np.interp(middle, at, street[:, axis]) for axis in (0, 1))
        index = min(int(np.searchsorted(at, middle)), len(street) - 1)
        dx, dy = street[index] - street[index - 1]
        kerb = Box(x, y, math.atan2(dy, dx), length / 2, 0)
        setback = site.city.streets.width / 2 + 2 + site.draw(town.setback)
        lot = kerb.inner(0, side * (setback + depth / 2), length / 2, depth / 2)
        if 0 < lot.x < EXTENT and 0 < lot.y < EXTENT:
            _use(site, lot, hall, side)


def _use(site: Site, lot: Box, hall: bool, side: int) -> None:
    """A hall, a parking lot, a house with its yard, a sports court, or nothing."""
    town, land = site.city.town, site.city.land
    settled = site.settled[int(lot.y / CELL), int(lot.x / CELL)] > town.villages
    if not settled or not site.is_free(lot):
        return
    if hall:
        if site.chance(0.5):
            shape = _draw_shape(site, {"flat": 0.6, "saw": 0.2, "gable": 0.2})
            _build(site, lot, shape, 0.15)
        else:
            _draw_parking(site, lot)
    elif site.chance(town.density):
        yard = lot.inner(0, 0, lot.half_u + 2, lot.half_v + 4)
        site.pave(yard, site.near((land.yard, *land.grass)))
        if site.chance(0.6):
            drive = lot.inner(lot.half_u * 0.6, -side * lot.half_v, 1.6, lot.half_v)
            site.pave(drive, site.near((land.paving,)))
        turn = site.rng.normal(0, 0.04) if town.gap[1] > 1 else 0.0
        house = lot.inner(0, 0, lot.half_u, lot.half_v, turn)
        _build(site, house, _draw_shape(site, town.roofs), town.pitch)
    elif site.chance(0.6):
        _draw_court(site, lot)


def _draw_shape(site: Site, weights: dict[str, float]) -> str:
    """A roof's shape, each as frequent as its weight."""
    names = list(weights)
    return names[site.rng.choice(len(names), p=[*weights.values()])]


def _draw_parking(site: Site, lot: Box) -> None:
    site.pave(lot, site.near((site.city.land.asphalt,)))
    site.take(lot)
    for v in np.arange(-lot.half_v + 3, lot.half_v - 2, 8):
        for u in np.arange(-lot.half_u + 2, lot.half_u - 1, 2.7):
            if site.chance(0.5):
                park_car(site, lot.inner(u, v, 0.9, 2.2))


def _draw_court(site: Site, lot: Box) -> None:
    """A flat rectangle in the colour of a roof, sometimes with a bright line around."""
    site.pave(lot, site.near(site.city.town.colours))
    site.take(lot)
    if site.chance(0.5):
        patch = patch_around(lot)
        edge = np.minimum(lot.half_u - np.abs(patch.u), lot.half_v - np.abs(patch.v))
        site.albedo[patch.window][patch.inside & (np.abs(edge - 1.5) < 0.5)] = 0.7


def _build(site: Site, lot: Box, shape: str, pitch: float) -> None:
    """A building, perhaps of L shape; `pitch` is the usual rise of its roof per metre."""
    town = site.city.town
    pitch *= site.draw((0.8, 1.2))
    eaves, colour = site.draw(town.height), site.near(town.colours, 0.2)
    main = lot.ridged()
    parts = [main]
    if site.chance(town.wings):
        half = main.half_v * site.draw((0.55, 0.8))
        end = site.sign() * (main.half_u - half)
        side = site.sign() * main.half_v
        wing = main.inner(end, side, main.half_v * site.draw((0.9, 1.3)), half, math.pi / 2)
        if site.is_free(wing):
            parts.append(wing)
    for part in parts:
        _put_roof(site, part, shape, pitch, eaves, colour)
    _furnish(site, main, flat=shape in ("flat", "saw"))


def _put_roof(
    site: Site, box: Box, shape: str, pitch: float, eaves: float, colour: np.ndarray
) -> None:
    """Put one roof over a box; where roofs meet, the higher one is seen."""
    patch = patch_around(box)
    roof = eaves + _roof_heights(shape, pitch, box, patch)
    height = site.height[patch.window]
    over = patch.inside & ~(site.building[patch.window] & (height >= roof))
    grain = site.grain[patch.window]
    streaks = 1 + 0.05 * np.sin(patch.u * 2.1) if shape != "flat" else 1.0
    texture = (0.9 + 0.2 * grain) * streaks
    site.albedo[patch.window][over] = colour * texture[over, None]
    height[over] = roof[over]
    site.building[patch.window] |= patch.inside
    site.taken[patch.window] |= patch.inside


def _roof_heights(shape: str, pitch: float, box: Box, patch: Patch) -> np.ndarray:
    """Height of a roof above its eaves; the ridge runs along the box's first axis."""
    across, along = box.half_v - np.abs(patch.v), box.half_u - np.abs(patch.u)
    if shape == "gable":
        return pitch * across
    if shape == "hip":
        return pitch * np.minimum(across, along)
    if shape == "shed":
        return 0.5 * pitch * (box.half_v - patch.v)
    if shape == "saw":
        return 0.5 * ((patch.u + box.half_u) % 8)
    return np.where(np.minimum(across, along) < 0.7, 0.9, 0.0)  # flat, with a parapet


def _furnish(site: Site, box: Box, flat: bool) -> None:
    """Chimneys and skylights on pitched roofs, machines on flat ones."""
    count = site.rng.poisson(box.half_u * box.half_v / (25 if flat else 40))
    for _ in range(min(count, 12)):
        u = site.rng.uniform(-0.75, 0.75) * box.half_u
        v = site.rng.uniform(-0.75, 0.75) * box.half_v
        patch = patch_around(box.inner(u, v, site.draw((0.5, 1.5)), site.draw((0.5, 1.2))))
        inside = patch.inside & site.building[patch.window]
        rise = site.draw((0.8, 2.0)) if site.chance(0.7) else 0.1
        site.height[patch.window][inside] += rise
        site.albedo[patch.window][inside] = site.near(((0.6, 0.6, 0.6), (0.15, 0.15, 0.16)))
