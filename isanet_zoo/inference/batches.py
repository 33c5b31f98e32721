"""Batches of images of one size, and their results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

from isanet_zoo.imaging.reading import LoadedImage
from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.inference.decide import Decision
from isanet_zoo.manifest.labels import LabelSet

Key = TypeVar("Key")
Item: TypeAlias = tuple[int, Key, LoadedImage]  # an image with its position and its key

READ_AHEAD = 4  # batches of images that are read to find images of one size


@dataclass(frozen=True)
class Batch(Generic[Key]):
    """Images whose results a GPU may still be computing and copying."""

    items: Sequence[Item[Key]]
    decision: Decision  # on the host, complete after `event`
    label_set: LabelSet
    event: Any  # torch.cuda.Event; None for results that are complete

    @classmethod
    def fetch(
        cls, items: Sequence[Item[Key]], decision: Decision, label_set: LabelSet
    ) -> Batch[Key]:
        """Begin to copy a decision to the host."""
        on_host = decision.map(_to_host)
        event: Any = None
        if decision.labels.is_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(decision.labels.device))
        return cls(items, on_host, label_set, event)

    def results(self) -> dict[int, tuple[Key, Segmentation]]:
        """Wait for the results; return them by their images' positions, with their keys."""
        if self.event:
            self.event.synchronize()
        labels, confidence, probabilities = self.decision
        return {
            position: (
                key,
                Segmentation(
                    labels[i].numpy(),
                    self.label_set,
                    None if confidence is None else confidence[i].numpy(),
                    None if probabilities is None else probabilities[i].numpy(),
                    image.path,
                ),
            )
            for i, (position, key, image) in enumerate(self.items)
        }


def make_batches(
    images: Iterable[tuple[Key, LoadedImage]], batch_size: int
) -> Iterator[list[Item[Key]]]:
    """Yield images of one size in lists of up to `batch_size`."""
    for group in _groups(images, 1 if batch_size == 1 else READ_AHEAD * batch_size):
        buckets: dict[tuple[int, int], list[Item[Key]]] = defaultdict(list)
        for item in group:
            buckets[item[2].size].append(item)
        for bucket in buckets.values():
            for start in range(0, len(bucket), batch_size):
                yield bucket[start : start + batch_size]


def _groups(images: Iterable[tuple[Key, LoadedImage]], size: int) -> Iterator[list[Item[Key]]]:
    """Yield images in lists of `size`; on an error, yield those read so far, then raise."""
    group: list[Item[Key]] = []
    try:
        for position, (key, image) in enumerate(images):
            group.append((position, key, image))
            if len(group) == size:
                yield group
                group = []
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group


def _to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU; from a CUDA GPU without waiting for the copy."""
    if not tensor.is_cuda:
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
