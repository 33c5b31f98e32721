"""Optimizer, learning-rate schedule and weight averaging."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from isanet_zoo.manifest.recipe import Recipe
from isanet_zoo.network.isanet import ISANet


def poly(step: int, steps: int, *, power: float = 0.9, floor: float = 0.01) -> float:
    """Return the learning rate of a step as a fraction of the first: from 1 down to `floor`.

    Steps after the last keep the floor. This is the schedule of sssegmentation:
    ``(lr - min_lr) * (1 - step / steps) ** power + min_lr``, with ``floor = min_lr / lr``.
    """
    fraction: float = (1 - floor) * max(1 - step / steps, 0) ** power + floor
    return fraction


def create_optimizer(model: ISANet, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe, for all parameters that are not frozen."""
    groups = model.param_groups(recipe.lr, recipe.head_multiplier)
    if recipe.optimizer == "adamw":
        betas = (recipe.momentum, 0.999)
        return torch.optim.AdamW(groups, betas=betas, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(groups, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def moving_average(model: ISANet, decay: float) -> AveragedModel:
    """Return an exponential moving average: ``average = decay * average + (1 - decay) * new``.

    The first update copies the model. Then the decay grows up to `decay`, as ``(1 + n) / (10 + n)``
    after n updates, to give the first weights little influence.
    """

    def average(old: Tensor, new: Tensor, updates: Tensor | int) -> Tensor:
        if not new.is_floating_point():
            return new
        step = float(updates)
        return torch.lerp(old, new, 1 - min(decay, (1 + step) / (10 + step)))

    return AveragedModel(model, avg_fn=average, use_buffers=True)
