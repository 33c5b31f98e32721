"""Options of views: accepted forms, ranges, and the grid that they make."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from isanet_zoo.errors import InputError
from isanet_zoo.inference.views import MAX_PIXELS, MAX_SCALE, MAX_TILE, MIN_SCALE, Grid, Views
from isanet_zoo.manifest.config import Preprocess

WINDOWS = Preprocess(window=(96, 128), stride=(64, 96))


@pytest.mark.parametrize(
    ("tile", "stored"),
    [
        (64, 64),
        (np.int64(64), 64),
        (np.uint16(64), 64),
        (np.array(64), 64),
        (torch.tensor(64), 64),
        ((64, 96), (64, 96)),
        ([64, 96], (64, 96)),
        (np.array([64, 96]), (64, 96)),
        (torch.tensor([64, 96]), (64, 96)),
        ([np.int32(64), torch.tensor(96)], (64, 96)),
        (torch.Size([64, 96]), (64, 96)),
        (MAX_TILE, MAX_TILE),
        ("whole", "whole"),
        (None, None),
    ],
    ids=str,
)
def test_tile_in_any_form_is_accepted(tile: Any, stored: object) -> None:
    views = Views(tile=tile)
    assert views.tile == stored
    assert type(views.tile) is type(stored)


@pytest.mark.parametrize(
    "tile",
    [
        0,
        -64,
        64.0,
        64.5,
        True,
        "64",
        "abc",
        b"whole",
        (),
        (64,),
        (64, -1),
        (64, 64.5),
        (1, 2, 3),
        ((64, 64), (64, 64)),
        {64: 64},
        {64, 96},
        np.array([64.0, 64.0]),
        np.array([[64, 64]]),
        np.zeros(0, int),
        torch.tensor([True, True]),
        MAX_TILE + 1,
        10**400,
        float("nan"),
        object,
    ],
    ids=lambda tile: repr(tile)[:30],
)
def test_bad_tile_is_refused_with_the_syntax(tile: Any) -> None:
    with pytest.raises(InputError) as raised:
        Views(tile=tile)
    message = str(raised.value)
    assert message.startswith("tile is ")
    assert "a side such as 512, (height, width) such as (512, 1024)" in message
    assert f"from 1 to {MAX_TILE}, or 'whole'" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("scales", "stored"),
    [
        ([1], (1.0,)),
        ((0.5, 1.0), (0.5, 1.0)),
        (np.array([0.5, 1.0]), (0.5, 1.0)),
        (torch.tensor([0.5, 1.0]), (0.5, 1.0)),
        ([np.float32(0.5), torch.tensor(2)], (0.5, 2.0)),
        ([MIN_SCALE, MAX_SCALE], (MIN_SCALE, MAX_SCALE)),
    ],
    ids=str,
)
def test_scales_in_any_form_are_accepted(scales: Any, stored: tuple[float, ...]) -> None:
    views = Views(scales=scales)
    assert views.scales == stored
    assert all(type(scale) is float for scale in views.scales)


@pytest.mark.parametrize(
    "scales",
    [
        (),
        1.5,
        "1.5",
        ["1"],
        [True],
        (1.0, 0.0),
        (1.0, -2.0),
        [float("nan")],
        [float("inf")],
        [1e9],
        [1.0] * 33,
        [MAX_SCALE + 1e-9],
        [MIN_SCALE - 1e-9],
        [10**400],
        [1e-9],
        [[1.0]],
        [None],
        {1.0: 2.0},
        np.array(1.0),
        np.array([[1.0]]),
        None,
    ],
    ids=lambda scales: repr(scales)[:30],
)
def test_bad_scales_are_refused_with_the_range(scales: Any) -> None:
    with pytest.raises(InputError) as raised:
        Views(scales=scales)
    message = str(raised.value)
    assert message.startswith("scales are ")
    assert (
        f"a list of 1 to 32 factors from {MIN_SCALE} to {MAX_SCALE}, such as [0.5, 1.0]" in message
    )


@pytest.mark.parametrize(
    "overlap", [0, 0.5, np.float32(0.5), torch.tensor(0.5), np.array(0.5)], ids=repr
)
def test_overlap_in_any_form_is_accepted(overlap: Any) -> None:
    views = Views(overlap=overlap)
    assert views.overlap in (0.0, 0.5)
    assert type(views.overlap) is float


@pytest.mark.parametrize(
    "overlap",
    [1.0, -0.25, float("nan"), "x", "0.5", None, [0.5], 10**400, True],
    ids=lambda overlap: repr(overlap)[:30],
)
def test_bad_overlap_is_refused_with_the_range(overlap: Any) -> None:
    with pytest.raises(InputError, match=r"overlap is .* at least 0 and less than 1"):
        Views(overlap=overlap)


@pytest.mark.parametrize("name", ["flip", "resize"])
def test_flags_are_bools(name: str) -> None:
    assert getattr(Views(**{name: np.bool_(True)}), name) is True  # type: ignore[arg-type]
    for value in (1, "no", None, np.array([True, False])):
        with pytest.raises(InputError, match=f"{name} is .*; pass True or False"):
            Views(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({}, None),
        ({"tile": 64}, Grid((64, 64), (48, 48))),
        ({"tile": (64, 96), "overlap": 0.5}, Grid((64, 96), (32, 48))),
        ({"tile": 64, "overlap": 0}, Grid((64, 64), (64, 64))),
        ({"tile": 2, "overlap": 0.99}, Grid((2, 2), (1, 1))),
        ({"tile": "whole"}, None),
    ],
    ids=str,
)
def test_grid_is_made_of_tile_and_overlap(options: dict[str, Any], grid: Grid | None) -> None:
    assert Views(**options).grid(Preprocess()) == grid


def test_grid_of_the_weights_is_used_unless_a_tile_is_given() -> None:
    assert Views().grid(WINDOWS) == Grid((96, 128), (64, 96))
    assert Views(tile=64).grid(WINDOWS) == Grid((64, 64), (48, 48))
    assert Views(tile="whole").grid(WINDOWS) is None


@given(
    st.tuples(st.integers(1, 2**20), st.integers(1, 2**20)),
    st.floats(MIN_SCALE, MAX_SCALE),
)
def test_size_of_the_input_is_bounded(size: tuple[int, int], scale: float) -> None:
    scaled = (int(size[0] * scale), int(size[1] * scale))
    if 1 <= scaled[0] * scaled[1] <= MAX_PIXELS:
        assert Views(scales=[scale]).input_sizes(size) == [scaled]
    else:
        with pytest.raises(InputError, match=re.escape(f"scale {scale} makes")):
            Views(scales=[scale]).input_sizes(size)
