"""Training loss: cross-entropy over the pixels that have a class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from isanet_zoo.network.isanet import ISANetOutput


def segmentation_loss(
    output: Tensor | ISANetOutput,
    target: Tensor,
    *,
    aux_weight: float = 0.4,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
    total: Tensor | None = None,
) -> Tensor:
    """Return the mean cross-entropy, plus that of the auxiliary head (sssegmentation's loss).

    Args:
        output: logits (B, K, H, W), or those of both heads.
        target: (B, H, W) int64, class ids or `ignore_index`.
        aux_weight: weight of the auxiliary head's loss.
        class_weights: (K,) weight of each class; all equal if None.
        ignore_index: pixels that do not count.
        total: divisor of the sum over pixels, for batches that are processed in parts; the
            `total_weight` of `target` if None.

    Returns:
        A scalar; 0 where no pixel counts.
    """
    if total is None:
        total = total_weight(target, class_weights, ignore_index=ignore_index)

    def cross_entropy(logits: Tensor) -> Tensor:
        losses = F.cross_entropy(
            logits.float(),
            target,
            weight=class_weights,
            ignore_index=ignore_index,
            reduction="sum",
        )
        return losses / total

    if isinstance(output, ISANetOutput):
        return cross_entropy(output.out) + aux_weight * cross_entropy(output.aux)
    return cross_entropy(output)


def total_weight(
    target: Tensor, class_weights: Tensor | None = None, *, ignore_index: int = 255
) -> Tensor:
    """Return the sum of the weights of all pixels, a float32 scalar of at least 1e-6."""
    counted = target != ignore_index
    total = counted.sum() if class_weights is None else class_weights[target[counted]].sum()
    return total.float().clamp(min=1e-6)


def balanced_weights(pixels: Tensor, offset: float) -> Tensor:
    """Return the weights ``1 / ln(offset + fraction)`` of the classes, with mean 1 (ENet).

    See arXiv 1606.02147.

    Args:
        pixels: (K,) number of pixels of each class, as returned by `check_masks`.
        offset: more than 1.

    Returns:
        (K,) float32.
    """
    weights = 1 / torch.log(offset + pixels / pixels.sum())
    return (weights / weights.mean()).float()
