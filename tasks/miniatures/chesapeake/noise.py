"""Random textures that are periodic or cover the picture with touching crowns."""

import math

import numpy as np


def noise(rng: np.random.Generator, side: int, power: float) -> np.ndarray:
    """Periodic float32 [side, side] noise of mean 0 and variance 1 with a 1/f**power spectrum."""
    white = np.fft.rfft2(rng.standard_normal((side, side), dtype=np.float32))
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    radius[0, 0] = np.inf
    rough = np.fft.irfft2(white / radius**power, s=(side, side))
    return (rough / rough.std()).astype(np.float32)


def crowns(rng: np.random.Generator, side: int, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Tree crowns that touch: height in 0..1 and one random tone in 0..1 per crown, [side, side].

    One crown stands in every cell of a jittered grid; a pixel belongs to the nearest.
    """
    cells = math.ceil(side / spacing) + 2
    offset, tones = rng.uniform(0, 1, (2, cells, cells)), rng.random((cells, cells))
    y, x = np.mgrid[:side, :side] / spacing
    row, column = y.astype(int), x.astype(int)
    nearest, tone = np.full((side, side), np.inf), np.zeros((side, side))
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            r, c = (row + down) % cells, (column + right) % cells
            distance = (row + down + offset[0, r, c] - y) ** 2
            distance += (column + right + offset[1, r, c] - x) ** 2
            closer = distance < nearest
            nearest[closer], tone[closer] = distance[closer], tones[r, c][closer]
    return np.clip(1 - nearest, 0, 1).astype(np.float32), tone.astype(np.float32)
