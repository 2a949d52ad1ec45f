"""People, on foot and on bicycles and motorcycles."""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from tasks.miniatures.chance import chance, choose
from tasks.miniatures.cityscapes.city import RUBBER
from tasks.miniatures.cityscapes.solid import CIRCLE, Solid
from tasks.miniatures.cityscapes.view import View
from tasks.miniatures.cityscapes.world import LANE, Label, Place, Thing

_CLOTHES = (
    (0.12, 0.12, 0.15), (0.16, 0.24, 0.5), (0.7, 0.14, 0.14), (0.85, 0.82, 0.76), (0.5, 0.4, 0.26),
    (0.15, 0.45, 0.35), (0.85, 0.6, 0.15), (0.75, 0.35, 0.5), (0.4, 0.2, 0.5),
)  # fmt: skip
_SKIN = ((0.85, 0.66, 0.54), (0.7, 0.5, 0.38), (0.45, 0.3, 0.22))
_HAIR = ((0.12, 0.09, 0.07), (0.35, 0.25, 0.15), (0.6, 0.55, 0.5))


def plan_people(view: View) -> Iterator[Thing]:
    """People on the sidewalks and on a zebra crossing, and riders: one at least in each fifth."""
    rng, street = view.rng, view.street
    for side, kerb in ((-1, street.kerbs[0]), (1, street.kerbs[1])):
        for z in rng.uniform(4.5, 38, rng.poisson(4.5)):
            x = side * (kerb + street.strip + rng.uniform(0.7, max(0.8, street.sidewalk - 0.4)))
            for i in range(1 + int(rng.random() < 0.3)):
                yield _person(view, x + 0.55 * i, z)
    if street.zebra is not None:
        for _ in range(rng.poisson(1.2)):
            x = rng.uniform(-street.kerbs[0], street.kerbs[1])
            yield _person(view, x, street.zebra + rng.uniform(0.5, 2.5))
    for i in range(rng.poisson(0.8) + (view.index % 5 == 3)):
        side = choose(rng, (-1, 1))
        x = side * (street.lanes / 2 * LANE - rng.uniform(0.3, 1.0))
        z, angle = rng.uniform(6, 22), (0 if side > 0 else math.pi) + rng.normal(0, 0.25)
        if chance(rng, 0.3):
            angle += math.pi / 2 * choose(rng, (-1, 1))
        motor = chance(rng, 0.25) or (i == 0 and view.index % 10 == 3)
        draw = partial(draw_two_wheeler, view, x, z, angle, motor=motor, ridden=True)
        yield view.thing(x, z, draw, (0.3, 0.6, 1.6))


def _person(view: View, x: float, z: float) -> Thing:
    return view.thing(x, z, partial(_draw_person, view, x, z), (0.25, 0.2, 1.7))


def _draw_person(view: View, x: float, z: float) -> None:
    """Someone on foot, grown-up or a child, who faces the camera."""
    rng, canvas, light, label = view.rng, view.canvas, view.light, Label.PERSON
    k = rng.uniform(0.92, 1.08) if chance(rng, 0.85) else rng.uniform(0.6, 0.8)
    lit = light.on_upright(x, 1.0, z)
    coat, trousers = choose(rng, _CLOTHES), choose(rng, _CLOTHES)
    top, bottom = light.ink(coat, lit, z), light.ink(np.multiply(trousers, 0.8), lit, z)
    step, swing = rng.uniform(0.02, 0.3), rng.uniform(-0.15, 0.15)

    def at(a: float, b: float) -> Place:
        return x + a * k * view.camera.cos, b * k, z - a * k * view.camera.sin

    for side in (-1, 1):
        foot = at(side * step + swing * 0.3, 0.04)
        leg = [at(side * 0.08, 0.9), at(side * (0.1 + step / 2), 0.45), foot]
        canvas.line(leg, 0.17 * k, bottom, label)
    if chance(rng, 0.3):
        skirt = [at(-0.16, 1.0), at(0.16, 1.0), at(0.25, 0.5), at(-0.25, 0.5)]
        canvas.polygon(skirt, top, label)
    torso = [
        at(-0.16, 0.85), at(0.16, 0.85), at(0.23, 1.38),
        at(0.12, 1.5), at(-0.12, 1.5), at(-0.23, 1.38),
    ]  # fmt: skip
    canvas.polygon(torso, top, label)
    sleeve = light.ink(np.multiply(coat, 0.8), lit, z)
    for side in (-1, 1):
        hand = at(side * 0.3 + swing, 0.8)
        arm = [at(side * 0.23, 1.38), at(side * 0.29, 1.08), hand]
        canvas.line(arm, 0.11 * k, sleeve, label)
    if chance(rng, 0.35):
        bag = light.ink(choose(rng, _CLOTHES), lit, z)
        canvas.ellipse(at(choose(rng, (-0.27, 0.0, 0.27)), 1.1), (0.14 * k, 0.2 * k), bag, label)
    _draw_head(view, at(0, 1.64), k, lit, z, label)


def _draw_head(
    view: View, at: Place, k: float, lit: np.ndarray, z: float, label: int, helmet: bool = False
) -> None:
    """A face below hair or a helmet, `k` times as large as usual; the haze is that at `z`."""
    rng, (x, y, depth) = view.rng, at
    hair = choose(rng, _HAIR)
    if helmet:
        hair = choose(rng, _CLOTHES)
    face = view.light.ink(choose(rng, _SKIN), lit, z)
    view.canvas.ellipse(at, (0.12 * k, 0.15 * k), face, label)
    above = (x, y + 0.07 * k, depth)
    view.canvas.ellipse(above, (0.13 * k, 0.1 * k), view.light.ink(hair, lit, z), label)


def draw_two_wheeler(
    view: View, x: float, z: float, heading: float, *, motor: bool, ridden: bool
) -> None:
    """A bicycle or motorcycle, with its rider if `ridden`. Wheels are labelled as discs."""
    canvas, light = view.canvas, view.light
    solid, lit = Solid(view, x, z, heading), light.on_upright(x, 0.7, z)
    at, label = solid.world, Label.MOTORCYCLE if motor else Label.BICYCLE
    rubber, metal = light.ink(RUBBER, lit, z), light.ink((0.45, 0.46, 0.48), lit, z)
    paint = light.ink(choose(view.rng, view.city.paints), lit, z)
    base, radius = (0.68, 0.31) if motor else (0.53, 0.34)

    for l in (-base, base):
        rim = [at(l + radius * c, radius * (1 + s)) for c, s in CIRCLE]
        canvas.polygon(rim, metal if motor else None, label)
        canvas.line([*rim, rim[0]], 0.14 if motor else 0.07, rubber, label)
        canvas.line([at(l, 0), at(l, 2 * radius)], 0.13 if motor else 0.06, rubber, label)
    if motor:
        engine = [at(-0.5, 0.35), at(0.4, 0.35), at(0.5, 0.8), at(-0.3, 0.75)]
        canvas.polygon(engine, metal, label)
        canvas.line([at(-0.75, 0.82), at(-0.1, 0.78), at(0.35, 0.95)], 0.27, paint, label)
        canvas.line([at(base, radius), at(0.45, 1.05)], 0.12, metal, label)
        canvas.line([at(0.42, 1.05, -0.35), at(0.42, 1.05, 0.35)], 0.08, rubber, label)
    else:
        frame = [at(-base, radius), at(-0.18, 0.72), at(0.36, 0.75), at(-0.05, radius)]
        canvas.polygon(frame, None, label)
        canvas.line([*frame, frame[0]], 0.06, paint, label)
        canvas.line([at(base, radius), at(0.36, 0.75), at(0.32, 1.0)], 0.06, paint, label)
        canvas.line([at(-0.05, radius), at(-0.22, 0.9)], 0.06, paint, label)
        canvas.line([at(-0.36, 0.92), at(-0.12, 0.92)], 0.09, rubber, label)
        canvas.line([at(0.34, 1.02, -0.28), at(0.34, 1.02, 0.28)], 0.06, rubber, label)
    if ridden:
        _draw_rider(view, solid, lit, z, motor)


def _draw_rider(view: View, solid: Solid, lit: np.ndarray, z: float, motor: bool) -> None:
    """Someone on a two-wheeler; on a motorcycle always with a helmet."""
    rng, canvas, light, label, at = view.rng, view.canvas, view.light, Label.RIDER, solid.world
    coat, trousers = choose(rng, _CLOTHES), choose(rng, _CLOTHES)
    top, bottom = light.ink(coat, lit, z), light.ink(np.multiply(trousers, 0.8), lit, z)
    hip, neck = (-0.2, 0.95), ((0.12, 1.45) if motor else (0.1, 1.5))
    for side in (-1, 1):
        knee = at(0.18, 0.72 + 0.12 * side, 0.14 * side)
        foot = at(0.0, 0.3 + 0.1 * side, 0.14 * side)
        canvas.line([at(hip[0], hip[1], 0.1 * side), knee, foot], 0.16, bottom, label)
        arm = [at(neck[0], neck[1], 0.2 * side), at(0.36, 1.08, 0.26 * side)]
        canvas.line(arm, 0.11, top, label)
    corners = ((hip, -0.16), (hip, 0.16), (neck, 0.22), (neck, -0.22))
    canvas.polygon([at(l, y, w) for (l, y), w in corners], top, label)
    canvas.line([at(hip[0], hip[1]), at(neck[0], neck[1])], 0.27, top, label)
    helmet = motor or chance(rng, 0.5)
    _draw_head(view, at(neck[0] + 0.1, neck[1] + 0.2), 1.05, lit, z, label, helmet)
