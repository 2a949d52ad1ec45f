"""Miniature ImageNet: generated pictures of ten kinds of things in ImageNet's own files.

A stand-in for ImageNet at 1/4 of its linear size (short side 64 to 90 pixels), for trying the
pipeline and for comparing normalizations in minutes. No real image is used. 50 training and 20
validation images of each class; the class is in the shape, the parts and the pattern of the thing,
while colours, background, light, pose and size are drawn from the same distributions for all.

Files, under the folder that `ensure` returns::

    train/<wnid>/<wnid>_<number>.JPEG              8-bit JPEG of quality 85
    val/<wnid>/ILSVRC2012_val_<8 digits>.JPEG

As in the real set, a few training images are odd: one is CMYK, some are greyscale, and one is a
PNG in spite of its name.

How an image is made: a cluttered background, and over it the thing with its shadow, are drawn at
three times the size and reduced; then the light on the scene (direction, a shade with a soft edge),
the camera's exposure, white balance and contrast, and noise are applied.

The modules, each of which imports only those above it::

    sketch      drawing a thing in coordinates of its own
    things      the classes, and how each is drawn
    scene       one picture, step by step
    files       which images there are, and how they are written
"""

from tasks.miniatures.imagenet.files import IMAGES_PER_CLASS, SEED, VERSION, ensure, render
from tasks.miniatures.imagenet.things import CLASSES

__all__ = ["CLASSES", "IMAGES_PER_CLASS", "SEED", "VERSION", "ensure", "render"]
