"""Miniature Cityscapes: generated street scenes in Cityscapes' own files and label codes.

A stand-in for Cityscapes at 1/8 of its linear size (128 x 256 pixels), for trying the pipeline
and for comparing normalizations in minutes. No real image is used. 8 training cities of 25 images
and 5 validation cities of 10; every city has its own camera, light, haze, white balance and
palettes, and no city is in both splits. One image can be lit by sun and shade that differ several
times in brightness.

Files, under the folder that `ensure` returns::

    leftImg8bit/{train,val}/<city>/<city>_<seq>_<frame>_leftImg8bit.png       8-bit RGB
    gtFine/{train,val}/<city>/<city>_<seq>_<frame>_gtFine_labelIds.png        8-bit, labelIds

How an image is made: a city's style, the plan of a street, a camera and a light are drawn at
random. Sky, ground and facades are then ray-cast per pixel. Everything else is drawn as projected
polygons, from far to near. Colours and labels are drawn at once.

The modules, each of which imports only those above it::

    world       labels, measures, and the kinds of things that stand in the world
    city        what the images of one city share
    street      the plan of a street
    light       sun, sky, haze and shade
    camera      projection, and the canvas of colours and labels
    texture     noise, and the surfaces of houses, walls, hedges and fences
    view        all of the above for one image: what drawing functions are handed
    ground, plants, houses, solid, vehicles, people, furniture      what is drawn
    scene       one image, step by step
    files       which images there are, and how they are written
"""

from tasks.miniatures.cityscapes.city import CITIES
from tasks.miniatures.cityscapes.files import IMAGES_PER_CITY, SEED, VERSION, ensure, render

__all__ = ["CITIES", "IMAGES_PER_CITY", "SEED", "VERSION", "ensure", "render"]
