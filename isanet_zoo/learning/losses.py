"""What training minimises: cross-entropy over the pixels that have a class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from isanet_zoo.errors import InputError
from isanet_zoo.learning.data import SegmentationDataset
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
        class_weights: (K,) weight of each class; alike if None.
        ignore_index: pixels that do not count.
        total: what the sum over pixels is divided by, instead of the `total_weight` of `target`:
            for batches that are summed up from parts.

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
    """Return the sum of the pixels' weights, a float32 scalar; at least a tiny number."""
    counted = target != ignore_index
    total = counted.sum() if class_weights is None else class_weights[target[counted]].sum()
    return total.float().clamp(min=1e-6)


def balanced_weights(dataset: SegmentationDataset, offset: float) -> Tensor:
    """Return the weights ``1 / ln(offset + share)`` of the classes, with mean 1, (K,) float32.

    A class's share is that of its pixels among all that have a class (ENet, arXiv 1606.02147).
    Reads all masks.

    Raises:
        InputError: no pixel has a class.
    """
    counts = torch.zeros(256, dtype=torch.int64)
    for index in range(len(dataset)):
        counts += torch.bincount(dataset.labels(index).flatten(), minlength=256)
    counts = counts[: len(dataset.label_set)]
    if not counts.any():
        raise InputError(f"no pixel of {dataset.name} has a class; its masks are all ignored")
    weights = 1 / torch.log(offset + counts / counts.sum())
    return (weights / weights.mean()).float()
