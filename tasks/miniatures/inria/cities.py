"""The ten cities: what their tiles have in common, and the styles that tell them apart."""

from dataclasses import dataclass

Colour = tuple[float, float, float]  # red, green, blue in 0..1

CITIES = {
    "train": ("austin", "chicago", "kitsap", "tyrol-w", "vienna"),
    "test": ("bellingham", "bloomington", "innsbruck", "sfo", "tyrol-e"),
}


@dataclass(frozen=True)
class Light:
    """Sun, air and camera of one city's flight. Colours are RGB factors."""

    elevation: float  # of the sun, degrees
    azimuth: float  # of the sun, degrees clockwise from north
    sky: float  # share of the light on open ground that shade gets too
    tint: Colour  # white balance
    exposure: float
    haze: float  # share of haze in a pixel's light, mean over the tile
    clouds: float  # share of the tile in cloud shadow, at most
    gamma: float
    saturation: float


@dataclass(frozen=True)
class Streets:
    """A grid of streets, which `bend` turns into winding roads."""

    spacing: tuple[float, float]  # of the streets of the two directions; 0: none
    width: float
    bend: float  # metres that a street strays from its line


@dataclass(frozen=True)
class Town:
    """What stands along the streets."""

    frontage: tuple[float, float]  # length of a building along the street
    depth: tuple[float, float]
    gap: tuple[float, float]  # between neighbours; 0 makes closed rows
    setback: tuple[float, float]
    height: tuple[float, float]  # of the eaves
    density: float  # share of lots that are built on
    villages: float  # 0: evenly built; 1: in clusters only
    roofs: dict[str, float]  # shapes (see `buildings`) and how frequent they are
    pitch: float  # rise per metre
    colours: tuple[Colour, ...]  # of roofs
    wings: float  # share of buildings of L shape
    halls: float  # share of lots with a large hall or a parking lot


@dataclass(frozen=True)
class Land:
    """Ground and plants. Colours are reflectances."""

    grass: tuple[Colour, ...]
    yard: Colour
    asphalt: Colour
    paving: Colour
    foliage: tuple[Colour, ...]
    trees: float  # single ones per hectare
    forest: float = 0.0  # share of the ground
    farmed: float = 0.0  # share of the ground
    fields: tuple[Colour, ...] = ()


@dataclass(frozen=True)
class City:
    """What all tiles of one city share."""

    epsg: int  # of the coordinate system, metres
    corner: tuple[float, float]  # of the first tile: easting of its west, northing of its north
    light: Light
    streets: Streets
    town: Town
    land: Land


_TILE_RED, _TILE_BROWN = (0.46, 0.22, 0.15), (0.33, 0.22, 0.17)
_SLATE, _GREY, _PALE = (0.2, 0.21, 0.23), (0.36, 0.36, 0.36), (0.62, 0.61, 0.58)
_TAN, _WHITE = (0.47, 0.39, 0.3), (0.8, 0.8, 0.78)
_BLUE, _GREEN = (0.24, 0.31, 0.4), (0.24, 0.34, 0.3)

STYLES = {
    "austin": City(
        epsg=26914, corner=(616_500, 3_348_000),
        light=Light(
            elevation=62, azimuth=150, sky=0.3, tint=(1.04, 1.0, 0.95), exposure=1.12, haze=0.03,
            clouds=0.0, gamma=2.1, saturation=1.1,
        ),
        streets=Streets(spacing=(78, 190), width=9, bend=14),
        town=Town(
            frontage=(12, 18), depth=(10, 15), gap=(3, 8), setback=(6, 10), height=(3, 4.5),
            density=0.88, villages=0.1, roofs={"hip": 0.65, "gable": 0.25, "flat": 0.1},
            pitch=0.45, colours=(_TAN, _GREY, _TILE_BROWN, _PALE), wings=0.45, halls=0.05,
        ),
        land=Land(
            grass=((0.36, 0.34, 0.2), (0.28, 0.32, 0.15)), yard=(0.4, 0.36, 0.26),
            asphalt=(0.34, 0.34, 0.34), paving=(0.58, 0.56, 0.52),
            foliage=((0.12, 0.19, 0.08), (0.17, 0.22, 0.1)), trees=16,
        ),
    ),
    "chicago": City(
        epsg=26916, corner=(443_000, 4_640_000),
        light=Light(
            elevation=45, azimuth=200, sky=0.42, tint=(0.97, 1.0, 1.05), exposure=0.85, haze=0.09,
            clouds=0.3, gamma=2.0, saturation=0.8,
        ),
        streets=Streets(spacing=(70, 200), width=11, bend=0),
        town=Town(
            frontage=(6.5, 8.5), depth=(15, 21), gap=(0.8, 3), setback=(4, 6), height=(6, 9),
            density=0.85, villages=0.0, roofs={"flat": 0.7, "gable": 0.3}, pitch=0.5,
            colours=(_GREY, _SLATE, _PALE, _TILE_BROWN), wings=0.0, halls=0.07,
        ),
        land=Land(
            grass=((0.2, 0.27, 0.13), (0.25, 0.27, 0.17)), yard=(0.22, 0.27, 0.15),
            asphalt=(0.3, 0.3, 0.31), paving=(0.48, 0.48, 0.47),
            foliage=((0.1, 0.17, 0.07), (0.14, 0.2, 0.09)), trees=12,
        ),
    ),
    "kitsap": City(
        epsg=26910, corner=(520_000, 5_271_000),
        light=Light(
            elevation=38, azimuth=165, sky=0.25, tint=(0.95, 1.02, 1.03), exposure=0.8, haze=0.03,
            clouds=0.35, gamma=2.3, saturation=1.0,
        ),
        streets=Streets(spacing=(115, 0), width=7, bend=50),
        town=Town(
            frontage=(11, 18), depth=(9, 13), gap=(8, 22), setback=(8, 18), height=(3, 5.5),
            density=0.8, villages=0.25, roofs={"gable": 0.75, "hip": 0.25}, pitch=0.55,
            colours=(_GREY, _SLATE, _TILE_BROWN, _GREEN), wings=0.35, halls=0.04,
        ),
        land=Land(
            grass=((0.25, 0.31, 0.13), (0.33, 0.32, 0.18)), yard=(0.32, 0.29, 0.22),
            asphalt=(0.28, 0.28, 0.28), paving=(0.42, 0.42, 0.4),
            foliage=((0.07, 0.13, 0.06), (0.09, 0.15, 0.08)), forest=0.35, trees=22,
        ),
    ),
    "tyrol-w": City(
        epsg=31254, corner=(40_000, 230_500),
        light=Light(
            elevation=52, azimuth=140, sky=0.22, tint=(1.0, 1.0, 1.0), exposure=1.1, haze=0.02,
            clouds=0.4, gamma=2.0, saturation=1.0,
        ),
        streets=Streets(spacing=(95, 160), width=6, bend=45),
        town=Town(
            frontage=(13, 21), depth=(11, 16), gap=(6, 16), setback=(3, 9), height=(5, 8),
            density=0.92, villages=0.45, roofs={"gable": 0.85, "hip": 0.15}, pitch=0.4,
            colours=(_TILE_RED, _TILE_BROWN, _SLATE, _GREY), wings=0.3, halls=0.05,
        ),
        land=Land(
            grass=((0.26, 0.38, 0.1), (0.3, 0.4, 0.13)), yard=(0.34, 0.36, 0.2),
            asphalt=(0.38, 0.38, 0.38), paving=(0.56, 0.55, 0.52),
            foliage=((0.06, 0.13, 0.05), (0.12, 0.2, 0.07)),
            fields=((0.33, 0.42, 0.14), (0.42, 0.4, 0.2), (0.36, 0.27, 0.18), (0.22, 0.34, 0.1)),
            farmed=0.6, forest=0.12, trees=8,
        ),
    ),
    "vienna": City(
        epsg=31256, corner=(1_000, 341_000),
        light=Light(
            elevation=40, azimuth=175, sky=0.38, tint=(1.05, 1.0, 0.95), exposure=0.95, haze=0.08,
            clouds=0.15, gamma=2.2, saturation=0.95,
        ),
        streets=Streets(spacing=(95, 120), width=13, bend=4),
        town=Town(
            frontage=(15, 26), depth=(11, 14), gap=(0, 0), setback=(0.5, 1.5), height=(14, 20),
            density=0.93, villages=0.0, roofs={"gable": 0.7, "flat": 0.2, "hip": 0.1}, pitch=0.6,
            colours=(_TILE_RED, _TILE_BROWN, _GREY, _SLATE), wings=0.25, halls=0.03,
        ),
        land=Land(
            grass=((0.25, 0.3, 0.15), (0.38, 0.36, 0.3)), yard=(0.37, 0.36, 0.31),
            asphalt=(0.33, 0.33, 0.33), paving=(0.45, 0.43, 0.4),
            foliage=((0.11, 0.19, 0.08), (0.17, 0.24, 0.1)), trees=14,
        ),
    ),
    "bellingham": City(
        epsg=26910, corner=(538_000, 5_401_000),
        light=Light(
            elevation=33, azimuth=190, sky=0.5, tint=(0.94, 1.02, 1.06), exposure=0.72, haze=0.12,
            clouds=0.3, gamma=2.2, saturation=0.85,
        ),
        streets=Streets(spacing=(85, 130), width=9, bend=10),
        town=Town(
            frontage=(10, 16), depth=(9, 13), gap=(4, 12), setback=(6, 11), height=(4, 6),
            density=0.82, villages=0.2, roofs={"gable": 0.65, "hip": 0.2, "flat": 0.15},
            pitch=0.55, colours=(_SLATE, _GREY, _TILE_BROWN, _BLUE), wings=0.35, halls=0.06,
        ),
        land=Land(
            grass=((0.24, 0.32, 0.14), (0.28, 0.31, 0.17)), yard=(0.27, 0.29, 0.18),
            asphalt=(0.31, 0.31, 0.32), paving=(0.45, 0.45, 0.44),
            foliage=((0.08, 0.15, 0.07), (0.11, 0.18, 0.08)), forest=0.15, trees=20,
        ),
    ),
    "bloomington": City(
        epsg=26916, corner=(540_000, 4_336_000),
        light=Light(
            elevation=28, azimuth=215, sky=0.22, tint=(1.08, 1.0, 0.88), exposure=1.15, haze=0.04,
            clouds=0.2, gamma=2.1, saturation=0.9,
        ),
        streets=Streets(spacing=(95, 210), width=8, bend=30),
        town=Town(
            frontage=(12, 19), depth=(9, 13), gap=(6, 16), setback=(8, 14), height=(3, 5),
            density=0.75, villages=0.3, roofs={"gable": 0.6, "hip": 0.25, "flat": 0.15}, pitch=0.5,
            colours=(_TILE_BROWN, _GREY, _PALE, _TAN), wings=0.4, halls=0.07,
        ),
        land=Land(
            grass=((0.36, 0.33, 0.2), (0.4, 0.35, 0.24)), yard=(0.38, 0.33, 0.24),
            asphalt=(0.36, 0.35, 0.34), paving=(0.56, 0.54, 0.5),
            foliage=((0.3, 0.2, 0.1), (0.22, 0.17, 0.11), (0.14, 0.17, 0.09)),
            fields=((0.42, 0.35, 0.24), (0.36, 0.34, 0.2)), farmed=0.15, forest=0.18, trees=18,
        ),
    ),
    "innsbruck": City(
        epsg=31254, corner=(80_000, 237_000),
        light=Light(
            elevation=47, azimuth=160, sky=0.3, tint=(0.93, 0.99, 1.1), exposure=1.0, haze=0.2,
            clouds=0.3, gamma=2.0, saturation=0.95,
        ),
        streets=Streets(spacing=(85, 125), width=10, bend=18),
        town=Town(
            frontage=(14, 24), depth=(11, 14), gap=(0, 9), setback=(1, 5), height=(9, 15),
            density=0.85, villages=0.2, roofs={"gable": 0.45, "hip": 0.25, "flat": 0.3},
            pitch=0.45, colours=(_TILE_RED, _SLATE, _PALE, _GREY, _GREEN), wings=0.3, halls=0.06,
        ),
        land=Land(
            grass=((0.25, 0.36, 0.12), (0.29, 0.36, 0.15)), yard=(0.34, 0.35, 0.25),
            asphalt=(0.36, 0.36, 0.37), paving=(0.52, 0.51, 0.5),
            foliage=((0.09, 0.17, 0.07), (0.13, 0.21, 0.08)),
            fields=((0.31, 0.4, 0.14), (0.4, 0.37, 0.22)), farmed=0.25, forest=0.05, trees=14,
        ),
    ),
    "sfo": City(
        epsg=26910, corner=(548_000, 4_180_500),
        light=Light(
            elevation=55, azimuth=230, sky=0.35, tint=(1.02, 1.0, 0.98), exposure=1.3, haze=0.16,
            clouds=0.0, gamma=2.3, saturation=0.7,
        ),
        streets=Streets(spacing=(75, 150), width=14, bend=0),
        town=Town(
            frontage=(7, 9), depth=(15, 20), gap=(0, 0.6), setback=(0.5, 3), height=(7, 12),
            density=0.93, villages=0.0, roofs={"flat": 0.85, "shed": 0.1, "gable": 0.05},
            pitch=0.3, colours=(_PALE, _WHITE, _GREY, _TAN), wings=0.1, halls=0.04,
        ),
        land=Land(
            grass=((0.34, 0.34, 0.22), (0.29, 0.32, 0.18)), yard=(0.36, 0.34, 0.27),
            asphalt=(0.37, 0.37, 0.37), paving=(0.62, 0.6, 0.57),
            foliage=((0.12, 0.19, 0.09), (0.16, 0.22, 0.11)), trees=7,
        ),
    ),
    "tyrol-e": City(
        epsg=31254, corner=(180_000, 190_500),
        light=Light(
            elevation=30, azimuth=115, sky=0.18, tint=(1.06, 1.0, 0.92), exposure=0.95, haze=0.05,
            clouds=0.35, gamma=2.2, saturation=1.0,
        ),
        streets=Streets(spacing=(105, 0), width=6, bend=60),
        town=Town(
            frontage=(12, 22), depth=(10, 16), gap=(6, 16), setback=(3, 10), height=(4, 8),
            density=0.92, villages=0.5, roofs={"gable": 0.9, "shed": 0.1}, pitch=0.5,
            colours=(_TILE_BROWN, _GREY, _SLATE, _TILE_RED), wings=0.2, halls=0.06,
        ),
        land=Land(
            grass=((0.32, 0.36, 0.14), (0.38, 0.37, 0.18)), yard=(0.4, 0.37, 0.26),
            asphalt=(0.4, 0.39, 0.38), paving=(0.56, 0.54, 0.5),
            foliage=((0.06, 0.12, 0.05), (0.1, 0.16, 0.06)),
            fields=((0.42, 0.4, 0.18), (0.46, 0.38, 0.24), (0.3, 0.36, 0.14)), farmed=0.65,
            forest=0.2, trees=8,
        ),
    ),
}  # fmt: skip
