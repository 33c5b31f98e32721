"""The published protocol: labels at the annotation's size, counted over the whole data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from torch import Tensor

from isanet_zoo.errors import InputError
from isanet_zoo.imaging.reading import LoadedImage
from isanet_zoo.inference.predictor import Predictor, Progress
from isanet_zoo.learning import distributed
from isanet_zoo.learning.data import SegmentationDataset
from isanet_zoo.learning.metrics import Scores, SegmentationMetrics
from isanet_zoo.network.isanet import ISANet


def evaluate(
    model: ISANet | Predictor,
    dataset: SegmentationDataset,
    *,
    progress: Progress | None = None,
    each: Callable[[Path, Scores], None] | None = None,
) -> Scores:
    """Segment the pictures of a data set and compare with its masks.

    Under `torchrun`, each process takes its share of the pictures, and all return the same scores.

    Args:
        model: a network, which is then used as its weights were tested; or a `Predictor`, whose
            scales, flip and tiles are then used.
        dataset: pictures and masks; the classes have to be the network's.
        progress: called with (pictures done, pictures in all) of this process after each picture.
        each: called with each picture's file and scores at the end, in the data set's order.

    Raises:
        InputError: the classes differ, or a picture or mask cannot be used.
    """
    predictor = model if isinstance(model, Predictor) else Predictor(model)
    ours, theirs = predictor.engine.label_set, dataset.label_set
    if len(ours) != len(theirs) or (ours.name != "generic" and ours.names != theirs.names):
        raise InputError(
            f"the network knows the {len(ours)} classes of {ours.title}, {dataset.name} has the "
            f"{len(theirs)} of {theirs.title}; evaluate it on its own data set"
        )
    indices = range(distributed.rank(), len(dataset), distributed.world_size())
    metrics = _metrics(theirs.names, theirs.ignore_index)
    rows: list[tuple[int, Scores]] = []
    results = predictor._stream(_samples(dataset, indices))
    for done, ((index, labels), segmentation) in enumerate(results, 1):
        of_image = _metrics(theirs.names, theirs.ignore_index)
        of_image.update(segmentation.labels, labels)
        metrics.merge(of_image)
        if each:
            rows.append((index, of_image.compute()))
        if progress:
            progress(done, len(indices))
    if distributed.world_size() > 1:
        metrics.all_reduce()
    if each:
        gathered = [row for share in distributed.gather(rows) for row in share]
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


def _metrics(names: tuple[str, ...], ignore_index: int) -> SegmentationMetrics:
    return SegmentationMetrics(len(names), classes=names, ignore_index=ignore_index)
