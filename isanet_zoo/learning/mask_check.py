"""Check of all masks of data sets before a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from isanet_zoo.errors import InputError
from isanet_zoo.learning import distributed
from isanet_zoo.learning.data import SegmentationDataset
from isanet_zoo.learning.data_report import (
    find_contradiction,
    find_duplicates,
    find_suspicions,
    list_problems,
)
from isanet_zoo.learning.scan import Progress, scan

logger = logging.getLogger(__name__)


def check_masks(
    datasets: Sequence[SegmentationDataset], *, progress: Progress | None = None
) -> list[Tensor]:
    """Check every mask of data sets, see `scan`; log suspected mistakes, such as absent classes.

    Args:
        datasets: images and masks.
        progress: called with (pairs scanned, pairs in all) of this process after each pair.

    Returns:
        The number of pixels of each class of each data set, (K,) int64.

    Raises:
        InputError: a mask or image cannot be read, sizes differ, or values are not ids of classes
            (the message lists the first problems of all data sets); or a data set has pixels of no
            class, or all its values are 0 and 255, and 255 is ignored.
    """
    scanned = scan(datasets, progress=progress)
    outcomes = [outcome for own in scanned for outcome in own]
    if problems := [outcome.problem for outcome in outcomes if outcome.problem]:
        raise InputError(list_problems(problems, len(outcomes)))
    suspicions = []
    for dataset, own in zip(datasets, scanned, strict=True):
        for contradiction in find_contradiction(dataset, own):
            raise InputError(contradiction)
        suspicions += find_suspicions(dataset, own)
    if distributed.rank() == 0:
        for suspicion in (*suspicions, *find_duplicates(datasets)):
            logger.warning("%s", suspicion)
    return [
        torch.stack([own.values for own in part]).sum(0)[list(dataset.label_set.official_ids)]
        for dataset, part in zip(datasets, scanned, strict=True)
    ]
