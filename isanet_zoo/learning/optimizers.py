"""How weights follow their gradients: optimiser, schedule, moving average."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from isanet_zoo.manifest.recipe import Recipe
from isanet_zoo.network.isanet import ISANet


def poly(step: int, steps: int, *, power: float = 0.9, floor: float = 0.01) -> float:
    """Return the learning rate of a step as a share of the first, falling from 1 to `floor`.

    Steps beyond the last keep the floor.

    sssegmentation's schedule: ``(lr - min_lr) * (1 - step / steps) ** power + min_lr``, with
    ``floor = min_lr / lr``.
    """
    share: float = (1 - floor) * max(1 - step / steps, 0) ** power + floor
    return share


def create_optimizer(model: ISANet, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser for all parameters that are not frozen."""
    groups = model.param_groups(recipe.lr, recipe.head_multiplier)
    if recipe.optimizer == "adamw":
        betas = (recipe.momentum, 0.999)
        return torch.optim.AdamW(groups, betas=betas, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def moving_average(model: ISANet, decay: float) -> AveragedModel:
    """Return a copy of a model that follows it: ``average = decay * average + (1 - decay) * new``.

    The first update copies; then the decay grows up to `decay`, as ``(1 + n) / (10 + n)`` after n
    updates, so that the start is soon forgotten.
    """

    def average(old: Tensor, new: Tensor, updates: Tensor | int) -> Tensor:
        if not new.is_floating_point():
            return new
        step = float(updates)
        return torch.lerp(old, new, 1 - min(decay, (1 + step) / (10 + step)))

    return AveragedModel(model, avg_fn=average, use_buffers=True)
