"""Tests of the schedules, compared with upstream's rates, torch's schedulers, and formulas."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings, strategies as st

from isanet_zoo import Recipe
from isanet_zoo.learning.schedules import decay
from tests import reference

GOLDEN = json.loads((reference.DATA / "golden" / "ssseg_poly_lr.json").read_text())


def rates(recipe: Recipe, steps: int) -> list[float]:
    return [recipe.lr * decay(recipe, step, steps) for step in range(steps + 1)]


@pytest.mark.parametrize("name", GOLDEN)
def test_learning_rates_equal_upstream_s(name: str) -> None:
    expected = GOLDEN[name]
    recipe, steps = Recipe.upstream(name), expected["max_iters"]
    assert recipe.min_lr == expected["min_lr"]
    assert recipe.epochs * expected["iters_per_epoch"] == steps
    assert expected["images_assumed"] // recipe.batch_size == expected["iters_per_epoch"]
    for step, rate in expected["lr_at_iter"].items():
        assert recipe.lr * decay(recipe, int(step), steps) == pytest.approx(rate, rel=0, abs=1e-12)


@given(
    steps=st.integers(1, 200),
    power=st.sampled_from([0.5, 0.9, 1.0, 2.0]),
    lowest=st.sampled_from([0.0, 1e-4, 0.01]),
)
@settings(max_examples=40, deadline=None)
def test_schedules_without_warmup_equal_torch_s(steps: int, power: float, lowest: float) -> None:
    lr = 0.01
    parameter = torch.nn.Parameter(torch.zeros(()))
    for schedule in ("poly", "cosine", "constant"):
        optimizer = torch.optim.SGD([parameter], lr=lr)
        kinds = torch.optim.lr_scheduler
        theirs: kinds.LRScheduler = kinds.ConstantLR(optimizer, 1.0)
        if schedule == "cosine":
            theirs = kinds.CosineAnnealingLR(optimizer, steps, eta_min=lowest)
        elif schedule == "poly":  # torch's ends at 0
            theirs = kinds.PolynomialLR(optimizer, steps, power)
        recipe = Recipe(lr=lr, min_lr=lowest, power=power, warmup=0.0)
        for rate in rates(replace(recipe, schedule=schedule), steps):
            (expected,) = theirs.get_last_lr()
            if schedule == "poly":
                expected = float(expected) / lr * (lr - lowest) + lowest
            assert rate == pytest.approx(float(expected), rel=1e-6, abs=1e-9)
            optimizer.step()
            theirs.step()


@pytest.mark.parametrize("schedule", ["poly", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_schedule_with_warmup_equals_its_formula(
    schedule: Literal["poly", "cosine", "constant"], warmup: float, steps: int
) -> None:
    recipe = Recipe(schedule=schedule, warmup=warmup, lr=0.02, min_lr=0.001, power=0.9)
    first = round(warmup * steps)
    for step, rate in enumerate(rates(recipe, steps)):
        if step < first:
            expected = 0.02 * (step + 1) / (first + 1)
        else:
            done = (step - first) / (steps - first) if steps > first else 0.0
            expected = {
                "poly": 0.001 + 0.019 * (1 - done) ** 0.9,
                "cosine": 0.001 + 0.019 * (1 + math.cos(math.pi * done)) / 2,
                "constant": 0.02,
            }[schedule]
        assert rate == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_learning_rate_stays_at_its_minimum_after_the_last_step(
    schedule: Literal["poly", "cosine"],
) -> None:
    recipe = Recipe(schedule=schedule, lr=0.01, min_lr=0.001)
    assert recipe.lr * decay(recipe, 12, 10) == pytest.approx(0.001)
