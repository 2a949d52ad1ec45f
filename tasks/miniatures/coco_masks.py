"""Masks (bool [H, W]) as COCO's annotations hold them: run lengths and polygons."""

import numpy as np


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """A mask as COCO's uncompressed run lengths: column by column, beginning with zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"counts": counts.tolist(), "size": list(mask.shape)}


def polygons(mask: np.ndarray) -> list[list[float]]:
    """A mask as polygons [x1, y1, x2, y2, ...] along its pixels' edges, without overlap.

    COCO's polygons have no holes: a mask with a hole is cut in two through it.
    """
    found = []
    for loop in _outlines(mask):
        if _signed_area(loop) < 0:
            cut = round(float(loop[:, 0].mean()))
            left, right = mask.copy(), mask.copy()
            left[:, cut:] = right[:, :cut] = False
            return polygons(left) + polygons(right)
        found.append([float(v) for v in loop.ravel()])
    return found


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The closed lines between inside and outside: corners [K, 2] (x, y), the inside on the right.

    Pixels that touch at a corner only are not connected.
    """
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for neighbour, (x1, y1), (x2, y2) in (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),  # edge at the top: to the right
        (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)),
        (padded[1:-1, :-2], (0, 1), (0, 0)),
    ):
        for y, x in np.argwhere(inside & ~neighbour).tolist():
            following.setdefault((x + x1, y + y1), []).append((x + x2, y + y2))
    loops = []
    while following:
        at = next(iter(following))
        direction: tuple[int, int] | None = None
        corners: list[tuple[int, int]] = []
        while at in following:
            ends = following[at]
            turns = [_turn(direction, at, end) for end in ends]
            end = ends.pop(turns.index(max(turns)))  # right first: stay with the same pixel
            if not ends:
                del following[at]
            step = (end[0] - at[0], end[1] - at[1])
            if step != direction:
                corners.append(at)
            at, direction = end, step
        loops.append(np.array(corners))
    return loops


def _turn(direction: tuple[int, int] | None, at: tuple[int, int], end: tuple[int, int]) -> int:
    """1 for a turn to the right as seen on the screen, 0 straight on, -1 to the left."""
    if direction is None:
        return 0
    return direction[0] * (end[1] - at[1]) - direction[1] * (end[0] - at[0])


def _signed_area(loop: np.ndarray) -> float:
    """Positive if the inside is enclosed, negative for the border of a hole."""
    x, y = loop.T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2
