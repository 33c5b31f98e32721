"""The published protocol: labels at the annotation's size, counted over the whole data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    ours, theirs = predictor.network.label_set, dataset.label_set
    if len(ours) != len(theirs) or (ours.name != "generic" and ours.names != theirs.names):
        raise InputError(
            f"the network knows the {len(ours)} classes of {ours.title}, {dataset.name} has the "
            f"{len(theirs)} of {theirs.title}; evaluate it on its own data set"
        )
    indices = range(distributed.rank(), len(dataset), distributed.world_size())
    targets: list[Tensor] = []  # of pictures that were read, but not yet segmented

    def pictures() -> Iterator[LoadedImage]:
        for index in indices:
            pixels, labels = dataset[index]
            targets.append(labels)
            yield LoadedImage(pixels, dataset.path(index))

    metrics = _metrics(theirs.names, theirs.ignore_index)
    rows: list[tuple[int, Scores]] = []
    for done, segmentation in enumerate(predictor.stream(pictures()), 1):
        labels = targets.pop(0)
        picture = _metrics(theirs.names, theirs.ignore_index)
        picture.update(segmentation.labels, labels)
        metrics.merge(picture)
        if each:
            rows.append((indices[done - 1], picture.compute()))
        if progress:
            progress(done, len(indices))
    if distributed.world_size() > 1:
        metrics.all_reduce()
    if each:
        gathered = [row for share in distributed.gather(rows) for row in share]
        for index, scores in sorted(gathered, key=lambda row: row[0]):
            each(dataset.path(index), scores)
    return metrics.compute()


def _metrics(names: tuple[str, ...], ignore_index: int) -> SegmentationMetrics:
    return SegmentationMetrics(len(names), classes=names, ignore_index=ignore_index)
