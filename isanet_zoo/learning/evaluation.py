"""Evaluation by the published protocol: labels at the annotation's size, one confusion matrix."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from isanet_zoo.errors import InputError
from isanet_zoo.imaging.reading import LoadedImage
from isanet_zoo.inference.predictor import Predictor, Progress
from isanet_zoo.learning import distributed
from isanet_zoo.learning.data import SegmentationDataset
from isanet_zoo.learning.mask_check import check_masks
from isanet_zoo.learning.metrics import Scores, SegmentationMetrics
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.network.isanet import ISANet


def evaluate(
    model: ISANet | Predictor | str | os.PathLike[str],
    dataset: SegmentationDataset,
    *,
    engine: str | None = None,
    check: bool = True,
    check_progress: Progress | None = None,
    progress: Progress | None = None,
    each: Callable[[Path, Scores], None] | None = None,
    counts: SegmentationMetrics | None = None,
) -> Scores:
    """Segment the images of a data set and compare the labels with its masks.

    Under `torchrun`, each process segments a part of the images; all return the same scores.

    Args:
        model: a network, a name or a file as for `Predictor`, with the resizing and tiles that its
            weights were tested with; or a `Predictor`, with its own engine, scales, flip and tiles.
        dataset: images and masks; its classes must be the network's. With own classes of a
            `Predictor`, they may be either; the scores are those of the own classes.
        engine: how the network is computed, see `Predictor`.
        check: read all masks first, see `check_masks`.
        check_progress: called with (pairs checked, pairs in all) meanwhile.
        progress: called with (images done, images in all) of this process after each image.
        each: called with each image's file and scores at the end, in the data set's order.
        counts: the confusion matrix of all images is added to it.

    Raises:
        InputError: the classes differ, an image or mask cannot be used, or no pixel has a class.
    """
    if not isinstance(dataset, SegmentationDataset):
        raise InputError(f"dataset is a {type(dataset).__name__}; see open_dataset")
    if isinstance(model, Predictor) and engine is not None:
        raise InputError(f"engine is {engine!r}, but the predictor has one; pass it to Predictor")
    predictor = model if isinstance(model, Predictor) else Predictor(model, engine=engine)
    labels, table = _own_labels(predictor, dataset)
    if check:
        check_masks([dataset], progress=check_progress)
    indices = range(distributed.rank(), len(dataset), distributed.world_size())
    metrics = _metrics(labels)
    rows: list[tuple[int, Scores]] = []
    results = predictor._stream(_samples(dataset, indices))
    for done, ((index, target), segmentation) in enumerate(results, 1):
        target = target if table is None else table[target.long()]
        of_image = _metrics(labels)
        of_image.update(segmentation.labels, target)
        metrics.merge(of_image)
        if each:
            rows.append((index, of_image.compute()))
        if progress:
            progress(done, len(indices))
    if distributed.world_size() > 1:
        metrics.all_reduce()
    if not metrics.confusion.any():
        raise InputError(f"every pixel of the masks of {dataset.name} is ignored")
    if counts is not None:
        counts.merge(metrics)
    if each:
        gathered = [row for part in distributed.gather(rows) for row in part]
        for index, scores in sorted(gathered, key=lambda row: row[0]):
            each(dataset.path(index), scores)
    return metrics.compute()


def _samples(
    dataset: SegmentationDataset, indices: Iterable[int]
) -> Iterator[tuple[tuple[int, Tensor], LoadedImage]]:
    """Yield images, each with its index and labels (H, W) as the key."""
    for index in indices:
        pixels, labels = dataset[index]
        yield (index, labels), LoadedImage(pixels, dataset.path(index))


def _own_labels(
    predictor: Predictor, dataset: SegmentationDataset
) -> tuple[LabelSet, Tensor | None]:
    """Return the classes to evaluate, and the own class of each label of the masks.

    The masks may have the own classes of a predictor themselves; then the table is None.
    """
    merged = predictor.merged
    if merged.label_set.names == dataset.label_set.names:
        return dataset.label_set, None
    _check_classes(predictor.engine.label_set, dataset)
    if merged.label_set is predictor.engine.label_set:
        return dataset.label_set, None
    return merged.label_set, torch.tensor(merged.table, dtype=torch.uint8)


def _check_classes(ours: LabelSet, dataset: SegmentationDataset) -> None:
    theirs = dataset.label_set
    if len(ours) != len(theirs) or (ours.name != "generic" and ours.names != theirs.names):
        raise InputError(
            f"the model predicts the {len(ours)} classes of {ours.title}, {dataset.name} has the "
            f"{len(theirs)} of {theirs.title}; evaluate the model on its own data set"
        )


def _metrics(labels: LabelSet) -> SegmentationMetrics:
    return SegmentationMetrics(len(labels), classes=labels.names, ignore_index=labels.ignore_index)
