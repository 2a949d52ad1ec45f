"""Sun, sky, haze, and the shade of the houses on the sun's side."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from tasks.miniatures.chance import choose
from tasks.miniatures.cityscapes.city import City
from tasks.miniatures.cityscapes.street import Street
from tasks.miniatures.cityscapes.world import AnyColour, Ink


@dataclass(frozen=True)
class Light:
    """The light of one image. Light is RGB, float64 [3]; 1 is about full sun."""

    to_sun: tuple[float, float, float]  # unit vector in the world
    sun: np.ndarray
    ambient: np.ndarray  # of the sky; shade gets it too
    haze: np.ndarray  # colour of distant air
    haze_reach: float  # metres after which 63 % of the light is haze
    wall: float  # x of the facades on the sun's side
    wall_ends: np.ndarray  # float32 [plots], z at which they end
    wall_heights: np.ndarray  # float32 [plots + 1], metres; the last is of what lies beyond them

    @overload
    def sunlit(self, x: float, y: float, z: float) -> float: ...

    @overload
    def sunlit(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray: ...

    def sunlit(
        self, x: float | np.ndarray, y: float | np.ndarray, z: float | np.ndarray
    ) -> float | np.ndarray:
        """Share of the sun's light, 0..1, that passes the houses on its side; soft at the edge."""
        way = np.maximum((self.wall - x) / self.to_sun[0], 0)
        plot = np.searchsorted(self.wall_ends, z + way * self.to_sun[2])
        clearance = y + way * self.to_sun[1] - self.wall_heights[plot]
        lit = np.clip(0.5 + clearance / (0.5 + 0.06 * way), 0, 1)
        return lit if isinstance(lit, np.ndarray) else float(lit)

    def on(self, normal: Sequence[float], sunlit: float | np.ndarray) -> np.ndarray:
        """Light on a surface: [3], or [..., 3] for an array `sunlit`."""
        facing = max(0.0, sum(n * s for n, s in zip(normal, self.to_sun, strict=True)))
        sky = (self.ambient * (0.8 + 0.2 * normal[1])).astype(np.float32)
        if isinstance(sunlit, float):
            return sky + self.sun * (facing * sunlit)
        return sky + (self.sun * facing).astype(np.float32) * sunlit[..., None]

    def on_upright(self, x: float, y: float, z: float) -> np.ndarray:
        """Light [3] on something upright that faces the camera."""
        lit = self.sunlit(x, y, z)
        return self.ambient * 0.9 + self.sun * lit * (0.35 + 0.5 * max(0.0, -self.to_sun[2]))

    def ink(self, colour: AnyColour, light: np.ndarray, depth: float) -> Ink:
        """What the canvas holds for a flat colour in that light, `depth` metres away."""
        air = math.exp(-depth / self.haze_reach)
        lit = [float(c) * math.sqrt(l) * air for c, l in zip(colour, light, strict=True)]
        mixed = [c + h * (1 - air) for c, h in zip(lit, self.haze.tolist(), strict=True)]
        r, g, b = (int(255 * min(1.0, c)) for c in mixed)
        return r, g, b

    def inks(
        self, colours: np.ndarray, light: np.ndarray, depth: np.ndarray | np.float32
    ) -> np.ndarray:
        """As `ink`, for arrays: colours and light [..., 3], depth [...]; gives floats [..., 3]."""
        air = np.exp(-depth / self.haze_reach)[..., None]
        haze = self.haze.astype(np.float32)
        return np.clip(255 * (colours * np.sqrt(light) * air + haze * (1 - air)), 0, 255)


def draw_light(city: City, street: Street, rng: np.random.Generator) -> Light:
    """The city's light on one day, with the sun to the left or the right, behind or before us."""
    elevation = math.radians(city.sun_elevation + rng.normal(0, 3))
    azimuth = math.radians(rng.uniform(20, 75))
    to_sun = (
        math.cos(elevation) * math.sin(azimuth) * choose(rng, (-1, 1)),
        math.sin(elevation),
        math.cos(elevation) * math.cos(azimuth) * choose(rng, (-1, 1)),
    )
    strength = rng.uniform(0.75, 1.1)
    side = 1 if to_sun[0] > 0 else -1
    plots = street.plots[side > 0]
    return Light(
        to_sun=to_sun,
        sun=np.array(city.sun) * strength,
        ambient=np.array(city.ambient) * rng.uniform(0.85, 1.15),
        haze=0.5 * (np.array(city.sky[0]) + np.array(city.sky[1])),
        haze_reach=city.haze,
        wall=street.facade(side),
        wall_ends=np.array([plot.z1 for plot in plots], np.float32),
        wall_heights=np.array([plot.height for plot in plots] + [12.0], np.float32),
    )
