"""Training losses over the pixels that have a class, and weights of the classes."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from isanet_zoo.errors import InputError, did_you_mean
from isanet_zoo.network.isanet import ISANetOutput

GAMMA = 2.0  # exponent of the focal loss
HARD = 0.7  # OHEM keeps the pixels whose class has at most this probability,
KEPT = 1 / 12  # and at least this fraction of the pixels


def segmentation_loss(
    output: Tensor | ISANetOutput,
    target: Tensor,
    *,
    loss: str = "cross_entropy",
    aux_weight: float = 0.4,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
    total: Tensor | None = None,
) -> Tensor:
    """Return the loss, plus that of the auxiliary head (sssegmentation's loss by default).

    Args:
        output: logits (B, K, H, W), or those of both heads.
        target: (B, H, W) int64, class ids or `ignore_index`.
        loss: a name of `LOSSES`, or several with ``+`` between them: their sum.
        aux_weight: weight of the auxiliary head's loss.
        class_weights: (K,) weight of each class; all equal if None.
        ignore_index: pixels that do not count.
        total: for batches that are processed in parts, whose losses are then added: the
            `total_weight` of the whole batch; that of `target` if None. "dice" and "ohem" are
            computed on each part, and averaged over the pixels of the parts.

    Returns:
        A scalar; 0 where no pixel counts.

    Raises:
        InputError: there is no such loss.
    """
    terms = []
    for name in loss.split("+"):
        if name not in LOSSES:
            advice = did_you_mean(name, LOSSES, f"there are {', '.join(LOSSES)}")
            raise InputError(f"no loss is called {name!r}; {advice} (a sum: cross_entropy+dice)")
        terms.append(LOSSES[name])
    if total is None:
        total = total_weight(target, class_weights, ignore_index=ignore_index)

    def of_head(logits: Tensor) -> Tensor:
        sums = [term(logits.float(), target, class_weights, ignore_index) for term in terms]
        return torch.stack(sums).sum() / total

    if isinstance(output, ISANetOutput):
        return of_head(output.out) + aux_weight * of_head(output.aux)
    return of_head(output)


# Each loss is a mean, multiplied by the total weight of the target: sums of chunks can be added.


def _cross_entropy(
    logits: Tensor, target: Tensor, class_weights: Tensor | None, ignore_index: int
) -> Tensor:
    return F.cross_entropy(
        logits, target, weight=class_weights, ignore_index=ignore_index, reduction="sum"
    )


def _dice(
    logits: Tensor, target: Tensor, class_weights: Tensor | None, ignore_index: int
) -> Tensor:
    """Mean of ``1 - 2 Σ p y / Σ (p + y)`` over the classes of the target (arXiv 1606.04797).

    p is the probability of the class, y is 1 at its pixels; the sums are over the batch's pixels.
    """
    classes = torch.arange(logits.shape[1], device=target.device)
    truth = target[:, None] == classes[:, None, None]  # (B, K, H, W)
    p = logits.softmax(1).masked_fill(target[:, None] == ignore_index, 0)
    pixels = truth.sum((0, 2, 3))  # (K,)
    hits = p.masked_fill(~truth, 0).sum((0, 2, 3))  # (K,)
    weights = (pixels > 0).float() if class_weights is None else class_weights * (pixels > 0)
    losses = 1 - 2 * hits / (p.sum((0, 2, 3)) + pixels).clamp(min=1e-6)  # (K,)
    mean = (weights * losses).sum() / weights.sum().clamp(min=1e-6)
    return mean * total_weight(target, class_weights, ignore_index=ignore_index)


def _focal(
    logits: Tensor, target: Tensor, class_weights: Tensor | None, ignore_index: int
) -> Tensor:
    """Mean of ``-(1 - p) ** GAMMA * log p`` with p of the pixel's class (arXiv 1708.02002)."""
    losses, weights = _pixels(logits, target, class_weights, ignore_index)
    return (weights * (1 - (-losses).exp()) ** GAMMA * losses).sum()


def _ohem(
    logits: Tensor, target: Tensor, class_weights: Tensor | None, ignore_index: int
) -> Tensor:
    """Mean cross-entropy of the hard pixels, as in the authors' OCNet code (arXiv 1809.00916).

    Hard pixels have a probability of their class of at most `HARD`, or of at most the largest among
    the fraction `KEPT` of all pixels with the smallest ones. The authors keep at least 100,000 of
    about 1.2 million pixels.
    """
    losses, weights = _pixels(logits, target, class_weights, ignore_index)
    if not len(losses):
        return losses.sum()
    p = (-losses.detach()).exp()
    threshold = p.kthvalue(max(round(KEPT * len(p)), 1)).values.clamp(min=HARD)
    weights = weights * (p <= threshold)
    mean = (weights * losses).sum() / weights.sum().clamp(min=1e-6)
    return mean * total_weight(target, class_weights, ignore_index=ignore_index)


def _pixels(
    logits: Tensor, target: Tensor, class_weights: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of the N counted pixels without weights, and the weights, (N,)."""
    losses = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    counted = target != ignore_index
    weights = torch.ones_like(losses) if class_weights is None else class_weights[target * counted]
    return losses[counted], weights[counted]


Loss = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]
LOSSES = MappingProxyType[str, Loss](
    {"cross_entropy": _cross_entropy, "dice": _dice, "focal": _focal, "ohem": _ohem}
)


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
