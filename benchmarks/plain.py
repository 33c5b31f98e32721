"""Reference implementation of the paper's design, which the benchmarks compare with.

Eager float32, channels first, unfused, attention and full-size logits materialised. It uses the
parameters of an `ISANet`, so that results can be compared, too.

Letters in shapes: B batch, C channels, K classes, h w feature map, P window, Q windows per side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from isanet_zoo.network.attention import InterlacedAttention, SelfAttention
from isanet_zoo.network.isanet import ISANet


def labels(model: ISANet, pixels: Tensor) -> Tensor:
    """Return labels (B, H, W) int64 of images (B, 3, H, W) uint8."""
    mean = torch.tensor(model.preprocess.mean, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(model.preprocess.std, device=pixels.device).view(3, 1, 1)
    return decide(logits(model, (pixels.float() - mean) / std), pixels.shape[-2:])


def decide(low: Tensor, size: Sequence[int]) -> Tensor:
    """Return labels (B, H, W) of logits (B, K, h, w), resized before the maximum."""
    return F.interpolate(low, tuple(size), mode="bilinear", align_corners=False).argmax(1)


def decide_tiles(
    tiles: Sequence[Tensor], places: Sequence[Sequence[int]], size: Sequence[int]
) -> Tensor:
    """Return labels (B, H, W) of overlapping tiles, averaged in a full-size map of all classes.

    Args:
        tiles: logits (B, K, h, w) of each.
        places: (top, left, height, width) of each.
        size: (H, W) of the result.
    """
    total = tiles[0].new_zeros(*tiles[0].shape[:2], *size)
    count = tiles[0].new_zeros(1, 1, *size)
    for low, (top, left, height, width) in zip(tiles, places, strict=True):
        scores = F.interpolate(low, (height, width), mode="bilinear", align_corners=False)
        total[:, :, top : top + height, left : left + width] += scores
        count[:, :, top : top + height, left : left + width] += 1
    return (total / count).argmax(1)


def logits(model: ISANet, images: Tensor) -> Tensor:
    """Map (B, 3, H, W) to (B, K, h, w)."""
    head = model.head
    features = head.reduce(model.backbone(images)[1])  # (B, C, h, w)
    context = interlaced(head.attention, features)
    fused: Tensor = head.fuse(torch.cat([context, features], 1))
    return head.classifier(fused)  # type: ignore[no-any-return]


def interlaced(attention: InterlacedAttention, x: Tensor) -> Tensor:
    """Return long-range, then short-range attention of (B, C, h, w)."""
    batch, channels, height, width = x.shape
    window_h, window_w = attention.partition
    pad_h, pad_w = -height % window_h, -width % window_w
    top, left = pad_h // 2, pad_w // 2
    x = F.pad(x, (left, pad_w - left, top, pad_h - top))
    rows, columns = x.shape[2] // window_h, x.shape[3] // window_w
    x = x.view(batch, channels, rows, window_h, columns, window_w)
    x = x.permute(0, 3, 5, 1, 2, 4).reshape(-1, channels, rows, columns)
    x = dense(attention.long_range, x)
    x = x.view(batch, window_h, window_w, channels, rows, columns)
    x = x.permute(0, 4, 5, 3, 1, 2).reshape(-1, channels, window_h, window_w)
    x = dense(attention.short_range, x)
    x = x.view(batch, rows, columns, channels, window_h, window_w)
    x = x.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, rows * window_h, columns * window_w)
    return x[:, :, top : top + height, left : left + width]


def dense(attention: SelfAttention, x: Tensor) -> Tensor:
    """Return attention among all positions of (B, C, h, w), weights materialised."""
    query = attention.query(x).flatten(2)  # (B, D, h·w)
    key = attention.key(x).flatten(2)  # (B, D, h·w)
    value = attention.value(x).flatten(2)  # (B, C, h·w)
    weights = (query.transpose(1, 2) @ key * query.shape[1] ** -0.5).softmax(-1)  # (B, h·w, h·w)
    context = (weights @ value.transpose(1, 2)).transpose(1, 2).reshape(x.shape)
    out: Tensor = attention.project(context)
    return out
