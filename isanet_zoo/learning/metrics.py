"""Intersection over union and its kin, from one confusion matrix over a whole data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from isanet_zoo.errors import InputError

LabelMap: TypeAlias = NDArray[Any] | Tensor  # integer class ids, of any shape


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says; all shares are within 0..1.

    Attributes:
        miou: mean of `iou` over the classes that occur, in prediction or target.
        iou: intersection over union of each class, by its name or id; NaN for one that occurs in
            neither.
        pixel_accuracy: share of the pixels that are right.
        mean_accuracy: mean over the classes that occur in the target of the share that was found.
        classes_evaluated: how many classes `miou` is the mean of.
    """

    miou: float
    iou: dict[str | int, float]
    pixel_accuracy: float
    mean_accuracy: float
    classes_evaluated: int

    def table(self) -> str:
        """Return a table for people, in per cent."""
        rows = {str(name): iou for name, iou in self.iou.items()}
        rows |= {"mIoU": self.miou, "pixel accuracy": self.pixel_accuracy}
        rows |= {"mean accuracy": self.mean_accuracy}
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {100 * value:6.2f}" for name, value in rows.items())


class SegmentationMetrics:
    """Counts which class was taken for which, pixel by pixel.

    The counts of all pictures are added before anything is divided, as the published figures are
    (`eval_semantic_segmentation` of chainercv, the mIoU of VOC, ADE20K and Cityscapes).

    Args:
        num_classes: K.
        classes: names of the classes; ids if None.
        ignore_index: target pixels of this value do not count.

    Example:
        >>> metrics = SegmentationMetrics(2, classes=("sky", "road"))
        >>> metrics.update(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 255]))
        >>> metrics.compute().iou
        {'sky': 0.5, 'road': 0.5}
    """

    def __init__(
        self, num_classes: int, *, classes: Sequence[str] | None = None, ignore_index: int = 255
    ) -> None:
        if classes is not None and len(classes) != num_classes:
            raise InputError(f"{len(classes)} names for {num_classes} classes; give one for each")
        self.names: Sequence[str | int] = classes or range(num_classes)
        self.ignore_index = ignore_index
        self.confusion = np.zeros((num_classes, num_classes), np.int64)  # (target, prediction)

    def update(self, prediction: LabelMap, target: LabelMap) -> None:
        """Count the pixels of a picture, or of several.

        Args:
            prediction: class ids, any shape.
            target: class ids or `ignore_index`, the same shape.

        Raises:
            InputError: the shapes differ, or an id is out of range.
        """
        found, wanted = _ids(prediction), _ids(target)
        if found.shape != wanted.shape:
            raise InputError(
                f"prediction has shape {tuple(found.shape)}, target {tuple(wanted.shape)}; "
                "compare label maps at the annotation's size"
            )
        counted = wanted != self.ignore_index
        found, wanted = found[counted], wanted[counted]
        num_classes = len(self.names)
        for name, ids in (("prediction", found), ("target", wanted)):
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < num_classes:
                raise InputError(
                    f"{name} has ids {int(ids.min())}..{int(ids.max())}, expected "
                    f"0..{num_classes - 1}, or {self.ignore_index} to ignore a target"
                )
        counts = torch.bincount(num_classes * wanted + found, minlength=num_classes**2)
        self.confusion += counts.view(num_classes, num_classes).cpu().numpy()

    def merge(self, other: SegmentationMetrics) -> None:
        """Add the counts of another one.

        Raises:
            InputError: it counts other classes.
        """
        if list(self.names) != list(other.names):
            raise InputError(f"cannot merge counts of {list(other.names)} into {list(self.names)}")
        self.confusion += other.confusion

    def all_reduce(self) -> None:
        """Add the counts of all processes of the default group; each has the sum afterwards."""
        counts = torch.from_numpy(self.confusion)
        if distributed.get_backend() == "nccl":
            counts = counts.cuda()
        distributed.all_reduce(counts)
        self.confusion = counts.cpu().numpy()

    def reset(self) -> None:
        """Forget all counts."""
        self.confusion[:] = 0

    def compute(self) -> Scores:
        """Return the scores of what has been counted; NaN where nothing has."""
        right = self.confusion.diagonal().astype(np.float64)  # (K,)
        wanted, found = self.confusion.sum(1), self.confusion.sum(0)  # (K,), (K,)
        iou = _share(right, wanted + found - right)
        return Scores(
            miou=_mean(iou),
            iou=dict(zip(self.names, iou.tolist(), strict=True)),
            pixel_accuracy=float(_share(right.sum(), wanted.sum())),
            mean_accuracy=_mean(_share(right, wanted)),
            classes_evaluated=int(np.isfinite(iou).sum()),
        )


def _ids(labels: LabelMap) -> Tensor:
    if isinstance(labels, Tensor):
        return labels.long()
    return torch.from_numpy(np.array(labels, np.int64))  # a copy: the array may be read-only


def _share(part: Any, whole: Any) -> NDArray[np.float64]:
    """Divide, giving NaN for shares of nothing."""
    shares: NDArray[np.float64] = np.full(np.shape(whole), np.nan)
    np.divide(part, whole, out=shares, where=np.asarray(whole) > 0)
    return shares


def _mean(shares: NDArray[np.float64]) -> float:
    """Return the mean of the shares that are not NaN; NaN if all are."""
    known = shares[np.isfinite(shares)]
    return float(known.mean()) if known.size else float("nan")
