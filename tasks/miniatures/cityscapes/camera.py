"""A pinhole camera that looks along the street, and the canvas it draws on."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from tasks.miniatures.cityscapes.city import City
from tasks.miniatures.cityscapes.world import (
    HEIGHT,
    LANE,
    NEAR,
    SUPERSAMPLING,
    WIDTH,
    Ink,
    Label,
    Pixel,
    Place,
    Rectangle,
)


@dataclass(frozen=True)
class Camera:
    """Where the camera stands and how it turns space into pixels of the canvas."""

    x: float  # metres
    y: float
    focal: float  # pixels
    center_u: float  # pixel of the optical axis
    center_v: float
    cos: float  # of the angle to the street
    sin: float

    def view(self, x: float, y: float, z: float) -> Place:
        """A place of the world from the camera: to the right, up, and forwards, in metres."""
        x -= self.x
        return x * self.cos - z * self.sin, y - self.y, x * self.sin + z * self.cos

    def depth(self, x: float, y: float, z: float) -> float:
        """Metres in front of the camera; negative behind it."""
        return self.view(x, y, z)[2]

    def project(self, outline: list[Place]) -> list[Pixel]:
        """The pixels of a polygon, clipped at the near plane; fewer than three: not seen."""
        corners = [self.view(*place) for place in outline]
        if min(z for _, _, z in corners) < NEAR:
            corners = _clip(corners)
        return [
            (self.center_u + self.focal * x / z, self.center_v - self.focal * y / z)
            for x, y, z in corners
        ]

    def rays(self, box: Rectangle) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World directions (x, y, z), each [h, w] at depth 1, of a box of canvas pixels."""
        u0, v0, u1, v1 = box
        a = (np.arange(u0, u1, dtype=np.float32) + (0.5 - self.center_u))[None] / self.focal
        b = ((self.center_v - 0.5) - np.arange(v0, v1, dtype=np.float32))[:, None] / self.focal
        x, y, z = np.broadcast_arrays(a * self.cos + self.sin, b, -a * self.sin + self.cos)
        return x, y, z


def place_camera(city: City, lanes: int, rng: np.random.Generator) -> Camera:
    """A camera in one of the lanes that lead away."""
    x = (int(rng.integers(lanes // 2)) + 0.5) * LANE + rng.normal(0, 0.25)
    center_u = (WIDTH / 2 + rng.normal(0, 4)) * SUPERSAMPLING
    center_v = (city.horizon + rng.normal(0, 2)) * SUPERSAMPLING
    yaw = rng.normal(0, 0.07)
    return Camera(
        x=x,
        y=city.camera_height,
        focal=city.focal * SUPERSAMPLING,
        center_u=center_u,
        center_v=center_v,
        cos=math.cos(yaw),
        sin=math.sin(yaw),
    )


def _clip(corners: list[Place]) -> list[Place]:
    """The part of a polygon, as the camera sees it, that lies beyond `NEAR`."""
    clipped = []
    for a, b in zip(corners, corners[1:] + corners[:1], strict=True):
        if a[2] >= NEAR:
            clipped.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            w = (NEAR - a[2]) / (b[2] - a[2])
            x, y, z = (p + w * (q - p) for p, q in zip(a, b, strict=True))
            clipped.append((x, y, z))
    return clipped


class Canvas:
    """Colours and labels, drawn at once and twice as fine as the image.

    Colours are square roots of radiance, so that 8 bits are enough for sun and shade.
    """

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        size = (WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING)
        self.width, self.height = size
        self.colours = Image.new("RGB", size)
        self.labels = Image.new("L", size, Label.SKY)
        self.colour_pen = ImageDraw.Draw(self.colours)
        self.label_pen = ImageDraw.Draw(self.labels)

    def polygon(self, outline: list[Place], fill: Ink | None, label: int) -> None:
        """Fill a polygon of the world; without `fill` only its label is drawn."""
        pixels = self.camera.project(outline)
        if len(pixels) < 3:
            return
        if fill is not None:
            self.colour_pen.polygon(pixels, fill=fill)
        self.label_pen.polygon(pixels, fill=label)

    def line(self, course: list[Place], metres: float, fill: Ink, label: int) -> None:
        """Draw a line of the world that is `metres` thick; posts keep one pixel of the image."""
        depth = self.camera.depth(*course[0])
        if min(self.camera.depth(*place) for place in course) < NEAR:
            return
        least = SUPERSAMPLING if label == Label.POLE else 1
        width = max(least, round(metres * self.camera.focal / depth))
        pixels = self.camera.project(course)
        self.colour_pen.line(pixels, fill=fill, width=width)
        self.label_pen.line(pixels, fill=label, width=width)

    def ellipse(self, at: Place, radii: tuple[float, float], fill: Ink, label: int) -> None:
        """Fill an ellipse that faces the camera; radii, across and up, in metres."""
        depth = self.camera.depth(*at)
        if depth < NEAR:
            return
        (u, v), scale = self.camera.project([at])[0], self.camera.focal / depth
        across, up = radii
        box = (u - across * scale, v - up * scale, u + across * scale, v + up * scale)
        self.colour_pen.ellipse(box, fill=fill)
        self.label_pen.ellipse(box, fill=label)

    def paste(
        self,
        corner: tuple[int, int],
        where: np.ndarray,
        radiance: np.ndarray,
        label: int | np.ndarray,
        coloured: bool | np.ndarray = True,
    ) -> None:
        """Put ray-cast pixels onto the canvas.

        Args:
            corner: the left and upper end of a box.
            where: bool [h, w], the n pixels of the box that are set.
            radiance: [n, 3], their colours.
            label: one for all, or [n].
            coloured: bool [n], False where what lies behind shows through.
        """
        for canvas, values, mask in (
            (self.colours, radiance, coloured),
            (self.labels, label, True),
        ):
            patch = np.zeros((*where.shape, 3) if canvas.mode == "RGB" else where.shape, np.uint8)
            patch[where] = values
            shown = where.astype(np.uint8)
            shown[where] = np.multiply(mask, 255)
            canvas.paste(Image.fromarray(patch), corner, Image.fromarray(shown))

    def box_around(self, pixels: list[Pixel]) -> Rectangle | None:
        """Canvas pixels that a polygon can touch, or None."""
        if len(pixels) < 3:
            return None
        us, vs = zip(*pixels, strict=True)
        u0, u1 = max(0, math.floor(min(us))), min(self.width, math.ceil(max(us)) + 1)
        v0, v1 = max(0, math.floor(min(vs))), min(self.height, math.ceil(max(vs)) + 1)
        return (u0, v0, u1, v1) if u0 < u1 and v0 < v1 else None
