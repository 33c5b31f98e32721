"""Batch norms in training: batches that are too small, and statistics over several processes."""

from __future__ import annotations

import logging
import math

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from isanet_zoo.errors import InputError
from isanet_zoo.learning import distributed
from isanet_zoo.manifest.config import OUTPUT_STRIDE
from isanet_zoo.manifest.recipe import Recipe
from isanet_zoo.network.backbones import synchronise_norms
from isanet_zoo.network.isanet import ISANet

logger = logging.getLogger(__name__)


def check_batch(model: ISANet, recipe: Recipe, accumulate: int) -> None:
    """Check that every batch norm that is trained sees more than one value per channel.

    Raises:
        InputError: one does not.
    """
    images = recipe.batch_size // distributed.world_size()
    chunk = math.ceil(images / accumulate)
    smallest = images - (math.ceil(images / chunk) - 1) * chunk if images else 0
    values = smallest * math.prod(math.ceil(side / OUTPUT_STRIDE) for side in recipe.crop)
    if values == 1 and _trains_norms(model):
        raise too_few_values(recipe, accumulate)


def too_few_values(recipe: Recipe, accumulate: int) -> InputError:
    """Return the error of a batch norm that sees a single value per channel."""
    return InputError(
        f"batch_size {recipe.batch_size}, crop {list(recipe.crop)} and accumulate {accumulate} "
        f"leave one value per channel for a batch norm (on {distributed.world_size()} processes); "
        "use a larger batch or crop, or freeze the norms"
    )


def synchronise(model: ISANet, device: torch.device) -> None:
    """Make batch norms compute their statistics over all processes; log where that is impossible.

    On CPUs, each process uses its own images, and the running statistics are those of process 0.
    """
    if distributed.world_size() == 1:
        return
    if device.type != "cpu":
        synchronise_norms(model)
    elif distributed.rank() == 0 and _trains_norms(model):
        logger.warning(
            "on CPUs, batch norms use the images of each process separately, as torch has no "
            "SyncBatchNorm for them; running statistics are those of process 0"
        )


def _trains_norms(model: ISANet) -> bool:
    """Return True if a batch norm is not frozen."""
    return any(isinstance(part, _BatchNorm) and part.training for part in model.train().modules())
