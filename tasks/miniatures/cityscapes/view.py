"""What every drawing function is handed: one street as one camera sees it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tasks.miniatures.cityscapes.camera import Camera, Canvas
from tasks.miniatures.cityscapes.city import City
from tasks.miniatures.cityscapes.light import Light
from tasks.miniatures.cityscapes.street import Street
from tasks.miniatures.cityscapes.texture import Texture
from tasks.miniatures.cityscapes.world import NEAR, Footprint, Place, Thing


@dataclass(frozen=True)
class View:
    """One image in the making. Whoever draws random numbers takes them from `rng`, in order."""

    city: City
    street: Street
    light: Light
    camera: Camera
    canvas: Canvas
    rng: np.random.Generator
    index: int  # number of the image in its city

    def thing(
        self,
        x: float,
        z: float,
        draw: Callable[[], None],
        size: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> Thing:
        """An object that stands at (x, z); `size` is half its extent in x and z, and its height."""
        return Thing(self.camera.depth(x, 0, z), draw, Footprint(x, z, *size))


def draw_upright(
    view: View,
    axis: str,
    at: float,
    span: tuple[float, float],
    heights: tuple[float, float],
    texture: Texture,
    label: int,
) -> None:
    """Ray-cast an upright rectangle.

    Args:
        view: where it is drawn.
        axis: "x" for a plane x = `at` along the street, "z" for z = `at` across it.
        at: metres.
        span: from, to along the plane.
        heights: from, to.
        texture: gives its colours.
        label: of its pixels.
    """
    camera, light = view.camera, view.light
    (s0, s1), (y0, y1) = span, heights
    corners = [(s0, y0), (s1, y0), (s1, y1), (s0, y1)]
    outline: list[Place] = [(at, y, s) if axis == "x" else (s, y, at) for s, y in corners]
    box = view.canvas.box_around(camera.project(outline))
    if box is None:
        return
    dx, dy, dz = camera.rays(box)
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = (at - camera.x) / dx if axis == "x" else at / dz
        s = depth * dz if axis == "x" else camera.x + depth * dx
        y = camera.y + depth * dy
        inside = (depth > NEAR / 2) & (s >= s0) & (s < s1) & (y >= y0) & (y < y1)
    if not inside.any():
        return
    depth, s, y = depth[inside], s[inside], y[inside]
    seen = texture(s, y, depth / camera.focal)
    colours, mask = seen if isinstance(seen, tuple) else (seen, True)
    normal = (-math.copysign(1, at - camera.x), 0, 0) if axis == "x" else (0, 0, -1)
    x, z = (np.full_like(s, at), s) if axis == "x" else (s, np.full_like(s, at))
    lit = light.on(normal, light.sunlit(x, y, z))
    lit = lit * (0.7 + 0.3 * np.clip(y / 3, 0, 1))[..., None]  # less sky near the ground
    view.canvas.paste(box[:2], inside, light.inks(colours, lit, depth), label, mask)
