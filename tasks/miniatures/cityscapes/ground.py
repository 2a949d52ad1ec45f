"""The ground: road, sidewalks, grass, and the shadows on it."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tasks.miniatures.cityscapes.texture import cloudy, mix, rgb, white
from tasks.miniatures.cityscapes.view import View
from tasks.miniatures.cityscapes.world import CROSSING, FAR, LANE, Label, Plot, Thing

KERB = 0.18  # width of the kerbstones, metres
PAVED, GRASS, BARE = 0, 1, 2  # ground of a plot
GROUND_OF = {"building": PAVED, "yard": GRASS, "park": GRASS, "wall": BARE, "crossing": PAVED}


def draw_ground(view: View, things: Sequence[Thing]) -> None:
    """Ray-cast all ground below the horizon, with the shadows of `things`."""
    camera, street, light = view.camera, view.street, view.light
    top = max(0, int(camera.center_v) + 1)
    dx, dy, dz = camera.rays((0, top, view.canvas.width, view.canvas.height))
    depth = camera.y / np.maximum(-dy, 1e-3)
    x, z = camera.x + depth * dx, depth * dz
    beyond = np.where(x > 0, x - street.kerbs[1], -x - street.kerbs[0])  # metres past the kerb
    crossing = (z > street.crossing) & (z < street.crossing + CROSSING)
    strip = (beyond > KERB) & (beyond < street.strip) & (white(z / 14, np.sign(x)) > 0.15)
    plot = beyond > street.strip + street.sidewalk

    kinds = _plot_grounds(street.plots, x, z)
    labels = np.where((beyond < 0) | crossing, Label.ROAD, Label.SIDEWALK)
    labels[(strip | (plot & (kinds > PAVED))) & ~crossing] = Label.TERRAIN
    labels[plot & (kinds == BARE) & ~crossing] = Label.GROUND
    colour = np.zeros((*x.shape, 3), np.float32)
    for texture, covered in (
        (_road, labels == Label.ROAD),
        (_paving, labels == Label.SIDEWALK),
        (_grass, (labels == Label.TERRAIN) | (labels == Label.GROUND)),
    ):
        colour[covered] = texture(view, x[covered], z[covered], depth[covered])
    colour[(labels == Label.SIDEWALK) & (beyond < KERB)] = rgb(view.city.paving) + 0.12

    cast, contact = (shadow[top:] for shadow in _shadows(view, things))
    lit = light.on((0, 1, 0), light.sunlit(x, 0 * x, z) * (1 - cast))
    lit = lit * (1 - 0.6 * contact)[..., None]
    inks = light.inks(colour, lit, depth)
    visible = depth < FAR
    view.canvas.paste((0, top), visible, inks[visible], labels[visible])


def _shadows(view: View, things: Sequence[Thing]) -> tuple[np.ndarray, np.ndarray]:
    """Shadows that things cast on the ground: by the sun and right below, [H, W] in 0..1."""
    to_sun = view.light.to_sun
    images = [Image.new("L", view.canvas.colours.size) for _ in range(2)]
    cast, contact = (ImageDraw.Draw(image) for image in images)

    def fill(pen: ImageDraw.ImageDraw, corners: list[tuple[float, float]]) -> None:
        pixels = view.camera.project([(x, 0, z) for x, z in corners])
        if len(pixels) > 2:
            pen.polygon(pixels, fill=255)

    for thing in things:
        area = thing.footprint
        if not area.height:
            continue
        near = [
            (area.x + i * area.half_x, area.z + j * area.half_z)
            for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))
        ]
        reach = min(area.height / to_sun[1], 12.0)
        far = [(a - reach * to_sun[0], b - reach * to_sun[2]) for a, b in near]
        for i in range(4):
            j = (i + 1) % 4
            fill(cast, [near[i], near[j], far[j], far[i]])
        fill(contact, near)
    by_sun, below = (
        np.asarray(image.filter(ImageFilter.GaussianBlur(2)), np.float32) / 255 for image in images
    )
    return by_sun, below


def _plot_grounds(plots: tuple[list[Plot], list[Plot]], x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """`PAVED`, `GRASS` or `BARE` at places of the ground, as if plots reached to the road."""
    grounds = np.zeros(x.shape, np.int8)
    for side, row in ((x < 0, plots[0]), (x >= 0, plots[1])):
        number = np.searchsorted([plot.z1 for plot in row], z).clip(0, len(row) - 1)
        grounds = np.where(side, np.array([GROUND_OF[plot.kind] for plot in row])[number], grounds)
    return grounds


def _road(view: View, x: np.ndarray, z: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Asphalt with patches, cracks, wheel tracks, rails and markings."""
    street = view.street
    grain = 0.92 + 0.14 * cloudy(x * 9 + 40, z * 5) + 0.1 * (white(x * 16, z * 9) - 0.5)
    grain *= np.where(white(x / 1.9 + 50, z / 5.5) < 0.07, 0.88, 1)
    grain *= np.where(np.abs(cloudy(x * 6, z * 6 + 90) - 0.45) < 0.008, 0.75, 1)
    grain *= 1 + 0.04 * np.cos(2 * np.pi * 2 * x / LANE)
    colour = rgb(view.city.asphalt) * grain[..., None]
    half = np.maximum(0.07, 0.6 * (depth / view.camera.focal))  # of a line; thin ones stay visible
    if street.rails:
        bed = np.abs(np.abs(x) - LANE / 2) < 1.2
        colour = mix(colour, 0.5 * bed * (white(x * 3, z * 3) > 0.2), view.city.paving)
        for offset in (-0.72, 0.72):
            rail = np.abs(np.abs(x) - LANE / 2 + offset) < half
            colour = mix(colour, rail, (0.25, 0.24, 0.24))
    lane = np.abs(x / LANE - np.round(x / LANE)) * LANE
    inner = np.abs(x) < (street.lanes / 2 - 0.5) * LANE
    line = (lane < half) & inner & ((z + view.index) % 6 < 3)
    line |= np.abs(np.abs(x) - (street.lanes / 2 * LANE - 0.1)) < half
    line &= (z < street.crossing) | (z > street.crossing + CROSSING)
    if street.zebra is not None:
        zebra = (z > street.zebra) & (z < street.zebra + 3)
        stop = (z > street.zebra - 1.6) & (z < street.zebra - 1.2) & (x > 0)
        line = np.where(zebra, (x % 1.0) < 0.5, line) | stop
    wear = np.clip(1.3 * cloudy(x * 12, z * 12 + 30) + 0.2, 0, 1)
    return mix(colour, line * wear, view.city.marking)


def _paving(view: View, x: np.ndarray, z: np.ndarray, _: np.ndarray) -> np.ndarray:
    """Slabs."""
    size = view.city.paving_size
    row = np.floor(z / size)
    a, b = x / size + 0.5 * (row % 2), z / size
    tone = 0.88 + 0.14 * white(a, b) + 0.16 * cloudy(x * 7, z * 7)
    joint = ((a % 1) < 0.09) | ((b % 1) < 0.09)
    return rgb(view.city.paving) * (tone * np.where(joint, 0.86, 1))[..., None]


def _grass(view: View, x: np.ndarray, z: np.ndarray, _: np.ndarray) -> np.ndarray:
    """Lawn, bare in places."""
    tone = 0.7 + 0.35 * cloudy(x * 10, z * 8) + 0.35 * (white(x * 20, z * 12) - 0.4)
    bare = np.clip((cloudy(x * 5 + 70, z * 5) - 0.6) * 6, 0, 0.8)
    return mix(rgb(view.city.grass) * tone[..., None], bare, (0.46, 0.4, 0.32))
