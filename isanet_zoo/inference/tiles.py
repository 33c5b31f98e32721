"""Sliding-window inference: the grid of tiles and the average of their logits.

Letters in shapes: B images of one size, K classes, H W image, h w logits of a tile.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from types import EllipsisType
from typing import NamedTuple

import torch
from torch import Tensor

from isanet_zoo.engines import cuda
from isanet_zoo.errors import InputError
from isanet_zoo.inference.decide import Canvas, ResizedLogits, ScoreMaps
from isanet_zoo.inference.views import Grid
from isanet_zoo.manifest.config import OUTPUT_STRIDE, ResizeRule
from isanet_zoo.network.resize import resize

MAX_TILES = 4096  # of one view of an image


class Placement(NamedTuple):
    """Where a tile is in the network's whole input, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def area(self) -> tuple[EllipsisType, slice, slice]:
        """The index of the tile in (..., H, W)."""
        rows = slice(self.top, self.top + self.height)
        return ..., rows, slice(self.left, self.left + self.width)


def tile_grid(size: tuple[int, int], grid: Grid) -> list[Placement]:
    """Return tiles that cover an input, by upstream's rule: the last ones are moved back inside.

    Raises:
        InputError: there are more than `MAX_TILES`.
    """
    height, width = (min(pair) for pair in zip(grid.tile, size, strict=True))
    down, right = grid.stride
    rows, columns = -(-(size[0] - height) // down) + 1, -(-(size[1] - width) // right) + 1
    if rows * columns > MAX_TILES:
        raise InputError(
            f"tile {grid.tile} with a stride of {grid.stride} makes {rows} x {columns} tiles of "
            f"{size} pixels, more than {MAX_TILES}; use larger tiles or less overlap"
        )
    tops = [min(i * down, size[0] - height) for i in range(rows)]
    lefts = [min(i * right, size[1] - width) for i in range(columns)]
    return [Placement(top, left, height, width) for top in tops for left in lefts]


def average_tiles(
    tiles: Sequence[Placement], logits: Sequence[Tensor], size: tuple[int, int], rule: ResizeRule
) -> ScoreMaps:
    """Average the logits of tiles where they overlap, then resize them to the images' size.

    Args:
        tiles: a grid that covers the network's whole input.
        logits: (B, K, h, w) of each tile; at its full size if the engine resizes them.
        size: (H, W) of the images.
        rule: how the family resizes.
    """
    logits = [of_tile.float().contiguous() for of_tile in logits]
    aligned = all(number % OUTPUT_STRIDE == 0 for tile in tiles for number in tile)
    aligned &= OUTPUT_STRIDE * logits[0].shape[-1] == tiles[0].width  # not resized already
    if aligned and rule == "half_pixel":
        return _average_aligned(tiles, logits, size)
    return AveragedTiles(tiles, logits, size, rule)


class AveragedTiles:
    """Tiles that are resized one by one and averaged; see `average_tiles`."""

    def __init__(
        self,
        tiles: Sequence[Placement],
        logits: Sequence[Tensor],
        size: tuple[int, int],
        rule: ResizeRule,
    ) -> None:
        self.tiles, self.logits, self.size, self.rule = tiles, logits, size, rule
        self.num_classes = logits[0].shape[1]

    def of_class(self, k: int) -> Tensor:
        """Return the scores of one class, (B, H, W) float32, valid until the next call."""
        total, resized, weight = self._buffers
        total.zero_()
        for tile, logits in zip(self.tiles, self.logits, strict=True):
            total[tile.area] += resize(logits[:, k : k + 1], tile.size, self.rule, out=resized)
        total *= weight
        scores = total if total.shape[-2:] == self.size else resize(total, self.size, self.rule)
        return scores[:, 0]

    @functools.cached_property
    def _buffers(self) -> tuple[Tensor, Tensor, Tensor]:
        """The sum (B, 1, canvas), a resized tile, and 1 / number of tiles at each pixel."""
        last, logits = self.tiles[-1], self.logits[0]
        total = logits.new_zeros(len(logits), 1, last.top + last.height, last.left + last.width)
        count = torch.zeros_like(total[:1])
        for tile in self.tiles:
            count[tile.area] += 1
        return total, logits.new_empty(len(logits), 1, *last.size), count.reciprocal_()


def _average_aligned(
    tiles: Sequence[Placement], logits: Sequence[Tensor], size: tuple[int, int]
) -> ResizedLogits:
    """Average tiles whose logits coincide before they are resized: equal but for rounding.

    The tiles' edges cut the input into blocks; all pixels of a block are in the same tiles. Each
    block is averaged with a border of one logit, in which a tile that ends with the block repeats
    its last logit. All blocks with their borders are resized as one map; borders are cropped.
    """
    device = logits[0].device
    rows = _Blocks.between([(tile.top, tile.height) for tile in tiles], device)
    columns = _Blocks.between([(tile.left, tile.width) for tile in tiles], device)
    shape = (*logits[0].shape[:2], len(rows.logits), len(columns.logits))
    total, count = logits[0].new_zeros(shape), logits[0].new_zeros(shape[-2:])
    for tile, of_tile in zip(tiles, logits, strict=True):
        y, from_y = rows.within(tile.top, tile.height)
        x, from_x = columns.within(tile.left, tile.width)
        total[..., y, x] += of_tile.index_select(-2, from_y).index_select(-1, from_x)
        count[y, x] += 1
    resized = (OUTPUT_STRIDE * shape[2], OUTPUT_STRIDE * shape[3])
    canvas = Canvas(resized, rows.pixels, columns.pixels)
    return ResizedLogits(total.div_(count), size, "half_pixel", canvas)


class _Blocks(NamedTuple):
    """One direction of an input that is cut into blocks, each with a border of one logit."""

    cuts: list[int]  # edges of the blocks, in logits
    logits: Tensor  # (n,) which logit of the input each row is, borders included
    pixels: Tensor  # which of the 8·n resized rows are not in a border

    @classmethod
    def between(cls, spans: Sequence[tuple[int, int]], device: torch.device) -> _Blocks:
        """Cut at both ends of every (start, length), in pixels."""
        ends = {end for start, length in spans for end in (start, start + length)}
        cuts = [end // OUTPUT_STRIDE for end in sorted(ends)]
        rows = [(i, cut) for cut in itertools.pairwise(cuts) for i in range(cut[0] - 1, cut[1] + 1)]
        inside = [n for n, (i, (first, last)) in enumerate(rows) if first <= i < last]
        pixels = torch.tensor(inside)[:, None] * OUTPUT_STRIDE + torch.arange(OUTPUT_STRIDE)
        logits = torch.tensor([i for i, _ in rows])
        return cls(cuts, cuda.to_device(logits, device), cuda.to_device(pixels.flatten(), device))

    def within(self, start: int, length: int) -> tuple[slice, Tensor]:
        """Return the rows of a tile, and which of the tile's logits each of them takes."""
        first, last = start // OUTPUT_STRIDE, (start + length) // OUTPUT_STRIDE
        rows = slice(first + 2 * self.cuts.index(first), last + 2 * self.cuts.index(last))
        return rows, (self.logits[rows] - first).clamp(0, last - first - 1)
