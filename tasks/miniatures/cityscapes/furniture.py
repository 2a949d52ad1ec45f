"""Street furniture: trees, lamps, signs, signals, bins, bollards and railings along the kerbs."""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from tasks.miniatures.chance import chance, choose
from tasks.miniatures.cityscapes.city import SIGNS
from tasks.miniatures.cityscapes.people import draw_two_wheeler
from tasks.miniatures.cityscapes.plants import draw_tree
from tasks.miniatures.cityscapes.texture import bars
from tasks.miniatures.cityscapes.view import View, draw_upright
from tasks.miniatures.cityscapes.world import AnyColour, Colour, Label, Place, Thing

_BINS = ((0.2, 0.3, 0.22), (0.5, 0.5, 0.5), (0.6, 0.35, 0.15), (0.25, 0.25, 0.3))
_LAMPS: tuple[Colour, ...] = ((0.95, 0.15, 0.1), (0.95, 0.7, 0.1), (0.15, 0.9, 0.5))  # of a signal


def plan_furniture(view: View) -> Iterator[Thing]:
    """What stands along the kerbs."""
    rng, street = view.rng, view.street
    for side, kerb in ((-1, street.kerbs[0]), (1, street.kerbs[1])):
        x = side * (kerb + 0.55)
        yield from _plan_trees(view, x)
        for z in np.arange(rng.uniform(5, 20), 75, rng.uniform(16, 30)):
            yield view.thing(x, z, partial(_draw_lamp, view, x, z, -side), (0.08, 0.08, 7))
        for z in rng.uniform(5, 40, rng.poisson(1.8)):
            yield view.thing(x, z, partial(_draw_sign, view, x, z), (0.07, 0.07, 3))
        for z in rng.uniform(5, 40, rng.poisson(0.5)):
            yield view.thing(x, z, partial(_draw_bin, view, x, z), (0.3, 0.3, 1))
        for start in rng.uniform(5, 30, rng.poisson(0.4)):
            for z in start + 1.2 * np.arange(rng.integers(1, 5)):
                bollard = partial(_draw_post, view, x, z, 0.95, 0.14)
                yield view.thing(x, z, bollard, (0.08, 0.08, 1))
        yield from _plan_parked_two_wheelers(view, x + side * 0.4, certain=side > 0)
        if chance(rng, 0.12):
            yield _plan_railing(view, side * (kerb + 0.3))
    if street.zebra is not None or chance(rng, 0.3):
        z = street.crossing - 5
        for x in (-street.kerbs[0] - 0.4, street.kerbs[1] + 0.4):
            yield view.thing(x, z, partial(_draw_signal, view, x, z), (0.1, 0.1, 3.5))


def _plan_trees(view: View, x: float) -> Iterator[Thing]:
    """A row of trees, or none."""
    rng, crossing = view.rng, view.street.crossing
    row = chance(rng, 0.15 + 0.85 * view.city.greenery)
    z, step = rng.uniform(3, 12), rng.uniform(7, 14)
    while row and z < 120:
        if not crossing - 3 < z < crossing + 12 and chance(rng, 0.85):
            height = rng.uniform(4.5, 8)
            yield view.thing(x, z, partial(draw_tree, view, x, z, height), (0.9, 0.9, height))
        z += step * rng.uniform(0.8, 1.2)


def _plan_parked_two_wheelers(view: View, x: float, certain: bool) -> Iterator[Thing]:
    """Groups of bicycles, and a motorcycle: on the `certain` side in each fifth image."""
    rng, size = view.rng, (0.5, 0.3, 1.0)
    for start in rng.uniform(5, 25, rng.poisson(0.7)):
        angle = rng.uniform(0, math.pi)
        for z in start + 0.8 * np.arange(rng.integers(1, 4)):
            draw = partial(draw_two_wheeler, view, x, z, angle, motor=False, ridden=False)
            yield view.thing(x, z, draw, size)
    if chance(rng, 0.18) or (view.index % 5 == 4 and certain):
        z, angle = rng.uniform(6, 18), rng.uniform(0, math.pi)
        draw = partial(draw_two_wheeler, view, x, z, angle, motor=True, ridden=False)
        yield view.thing(x, z, draw, size)


def _plan_railing(view: View, x: float) -> Thing:
    """A low fence between road and sidewalk."""
    z0 = view.rng.uniform(5, 40)
    tone, z1 = int(view.rng.integers(1000)), z0 + view.rng.uniform(6, 25)
    fence = bars(view.city, tone, 1.1)
    draw = partial(draw_upright, view, "x", x, (z0, z1), (0, 1.1), fence, Label.FENCE)
    return view.thing(x, z1, draw)


def _draw_post(view: View, x: float, z: float, height: float, thick: float) -> None:
    light = view.light
    for low, top in ((0.0, height / 2), (height / 2, height)):
        fill = light.ink(view.city.post, light.on_upright(x, (low + top) / 2, z), z)
        view.canvas.line([(x, low, z), (x, top, z)], thick, fill, Label.POLE)


def _draw_lamp(view: View, x: float, z: float, inward: int) -> None:
    """A street lamp whose arm points to the road, `inward` along x."""
    height, canvas, light = 6.5, view.canvas, view.light
    _draw_post(view, x, z, height, 0.22)
    lit = light.on_upright(x, height, z)
    tip = x + inward * 1.6
    arm = [(x, height, z), (tip, height + 0.3, z)]
    canvas.line(arm, 0.1, light.ink(view.city.post, lit, z), Label.POLE)
    head = light.ink((0.6, 0.6, 0.58), lit, z)
    canvas.ellipse((tip, height + 0.25, z), (0.4, 0.12), head, Label.POLE)


def _draw_panel(
    view: View,
    at: Place,
    half: tuple[float, float],
    colour: AnyColour,
    label: int,
    shape: str = "box",
) -> None:
    """A flat board facing the camera: box, disc or triangle; `half` its width and height."""
    x, y, z = at
    fill = view.light.ink(np.minimum(colour, 1), view.light.on_upright(x, y, z), z)
    if shape == "disc":
        view.canvas.ellipse(at, half, fill, label)
        return
    a, b, half_y = half[0] * view.camera.cos, half[0] * view.camera.sin, half[1]
    outline = [(x - a, y - half_y, z + b), (x + a, y - half_y, z - b)]
    if shape == "triangle":
        outline += [(x, y + half_y, z)]
    else:
        outline += [(x + a, y + half_y, z - b), (x - a, y + half_y, z + b)]
    view.canvas.polygon(outline, fill, label)


def _draw_sign(view: View, x: float, z: float) -> None:
    """A traffic sign, and perhaps a smaller one below."""
    rng, label = view.rng, Label.TRAFFIC_SIGN
    height = rng.uniform(2.2, 3.2)
    _draw_post(view, x, z, height, 0.15)
    face, rim = choose(rng, SIGNS)
    shape = choose(rng, ("disc", "disc", "triangle", "box"))
    w, h = (0.5, 0.5) if shape != "box" else (rng.uniform(0.35, 0.9), rng.uniform(0.3, 0.5))
    at = (x, height, z)
    _draw_panel(view, at, (w, h), rim, label, shape)
    _draw_panel(view, at, (w * 0.72, h * 0.72), face, label, shape)
    if shape != "triangle":
        _draw_panel(view, at, (w * 0.45, h * 0.15), rim, label)
    if chance(rng, 0.35):
        _draw_panel(view, (x, height - 0.75, z), (0.32, 0.22), choose(rng, SIGNS)[0], label)


def _draw_signal(view: View, x: float, z: float) -> None:
    """A traffic light, and perhaps a second one over the road."""
    height, label = 3.1, Label.TRAFFIC_LIGHT
    _draw_post(view, x, z, height, 0.15)
    places = [(x, height + 0.2)]
    if chance(view.rng, 0.5):
        tip = x - math.copysign(3.2, x)
        fill = view.light.ink(view.city.post, view.light.on_upright(x, 5, z), z)
        view.canvas.line([(x, height, z), (x, 5.4, z), (tip, 5.4, z)], 0.12, fill, Label.POLE)
        places.append((tip, 5.2))
    lit = int(view.rng.integers(3))
    for at, y in places:
        _draw_panel(view, (at, y, z), (0.28, 0.64), (0.1, 0.11, 0.1), label)
        for i, colour in enumerate(_LAMPS):
            # A lamp glows by itself: neither sun nor haze changes it.
            shares = (1.0, 1.0) if i == lit else (0.25, 0.7)
            r, g, b = (int(255 * (shares[0] * c) * shares[1]) for c in colour)
            view.canvas.ellipse((at, y + 0.36 * (1 - i), z), (0.15, 0.15), (r, g, b), label)


def _draw_bin(view: View, x: float, z: float) -> None:
    """A litter bin, static or, standing there for a day, dynamic."""
    colour = choose(view.rng, _BINS)
    label = Label.DYNAMIC if chance(view.rng, 0.5) else Label.STATIC
    _draw_panel(view, (x, 0.5, z), (0.3, 0.5), colour, label)
