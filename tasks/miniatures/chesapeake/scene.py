"""One scene: parcels and what covers them, then its picture."""

import math
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from tasks.miniatures.chance import chance, choose
from tasks.miniatures.chesapeake.buildings import draw_buildings
from tasks.miniatures.chesapeake.land_map import SCENE, SIDE, SUPERSAMPLING, LandMap, Parcel, Point
from tasks.miniatures.chesapeake.light import photograph
from tasks.miniatures.chesapeake.materials import NO_DATA
from tasks.miniatures.chesapeake.noise import noise

THEMES = {  # shares of the kinds of parcels; share of water
    "rural": ({"crop": 0.62, "wood": 0.2, "farm": 0.12, "homes": 0.06}, 0.02),
    "wooded": ({"crop": 0.3, "wood": 0.5, "farm": 0.08, "homes": 0.08, "quarry": 0.04}, 0.02),
    "shore": ({"crop": 0.4, "wood": 0.22, "farm": 0.08, "homes": 0.3}, 0.28),
    "suburb": ({"crop": 0.22, "wood": 0.12, "homes": 0.48, "shops": 0.14, "quarry": 0.04}, 0.03),
    "town": ({"crop": 0.08, "wood": 0.1, "homes": 0.42, "shops": 0.36, "quarry": 0.04}, 0.03),
}
TREES_ON = {"homes": 22, "shops": 8, "farm": 6, "crop": 1, "quarry": 3, "wood": 0}  # mean number


def draw_scene(index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene, whose theme follows from its index.

    The order of the steps is the order of the random draws: changing it changes every scene.

    Returns:
        The image, uint8 [SCENE, SCENE, 4], and the land-cover codes, uint8 [SCENE, SCENE].
    """
    shares, water_share = list(THEMES.values())[index % len(THEMES)]
    land = LandMap(rng)
    parcels, roads = _plan_parcels(land)
    kinds = rng.choice(list(shares), len(parcels), p=list(shares.values())).tolist()
    for parcel, kind in zip(parcels, kinds, strict=True):
        _draw_ground(land, parcel, kind)
    _draw_woods(land)
    lakes = _plan_lakes(land, water_share)
    _draw_river(land)
    for parcel, kind in zip(parcels, kinds, strict=True):
        draw_buildings(land, parcel, kind)
    for line, width in roads:
        land.line(line, width, choose(rng, land.asphalts))
    for parcel, kind in zip(parcels, kinds, strict=True):
        _draw_trees(land, parcel, kind)
    for lake in lakes:  # last: only rivers have bridges
        land.fill(lake, choose(rng, land.waters))
    numbers = np.asarray(land.image)
    codes = np.array([material.code for material in land.materials], np.uint8)
    label = codes[numbers[1::SUPERSAMPLING, 1::SUPERSAMPLING]]
    image = photograph(numbers, land.materials, rng)
    _hide_corner(label, rng)
    return image, label


def _plan_parcels(land: LandMap) -> tuple[list[Parcel], list[tuple[list[Point], float]]]:
    """Cut the land in two again and again; many cuts are roads (line, width)."""
    rng = land.rng
    parcels: list[Parcel] = []
    roads: list[tuple[list[Point], float]] = []
    reach = 0.75 * SCENE  # the rotated square covers the picture

    def cut(p: Parcel, depth: int) -> None:
        wide = p.u1 - p.u0 > p.v1 - p.v0
        low, high = (p.u0, p.u1) if wide else (p.v0, p.v1)
        if high - low < rng.uniform(45, 95):
            parcels.append(p)
            return
        at = low + (high - low) * rng.uniform(0.35, 0.65)
        ends = ((at, p.v0), (at, p.v1)) if wide else ((p.u0, at), (p.u1, at))
        if chance(rng, 0.85 if depth < 4 else 0.45):
            width = rng.uniform(3, 5) if depth < 3 else rng.uniform(2, 3)
            roads.append(([land.place(*end) for end in ends], width))
        halves = (
            (replace(p, u1=at), replace(p, u0=at)) if wide
            else (replace(p, v1=at), replace(p, v0=at))
        )  # fmt: skip
        for half in halves:
            cut(half, depth + 1)

    cut(Parcel(-reach, reach, -reach, reach), 0)
    return parcels, roads[::-1]  # the widest last, over the others


def _draw_ground(land: LandMap, parcel: Parcel, kind: str) -> None:
    if kind == "wood":
        land.rectangle(parcel, choose(land.rng, land.woods))
    elif kind in ("homes", "shops"):
        land.rectangle(parcel, land.lawn)
    else:
        land.rectangle(parcel, choose(land.rng, land.crops))


def _draw_woods(land: LandMap) -> None:
    """Woods that do not keep to parcels."""
    shape = noise(land.rng, SIDE, 1.6)
    share = land.rng.uniform(0.06, 0.2)
    wooded = shape > np.quantile(shape, 1 - share)
    land.fill(Image.fromarray(wooded), choose(land.rng, land.woods))


def _plan_lakes(land: LandMap, water_share: float) -> list[Image.Image]:
    """Masks of a bay and of ponds; woods are drawn around the bay."""
    rng = land.rng
    shape = noise(rng, SIDE, 2.2)
    share = water_share * rng.uniform(0.7, 1.4)
    level, bank = np.quantile(shape, [share, share + 0.05])
    if chance(rng, 0.6):
        land.fill(Image.fromarray(shape < bank), choose(rng, land.woods))
    return [Image.fromarray(shape < level), *(_pond(rng) for _ in range(3))]


def _pond(rng: np.random.Generator) -> Image.Image:
    turns = np.linspace(0, 2 * math.pi, 24, endpoint=False)
    wobble = 1 + 0.2 * np.cos(2 * turns + rng.uniform(0, 6)) + 0.1 * np.cos(3 * turns)
    radius = rng.uniform(4, 15) * wobble
    x, y = rng.uniform(0, SCENE, 2)
    outline = np.stack([x + radius * np.cos(turns), y + 0.7 * radius * np.sin(turns)], axis=-1)
    mask = Image.new("1", (SIDE, SIDE))
    ImageDraw.Draw(mask).polygon((SUPERSAMPLING * outline).ravel().tolist(), 1)
    return mask


def _draw_river(land: LandMap) -> None:
    """In most scenes, a winding river, often between trees."""
    rng = land.rng
    if chance(rng, 0.25):
        return
    along = np.linspace(-0.8 * SCENE, 0.8 * SCENE, 60)
    bends = 0.12 * SCENE * np.interp(along, along[::6], rng.normal(0, 1, 10))
    bends = np.convolve(np.pad(bends, 4, mode="edge"), np.ones(9) / 9, mode="valid")
    turn, offset = rng.uniform(0, math.pi), rng.uniform(-0.3, 0.3) * SCENE
    across = bends + offset
    x = SCENE / 2 + along * math.cos(turn) - across * math.sin(turn)
    y = SCENE / 2 + along * math.sin(turn) + across * math.cos(turn)
    course = list(zip(x.tolist(), y.tolist(), strict=True))
    width = rng.uniform(4, 14)
    if chance(rng, 0.6):
        land.line(course, width + rng.uniform(8, 20), choose(rng, land.woods))
    land.line(course, width, choose(rng, land.waters))


def _draw_trees(land: LandMap, parcel: Parcel, kind: str) -> None:
    """Single trees on lawns and fields, and a hedge along an edge."""
    rng = land.rng
    for _ in range(rng.poisson(TREES_ON[kind])):
        u = rng.uniform(parcel.u0 + 3, parcel.u1 - 3)
        v = rng.uniform(parcel.v0 + 3, parcel.v1 - 3)
        land.tree(land.place(u, v), rng.uniform(1.2, 3))
    if chance(rng, 0.3):
        for u in np.arange(parcel.u0 + 3, parcel.u1 - 3, 2.5):
            v = parcel.v0 + 4 + rng.normal(0, 0.5)
            land.tree(land.place(u, v), rng.uniform(1.5, 2.5))


def _hide_corner(label: np.ndarray, rng: np.random.Generator) -> None:
    """Some scenes reach beyond the mapped land: a corner has no label."""
    if chance(rng, 0.4):
        height, width = rng.integers(20, 60, 2)
        label[:height, :width] = NO_DATA
