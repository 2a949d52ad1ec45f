"""Numba loops over pixels: what augmentation does to every one of them, in a single pass each.

They give the bits that torchvision's transforms give on an x86 processor with AVX2.
"""

# mypy: allow-untyped-defs, allow-untyped-calls

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic


def _compiled(function: Any) -> Any:
    options: dict[str, Any] = {"error_model": "numpy", "nogil": True}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no directory to keep compiled code in: compile in every process
        return njit(**options)(function)


@_compiled
def look_up(image, table, out):
    """``out[c, y, x] = table[c, image[y, x, c]]``: float32 [C, H, W] of uint8 [H, W, C]."""
    height, width, channels = image.shape
    for y in range(height):
        for c in range(channels):
            row, line = table[c], out[c, y]
            for x in range(width):
                line[x] = row[image[y, x, c]]


@_compiled
def normalize(image, mean, std, out):
    """Subtracts each channel's mean and divides by its deviation: float32 [C, H * W]."""
    for c in range(len(image)):
        for k in range(image.shape[1]):
            out[c, k] = (image[c, k] - mean[c]) / std[c]


# ------------------------------------------------------------------------------------- colours
#
# float32 [3, pixels], R, G, B in 0..1, changed in place.


@intrinsic
def _sum(typing_context, a, b, c):
    """``a * b + c`` in one rounding, as PyTorch adds with a factor (`alpha`)."""
    return types.float32(a, b, c), lambda context, builder, signature, args: builder.fma(*args)


@_compiled
def _within(value):
    return min(max(value, np.float32(0)), np.float32(1))


@_compiled
def grey(image, out):
    """The brightness of every pixel."""
    for k in range(len(out)):
        value = image[0, k] * np.float32(0.2989)
        value = _sum(image[1, k], np.float32(0.587), value)
        out[k] = _sum(image[2, k], np.float32(0.114), value)


@_compiled
def brighten(image, factor):
    """Times a factor, cut off at 0 and 1."""
    for c in range(len(image)):
        for k in range(image.shape[1]):
            image[c, k] = _within(image[c, k] * factor)


@_compiled
def blend(image, factor, other, share):
    """Times a factor, plus a share of another image of one channel."""
    for c in range(len(image)):
        for k in range(image.shape[1]):
            image[c, k] = _within(_sum(other[k], share, image[c, k] * factor))


# ------------------------------------------------------------------------------------- scaling
#
# As PyTorch's bilinear interpolation of bytes: along rows, then along columns, the result of either
# rounded to bytes. A weight is a whole number, in units of 2 ** -precision, where precision is the
# largest with which the largest weight of all is below 2 ** 15.


@_compiled
def _neighbours(size, new_size, first, weight):
    """Of each new cell: the first of the two cells it lies between, the second's weight; returns
    the weights' precision."""
    scale = size / new_size
    largest = 0.0
    for i in range(new_size):
        place = max(scale * (i + 0.5) - 0.5, 0.0)
        cell = min(int(place), size - 1)
        part = min(max(place - cell, 0.0), 1.0)
        if cell == size - 1:
            cell, part = max(size - 2, 0), 1.0 if size > 1 else 0.0
        first[i], weight[i] = cell, part
        largest = max(largest, part, 1.0 - part)
    precision = 0
    while precision < 22 and int(0.5 + largest * (1 << (precision + 1))) < 1 << 15:
        precision += 1
    return precision


@_compiled
def _between(source, begin, step, left_weight, right_weight, half, precision):
    a, b = np.int32(source[begin]), np.int32(source[begin + step])
    value = np.int32(np.int32(a * left_weight) + np.int32(b * right_weight))
    return np.uint8(np.int32(value + half) >> precision)


@_compiled
def scale_bytes(image, size, top, left, out):
    """A part of an image scaled to a size, bilinear without antialiasing.

    Args:
        image: uint8 [H, W, C], in C order.
        size: height and width of the whole scaled image.
        top, left: where the part begins in it.
        out: uint8 [h, w, C], in C order: the part. What of it lies beyond the scaled image is left
            as it is.
    """
    height, width, channels = image.shape
    rows, columns = min(out.shape[0], size[0] - top), min(out.shape[1], size[1] - left)
    row_first, row_weight = np.empty(size[0], np.int64), np.empty(size[0])
    first, weight = np.empty(size[1], np.int64), np.empty(size[1])
    row_precision = np.int32(_neighbours(height, size[0], row_first, row_weight))
    precision = np.int32(_neighbours(width, size[1], first, weight))
    one, half = 1 << precision, np.int32((1 << precision) >> 1)
    begin = np.empty(columns * channels, np.int32)
    left_weight = np.empty(columns * channels, np.int32)
    right_weight = np.empty(columns * channels, np.int32)
    step = np.int32(channels if width > 1 else 0)
    for x in range(columns):
        for c in range(channels):
            k = x * channels + c
            begin[k] = first[left + x] * channels + c
            left_weight[k] = int((1.0 - weight[left + x]) * one + 0.5)
            right_weight[k] = int(weight[left + x] * one + 0.5)
    # The scaled rows of the image that the next row of the part lies between.
    above, below = np.empty(columns * channels, np.uint8), np.empty(columns * channels, np.uint8)
    at_above, at_below = -1, -1
    row_one, row_half = 1 << row_precision, np.int32((1 << row_precision) >> 1)
    for y in range(rows):
        up = row_first[top + y]
        down = min(up + 1, height - 1)
        if at_above != up:
            if at_below == up:
                above, below, at_above, at_below = below, above, at_below, -1
            else:
                source = image[up].reshape(-1)
                for k in range(columns * channels):
                    above[k] = _between(
                        source, begin[k], step, left_weight[k], right_weight[k], half, precision
                    )
                at_above = up
        if at_below != down:
            source = image[down].reshape(-1)
            for k in range(columns * channels):
                below[k] = _between(
                    source, begin[k], step, left_weight[k], right_weight[k], half, precision
                )
            at_below = down
        upper = np.int32(int((1.0 - row_weight[top + y]) * row_one + 0.5))
        lower = np.int32(int(row_weight[top + y] * row_one + 0.5))
        line = out[y].reshape(-1)
        for k in range(columns * channels):
            value = np.int32(above[k]) * upper + np.int32(below[k]) * lower + row_half
            line[k] = np.uint8(np.int32(value) >> row_precision)
