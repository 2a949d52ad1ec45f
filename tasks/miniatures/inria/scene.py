"""One tile, step by step."""

import numpy as np

from tasks.miniatures.inria.buildings import build_along
from tasks.miniatures.inria.cities import City
from tasks.miniatures.inria.land import draw_land, plant_trees
from tasks.miniatures.inria.light import develop, radiance_of, shrink
from tasks.miniatures.inria.site import Site
from tasks.miniatures.inria.streets import draw_streets, plan_streets


def draw_tile(city: City, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a tile of a city.

    The order of the steps is the order of the random draws: changing it changes every tile.

    Args:
        city: its style.
        rng: everything else follows from it.

    Returns:
        The image, uint8 [SIZE, SIZE, 3], and the mask of buildings, uint8 [SIZE, SIZE], 0 or 255.
    """
    site = Site(city, rng)
    draw_land(site)
    streets = plan_streets(site)
    draw_streets(site, streets)
    for street in streets:
        for side in (-1, 1):
            build_along(site, street, side)
    plant_trees(site)
    image = develop(site, radiance_of(site))
    mask = shrink(site.building.astype(np.float32)) >= 0.5
    return image, np.where(mask, 255, 0).astype(np.uint8)
