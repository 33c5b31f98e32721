"""Options of the views of an image: scales, flip, tiles and resizing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

from isanet_zoo.errors import InputError
from isanet_zoo.manifest.config import Preprocess
from isanet_zoo.records import real_number, whole_number

Tile: TypeAlias = int | tuple[int, int] | Literal["whole"]

MAX_SCALE = 16.0  # an image of 1 megapixel becomes one of 256
MIN_SCALE = 1 / MAX_SCALE
MAX_TILE = 2**16  # pixels on a side


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
    tile: Tile | None = None
    overlap: float = 0.25
    resize: bool = True

    def __post_init__(self) -> None:
        checked = {
            "scales": _scales(self.scales),
            "flip": flag("flip", self.flip),
            "tile": _tile(self.tile),
            "overlap": real_number("overlap", self.overlap, "at least 0 and less than 1", 0, 1),
            "resize": flag("resize", self.resize),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

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


def flag(name: str, value: object) -> bool:
    """Return a bool of Python or NumPy as Python's.

    Raises:
        InputError: it is none.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} is {value!r}; give True or False")
    return bool(value)


def _scales(value: Any) -> tuple[float, ...]:
    syntax = f"give a list of factors from {MIN_SCALE} to {MAX_SCALE}, such as [0.5, 1.0]"
    factors = _plain(value)
    if not isinstance(factors, (list, tuple)) or not factors:
        raise InputError(f"scales are {value!r}; {syntax}")
    beyond = MAX_SCALE + MIN_SCALE / 2
    try:
        return tuple(real_number("a factor", _plain(f), "", MIN_SCALE, beyond) for f in factors)
    except InputError:
        raise InputError(f"scales are {value!r}; {syntax}") from None


def _tile(value: Any) -> Tile | None:
    """Return a checked `tile` option."""
    tile = _plain(value)
    if tile is None or (isinstance(tile, str) and tile == "whole"):
        return tile  # type: ignore[return-value]
    sides = tile if isinstance(tile, (list, tuple)) else (tile, tile)
    try:
        height, width = (whole_number("a side", _plain(side)) for side in sides)
    except (InputError, ValueError):
        height = width = MAX_TILE + 1
    if max(height, width) > MAX_TILE:
        raise InputError(
            f"tile is {value!r}; give a side such as 512, (height, width) such as (512, 1024), "
            f"each from 1 to {MAX_TILE}, or 'whole'"
        )
    return (height, width) if isinstance(tile, (list, tuple)) else height


def _plain(value: Any) -> Any:
    """Return arrays, tensors and NumPy's scalars as Python's lists and numbers."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic, Tensor)) else value
