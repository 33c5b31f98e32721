"""From logits at 1/8 to labels at the picture's size, in bounded memory.

Resizing K classes to a large picture before taking the maximum needs K floats per pixel (4.6 GiB
for 150 classes at 2160 × 3840). Classes are independent until the maximum, so each is resized on
its own and a running maximum is kept: the same arithmetic, the same labels, three planes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import NamedTuple

import torch
from torch import Tensor

Plane = Callable[[int], Tensor]  # class k -> its scores at the final size, (B, H, W) float32
Resize = Callable[[Tensor, tuple[int, int]], Tensor]  # (B, K, h, w), (H, W) -> (B, K, H, W)


class Decision(NamedTuple):
    """What is known of each pixel; B pictures of one size."""

    labels: Tensor  # (B, H, W) uint8
    confidence: Tensor | None  # (B, H, W) float32: the label's probability
    probabilities: Tensor | None  # (B, K, H, W) float32


def decide(
    plane: Plane, num_classes: int, *, confidence: bool = False, probabilities: bool = False
) -> Decision:
    """Give each pixel the class with the highest score; of equal ones the first, as `argmax` does.

    Args:
        plane: gives the scores of one class; called once per class, and once more per class for
            confidence or probabilities.
        num_classes: K, at most 256.
        confidence: also return the softmax probability of the label.
        probabilities: also return all softmax probabilities (K floats per pixel).
    """
    best = plane(0).clone()  # (B, H, W)
    labels = torch.zeros_like(best, dtype=torch.uint8)
    for k in range(1, num_classes):
        scores = plane(k)
        labels.masked_fill_(scores > best, k)
        torch.maximum(best, scores, out=best)
    if not confidence and not probabilities:
        return Decision(labels, None, None)

    # Softmax in two passes: shifted by the maximum, so that no exponential overflows.
    total = torch.zeros_like(best)
    batch, height, width = best.shape
    shares = best.new_empty((batch, num_classes, height, width)) if probabilities else None
    for k in range(num_classes):
        share = plane(k).sub(best).exp_()
        total += share
        if shares is not None:
            shares[:, k] = share
    return Decision(
        labels,
        total.reciprocal() if confidence else None,  # the label's own share is exp(0) = 1
        None if shares is None else shares.div_(total[:, None]),
    )


def filled(
    logits: Tensor,
    canvas: tuple[int, int],
    inside: tuple[int, int],
    size: tuple[int, int],
    resize: Resize,
) -> Plane:
    """Resize logits (B, K, h, w) of a picture that was filled up, and cut the filling off.

    Args:
        logits: of the filled picture.
        canvas: (height, width) of the network's input.
        inside: (height, width) of the picture in its upper left corner.
        size: (height, width) of the result.
        resize: the family's bilinear resize.
    """
    logits = logits.float().contiguous()

    def plane(k: int) -> Tensor:
        scores = resize(logits[:, k : k + 1], canvas)[..., : inside[0], : inside[1]]
        return (scores if inside == size else resize(scores.contiguous(), size))[:, 0]

    return plane


def whole(logits: Tensor, size: tuple[int, int], resize: Resize) -> Plane:
    """Resize logits (B, K, h, w) to `size`."""
    logits = logits.float().contiguous()  # equal bf16 logits would tie once they are resized
    num_classes, height, width = logits.shape[1:]
    if num_classes <= 3 or sum(size) <= 128 or height == width == 1:
        # Here torch's CPU kernels take several classes together, and round otherwise than for one.
        scores = resize(logits, size)  # (B, K, H, W), small
        return lambda k: scores[:, k]

    def plane(k: int) -> Tensor:
        return resize(logits[:, k : k + 1], size)[:, 0]

    return plane


def tiled(
    tiles: Sequence[tuple[Window, Tensor]],
    canvas: tuple[int, int],
    size: tuple[int, int],
    resize: Resize,
) -> Plane:
    """Join the logits of overlapping tiles, averaged where they overlap, then resize to `size`.

    Args:
        tiles: each tile's place in the canvas, and its logits (B, K, h, w).
        canvas: (height, width) of the network's whole input.
        size: (height, width) of the result.
        resize: the family's bilinear resize.
    """
    tiles = [(window, logits.float().contiguous()) for window, logits in tiles]
    batch = tiles[0][1].shape[0]
    count = tiles[0][1].new_zeros(1, 1, *canvas)
    for window, _ in tiles:
        count[window.area] += 1

    def plane(k: int) -> Tensor:
        total = count.new_zeros(batch, 1, *canvas)
        for window, logits in tiles:
            total[window.area] += resize(logits[:, k : k + 1], window.size)
        return resize(total.div_(count), size)[:, 0]

    return plane


def flipped(plane: Plane) -> Plane:
    """Mirror a plane left to right."""
    return lambda k: plane(k).flip(-1)


def mean(planes: Sequence[Plane]) -> Plane:
    """Average the scores of several views of the same pictures."""

    def plane(k: int) -> Tensor:
        total = planes[0](k).clone()
        for other in planes[1:]:
            total += other(k)
        return total.div_(len(planes))

    return planes[0] if len(planes) == 1 else plane


class Window(NamedTuple):
    """A tile's place."""

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
        """What cuts the tile out of (..., H, W)."""
        rows = slice(self.top, self.top + self.height)
        return ..., rows, slice(self.left, self.left + self.width)


def windows(
    canvas: tuple[int, int], tile: tuple[int, int], stride: tuple[int, int]
) -> list[Window]:
    """Cover a canvas with tiles, by upstream's rule: the last ones are moved back inside."""
    rows, columns = (
        [
            min(i * step, max(length - side, 0))
            for i in range(max(length - side + step - 1, 0) // step + 1)
        ]
        for length, side, step in zip(canvas, tile, stride, strict=True)
    )
    height, width = min(tile[0], canvas[0]), min(tile[1], canvas[1])
    return [Window(top, left, height, width) for top in rows for left in columns]
