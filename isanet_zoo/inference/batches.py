"""Batches of images of one size, and their results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from isanet_zoo.engines import cuda
from isanet_zoo.imaging.reading import LoadedImage
from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.inference.decide import Decision
from isanet_zoo.manifest.labels import LabelSet

Key = TypeVar("Key")
Item: TypeAlias = tuple[int, Key, LoadedImage]  # an image with its position and its key

READ_AHEAD = 4  # batches of images among which those of one size are found


@dataclass(frozen=True)
class Batch(Generic[Key]):
    """Images whose results a GPU may still be computing and copying."""

    items: Sequence[Item[Key]]
    decision: Decision  # on the host, complete after `event`
    label_set: LabelSet
    event: Any  # after which the decision is complete; None if it is

    @classmethod
    def fetch(
        cls, items: Sequence[Item[Key]], decision: Decision, label_set: LabelSet
    ) -> Batch[Key]:
        """Begin to copy a decision to the host."""
        device = decision.labels.device
        return cls(items, decision.map(cuda.to_host), label_set, cuda.record_event(device))

    def results(self) -> dict[int, tuple[Key, Segmentation]]:
        """Wait for the results; return them by their images' positions, with their keys."""
        if self.event:
            self.event.synchronize()
        labels, confidence, probabilities = self.decision
        found = {}
        for i, (position, key, image) in enumerate(self.items):
            segmentation = Segmentation(
                labels[i].numpy(),
                self.label_set,
                None if confidence is None else confidence[i].numpy(),
                None if probabilities is None else probabilities[i].numpy(),
                image.path,
            )
            found[position] = (key, segmentation)
        return found


def make_batches(
    images: Iterable[tuple[Key, LoadedImage]], batch_size: int
) -> Iterator[list[Item[Key]]]:
    """Yield images of one size in lists of up to `batch_size`.

    An image waits for others of its size while `READ_AHEAD` batches are read. On an error, yield
    the images read so far, then raise.
    """
    waiting: dict[tuple[int, int], list[Item[Key]]] = {}  # by size, the oldest first
    try:
        for position, (key, image) in enumerate(images):
            waiting.setdefault(image.size, []).append((position, key, image))
            if len(waiting[image.size]) == batch_size:
                yield waiting.pop(image.size)
            oldest = next(iter(waiting), image.size)
            if waiting and position + 1 - waiting[oldest][0][0] == READ_AHEAD * batch_size:
                yield waiting.pop(oldest)
    except Exception:
        yield from waiting.values()
        raise
    yield from waiting.values()
