"""Options of the views of an image: scales, flip, tiles and resizing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

from isanet_zoo.errors import InputError
from isanet_zoo.manifest.config import Preprocess
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.records import real_number, whole_number

Tile: TypeAlias = int | tuple[int, int] | Literal["whole"]
"""Size of tiles: a side or (height, width) in pixels, or ``"whole"`` for no tiles."""

MAX_SCALES = 32
MAX_SCALE = 16.0
MIN_SCALE = 1 / MAX_SCALE
MAX_TILE = 2**16  # pixels on a side
MAX_PIXELS = 2**28  # of the network's input, 3 GiB in float32


class Grid(NamedTuple):
    """A grid of overlapping tiles, (height, width) in pixels."""

    tile: tuple[int, int]
    stride: tuple[int, int]


@dataclass(frozen=True)
class Views:
    """Which views of an image are averaged, and how they are made; see `Predictor`.

    Lists, arrays, tensors and their numbers are accepted, and stored as tuples and numbers.

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
            "flip": check_flag("flip", self.flip),
            "tile": _tile(self.tile),
            "overlap": real_number("overlap", self.overlap, "at least 0 and less than 1", 0, 1),
            "resize": check_flag("resize", self.resize),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def input_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return what an input of (height, width) is scaled to.

        Raises:
            InputError: a size is empty, or has more than `MAX_PIXELS`.
        """
        sizes = [(int(size[0] * scale), int(size[1] * scale)) for scale in self.scales]
        for (height, width), scale in zip(sizes, self.scales, strict=True):
            if not 1 <= height * width <= MAX_PIXELS:
                raise InputError(
                    f"scale {scale} makes {height} x {width} pixels of an input of {size}; it must "
                    f"be from 1 to {MAX_PIXELS} pixels"
                )
        return sizes

    def grid(self, preprocess: Preprocess) -> Grid | None:
        """Return the grid of tiles, by default that of the weights; None for no tiles."""
        if self.tile is None and preprocess.window and preprocess.stride:
            return Grid(preprocess.window, preprocess.stride)
        if self.tile is None or self.tile == "whole":
            return None
        height, width = (self.tile, self.tile) if isinstance(self.tile, int) else self.tile
        step = 1 - self.overlap
        return Grid((height, width), (max(round(height * step), 1), max(round(width * step), 1)))

    def check_labels_only(self, preprocess: Preprocess, others: Mapping[str, object]) -> None:
        """Check that views need no logits, which some exported files do not return.

        Args:
            preprocess: of the file.
            others: other options that need logits, by name; those that are true are in use.

        Raises:
            InputError: they do; the message lists the options.
        """
        needs = {
            "scales": self.scales != (1.0,),
            "flip": self.flip,
            "tile": self.grid(preprocess) is not None,
            **others,
        }
        if wrong := [name for name, is_needed in needs.items() if is_needed]:
            raise InputError(
                f"this file returns labels, and {', '.join(wrong)} needs logits: export it with "
                "logits (without --labels; in Python: output='logits')"
                + ("; or pass tile='whole'" if "tile" in wrong else "")
            )


def check_flag(name: str, value: object) -> bool:
    """Return a bool of Python or NumPy as Python's; raise InputError for other objects."""
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} is {value!r}; pass True or False")
    return bool(value)


def _scales(value: Any) -> tuple[float, ...]:
    factors = _plain(value)
    try:
        count = len(factors) if isinstance(factors, (list, tuple)) else 0
        whole_number("number of scales", count, at_most=MAX_SCALES)
        above = math.nextafter(MAX_SCALE, math.inf)
        return tuple(real_number("scale", _plain(f), "in range", MIN_SCALE, above) for f in factors)
    except InputError as error:
        raise InputError(
            f"scales are {value!r}; pass a list of 1 to {MAX_SCALES} factors from {MIN_SCALE} to "
            f"{MAX_SCALE}, such as [0.5, 1.0]"
        ) from error


def _tile(value: Any) -> Tile | None:
    tile = _plain(value)
    if tile is None or (isinstance(tile, str) and tile == "whole"):
        return tile  # type: ignore[return-value]
    sides = tile if isinstance(tile, (list, tuple)) else (tile, tile)
    try:
        height, width = (whole_number("side", _plain(s), at_most=MAX_TILE) for s in sides)
    except (InputError, ValueError) as error:
        raise InputError(
            f"tile is {value!r}; pass a side such as 512, (height, width) such as (512, 1024), "
            f"each from 1 to {MAX_TILE}, or 'whole'"
        ) from error
    return (height, width) if isinstance(tile, (list, tuple)) else height


def _plain(value: Any) -> Any:
    """Return arrays, tensors and NumPy's scalars as lists and numbers."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic, Tensor)) else value


def check_network(model: object) -> None:
    """Check that a network can be used with images.

    Raises:
        InputError: it is no ISANet, takes no RGB images, or has more classes than label maps have.
    """
    if not isinstance(model, ISANet):
        raise InputError(f"expected an ISANet or the name of one, got {type(model).__name__}")
    if model.config.in_chans != 3:
        raise InputError(
            f"predict reads RGB images, but this network takes {model.config.in_chans} channels; "
            "call the network itself on your tensors"
        )
    if model.config.num_classes > 256:
        raise InputError(f"{model.config.num_classes} classes do not fit into 8-bit label maps")
