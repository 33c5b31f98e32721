"""Batch order, deterministic across processes and restarts, and the reading of batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from isanet_zoo.errors import InputError, ZooError
from isanet_zoo.learning import distributed
from isanet_zoo.learning.data import SegmentationDataset
from isanet_zoo.learning.transforms import Augment
from isanet_zoo.manifest.recipe import Recipe


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Random views of a data set. The view of a key (epoch, index) is always the same.

    It depends neither on the process that computes it nor on whether a run was interrupted.
    """

    def __init__(self, dataset: SegmentationDataset, augment: Augment, *, seed: int = 0) -> None:
        self.dataset = dataset
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the view of image `index` in `epoch`: (3, H, W) float32 and (H, W) int64."""
        epoch, index = key
        return self.augment(self.dataset[index], np.random.default_rng((self.seed, epoch, index)))


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The batches of a whole run from a step on, as keys (epoch, index) of `Augmented`.

    Each epoch is another permutation; images that do not fill a batch are dropped. With several
    processes, each has a part of every batch.

    Args:
        length: number of images.
        recipe: batch size, over all processes, and number of epochs.
        seed: of the permutations.
        start: the first step.

    Raises:
        InputError: there are fewer images than the batch size, or the processes cannot share it.
    """

    def __init__(self, length: int, recipe: Recipe, *, seed: int = 0, start: int = 0) -> None:
        world = distributed.world_size()
        if recipe.batch_size % world:
            raise InputError(
                f"batch_size {recipe.batch_size} is not divisible by the {world} processes"
            )
        if recipe.batch_size > length:
            raise InputError(f"batch_size is {recipe.batch_size}, but there are {length} images")
        self.length, self.seed, self.start = length, seed, start
        self.batch_size = recipe.batch_size
        self.per_epoch = length // recipe.batch_size
        self.steps = recipe.epochs * self.per_epoch

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        mine = slice(distributed.rank(), None, distributed.world_size())
        for step in range(self.start, self.steps):
            epoch, batch = divmod(step, self.per_epoch)
            order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in indices[mine]]


def read_batches(
    views: Augmented, batches: EpochBatches, *, workers: int, pin_memory: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (B, 3, H, W) and targets (B, H, W) of all batches, read ahead by processes.

    Args:
        views: the views.
        batches: their order.
        workers: number of reading processes; 0 reads in this one.
        pin_memory: return tensors in pinned memory.

    Raises:
        InputError: a file cannot be used, or a reading process was killed.
    """
    loader = DataLoader(
        _ErrorsAsItems(views),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=_collate,
        generator=torch.Generator(),  # the default would advance torch's global generator
    )
    try:
        for batch in loader:
            if isinstance(batch, ZooError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            f"a process that reads images was killed, probably for lack of memory: {error}; "
            f"workers is {workers}, try fewer, or 0 to read in the main process"
        ) from error


class _ErrorsAsItems(Dataset[tuple[Tensor, Tensor] | ZooError]):
    """Views, or the error of a view: raised in a worker, it would become a whole traceback."""

    def __init__(self, views: Augmented) -> None:
        self.views = views

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor] | ZooError:
        try:
            return self.views[key]
        except ZooError as error:
            return error.with_traceback(None)


def _collate(items: list[tuple[Tensor, Tensor] | ZooError]) -> object:
    """Return the items as one batch, or the first error among them."""
    for item in items:
        if isinstance(item, ZooError):
            return item
    return default_collate(items)
