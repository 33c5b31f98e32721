"""Tests of filled polygons and run lengths, against a naive loop and pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from isanet_zoo import InputError
from isanet_zoo.learning import polygons
from isanet_zoo.learning.polygons import decode_runs, decompress, draw

coordinates = st.integers(-6, 30).map(lambda eighths: eighths * 0.875 + 0.1)
corners = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=9)
sides = st.integers(1, 16)


def drawn(polygon: list[tuple[float, float]], size: tuple[int, int]) -> NDArray[np.bool_]:
    values = np.zeros(size, np.uint8)
    draw(values, 1, (np.array(polygon, float),))
    return np.equal(values, 1)


def contains(polygon: list[tuple[float, float]], x: float, y: float) -> bool:
    """Count the edges to the left of a point."""
    inside = False
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if (y0 > y) != (y1 > y):
            inside ^= x0 + (y - y0) / (y1 - y0) * (x1 - x0) <= x
    return inside


@settings(deadline=None)
@given(polygon=corners, height=sides, width=sides)
def test_polygon_covers_the_pixels_whose_centre_is_inside(
    polygon: list[tuple[float, float]], height: int, width: int
) -> None:
    expected = [[contains(polygon, x + 0.5, y + 0.5) for x in range(width)] for y in range(height)]
    assert drawn(polygon, (height, width)).tolist() == expected


def distance(polygon: NDArray[Any], points: NDArray[Any]) -> NDArray[Any]:
    """Return the distance of points to the nearest edge."""
    edges = np.roll(polygon, -1, axis=0) - polygon  # (N, 2)
    offsets = points[:, None] - polygon  # (P, N, 2)
    lengths = (edges**2).sum(-1).clip(1e-12)
    along = ((offsets * edges).sum(-1) / lengths).clip(0, 1)
    return np.asarray(np.linalg.norm(offsets - along[..., None] * edges, axis=-1).min(1))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(3, 12))
def test_polygon_equals_that_of_pycocotools_but_for_pixels_on_its_edge(
    seed: int, count: int
) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(4, 60, 2))
    polygon = rng.uniform(-5, 65, (count, 2))
    (runs,) = coco.frPyObjects([polygon.ravel().tolist()], height, width)
    different = drawn(polygon.tolist(), (height, width)) != coco.decode(runs).astype(bool)
    if different.any():
        rows, columns = np.nonzero(different)
        centres = np.stack([columns, rows], axis=1) + 0.5
        # pycocotools rounds corners to fifths of a pixel.
        assert distance(polygon, centres).max() < 0.5


def test_two_squares_that_share_an_edge_cover_each_pixel_once() -> None:
    left = drawn([(0, 0), (2.5, 0), (2.5, 4), (0, 4)], (4, 5))
    right = drawn([(2.5, 0), (5, 0), (5, 4), (2.5, 4)], (4, 5))
    assert (left ^ right).all()
    assert not (left & right).any()


@pytest.mark.parametrize(
    ("polygon", "message"),
    [
        ([(0, 0), (1, 1)], "fewer than 3"),
        ([(0, 0), (1, 1), (np.nan, 3)], "not finite"),
        ([(0, 0), (1, np.inf), (2, 3)], "not finite"),
        ([(0, -1e9), (1, 1e9)] * 40, "too complex"),
    ],
)
def test_polygon_that_cannot_be_drawn_is_refused(
    polygon: list[tuple[float, float]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polygons, "MOST_CROSSINGS", 1000)
    with pytest.raises(InputError, match=message):
        drawn(polygon, (20, 20))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), density=st.floats(0, 1))
def test_run_lengths_of_pycocotools_are_read(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 80, 2)) < density
    if seed % 2:  # long runs
        mask = mask.repeat(40, 0).repeat(9, 1)
    size = (mask.shape[0], mask.shape[1])
    runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert np.array_equal(decode_runs(runs["counts"].decode(), size), mask)
    flat = mask.ravel(order="F").astype(int)
    lengths = np.diff([0, *(np.flatnonzero(np.diff(flat, prepend=0))), flat.size]).tolist()
    assert np.array_equal(decode_runs(lengths, size), mask)


@pytest.mark.parametrize(
    "counts", ["", "1", "o", "\x7f", "é", "0" * 3, [5], [-1, 7], [[6]], ["a"], None, {}, [1e300, 0]]
)
def test_run_lengths_of_another_size_are_refused(counts: object) -> None:
    with pytest.raises(InputError, match="do not add up to 2 x 3 pixels"):
        decode_runs(counts, (2, 3))


@settings(deadline=None)
@given(text=st.binary(max_size=40))
def test_any_text_is_run_lengths_or_refused(text: bytes) -> None:
    try:
        values = decompress(text)
    except ValueError:
        return
    assert values.dtype == np.int64
