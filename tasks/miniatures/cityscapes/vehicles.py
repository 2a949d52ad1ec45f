"""Cars, trucks, buses and trams: parked, in the lanes, and across the street at the crossing."""

import math
from collections.abc import Iterator
from functools import partial

from tasks.miniatures.chance import chance, choose
from tasks.miniatures.cityscapes.city import GLASS, PUBLIC
from tasks.miniatures.cityscapes.solid import Solid
from tasks.miniatures.cityscapes.view import View
from tasks.miniatures.cityscapes.world import LANE, Colour, Label, Thing

SIZES = {  # length, width, height for planning and for shadows, metres
    "car": (4.3, 1.8, 1.4),
    "truck": (7.5, 2.4, 3.0),
    "bus": (11.0, 2.5, 3.0),
    "train": (22.0, 2.4, 3.4),
}
_RED, _WHITE, _BLACK = (0.65, 0.1, 0.08), (0.9, 0.9, 0.85), (0.12, 0.12, 0.12)


def plan_parked(view: View) -> Iterator[Thing]:
    """Vehicles in the parking bays."""
    rng, street = view.rng, view.street
    for side, bay, kerb in (
        (-1, street.bays[0], street.kerbs[0]),
        (1, street.bays[1], street.kerbs[1]),
    ):
        z = rng.uniform(3, 9)
        while bay and z < 90:
            in_crossing = street.crossing - 5 < z < street.crossing + 13
            if chance(rng, view.city.parking) and not in_crossing:
                heading = (0 if side > 0 else math.pi) + rng.normal(0, 0.04)
                truck = chance(rng, 0.02)
                kind = "truck" if truck else "car"
                yield _vehicle(view, kind, side * (kerb - 1.05), z + 2 * truck, heading)
                z += 3 * truck
            z += rng.uniform(5.0, 6.5)


def plan_traffic(view: View) -> Iterator[Thing]:
    """Vehicles that drive. Each fifth image has a bus, each a truck, and each a tram."""
    rng, street = view.rng, view.street
    rare = ("bus", "truck", "train", None, None)[view.index % 5]
    for lane in range(-street.lanes // 2, street.lanes // 2):
        x, oncoming = (lane + 0.5) * LANE, lane < 0
        z = rng.uniform(10, 40) if not oncoming else rng.uniform(6, 35)
        wanted = rare if lane == (-1 if rare == "train" or chance(rng, 0.6) else 0) else None
        while z < 110:
            kind = wanted or str(rng.choice(["car", "truck", "bus"], p=[0.95, 0.03, 0.02]))
            if wanted:
                z, rare, wanted = rng.uniform(8, 17), None, None
            if kind == "train":
                x = math.copysign(LANE / 2, x)
            z += SIZES[kind][0] / 2
            heading = rng.normal(0, 0.03) + math.pi * oncoming
            yield _vehicle(view, kind, x + rng.normal(0, 0.2), z, heading)
            z += SIZES[kind][0] / 2 + rng.uniform(6, 45)
    if rare:  # no lane took it: it crosses
        yield _vehicle(view, rare, rng.uniform(-6, 6), street.crossing + 6, math.pi / 2)
    elif chance(rng, 0.35):
        side = choose(rng, (-1, 1))
        z = street.crossing + 4.5 - 2 * side
        yield _vehicle(view, "car", rng.uniform(-9, 9), z, side * math.pi / 2)


def _vehicle(view: View, kind: str, x: float, z: float, heading: float) -> Thing:
    """`heading` 0 drives away from the camera, in radians clockwise from above."""
    length, width, height = SIZES[kind]
    along = abs(math.cos(heading)) > 0.5
    half_x, half_z = (width / 2, length / 2) if along else (length / 2, width / 2)
    draw = partial(_draw_vehicle, view, kind, x, z, heading)
    return view.thing(x, z, draw, (half_x, half_z, height))


def _draw_vehicle(view: View, kind: str, x: float, z: float, heading: float) -> None:
    draw = {"car": _draw_car, "truck": _draw_truck, "bus": _draw_bus, "train": _draw_tram}[kind]
    draw(view, Solid(view, x, z, heading))


def _draw_car(view: View, solid: Solid) -> None:
    """A saloon, a hatchback or a van."""
    rng, label = view.rng, Label.CAR
    paint = choose(rng, view.city.paints)
    kind = choose(rng, ("sedan", "hatch", "hatch", "van"))
    length, roof = {"sedan": (4.5, 1.42), "hatch": (4.0, 1.48), "van": (4.7, 1.95)}[kind]
    half, wide = length / 2, 0.88
    solid.size(half, wide)
    belt = 0.92 if kind != "van" else 1.05
    axles = (-0.31 * length, 0.31 * length)
    solid.wheels(axles, 0.32, label)
    body = [
        (-half, 0.28), (half, 0.28), (half + 0.04, 0.6), (half - 0.12, 0.82),
        (0.1 * length, belt), (-half + 0.05, belt), (-half - 0.04, 0.6),
    ]  # fmt: skip
    solid.extrude(body, (wide, wide), paint, [paint] * len(body), label)
    solid.near_wheels(axles, 0.32, label)
    boot = {"sedan": 0.75, "hatch": 0.08, "van": 0.0}[kind]
    front = 0.12 * length if kind != "van" else 0.3 * length
    _draw_cabin(solid, -half + boot, front, belt, roof, paint)
    pillar = -half + boot + 0.5 * (front + half - boot)
    post = [
        (pillar - 0.05, belt), (pillar + 0.05, belt), (pillar + 0.03, roof), (pillar - 0.03, roof),
    ]  # fmt: skip
    solid.side(post, paint, label, wide - 0.1)
    for w in (-1, 1):
        solid.end(-1, (w * 0.66, 0.7), (0.18, 0.1), _RED, label)
        solid.end(1, (w * 0.62, 0.66), (0.2, 0.09), _WHITE, label)
    solid.end(-1, (0, 0.62), (0.26, 0.06), (0.9, 0.9, 0.88), label)
    solid.end(1, (0, 0.5), (0.5, 0.1), (0.1, 0.1, 0.1), label)
    if rng.random() < 0.5:
        solid.end(-1, (0, 0.38), (0.8, 0.06), _BLACK, label)


def _draw_cabin(
    solid: Solid, back: float, front: float, belt: float, roof: float, paint: Colour
) -> None:
    """What stands on a car's body: from `back` to `front` along l, from `belt` to `roof`."""
    label, wide = Label.CAR, solid.half_width
    cabin = [
        (back, belt - 0.03), (front, belt - 0.06), (front - 0.65, roof), (back + 0.35, roof),
    ]  # fmt: skip
    edges = [None, GLASS, paint, GLASS]
    solid.extrude(cabin, (wide - 0.04, wide - 0.17), paint, edges, label)
    panes = [
        (back + 0.2, belt), (front - 0.15, belt), (front - 0.7, roof - 0.1),
        (back + 0.4, roof - 0.1),
    ]  # fmt: skip
    solid.side(panes, GLASS, label, wide - 0.1)


def _draw_truck(view: View, solid: Solid) -> None:
    """A cab and a cargo box, the one farther away first."""
    rng, label = view.rng, Label.TRUCK
    length, wide, height = 7.5, 1.2, rng.uniform(2.6, 3.5)
    paint = choose(rng, view.city.paints)
    box = choose(rng, (*view.city.paints, (0.8, 0.8, 0.78)))
    half = length / 2
    solid.size(half, wide)
    axles, split = (-half + 1.2, half - 1.0), half - 2.0
    cargo = partial(_draw_cargo, view, solid, box, (-half, split - 0.15), height)
    cab = partial(_draw_cab, solid, paint, (split, half), min(height, 2.6), wide - 0.05)
    solid.wheels(axles, 0.48, label)
    for part in (cargo, cab) if solid.camera[0] > split else (cab, cargo):
        part()
    solid.near_wheels(axles, 0.48, label)


def _draw_cargo(
    view: View, solid: Solid, paint: Colour, span: tuple[float, float], height: float
) -> None:
    """The box of a truck from the first to the second l of `span`, perhaps with a stripe."""
    label, wide, (l0, l1) = Label.TRUCK, solid.half_width, span
    dark = (0.15, 0.15, 0.16)
    frame = [(l0, 0.5), (l1, 0.5), (l1, 0.9), (l0, 0.9)]
    solid.extrude(frame, (wide - 0.1, wide - 0.1), dark, [dark] * 4, label)
    box = [(l0, 0.9), (l1, 0.9), (l1, height), (l0, height)]
    solid.extrude(box, (wide, wide), paint, [paint] * 4, label)
    colour = choose(view.rng, PUBLIC)
    if chance(view.rng, 0.6):
        top = height - 0.7
        stripe = [(l0 + 0.5, 1.4), (l1 - 0.5, 1.4), (l1 - 0.5, top), (l0 + 0.5, top)]
        solid.side(stripe, colour, label, wide)
    doors = (0.02, (height - 0.9) / 2)
    solid.end(-1, (0, (0.9 + height) / 2), doors, (0.2, 0.2, 0.2), label)
    for w in (-1, 1):
        solid.end(-1, (w * 0.95, 0.72), (0.15, 0.1), _RED, label)


def _draw_cab(
    solid: Solid, paint: Colour, span: tuple[float, float], height: float, wide: float
) -> None:
    """The driver's cab of a truck from the first to the second l of `span`."""
    label, (l0, l1) = Label.TRUCK, span
    cab = [(l0, 0.45), (l1, 0.45), (l1, 1.4), (l1 - 0.25, height), (l0, height)]
    solid.extrude(cab, (wide, wide), paint, [None, paint, GLASS, paint, paint], label)
    window = [(l0 + 0.5, 1.4), (l1 - 0.15, 1.4), (l1 - 0.35, 2.1), (l0 + 0.5, 2.1)]
    solid.side(window, GLASS, label, wide)
    solid.end(1, (0, 0.9), (0.7, 0.2), _BLACK, label)
    for w in (-1, 1):
        solid.end(1, (w * 0.9, 0.7), (0.18, 0.12), _WHITE, label)


def _draw_bus(view: View, solid: Solid) -> None:
    half = SIZES["bus"][0] / 2
    solid.size(half, 1.25)
    _draw_coach(solid, view.city.public[0], (-half, half), 3.0, 1.05, Label.BUS)
    solid.near_wheels((-half + 2.6, half - 2.4), 0.5, Label.BUS)


def _draw_tram(view: View, solid: Solid) -> None:
    """Three coupled cars without visible wheels, with a pantograph."""
    length, height, light = SIZES["train"][0], 3.4, view.light
    solid.size(length / 2, 1.2)
    third = length / 3
    starts = [-length / 2 + i * third for i in range(3)]
    starts.sort(key=lambda l: -abs(l + third / 2 - solid.camera[0]))
    for l in starts:
        span = (l + 0.15, l + third - 0.15)
        _draw_coach(solid, view.city.public[1], span, height, 1.3, Label.TRAIN)
    fill = light.ink((0.2, 0.2, 0.22), light.ambient, 15)
    arm = [
        solid.world(0, height), solid.world(0.9, height + 0.6), solid.world(0, height + 1.1),
    ]  # fmt: skip
    view.canvas.line(arm, 0.08, fill, Label.TRAIN)


def _draw_coach(
    solid: Solid,
    paint: Colour,
    span: tuple[float, float],
    height: float,
    sill: float,
    label: Label,
) -> None:
    """A long body with a band of windows above `sill`, doors and a destination display."""
    wide, (l0, l1) = solid.half_width, span
    nose = 0.5 if label == Label.TRAIN else 0.12
    body = [
        (l0, 0.3), (l1, 0.3), (l1, sill), (l1 - nose, height), (l0 + nose, height), (l0, sill),
    ]  # fmt: skip
    edges = [None, paint, GLASS, (0.5, 0.5, 0.5), GLASS, paint]
    solid.extrude(body, (wide, wide), paint, edges, label)
    skirt = [(l0, 0.3), (l1, 0.3), (l1, 0.62), (l0, 0.62)]
    solid.side(skirt, [0.5 * c for c in paint], label, wide)
    top = height - 0.55
    count = max(2, round((l1 - l0 - 1) / 1.5))
    pitch = (l1 - l0 - 2 * nose) / count
    for i in range(count):
        a = l0 + nose + i * pitch
        low = 0.45 if i % 3 == 1 else sill  # each third one is a door
        pane = [(a + 0.1, low), (a + pitch - 0.1, low), (a + pitch - 0.1, top), (a + 0.1, top)]
        solid.side(pane, GLASS, label, wide)
    for direction, lamp in ((-1, _RED), (1, _WHITE)):
        solid.end(direction, (0, height - 0.25), (0.8, 0.14), (0.85, 0.6, 0.15), label)
        for w in (-1, 1):
            solid.end(direction, (w * 0.9, 0.75), (0.2, 0.12), lamp, label)
