"""What stands on the plots beside the street: houses, walls, fences, hedges and trees."""

import numpy as np

from tasks.miniatures.chance import chance
from tasks.miniatures.cityscapes.plants import draw_crown, draw_tree
from tasks.miniatures.cityscapes.texture import bars, facade, leaves, masonry
from tasks.miniatures.cityscapes.view import View, draw_upright
from tasks.miniatures.cityscapes.world import FAR, Label, Place, Plot


def draw_backdrop(view: View) -> None:
    """What closes the street far away: houses and trees."""
    rng, x = view.rng, -90.0
    while x < 90:
        width = rng.uniform(8, 22)
        if chance(rng, 0.75):
            tone = int(rng.integers(1000))
            height = rng.uniform(5, 16)
            front = facade(view.city, tone, height)
            draw_upright(view, "z", FAR, (x, x + width), (0, height), front, Label.BUILDING)
        for _ in range(int(rng.integers(3))):
            at = (x + rng.uniform(0, width), rng.uniform(2, 4), FAR - 5)
            draw_crown(view, at, rng.uniform(3, 6))
        x += width


def draw_plot(view: View, side: int, plot: Plot) -> None:
    """Draw what stands on a plot of the left side (-1) or the right side (1)."""
    if plot.z1 < 1 or plot.kind == "crossing":
        return
    x = view.street.facade(side)
    if plot.kind == "building":
        _draw_house(view, x, side, (plot.z0, plot.z1), plot.height, plot.tone)
        return
    rng = np.random.default_rng([plot.tone, int(plot.z1 * 1000) & 0xFFFF])
    if rng.random() < 0.6:
        setback = x + side * rng.uniform(6, 12)
        span = (plot.z0 + 2, plot.z1 - 2)
        _draw_house(view, setback, side, span, rng.uniform(5, 12), plot.tone + 1)
    for _ in range(int(rng.integers(1, 4)) * (1 + (plot.kind == "park"))):
        depth = rng.uniform(1.5, 7)
        z = rng.uniform(plot.z0 + 1, plot.z1 - 1)
        if z > 4:
            draw_tree(view, x + side * depth, z, rng.uniform(4, 9))
    _draw_front(view, x, plot, rng)


def _draw_front(view: View, x: float, plot: Plot, rng: np.random.Generator) -> None:
    """What parts an open plot from the sidewalk: a wall, a fence, a hedge or nothing."""
    city, span = view.city, (max(plot.z0, 0.3), plot.z1)
    stone = masonry(city, plot.tone)
    if plot.kind == "wall":
        draw_upright(view, "x", x, span, (0, plot.height), stone, Label.WALL)
    elif plot.kind == "yard" or rng.random() < 0.3:
        height = rng.uniform(1.2, 2.2)
        if rng.random() < 0.3:
            draw_upright(view, "x", x, span, (0, 0.5), stone, Label.WALL)
        fence = bars(city, plot.tone, height)
        draw_upright(view, "x", x, span, (0, height), fence, Label.FENCE)
    elif rng.random() < 0.45:
        hedge, height = leaves(city, plot.tone), rng.uniform(0.6, 2.2)
        draw_upright(view, "x", x, span, (0, height), hedge, Label.VEGETATION)


def _draw_house(
    view: View, x: float, side: int, span: tuple[float, float], height: float, tone: int
) -> None:
    """A house whose front lies in the plane `x`, from the first to the second z of `span`."""
    city, (z0, z1) = view.city, span
    if z1 < 1:
        return
    if z0 > 1:  # the wall towards the camera
        depth = (min(x, x + side * 11), max(x, x + side * 11))
        wall = facade(city, tone + 7, height, bare=True)
        draw_upright(view, "z", z0, depth, (0, height), wall, Label.BUILDING)
    front = facade(city, tone, height)
    draw_upright(view, "x", x, (max(z0, 0.3), z1), (0, height), front, Label.BUILDING)
    if tone % 3:
        _draw_roof(view, x, side, span, height, tone)


def _draw_roof(
    view: View, x: float, side: int, span: tuple[float, float], height: float, tone: int
) -> None:
    """A pitched roof above `height`, and the gable below it where it is seen."""
    city, light, (z0, z1) = view.city, view.light, span
    top, back, near = height + 2.5, x + side * 4, max(z0, 0.3)
    fill = light.ink(city.roof, light.on((-side * 0.5, 0.8, 0), 1.0), max(4.0, (z0 + z1) / 2))
    roof: list[Place] = [(x, height, near), (x, height, z1), (back, top, z1), (back, top, near)]
    view.canvas.polygon(roof, fill, Label.BUILDING)
    if z0 > 1:
        gable = [(x, height, z0), (back, top, z0), (x + side * 8, height, z0)]
        fill = light.ink(city.facades[tone % len(city.facades)], light.on((0, 0, -1), 0.5), z0)
        view.canvas.polygon(gable, fill, Label.BUILDING)
