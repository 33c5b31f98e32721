"""Tiles, against upstream's grid and against averaging all tiles at the size of the input."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from torch import Tensor

from isanet_zoo.errors import InputError
from isanet_zoo.inference.decide import decide
from isanet_zoo.inference.tiles import MAX_TILES, Placement, average_tiles, tile_grid
from isanet_zoo.inference.views import Grid
from isanet_zoo.manifest.config import ResizeRule
from isanet_zoo.network.resize import resize
from tests.inference.test_decide import RULES, make_logits

length = st.integers(1, 60)


def upstream_grid(
    size: tuple[int, int], tile: tuple[int, int], stride: tuple[int, int]
) -> list[Placement]:
    height, width = size
    rows = max(height - tile[0] + stride[0] - 1, 0) // stride[0] + 1
    columns = max(width - tile[1] + stride[1] - 1, 0) // stride[1] + 1
    found = []
    for row in range(rows):
        for column in range(columns):
            bottom = min(row * stride[0] + tile[0], height)
            right = min(column * stride[1] + tile[1], width)
            top, left = max(bottom - tile[0], 0), max(right - tile[1], 0)
            found.append(Placement(top, left, bottom - top, right - left))
    return found


@given(st.tuples(length, length), st.tuples(length, length), st.data())
def test_grid_is_upstreams_and_covers_the_input(
    size: tuple[int, int], tile: tuple[int, int], data: st.DataObject
) -> None:
    down, right = (data.draw(st.integers(1, side)) for side in tile)
    tiles = tile_grid(size, Grid(tile, (down, right)))
    assert tiles == upstream_grid(size, tile, (down, right))
    covered = torch.zeros(size, dtype=torch.bool)
    for place in tiles:
        assert covered[place.area].shape == place.size
        assert place.size == (min(tile[0], size[0]), min(tile[1], size[1]))
        covered[place.area] = True
    assert covered.all()


@pytest.mark.parametrize("size", [(2**14, 2**14), (10**9, 10**9), (1, 10**12)])
def test_grid_of_too_many_tiles_is_refused_at_once(size: tuple[int, int]) -> None:
    start = time.perf_counter()
    with pytest.raises(InputError, match=f"more than {MAX_TILES}; use larger tiles"):
        tile_grid(size, Grid((1, 1), (1, 1)))
    assert time.perf_counter() - start < 0.1


def test_grid_of_the_most_tiles_is_returned() -> None:
    assert len(tile_grid((64, 64), Grid((1, 1), (1, 1)))) == MAX_TILES == 64 * 64
    with pytest.raises(InputError, match="64 x 65 tiles"):
        tile_grid((64, 65), Grid((1, 1), (1, 1)))


def average_eagerly(
    tiles: list[Placement], logits: list[Tensor], canvas: tuple[int, int], rule: ResizeRule
) -> Tensor:
    """Return the mean of all tiles at the canvas, (B, K, canvas)."""
    total = torch.zeros(*logits[0].shape[:2], *canvas)
    count = torch.zeros(canvas)
    for (top, left, height, width), of_tile in zip(tiles, logits, strict=True):
        total[:, :, top : top + height, left : left + width] += resize(
            of_tile, (height, width), rule
        )
        count[top : top + height, left : left + width] += 1
    assert count.min() >= 1
    return total / count


@settings(max_examples=60, deadline=None)
@given(
    canvas=st.tuples(st.integers(3, 15), st.integers(3, 15)),
    tile=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    stride=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    unit=st.sampled_from([8, 7]),
    rule=st.sampled_from(RULES),
    enlarged=st.sampled_from([1, 1.3]),
    level=st.sampled_from([0, 20]),
    seed=st.integers(0, 99),
)
@example((12, 15), (8, 6), (5, 4), 8, "half_pixel", 1, 0, 0)
@example((12, 15), (8, 6), (5, 4), 8, "half_pixel", 1.3, 20, 0)
@example((12, 15), (8, 6), (5, 4), 7, "corners", 1, 0, 0)
def test_tiles_are_averaged_where_they_overlap(
    canvas: tuple[int, int],
    tile: tuple[int, int],
    stride: tuple[int, int],
    unit: int,
    rule: ResizeRule,
    enlarged: float,
    level: int,
    seed: int,
) -> None:
    """With a unit of 8 pixels logits of tiles coincide, and are averaged before resizing."""
    canvas = (unit * canvas[0], unit * canvas[1])
    size = (round(enlarged * canvas[0]), round(enlarged * canvas[1]))
    step = (unit * min(stride[0], tile[0]), unit * min(stride[1], tile[1]))
    tiles = tile_grid(canvas, Grid((unit * tile[0], unit * tile[1]), step))
    levels = level * make_logits(1, 5, 1, 1, seed=seed)  # so that some classes are no candidates
    logits = [
        levels + make_logits(2, 5, -(-place.height // 8), -(-place.width // 8), seed=number)
        for number, place in enumerate(tiles)
    ]
    expected = average_eagerly(tiles, logits, canvas, rule)
    if canvas != size:
        expected = resize(expected, size, rule)
    scores = average_tiles(tiles, logits, size, rule)
    decision = decide([scores], confidence=True, probabilities=True)
    assert decision.probabilities is not None
    torch.testing.assert_close(decision.probabilities, expected.softmax(1), rtol=0, atol=1e-4)
    best, second = expected.topk(2, 1).values.unbind(1)
    clear = best - second > 1e-3
    assert torch.equal(decision.labels[clear].long(), expected.argmax(1)[clear])
    maps = torch.stack([scores.of_class(k).clone() for k in range(scores.num_classes)], 1)
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-4)


def test_class_that_is_no_label_at_the_input_can_be_one_after_resizing() -> None:
    """Where two classes cross steeply, their resized scores are below a third's."""
    logits = torch.zeros(1, 4, 8, 24)
    logits[:, 0], logits[:, 1], logits[:, 3] = 1, 1, -1
    logits[:, 1, :, :12] = logits[:, 0, :, 13:] = -1000
    tiles = [Placement(0, 0, 64, 192)]
    labels = decide([average_tiles(tiles, [logits], (64, 192), "half_pixel")]).labels
    assert set(labels.flatten().tolist()) == {0, 1}
    labels = decide([average_tiles(tiles, [logits], (64, 3 * 192), "half_pixel")]).labels
    assert labels[0, 0, 298:302].tolist() == [0, 2, 2, 1]
