"""Triton kernel for labels on a GPU: each pixel resizes and compares its own classes.

It reads logits and writes labels (and confidence), with the arithmetic of `decide` and `resize` in
the same order.

Letters in shapes: B images of one size, K classes, H W image, h w logits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from isanet_zoo.manifest.config import ResizeRule

PIXELS = 256  # per program


def decide(
    logits: Tensor, size: tuple[int, int], rule: ResizeRule, confidence: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the class with the highest resized logit of each pixel; of equal ones the first.

    Args:
        logits: (B, K, h, w) float32, contiguous, K at most 256.
        size: (H, W) of the result.
        rule: how the family resizes.
        confidence: also return the softmax probability of the label.

    Returns:
        Labels (B, H, W) uint8, and confidence (B, H, W) float32 or None.
    """
    batch, num_classes, height, width = logits.shape
    labels = torch.empty((batch, *size), dtype=torch.uint8, device=logits.device)
    confidences = torch.empty((batch, *size) if confidence else 1, device=logits.device)
    grid = (triton.cdiv(size[0] * size[1], PIXELS), batch)
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call] # Triton's kernels run on the current GPU
        _decide[grid](
            logits,
            labels,
            confidences,
            num_classes,
            height,
            width,
            *size,
            *(_scale(*pair, rule) for pair in zip((height, width), size, strict=True)),
            half_pixel=rule == "half_pixel",
            confidence=confidence,
            block=PIXELS,
        )
    return labels, confidences if confidence else None


def _scale(length: int, size: int, rule: ResizeRule) -> float:
    """Return the distance between samples; see `isanet_zoo.network.resize`."""
    if rule == "corners":
        return (length - 1) / (size - 1) if size > 1 else 0.0
    return length / size


@triton.jit  # type: ignore[untyped-decorator]
def _source(index: Any, scale: Any, length: Any, half_pixel: tl.constexpr) -> Any:
    """Return the neighbours of samples and the weight of the second."""
    position = index.to(tl.float32) * scale
    if half_pixel:
        position = tl.maximum((index.to(tl.float32) + 0.5) * scale - 0.5, 0.0)
    before = tl.minimum(position.to(tl.int32), length - 1)
    after = tl.minimum(before + 1, length - 1)
    return before, after, position - before.to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _decide(
    logits: Any,  # (B, K, h, w)
    labels: Any,  # (B, H, W)
    confidences: Any,  # (B, H, W)
    num_classes: Any,
    height: Any,
    width: Any,
    rows: Any,
    columns: Any,
    scale_y: Any,
    scale_x: Any,
    half_pixel: tl.constexpr,
    confidence: tl.constexpr,
    block: tl.constexpr,
) -> None:
    pixels = rows * columns
    pixel = tl.program_id(0) * block + tl.arange(0, block)
    image = tl.program_id(1).to(tl.int64)
    inside = pixel < pixels
    top, bottom, y = _source(pixel // columns, scale_y, height, half_pixel)
    left, right, x = _source(pixel % columns, scale_x, width, half_pixel)

    plane = logits + image * num_classes * height * width
    best = tl.full((block,), float("-inf"), tl.float32)
    label = tl.zeros((block,), tl.int32)
    total = tl.zeros((block,), tl.float32)  # of the exponentials, shifted by `best`
    for k in range(num_classes):
        top_left = tl.load(plane + top * width + left, inside, 0.0)
        top_right = tl.load(plane + top * width + right, inside, 0.0)
        bottom_left = tl.load(plane + bottom * width + left, inside, 0.0)
        bottom_right = tl.load(plane + bottom * width + right, inside, 0.0)
        upper = (1 - x) * top_left + x * top_right
        lower = (1 - x) * bottom_left + x * bottom_right
        score = (1 - y) * upper + y * lower
        higher = score > best
        if confidence:
            highest = tl.maximum(best, score)
            total = total * tl.exp(best - highest) + tl.exp(score - highest)
        label = tl.where(higher, k, label)
        best = tl.where(higher | (score != score), score, best)  # NaN stays, as in torch.maximum
        plane += height * width
    place = image * pixels + pixel
    tl.store(labels + place, label.to(tl.uint8), inside)
    if confidence:
        tl.store(confidences + place, 1 / total, inside)
