"""The world of the street scenes: its labels, its measures, and what stands in it.

World frame: x to the right and y up, in metres, with the origin on the road's centre line below the
camera; z along the street.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

HEIGHT, WIDTH = 128, 256  # pixels of an image
SUPERSAMPLING = 2  # pixels of the canvas per pixel of the image, both ways
LANE = 3.2  # width, metres
CROSSING = 9.0  # width of the street that crosses, metres
NEAR, FAR = 0.6, 170.0  # what is drawn, metres from the camera

Colour = tuple[float, float, float]  # red, green, blue in 0..1
AnyColour = Sequence[float] | np.ndarray  # three such numbers
Ink = tuple[int, int, int]  # a colour of the canvas, 0..255
Place = tuple[float, float, float]  # x, y, z in the world
Pixel = tuple[float, float]  # u to the right, v down, on the canvas
Rectangle = tuple[int, int, int, int]  # of the canvas: left, top, right, bottom; half open


class Label(IntEnum):
    """Cityscapes' labelIds. The first six are void in the evaluation, the others its 19 classes."""

    UNLABELED = 0
    EGO_VEHICLE = 1
    OUT_OF_ROI = 3
    STATIC = 4
    DYNAMIC = 5
    GROUND = 6
    ROAD = 7
    SIDEWALK = 8
    BUILDING = 11
    WALL = 12
    FENCE = 13
    POLE = 17
    TRAFFIC_LIGHT = 19
    TRAFFIC_SIGN = 20
    VEGETATION = 21
    TERRAIN = 22
    SKY = 23
    PERSON = 24
    RIDER = 25
    CAR = 26
    TRUCK = 27
    BUS = 28
    TRAIN = 31
    MOTORCYCLE = 32
    BICYCLE = 33


@dataclass(frozen=True)
class Plot:
    """A stretch of one side of the street; `kind` is building, yard, park, wall or crossing."""

    kind: str
    z0: float
    z1: float
    height: float  # of what stands at the street, for its shadow
    tone: int  # selects colours


@dataclass(frozen=True)
class Footprint:
    """The ground that a thing covers, and its height, which decides how long its shadow is."""

    x: float
    z: float
    half_x: float
    half_z: float
    height: float


@dataclass(frozen=True)
class Thing:
    """An object in the street. The farthest is drawn first."""

    depth: float  # metres in front of the camera
    draw: Callable[[], None]
    footprint: Footprint
