"""Which picture is looked at when: the same in every process and after every interruption."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from isanet_zoo.errors import InputError
from isanet_zoo.learning import distributed
from isanet_zoo.learning.data import SegmentationDataset
from isanet_zoo.learning.transforms import Augment
from isanet_zoo.manifest.recipe import Recipe


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Random views of a data set. An item is asked for by (epoch, index), and is always the same.

    So it does not matter which process makes it, or whether a run was interrupted.
    """

    def __init__(self, dataset: SegmentationDataset, augment: Augment, *, seed: int = 0) -> None:
        self.dataset = dataset
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the view of picture `index` in `epoch`, as an image and its target."""
        epoch, index = key
        return self.augment(self.dataset[index], np.random.default_rng((self.seed, epoch, index)))


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The batches of a whole run from a step on, as keys (epoch, index) of `Augmented`.

    Each epoch is a permutation of its own; what is left over in the end is dropped. With several
    processes each gets its share of every batch.
    """

    def __init__(self, length: int, recipe: Recipe, *, seed: int = 0, start: int = 0) -> None:
        world = distributed.world_size()
        if recipe.batch_size % world:
            raise InputError(
                f"batch_size {recipe.batch_size} cannot be shared by {world} processes"
            )
        if recipe.batch_size > length:
            raise InputError(f"batch_size is {recipe.batch_size}, but there are {length} pictures")
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
