"""One image from the plan of its street to its exposure."""

import zlib
from itertools import chain

import numpy as np
from PIL import Image, ImageFilter

from tasks.miniatures.chance import choose
from tasks.miniatures.cityscapes.camera import Canvas, place_camera
from tasks.miniatures.cityscapes.city import City
from tasks.miniatures.cityscapes.furniture import plan_furniture
from tasks.miniatures.cityscapes.ground import draw_ground
from tasks.miniatures.cityscapes.houses import draw_backdrop, draw_plot
from tasks.miniatures.cityscapes.light import draw_light
from tasks.miniatures.cityscapes.people import plan_people
from tasks.miniatures.cityscapes.street import plan_street
from tasks.miniatures.cityscapes.texture import cloudy, mix, rgb
from tasks.miniatures.cityscapes.vehicles import plan_parked, plan_traffic
from tasks.miniatures.cityscapes.view import View
from tasks.miniatures.cityscapes.world import HEIGHT, SUPERSAMPLING, WIDTH, Label


def draw_image(city: City, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image of a city from far to near.

    The order of the steps is the order of the random draws: changing it changes every image.

    Args:
        city: its style.
        index: number of the image, which decides what rare things it shows.
        rng: everything else follows from it.

    Returns:
        The image, uint8 [HEIGHT, WIDTH, 3], and its labels, uint8 [HEIGHT, WIDTH].
    """
    view = _plan_view(city, index, rng)
    plans = (plan_parked, plan_traffic, plan_furniture, plan_people)
    planned = chain.from_iterable(plan(view) for plan in plans)
    things = [thing for thing in planned if thing.depth > 1.5]
    things.sort(key=lambda thing: -thing.depth)
    _draw_sky(view)
    draw_backdrop(view)
    draw_ground(view, things)
    for side, plots in zip((-1, 1), view.street.plots, strict=True):
        for plot in reversed(plots):
            draw_plot(view, side, plot)
    for thing in things:
        thing.draw()
    _draw_ego_vehicle(view)
    return _develop(view)


def _plan_view(city: City, index: int, rng: np.random.Generator) -> View:
    """The street, the camera and the light of one image, with an empty canvas."""
    lanes = choose(rng, city.lanes)
    camera = place_camera(city, lanes, rng)
    street = plan_street(city, lanes, index, rng)
    light = draw_light(city, street, rng)
    return View(city, street, light, camera, Canvas(camera), rng, index)


def _draw_sky(view: View) -> None:
    """A gradient, clouds, and the glow around a sun that stands before us."""
    city, camera, canvas, light = view.city, view.camera, view.canvas, view.light
    rows = min(canvas.height, int(camera.center_v) + 2)
    dx, dy, _ = camera.rays((0, 0, canvas.width, rows))
    up = np.clip(dy, 0.004, None)
    zenith, horizon = city.sky
    whole = np.broadcast_to(rgb(horizon), (*up.shape, 3))
    sky = mix(whole, np.clip(up / 0.35, 0, 1) ** 0.7, zenith)
    shift = view.rng.uniform(0, 256, 2).tolist()
    clouds = cloudy(shift[0] + dx / (up + 0.1) * 24, shift[1] + 30 / (up + 0.1))
    cover = np.clip((clouds - 0.75 + 0.5 * city.cloud) * 5, 0, 0.85)
    sky = mix(sky, cover, (0.93, 0.93, 0.94))
    to_sun = light.to_sun
    glow = np.exp(-(((dx - 0.8 * to_sun[0]) / 0.35) ** 2) - (up - to_sun[1]) ** 2 / 0.1)
    sky = mix(sky, 0.7 * glow * (to_sun[2] > 0) * min(1, light.sun[0]), (1, 0.98, 0.92))
    brightness = np.sqrt(np.clip(light.ambient.mean() * 2 + 0.25 * light.sun.mean(), 0.3, 1.0))
    pixels = (np.clip(sky * brightness, 0, 1) * 255).reshape(-1, 3)
    canvas.paste((0, 0), np.ones(up.shape, bool), pixels, Label.SKY)


def _draw_ego_vehicle(view: View) -> None:
    """The bonnet at the bottom, reflecting some sky; one shape in each city."""
    canvas, light = view.canvas, view.light
    width, height = canvas.width, canvas.height
    look = np.random.default_rng([zlib.crc32(str(view.city.focal).encode())])
    rise = look.uniform(0.05, 0.09) * height
    u = np.linspace(-20, width + 20, 24)
    v = height - rise * (1 - 0.55 * ((u - width / 2) / (width / 2)) ** 2)
    edge = list(zip(u.tolist(), v.tolist(), strict=True))
    outline = [*edge, (width + 20, height + 9), (-20, height + 9)]
    lit = light.ambient + light.sun * 0.3 * light.sunlit(view.camera.x, 1, 2)
    paint = np.array(choose(view.rng, view.city.paints[:1]))
    canvas.colour_pen.polygon(outline, fill=light.ink(paint * 0.8, lit, 0))
    shine = [(a, b + 0.3 * rise) for a, b in edge]
    fill = light.ink(np.clip(paint + 0.3, 0, 1), lit, 0)
    canvas.colour_pen.line(shine[5:-5], fill=fill, width=3)
    canvas.label_pen.polygon(outline, fill=Label.EGO_VEHICLE)


def _develop(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Expose the canvas: optics, exposure, white balance, tone curve, noise, 8 bits."""
    city, rng = view.city, view.rng
    fine = (np.asarray(view.canvas.colours, np.float32) / 255) ** 2
    radiance = fine.reshape(HEIGHT, SUPERSAMPLING, WIDTH, SUPERSAMPLING, 3).mean((1, 3))
    labels = _majority(np.asarray(view.canvas.labels))
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j].astype(np.float32)
    slope = rng.normal(0, 0.18, 2).tolist()
    shift = rng.uniform(0, 256, 2).tolist()
    patches = 0.7 * (cloudy(x * 20 + shift[0], y * 10 + shift[1]) - 0.5)
    local = slope[0] * x + slope[1] * y + patches
    radiance = radiance * (np.exp(local) * (1 - 0.22 * (x * x + y * y)))[..., None]
    middle = np.exp(np.log(radiance[labels != Label.SKY] + 0.01).mean())
    radiance = radiance * (0.17 * city.exposure * rng.lognormal(0, 0.15) / middle)
    radiance = radiance * np.array(city.white_balance) + 0.004
    radiance = radiance + rng.normal(0, city.noise, radiance.shape) * np.sqrt(radiance)
    radiance = np.clip(radiance, 0, None)
    display = np.clip(1.12 * (1 - np.exp(-1.5 * radiance)), 0, 1) ** (1 / city.gamma)
    grey = display.mean(-1, keepdims=True)
    display = np.clip(grey + city.saturation * (display - grey), 0, 1)
    sharp = Image.fromarray((255 * display).astype(np.uint8))
    image = np.array(sharp.filter(ImageFilter.GaussianBlur(0.35)))
    if city.frame:
        for edge in (np.s_[:1], np.s_[-1:], np.s_[:, :1], np.s_[:, -1:]):
            image[edge], labels[edge] = 0, Label.OUT_OF_ROI
    return image, labels


def _majority(labels: np.ndarray) -> np.ndarray:
    """The most frequent label of each 2 x 2 block, uint8 [2h, 2w] -> [h, w]."""
    a, b, c, d = labels[::2, ::2], labels[::2, 1::2], labels[1::2, ::2], labels[1::2, 1::2]
    rest = np.where((b == c) | (b == d), b, np.where(c == d, c, a))
    a_has_two = (a == b) | (a == c) | (a == d)
    return np.where(a_has_two & ~((b == c) & (c == d)), a, rest).astype(np.uint8)
