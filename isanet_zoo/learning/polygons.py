"""Polygons and run lengths, as label tools write them, as pixels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isanet_zoo.errors import InputError

MOST_CROSSINGS = 1 << 26  # of the edges of one polygon with rows of pixels


def draw(values: NDArray[np.uint8], value: int, polygons: Iterable[NDArray[np.float64]]) -> None:
    """Draw polygons into an (H, W) map, over what it contains.

    Raises:
        InputError: a polygon cannot be drawn.
    """
    for polygon in polygons:
        top, inside = fill(polygon, (values.shape[0], values.shape[1]))
        values[top : top + len(inside)][inside] = value


def fill(polygon: NDArray[np.float64], size: tuple[int, int]) -> tuple[int, NDArray[np.bool_]]:
    """Return the pixels whose centre is inside a polygon, by the even-odd rule.

    Pixel (row, column) covers x from column to column + 1 and y from row to row + 1, as in COCO and
    LabelMe.

    Args:
        polygon: (N, 2), x and y of its corners.
        size: (height, width) of the image.

    Returns:
        The first row that it may cover, and (rows, width) bool from there on.

    Raises:
        InputError: it has fewer than three corners, or far too many, or one is not finite.
    """
    height, width = size
    if polygon.ndim != 2 or polygon.shape[1:] != (2,) or len(polygon) < 3:
        raise InputError("a polygon has fewer than 3 corners")
    if not np.isfinite(polygon).all():
        raise InputError("a corner of a polygon is not finite")
    x, y = polygon.T
    next_x, next_y = np.roll(polygon, -1, axis=0).T
    # Edges cross the rows whose centre is at or below their upper end and above their lower end.
    first = np.ceil(np.minimum(y, next_y) - 0.5).clip(0, height).astype(np.int64)
    last = np.ceil(np.maximum(y, next_y) - 0.5).clip(0, height).astype(np.int64)
    counts = last - first  # (N,), 0 for horizontal edges
    if (total := int(counts.sum())) > MOST_CROSSINGS:
        raise InputError(f"a polygon of {len(polygon)} corners is too complex")
    if total == 0:
        return 0, np.zeros((0, width), bool)
    edge = np.repeat(np.arange(len(polygon)), counts)  # (crossings,)
    row = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    along = (row + 0.5 - y[edge]) / (next_y - y)[edge]
    crossing = x[edge] + along * (next_x - x)[edge]
    column = np.ceil(crossing - 0.5).clip(0, width).astype(np.int64)  # the first to the right of it
    top, rows = int(row.min()), int(row.max() - row.min() + 1)
    places = (row - top) * (width + 1) + column
    toggles = np.bincount(places, minlength=rows * (width + 1)).reshape(rows, width + 1)
    return top, (np.cumsum(toggles[:, :width], axis=1) & 1).astype(bool)


def decode_runs(counts: object, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask, (height, width), of COCO's run lengths.

    Args:
        counts: the lengths of runs of zeros and ones in turns, in column order; a list, or COCO's
            text.
        size: (height, width).

    Raises:
        InputError: they are not run lengths of this size.
    """
    height, width = size
    try:
        lengths: Any = counts
        if isinstance(counts, str):
            lengths = decompress(counts.encode("ascii"))
        runs = np.array(lengths, np.int64)
        if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
            raise ValueError
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"run lengths do not add up to {height} x {width} pixels") from error
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T


def decompress(text: bytes) -> NDArray[np.int64]:
    """Return the numbers in COCO's compressed run lengths.

    A number is written in groups of five bits, lowest first, each a character from ``"0"`` on; bit
    6 is set if another group follows, and the last group has the sign in its highest bit. From the
    fourth on, a number is the difference to the second last.

    Raises:
        ValueError: the text is not complete, or a number is too long.
    """
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - ord("0")  # (characters,)
    last = codes & 32 == 0
    if len(codes) and (not last[-1] or ((codes < 0) | (codes > 63)).any()):
        raise ValueError("not run lengths")
    number = np.cumsum(last) - last  # which number a character belongs to
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    position = np.arange(len(codes)) - starts[number]
    if (position > 7).any():  # 40 bits
        raise ValueError("a run length is too long")
    values = np.zeros(int(last.sum()), np.int64)
    np.add.at(values, number, (codes & 31) << 5 * position)
    negative = codes[last] & 16 != 0
    values[negative] -= 1 << 5 * (position[last][negative] + 1)
    # Each of the two interleaved series from the third number on is a cumulative sum.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
