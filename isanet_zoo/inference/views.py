"""Options of the views of an image: scales, flip, tiles and resizing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

from isanet_zoo.errors import InputError
from isanet_zoo.manifest.config import Preprocess
from isanet_zoo.records import real_number, whole_number

TileSize: TypeAlias = int | tuple[int, int] | Literal["whole"]

MAX_SCALE = 16.0  # an image of 1 megapixel becomes one of 256
MIN_SCALE = 1 / MAX_SCALE
MAX_SCALES = 32
MAX_TILE = 2**16  # pixels on a side
MAX_PIXELS = 2**28  # of the network's input, 3 GiB in float32


class Grid(NamedTuple):
    """A grid of overlapping tiles, in pixels."""

    tile: tuple[int, int]  # height and width
    stride: tuple[int, int]  # down and to the right


@dataclass(frozen=True)
class Views:
    """Which views of an image are averaged, and how each of them is computed.

    Sequences and numbers of NumPy and torch are accepted, and stored as Python's.

    Attributes:
        scales: factors by which the network's input is resized; logits are averaged over them.
        flip: also average over horizontally flipped images.
        tile: side, or (height, width), of the tiles of sliding-window inference, in pixels of the
            network's input; ``"whole"`` for no tiles; None for the weights' test protocol.
        overlap: fraction of a tile that the next one repeats, at least 0 and less than 1. Weights
            whose test protocol has tiles define their own.
        resize: resize images to the size of the weights' test protocol.

    Raises:
        InputError: an option is out of range.
    """

    scales: Sequence[float] = (1.0,)
    flip: bool = False
    tile: TileSize | None = None
    overlap: float = 0.25
    resize: bool = True

    def __post_init__(self) -> None:
        checked = {
            "scales": _scales(self.scales),
            "flip": check_flag("flip", self.flip),
            "tile": _tile(self.tile),
            "overlap": real_number("overlap", self.overlap, "at least 0 and less than 1", 0, 1),
            "resize": check_flag("resize", self.resize),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def check_input(self, size: tuple[int, int]) -> None:
        """Check the sizes that an input of (height, width) is scaled to.

        Raises:
            InputError: one is empty, or has more than `MAX_PIXELS`.
        """
        for scale in self.scales:
            height, width = (int(side * scale) for side in size)
            if not 1 <= height * width <= MAX_PIXELS:
                raise InputError(
                    f"scale {scale} makes {height} x {width} pixels of an input of {size}; it must "
                    f"be from 1 to {MAX_PIXELS} pixels"
                )

    def grid(self, preprocess: Preprocess) -> Grid | None:
        """Return the grid of tiles; None for no tiles.

        Args:
            preprocess: the weights' test protocol, which `tile=None` stands for.
        """
        if self.tile is None and preprocess.window and preprocess.stride:
            return Grid(preprocess.window, preprocess.stride)
        if self.tile is None or self.tile == "whole":
            return None
        height, width = (self.tile, self.tile) if isinstance(self.tile, int) else self.tile
        step = 1 - self.overlap
        return Grid((height, width), (max(round(height * step), 1), max(round(width * step), 1)))


def check_flag(name: str, value: object) -> bool:
    """Return a bool of Python or NumPy as Python's.

    Raises:
        InputError: it is another object.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} is {value!r}; give True or False")
    return bool(value)


def _scales(value: Any) -> tuple[float, ...]:
    """Return the checked `scales` option."""
    factors = _plain(value)
    try:
        count = len(factors) if isinstance(factors, (list, tuple)) else 0
        whole_number("number of scales", count, at_most=MAX_SCALES)
        above = math.nextafter(MAX_SCALE, math.inf)
        return tuple(real_number("scale", _plain(f), "in range", MIN_SCALE, above) for f in factors)
    except InputError as error:
        raise InputError(
            f"scales are {value!r}; give a list of 1 to {MAX_SCALES} factors from {MIN_SCALE} to "
            f"{MAX_SCALE}, such as [0.5, 1.0]"
        ) from error


def _tile(value: Any) -> TileSize | None:
    """Return the checked `tile` option."""
    tile = _plain(value)
    if tile is None or (isinstance(tile, str) and tile == "whole"):
        return tile  # type: ignore[return-value]
    sides = tile if isinstance(tile, (list, tuple)) else (tile, tile)
    try:
        height, width = (whole_number("side", _plain(s), at_most=MAX_TILE) for s in sides)
    except (InputError, ValueError) as error:
        raise InputError(
            f"tile is {value!r}; give a side such as 512, (height, width) such as (512, 1024), "
            f"each from 1 to {MAX_TILE}, or 'whole'"
        ) from error
    return (height, width) if isinstance(tile, (list, tuple)) else height


def _plain(value: Any) -> Any:
    """Return arrays, tensors and NumPy's scalars as Python's lists and numbers."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic, Tensor)) else value
