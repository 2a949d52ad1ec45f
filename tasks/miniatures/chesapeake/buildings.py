"""What is built on a parcel."""

import numpy as np

from tasks.miniatures.chance import chance, choose
from tasks.miniatures.chesapeake.land_map import LandMap, Parcel


def draw_buildings(land: LandMap, parcel: Parcel, kind: str) -> None:
    """Draw what a kind of parcel carries; crops and woods carry nothing."""
    if kind == "homes":
        _draw_homes(land, parcel)
    elif kind == "shops":
        _draw_shops(land, parcel)
    elif kind == "farm":
        _draw_farm(land, parcel)
    elif kind == "quarry":
        pit = parcel.inset(land.rng.uniform(4, 10))
        land.rectangle(pit, choose(land.rng, land.quarries))


def _draw_homes(land: LandMap, parcel: Parcel) -> None:
    """Rows of houses along two sides, each with a drive to the road."""
    rng = land.rng
    pitch, roof = rng.uniform(8, 13), choose(rng, land.roofs)
    drive = choose(rng, land.pavings[:4])
    for u in np.arange(parcel.u0 + 8, parcel.u1 - 6, pitch):
        for edge, inward in ((parcel.v0, 1), (parcel.v1, -1)):
            if chance(rng, 0.15):
                continue
            v = edge + inward * rng.uniform(6, 9)
            land.line([land.place(u + 2, edge), land.place(u + 2, v)], 1.5, drive)
            half_u, half_v = rng.uniform(1.8, 3.0), rng.uniform(1.5, 2.4)
            house = Parcel(u - half_u, u + half_u, v - half_v, v + half_v)
            land.rectangle(house, roof if chance(rng, 0.5) else choose(rng, land.roofs))


def _draw_shops(land: LandMap, parcel: Parcel) -> None:
    """A car park with one or two large buildings, sometimes a sports court."""
    rng = land.rng
    lot = parcel.inset(rng.uniform(4, 8))
    if lot.u1 - lot.u0 < 12 or lot.v1 - lot.v0 < 12:
        return
    land.rectangle(lot, choose(rng, land.pavings[:3]))
    middle = lot.u0 + (lot.u1 - lot.u0) * rng.uniform(0.35, 0.6)
    top = lot.v0 + (lot.v1 - lot.v0) * rng.uniform(0.3, 0.5)
    land.rectangle(Parcel(lot.u0 + 2, middle, lot.v0 + 2, top), choose(rng, land.roofs))
    if chance(rng, 0.5):
        hall = Parcel(middle + 4, lot.u1 - 2, lot.v0 + 2, lot.v0 + 12)
        land.rectangle(hall, choose(rng, land.roofs))
    if chance(rng, 0.6):
        land.rectangle(Parcel(lot.u0 + 2, lot.u0 + 16, lot.v1 - 12, lot.v1 - 2), land.court)


def _draw_farm(land: LandMap, parcel: Parcel) -> None:
    """A yard of gravel, a house and a barn."""
    rng = land.rng
    yard = Parcel(parcel.u0 + 3, parcel.u0 + 22, parcel.v0 + 3, parcel.v0 + 18)
    land.rectangle(yard, land.pavings[3])
    for right, down in ((6, 5), (14, 10)):
        u, v = yard.u0 + right, yard.v0 + down
        barn = Parcel(u - rng.uniform(2, 3), u + 3, v - 2, v + rng.uniform(1.5, 4))
        land.rectangle(barn, choose(rng, land.roofs))
