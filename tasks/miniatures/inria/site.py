"""The ground of one tile while it is drawn, and the random numbers that decide about it."""

import math

import numpy as np

from tasks.miniatures.chance import chance
from tasks.miniatures.inria.cities import City, Colour
from tasks.miniatures.inria.grid import CELLS, GRAINY, SMOOTH, Box, noise, patch_around


class Site:
    """What every cell of a tile holds; all drawing functions change it.

    Args:
        city: its style.
        rng: everything drawn follows from it, in order.

    Attributes:
        height: float32 [CELLS, CELLS], metres above ground.
        albedo: float32 [CELLS, CELLS, 3], the reflectance.
        building: bool [CELLS, CELLS], the footprints.
        taken: bool [CELLS, CELLS], what streets, buildings and the like cover.
        settled: float32 [CELLS, CELLS] in 0..1, high where villages are.
        grain: float32 [CELLS, CELLS] in 0..1, fine texture.
        angle: of the streets, radians.
    """

    def __init__(self, city: City, rng: np.random.Generator) -> None:
        self.city, self.rng = city, rng
        self.height = np.zeros((CELLS, CELLS), np.float32)
        self.albedo = np.zeros((CELLS, CELLS, 3), np.float32)
        self.building = np.zeros((CELLS, CELLS), bool)
        self.taken = np.zeros((CELLS, CELLS), bool)
        self.settled = random_field(rng, SMOOTH)
        self.grain = random_field(rng, GRAINY)
        self.angle = rng.uniform(-0.5, 0.5) + rng.integers(2) * math.pi / 2

    def chance(self, probability: float) -> bool:
        """True with that probability."""
        return chance(self.rng, probability)

    def sign(self) -> int:
        """-1 or 1."""
        return 2 * int(self.rng.integers(2)) - 1

    def draw(self, span: tuple[float, float]) -> float:
        """A number between two."""
        return float(self.rng.uniform(*span))

    def near(self, colours: tuple[Colour, ...], spread: float = 0.12) -> np.ndarray:
        """One of the colours, brighter or darker and slightly tinted: float32 [3]."""
        colour = np.array(colours[self.rng.integers(len(colours))], np.float32)
        factor = np.exp(self.rng.normal(0, spread) + self.rng.normal(0, spread / 4, 3))
        return (colour * factor).astype(np.float32)

    def is_free(self, box: Box) -> bool:
        """Whether nothing is in the way in a box, of which some lies on the tile."""
        patch = patch_around(box, -0.3)
        return bool(patch.inside.any()) and not (patch.inside & self.taken[patch.window]).any()

    def take(self, box: Box) -> None:
        """Nothing else is put into this box."""
        patch = patch_around(box)
        self.taken[patch.window] |= patch.inside

    def pave(self, box: Box, colour: np.ndarray, height: float = 0.0) -> None:
        """Fill a box, but for the buildings in it, with one colour."""
        patch = patch_around(box)
        inside = patch.inside & ~self.building[patch.window]
        grain = self.grain[patch.window][inside, None]
        self.albedo[patch.window][inside] = colour * (0.92 + 0.16 * grain)
        self.height[patch.window][inside] = height


def random_field(rng: np.random.Generator, exponent: float) -> np.ndarray:
    """A view of the periodic noise, moved and turned at random; float32 [CELLS, CELLS] in 0..1."""
    field = np.roll(noise(exponent), rng.integers(CELLS, size=2), (0, 1))
    field = np.rot90(field, int(rng.integers(4)))
    return field[::-1] if chance(rng, 0.5) else field
