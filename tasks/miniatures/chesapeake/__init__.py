"""Miniature Chesapeake land cover: generated four-band aerial scenes in the dataset's own files.

A stand-in for the Maryland 2013 part at 1/4 of its linear size: patches of 64 x 64 pixels instead
of 256 x 256, tiles of 256 x 256, 4 metres a pixel. No real image is used. 25 scenes give 625
training patches, 5 others 125 validation patches, 5 others are the test tiles.

Files, under the folder that `ensure` returns (columns as in the real csv files)::

    md_1m_2013_extended-{train,val}_patches.csv
    md_1m_2013_extended-{train,val}_patches/md_1m_2013-<quad>-<n>.npz   arr_0: [1, 29, 64, 64]
    md_1m_2013_extended-test_tiles.csv
    md_1m_2013_extended-test_tiles/<quad>_naip-new.tif                  R, G, B, NIR, 8 bit
    md_1m_2013_extended-test_tiles/<quad>_lc.tif                        land-cover codes, 8 bit

How a scene is made: parcels, woods, water, roads, houses and trees are drawn into one map of
materials. A material has a land-cover code, a height and reflectances in four bands, in summer and
in autumn. Then the sun lights the heights, which shade one another, and strips of flight lines,
each with its own date, haze, view angle and sensor gains, turn reflectance into bytes.

Near-infrared decides where visible colours do not: a pond is as green as a crop or a shaded wood,
a metal roof as green as grass, gravel as brown as stubble; plants alone are bright in it. What one
band alone says is spoilt by light: the same material differs between flight lines and, by relief,
cloud and cast shadow, within one scene.

The modules, each of which imports only those above it::

    materials   land-cover codes and reflectances
    noise       random textures
    land_map    which material lies where, and the pen that draws it
    light       sun, shadows, clouds and the flights that record it
    buildings   what is built on a parcel
    scene       one scene, step by step
    files       which scenes there are, and how they are written
"""

from tasks.miniatures.chesapeake.files import SCENES, SEED, VERSION, ensure, render

__all__ = ["SCENES", "SEED", "VERSION", "ensure", "render"]
