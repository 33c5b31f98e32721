"""Segmentation metrics from a confusion matrix."""

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
    """Segmentation metrics, as fractions within 0..1.

    Attributes:
        miou: mean of `iou` over the classes that occur in the prediction or in the target.
        iou: intersection over union of each class, by its name or id; NaN for a class that occurs
            in neither.
        pixel_accuracy: fraction of the pixels that are correct.
        mean_accuracy: mean over the classes in the target of their fraction of correct pixels.
        classes_evaluated: number of classes that `miou` is the mean of.
        absent: classes without a pixel in the target.
    """

    miou: float
    iou: dict[str | int, float]
    pixel_accuracy: float
    mean_accuracy: float
    classes_evaluated: int
    absent: tuple[str | int, ...] = ()

    def table(self) -> str:
        """Return a table for people, in per cent."""
        rows = [
            (f"{name}{' (no pixel in the masks)' if name in self.absent else ''}", iou)
            for name, iou in self.iou.items()
        ]
        rows += [
            (f"mIoU (mean of {self.classes_evaluated} of {len(rows)} classes)", self.miou),
            ("pixel accuracy", self.pixel_accuracy),
            ("mean accuracy", self.mean_accuracy),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {100 * value:6.2f}" for name, value in rows)


class SegmentationMetrics:
    """A confusion matrix, counted pixel by pixel, and the metrics computed from it.

    The counts of all images are added before any division, as in the published figures
    (`eval_semantic_segmentation` of chainercv, the mIoU of VOC, ADE20K and Cityscapes).

    Args:
        num_classes: K.
        classes: names of the classes; ids if None.
        ignore_index: target pixels of this value do not count.

    Raises:
        InputError: the number of names is not `num_classes`.

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
            raise InputError(f"{len(classes)} names for {num_classes} classes; pass one per class")
        self.names: Sequence[str | int] = classes or range(num_classes)
        self.ignore_index = ignore_index
        self.confusion = np.zeros((num_classes, num_classes), np.int64)  # (target, prediction)

    def update(self, prediction: LabelMap, target: LabelMap) -> None:
        """Count the pixels of one image or of several.

        Args:
            prediction: class ids, any shape.
            target: class ids or `ignore_index`, the same shape.

        Raises:
            InputError: the shapes differ, or an id is out of range or not an integer.
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
        """Add the counts of another instance.

        Raises:
            InputError: it has other classes.
        """
        if list(self.names) != list(other.names):
            raise InputError(f"cannot merge counts of {list(other.names)} into {list(self.names)}")
        self.confusion += other.confusion

    def all_reduce(self) -> None:
        """Replace the counts in all processes of the default group by their sum."""
        counts = torch.from_numpy(self.confusion)
        if distributed.get_backend() == "nccl":
            counts = counts.cuda()
        distributed.all_reduce(counts)
        self.confusion = counts.cpu().numpy()

    def reset(self) -> None:
        """Set all counts to zero."""
        self.confusion[:] = 0

    def compute(self) -> Scores:
        """Return the scores of the counted pixels; NaN where there are none."""
        correct = self.confusion.diagonal().astype(np.float64)  # (K,)
        wanted, found = self.confusion.sum(1), self.confusion.sum(0)  # (K,), (K,)
        iou = _ratio(correct, wanted + found - correct)
        return Scores(
            miou=_mean(iou),
            iou=dict(zip(self.names, iou.tolist(), strict=True)),
            pixel_accuracy=float(_ratio(correct.sum(), wanted.sum())),
            mean_accuracy=_mean(_ratio(correct, wanted)),
            classes_evaluated=int(np.isfinite(iou).sum()),
            absent=tuple(name for name, count in zip(self.names, wanted, strict=True) if not count),
        )


def _ids(labels: LabelMap) -> Tensor:
    """Return class ids as int64."""
    if not isinstance(labels, Tensor):
        labels = torch.from_numpy(np.array(labels))  # a copy: the array may be read-only
    if labels.is_floating_point() or labels.is_complex():
        raise InputError(f"label maps contain class ids, got {labels.dtype}; pass integers")
    return labels.long()


def _ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    """Divide; NaN where the divisor is 0."""
    ratios: NDArray[np.float64] = np.full(np.shape(whole), np.nan)
    np.divide(part, whole, out=ratios, where=np.asarray(whole) > 0)
    return ratios


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the values that are not NaN; NaN if all are."""
    present = values[np.isfinite(values)]
    return float(present.mean()) if present.size else float("nan")
