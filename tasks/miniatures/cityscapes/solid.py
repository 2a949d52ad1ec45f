"""Solid bodies with wheels, drawn face by face as far as the camera sees them."""

import math
from collections.abc import Sequence

import numpy as np

from tasks.miniatures.cityscapes.city import RUBBER
from tasks.miniatures.cityscapes.view import View
from tasks.miniatures.cityscapes.world import AnyColour, Ink, Place

Outline = list[tuple[float, float]]  # corners (l, y)

CIRCLE = [
    (math.cos(t), math.sin(t)) for t in np.linspace(0, 2 * math.pi, 12, endpoint=False).tolist()
]


class Solid:
    """A body's own frame: l forward, y up, w to its right, in metres from its centre.

    Args:
        view: where it is drawn.
        x, z: its centre in the world.
        heading: 0 faces away from the camera, in radians clockwise as seen from above.
    """

    def __init__(self, view: View, x: float, z: float, heading: float) -> None:
        self.view, self.x, self.z = view, x, z
        self.cos, self.sin = math.cos(heading), math.sin(heading)
        camera = view.camera
        dx, dz = camera.x - x, -z
        # The camera's l, y and w in this frame.
        self.camera = (dx * self.sin + dz * self.cos, camera.y, dx * self.cos - dz * self.sin)
        self.depth = max(1.0, camera.depth(x, 0, z))
        self.size(1.0, 0.5)

    def size(self, half_length: float, half_width: float) -> None:
        """Set the extent, which decides where the ends are and which sides are seen."""
        self.half_length, self.half_width = half_length, half_width
        self.sunlit = [
            self.view.light.sunlit(*self.world(l, 1.0)) for l in (-half_length, half_length)
        ]

    def world(self, l: float, y: float, w: float = 0.0) -> Place:
        """A place of this frame in the world."""
        return self.x + l * self.sin + w * self.cos, y, self.z + l * self.cos - w * self.sin

    def ink(self, colour: AnyColour, nl: float, ny: float, nw: float) -> Ink:
        """Colour of a face with the normal (nl, ny, nw) in this frame."""
        light = self.view.light
        normal = (nl * self.sin + nw * self.cos, ny, nl * self.cos - nw * self.sin)
        sunlit = self.sunlit[nl > 0] if abs(nl) > 0.5 else sum(self.sunlit) / 2
        lit = light.on(normal, sunlit) + 0.12 * light.sun * sunlit
        return light.ink(colour, lit, self.depth)

    def extrude(
        self,
        outline: Outline,
        half_widths: tuple[float, float],
        side: AnyColour,
        edges: Sequence[AnyColour | None],
        label: int,
    ) -> None:
        """Draw what is seen of a body with a convex outline.

        Args:
            outline: counter-clockwise as seen from the right side.
            half_widths: at its lowest and its highest point.
            side: colour of the two sides.
            edges: colour of what lies behind each edge of the outline; None draws nothing there.
            label: of its pixels.
        """
        ys = [y for _, y in outline]
        low, high = half_widths

        def half(y: float) -> float:
            return low + (high - low) * (y - min(ys)) / (max(ys) - min(ys))

        following = outline[1:] + outline[:1]
        for a, b, colour in zip(outline, following, edges, strict=True):
            nl, ny = b[1] - a[1], a[0] - b[0]  # outward normal of a counter-clockwise outline
            if colour is None or nl * (self.camera[0] - a[0]) + ny * (self.camera[1] - a[1]) <= 0:
                continue
            size = math.hypot(nl, ny)
            quad = [self.world(a[0], a[1], -half(a[1])), self.world(a[0], a[1], half(a[1]))]
            quad += [self.world(b[0], b[1], half(b[1])), self.world(b[0], b[1], -half(b[1]))]
            self.view.canvas.polygon(quad, self.ink(colour, nl / size, ny / size, 0), label)
        if abs(self.camera[2]) > low:
            sign = math.copysign(1, self.camera[2])
            points = [self.world(l, y, sign * half(y)) for l, y in outline]
            self.view.canvas.polygon(points, self.ink(side, 0, 0.1, sign), label)

    def side(self, outline: Outline, colour: AnyColour, label: int, half_width: float) -> None:
        """Draw an outline on the side that is seen, `half_width` from the middle."""
        if abs(self.camera[2]) > half_width:
            sign = math.copysign(1, self.camera[2])
            points = [self.world(l, y, sign * half_width) for l, y in outline]
            self.view.canvas.polygon(points, self.ink(colour, 0, 0.1, sign), label)

    def end(
        self,
        direction: int,
        at: tuple[float, float],
        half: tuple[float, float],
        colour: AnyColour,
        label: int,
    ) -> None:
        """Draw a rectangle on the front (direction 1) or the rear (-1) where it is seen.

        Args:
            direction: 1 or -1.
            at: w and y of its centre.
            half: half its extent in w and y.
            colour: its colour.
            label: of its pixels.
        """
        if direction * self.camera[0] > self.half_length:
            l = direction * (self.half_length + 0.04)
            corners = ((-1, -1), (1, -1), (1, 1), (-1, 1))
            points = [self.world(l, at[1] + j * half[1], at[0] + i * half[0]) for i, j in corners]
            self.view.canvas.polygon(points, self.ink(colour, direction, 0, 0), label)

    def wheels(self, places: Sequence[float], radius: float, label: int) -> None:
        """Draw the wheels at `places` along l, before the body: it hides what lies behind it."""
        sign = math.copysign(1, self.camera[2])
        for l in places:
            self._wheel(l, radius, 0.85 * sign, label)
            for tyre in (-0.8, 0.8):
                middle = tyre * self.half_width
                quad = [
                    self.world(l, y, middle + s * 0.11)
                    for y, s in ((0, -1), (0, 1), (2 * radius, 1), (2 * radius, -1))
                ]
                self.view.canvas.polygon(quad, self.ink(RUBBER, 0, 0, 0), label)

    def near_wheels(self, places: Sequence[float], radius: float, label: int) -> None:
        """Draw the wheels on the side that is seen once more, over the body."""
        if abs(self.camera[2]) > self.half_width:
            for l in places:
                self._wheel(l, radius, 1.01 * math.copysign(1, self.camera[2]), label)

    def _wheel(self, l: float, radius: float, out: float, label: int) -> None:
        """A tyre and its rim, `out` half widths to the right."""
        sign = math.copysign(1, self.camera[2])
        for share, colour in ((1.0, RUBBER), (0.55, (0.4, 0.4, 0.42))):
            rim = [
                self.world(l + share * radius * c, radius * (1 + share * s), out * self.half_width)
                for c, s in CIRCLE
            ]
            self.view.canvas.polygon(rim, self.ink(colour, 0, 0, sign), label)
