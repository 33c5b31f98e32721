"""Learning-rate schedules, as fractions of the highest learning rate."""

from __future__ import annotations

import math

from isanet_zoo.manifest.recipe import Recipe


def decay(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of a step as a fraction of `recipe.lr`.

    During the first w = round(warmup · steps) steps it is ``(step + 1) / (w + 1)``; then the
    schedule runs over the other steps. Steps after the last have the value of its end.

    Args:
        recipe: `schedule`, `warmup`, `lr`, `min_lr` and `power`.
        step: number of finished steps.
        steps: number of steps of the run.
    """
    rising = round(recipe.warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    left = max(1 - (step - rising) / max(steps - rising, 1), 0)
    floor = recipe.min_lr / recipe.lr
    if recipe.schedule == "poly":
        return poly(left, power=recipe.power, floor=floor)
    return cosine(left, floor=floor) if recipe.schedule == "cosine" else 1.0


def poly(left: float, *, power: float = 0.9, floor: float = 0.01) -> float:
    """Return ``(1 - floor) * left ** power + floor`` where a fraction `left` of the steps is left.

    This is the schedule of sssegmentation, ``(lr - min_lr) * (1 - step / steps) ** power + min_lr``
    with ``floor = min_lr / lr``.
    """
    fraction: float = (1 - floor) * left**power + floor
    return fraction


def cosine(left: float, *, floor: float = 0.0) -> float:
    """Return half a cosine from 1 to `floor` (SGDR without restarts, arXiv 1608.03983)."""
    return (1 - floor) * (1 - math.cos(math.pi * left)) / 2 + floor
