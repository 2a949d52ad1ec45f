"""Miniature INRIA aerial images: generated towns in INRIA's own files, layout and city names.

A stand-in for the INRIA Aerial Image Labeling dataset at 1/4 of its resolution (1.2 m instead of
0.3 m a pixel) and 1/10 of its tile size (500 x 500 pixels, 600 m), for trying the pipeline and for
comparing normalizations in minutes. No real image is used. Five training cities of six tiles,
five other test cities of two; cities differ in roofs, light, density, streets and ground. Unlike
the real test tiles, these have masks (`test/gt`), so that they can be scored.

Files, under the folder that `ensure` returns::

    AerialImageDataset/{train,test}/images/<city><n>.tif    8-bit RGB GeoTIFF
    AerialImageDataset/{train,test}/gt/<city><n>.tif        8-bit GeoTIFF, 0 or 255 (building)

How a tile is made: a site holds the height above ground, the reflectance and the footprints at
twice the tile's resolution. Streets are drawn first; buildings, yards, parking lots and sports
courts are then put along them, trees and cars where there is room. Light follows from the heights
alone: slopes towards the sun are bright, and everything casts its shadow. This tells roofs from the
flat pavements, courts and fields of the same colour. Clouds, haze and the seam of two flights
change the light within a tile.

The modules, each of which imports only those above it::

    cities      splits and styles
    grid        measures, rectangles on the ground, and noise over it
    site        the ground of one tile while it is drawn
    land, streets, buildings    what is drawn on it
    light       sun, shadows, clouds, haze and the camera
    scene       one tile, step by step
    files       which tiles there are, and how they are written
"""

from tasks.miniatures.inria.cities import CITIES, STYLES
from tasks.miniatures.inria.files import SEED, TILES_PER_CITY, VERSION, ensure, render

__all__ = ["CITIES", "SEED", "STYLES", "TILES_PER_CITY", "VERSION", "ensure", "render"]
