"""What surfaces are made of, and the land-cover code of each."""

from dataclasses import dataclass

WATER, FOREST, FIELD, BARREN, IMPERVIOUS, ROAD, NO_DATA = 1, 2, 3, 4, 5, 6, 15  # land-cover codes
CODES = (WATER, FOREST, FIELD, BARREN, IMPERVIOUS, ROAD, NO_DATA)

Bands = tuple[float, float, float, float]  # red, green, blue, near-infrared


@dataclass(frozen=True)
class Material:
    """What a surface is made of. Reflectances are 0..1."""

    code: int
    summer: Bands
    autumn: Bands | None = None  # None: as in summer
    height: float = 0.0  # pixels, of canopy or roof
    mottle: float = 0.08  # relative amplitude of irregular texture
    rows: float = 0.0  # relative amplitude of sowing or parking rows
    row_angle: float = 0.0  # radians


LAWN = Material(FIELD, (0.09, 0.15, 0.06, 0.44), (0.16, 0.18, 0.08, 0.37))
WATERS = (
    Material(WATER, (0.035, 0.055, 0.055, 0.02), mottle=0.04),
    Material(WATER, (0.05, 0.085, 0.045, 0.025), mottle=0.05),
    Material(WATER, (0.17, 0.15, 0.10, 0.055), mottle=0.05),
    Material(WATER, (0.08, 0.13, 0.055, 0.06), mottle=0.1),
)
WOODS = (
    Material(FOREST, (0.06, 0.10, 0.045, 0.44), (0.22, 0.15, 0.06, 0.34), height=3.2),
    Material(FOREST, (0.05, 0.09, 0.045, 0.38), (0.16, 0.14, 0.06, 0.34), height=2.6),
    Material(FOREST, (0.04, 0.07, 0.04, 0.27), height=3.6),
)
CROPS = (
    Material(FIELD, (0.10, 0.15, 0.07, 0.42), (0.21, 0.20, 0.11, 0.36), mottle=0.14),
    Material(FIELD, (0.055, 0.095, 0.045, 0.46), (0.29, 0.25, 0.15, 0.36), rows=0.08),
    Material(FIELD, (0.32, 0.27, 0.17, 0.36), rows=0.1),
    Material(FIELD, (0.21, 0.17, 0.12, 0.27), (0.10, 0.15, 0.07, 0.40), rows=0.12),
    Material(FIELD, (0.20, 0.21, 0.10, 0.40), (0.27, 0.24, 0.14, 0.36), mottle=0.12),
)
ASPHALTS = (
    Material(ROAD, (0.17, 0.17, 0.165, 0.165)),
    Material(ROAD, (0.08, 0.08, 0.08, 0.085)),
    Material(ROAD, (0.34, 0.33, 0.30, 0.31)),
)
PAVINGS = (
    Material(IMPERVIOUS, (0.15, 0.15, 0.148, 0.15), rows=0.12),
    Material(IMPERVIOUS, (0.07, 0.075, 0.075, 0.075), rows=0.2),
    Material(IMPERVIOUS, (0.36, 0.34, 0.30, 0.31)),
    Material(IMPERVIOUS, (0.32, 0.28, 0.19, 0.25)),
    Material(IMPERVIOUS, (0.08, 0.145, 0.08, 0.10)),
)
COURT = PAVINGS[4]
ROOFS = (
    Material(IMPERVIOUS, (0.20, 0.20, 0.20, 0.20), height=1.5),
    Material(IMPERVIOUS, (0.09, 0.085, 0.08, 0.09), height=1.5),
    Material(IMPERVIOUS, (0.55, 0.55, 0.54, 0.50), height=1.8),
    Material(IMPERVIOUS, (0.27, 0.16, 0.12, 0.24), height=1.5),
    Material(IMPERVIOUS, (0.08, 0.14, 0.075, 0.11), height=1.5),
)
QUARRIES = (
    Material(BARREN, (0.36, 0.29, 0.20, 0.30), mottle=0.25),
    Material(BARREN, (0.30, 0.27, 0.22, 0.26), mottle=0.2),
)
