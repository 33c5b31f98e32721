"""Scores of prepared images: an engine's logits of every scale, flip and tile.

Letters in shapes: B images of one size, H W image, h w network input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from isanet_zoo.imaging.preprocess import pad
from isanet_zoo.inference.decide import Canvas, Decision, Flipped, ResizedLogits, ScoreMaps
from isanet_zoo.inference.tiles import average_tiles, tile_grid
from isanet_zoo.inference.views import Grid, Views

if TYPE_CHECKING:
    from isanet_zoo.engines.engine import Engine


def score_views(
    engine: Engine, views: Views, images: Tensor, size: tuple[int, int], *, batch_size: int
) -> list[ScoreMaps]:
    """Return the scores of all scales and flips.

    Args:
        engine: the network.
        views: scales, flip and tiles.
        images: (B, 3, h, w), prepared.
        size: (H, W) of the scores, that of the images before they were prepared.
        batch_size: images or tiles that go through the network together.
    """
    scores: list[ScoreMaps] = []
    for scale in views.scales:
        scaled = images
        if scale != 1:
            scaled = F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
        scores.append(_score(engine, views, scaled, size, batch_size))
        if views.flip:
            scores.append(Flipped(_score(engine, views, scaled.flip(-1), size, batch_size)))
    return scores


def read_labels(engine: Engine, images: Tensor, size: tuple[int, int]) -> Decision:
    """Return the labels of an exported file without logits, by the nearest pixel of its input.

    Args:
        engine: its output is labels.
        images: (B, 3, h, w), prepared.
        size: (H, W) of the labels.
    """
    height, width = _size(images)
    labels = engine(pad(images, engine.preprocess))[:, :height, :width]  # (B, h, w) uint8
    return Decision(F.interpolate(labels[:, None], size, mode="nearest-exact")[:, 0], None, None)


def _score(
    engine: Engine, views: Views, images: Tensor, size: tuple[int, int], batch_size: int
) -> ScoreMaps:
    """Run the network on (B, 3, h, w), as a whole or in tiles."""
    if grid := views.grid(engine.preprocess):
        return _score_tiles(engine, images, size, grid, batch_size)
    padded = pad(images, engine.preprocess)
    logits = engine(padded)
    canvas = None
    if _size(padded) != _size(images):
        rows, columns = (torch.arange(n, device=logits.device) for n in _size(images))
        canvas = Canvas(_size(padded), rows, columns)
    return ResizedLogits(logits, size, engine.resize, canvas)


def _score_tiles(
    engine: Engine, images: Tensor, size: tuple[int, int], grid: Grid, batch_size: int
) -> ScoreMaps:
    tiles = tile_grid(_size(images), grid)
    together = max(batch_size // len(images), 1)  # tiles in one run of the network
    logits: list[Tensor] = []
    for start in range(0, len(tiles), together):
        inputs = [images[tile.area] for tile in tiles[start : start + together]]
        logits += torch.split(engine(torch.cat(inputs)), len(images))
    return average_tiles(tiles, logits, size, engine.resize)


def _size(images: Tensor) -> tuple[int, int]:
    """Return the height and width of (..., h, w)."""
    return images.shape[-2], images.shape[-1]
