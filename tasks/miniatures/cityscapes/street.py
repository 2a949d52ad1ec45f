"""How a street is laid out: its lanes, kerbs, crossing, and the plots on both sides."""

from dataclasses import dataclass

import numpy as np

from tasks.miniatures.chance import chance
from tasks.miniatures.cityscapes.city import City
from tasks.miniatures.cityscapes.world import CROSSING, FAR, LANE, Plot


@dataclass(frozen=True)
class Street:
    """The plan of one street, in metres. Pairs are of the left and the right side."""

    lanes: int  # of both directions together
    bays: tuple[bool, bool]  # whether there is parking
    kerbs: tuple[float, float]  # distance from the centre line
    strip: float  # width of the grass between kerb and sidewalk
    sidewalk: float  # its width
    rails: bool
    crossing: float  # z at which another street begins to cross
    zebra: float | None  # z at which a zebra crossing begins
    plots: tuple[list[Plot], list[Plot]]  # nearest first

    def facade(self, side: int) -> float:
        """The x of the line behind which plots lie; `side` is -1 (left) or 1."""
        return side * (self.kerbs[side > 0] + self.strip + self.sidewalk)


def plan_street(city: City, lanes: int, index: int, rng: np.random.Generator) -> Street:
    """Draw the plan. Every fifth image of a city has rails."""
    bays = chance(rng, 0.5), chance(rng, 0.55)
    sidewalk = city.sidewalk * rng.uniform(0.8, 1.3)
    strip = city.strip if chance(rng, 0.75) else 0.0
    rails = index % 5 == 2 or chance(rng, 0.1)
    crossing = rng.uniform(9, 45) if chance(rng, 0.55) else rng.uniform(45, 80)
    zebra = crossing - 4.5 if chance(rng, 0.6) else None
    return Street(
        lanes=lanes,
        bays=bays,
        kerbs=(lanes / 2 * LANE + 2.1 * bays[0], lanes / 2 * LANE + 2.1 * bays[1]),
        strip=strip,
        sidewalk=sidewalk,
        rails=rails,
        crossing=crossing,
        zebra=zebra,
        plots=(_plan_plots(city, crossing, rng), _plan_plots(city, crossing, rng)),
    )


def _plan_plots(city: City, crossing: float, rng: np.random.Generator) -> list[Plot]:
    """One side of the street from behind the camera to `FAR`, nearest first."""
    plots: list[Plot] = []
    z, green = -30.0, city.greenery
    kinds = ("building", "yard", "park", "wall")
    shares = np.array([3.2, 0.6 * green + 0.6, 1.1 * green, 0.7])
    while z < FAR:
        if z < crossing < z + 12:
            plots.append(Plot("crossing", z, crossing + CROSSING, 0.0, 0))
        else:
            kind = str(rng.choice(kinds, p=shares / shares.sum()))
            end = z + rng.uniform(9, 24)
            if z < crossing < end:
                end = crossing
            height = {
                "building": max(4.0, city.building_height * rng.lognormal(0, 0.3)),
                "yard": 1.0,
                "park": 4.0,
                "wall": rng.uniform(1.8, 3.2),
            }[kind]
            plots.append(Plot(kind, z, end, height, int(rng.integers(1000))))
        z = plots[-1].z1
    return plots
