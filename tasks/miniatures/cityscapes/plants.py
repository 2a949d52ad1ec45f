"""Trees."""

import numpy as np

from tasks.miniatures.cityscapes.texture import cloudy, rgb, white
from tasks.miniatures.cityscapes.view import View
from tasks.miniatures.cityscapes.world import Label, Place


def draw_crown(view: View, at: Place, radius: float, squeeze: float = 1.0) -> None:
    """A ragged ball of leaves, lit from the sun's side and from above.

    `squeeze` is its height over its width.
    """
    camera, light, canvas = view.camera, view.light, view.canvas
    depth = camera.depth(*at)
    if depth < 1.5:
        return
    (u, v), r = camera.project([at])[0], radius * camera.focal / depth
    ru, rv = 1.3 * r, 1.3 * r * squeeze
    box = canvas.box_around([(u - ru, v - rv), (u + ru, v + rv), (u, v)])
    if box is None:
        return
    du = np.arange(box[0], box[2], dtype=np.float32)[None] + (0.5 - u)
    dv = np.arange(box[1], box[3], dtype=np.float32)[:, None] + (0.5 - v)
    a, b = np.broadcast_arrays(du / r, dv / (r * squeeze))
    shift = view.rng.uniform(0, 256, 2).tolist()
    lumps = cloudy(a * 22 + shift[0], b * 22 + shift[1])
    grain = max(1.0, r / 20)  # canvas pixels per tuft of leaves
    tufts = white(du / grain + shift[1], dv / grain + shift[0])
    inside = a * a + b * b + 1.3 * (lumps - 0.5) + 0.35 * (tufts - 0.5) < 0.95
    a, b, lumps, tufts = a[inside], b[inside], lumps[inside], tufts[inside]
    solid = (lumps > 0.27) | (tufts < 0.3) | (a * a + b * b < 0.3)
    towards = 1 if light.to_sun[0] * camera.cos > 0 else -1
    shape = np.clip(0.55 - 0.3 * b + 0.25 * a * towards, 0.15, 1)
    base = rgb(view.city.foliage[int(shift[0]) % len(view.city.foliage)])
    colour = base * (0.25 + 0.6 * tufts + 0.5 * lumps)[:, None]
    sunlit = (light.sun * 0.8 * light.sunlit(*at)).astype(np.float32)
    lit = (rgb(light.ambient) + sunlit * shape[:, None]) * (0.55 + 0.45 * shape)[:, None]
    inks = light.inks(colour, lit, np.float32(depth))
    canvas.paste(box[:2], inside, inks, Label.VEGETATION, solid)


def draw_tree(view: View, x: float, z: float, height: float) -> None:
    """A trunk and, near the camera, three crowns; far away one."""
    light, rng = view.light, view.rng
    lit = light.on((0, 0, -1), light.sunlit(x, 1.0, z)) * 0.8
    bark = light.ink((0.33, 0.27, 0.22), lit, z)
    trunk = [(x, 0.0, z), (x + 0.03 * height, 0.5 * height, z)]
    view.canvas.line(trunk, 0.03 * height + 0.08, bark, Label.VEGETATION)
    radius = 0.3 * height
    for _ in range(3 if z < 60 else 1):
        dx, dy = rng.normal(0, 0.35 * radius, 2)
        size = radius * rng.uniform(0.65, 1.0)
        squeeze = rng.uniform(0.8, 1.2)
        draw_crown(view, (x + dx, 0.7 * height + dy, z), size, squeeze)
