"""Tests of the three rules of resizing against a loop over positions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from isanet_zoo.manifest.config import ResizeRule
from isanet_zoo.network.resize import resize


def source(index: int, length: int, size: int, rule: ResizeRule) -> float:
    if rule == "corners":
        return index * (length - 1) / (size - 1) if size > 1 else 0.0
    if rule == "asymmetric":
        return index * length / size
    return max((index + 0.5) * length / size - 0.5, 0.0)


def naive(grid: np.ndarray, size: tuple[int, int], rule: ResizeRule) -> np.ndarray:
    out = np.zeros(size)
    for row in range(size[0]):
        for column in range(size[1]):
            y = source(row, grid.shape[0], size[0], rule)
            x = source(column, grid.shape[1], size[1], rule)
            for j in (math.floor(y), math.floor(y) + 1):
                for i in (math.floor(x), math.floor(x) + 1):
                    weight = (1 - abs(y - j)) * (1 - abs(x - i))
                    inside = min(j, grid.shape[0] - 1), min(i, grid.shape[1] - 1)
                    out[row, column] += weight * grid[inside]
    return out


@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    size=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    rule=st.sampled_from(["half_pixel", "corners", "asymmetric"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_resize_by_each_rule_equals_its_formula(
    shape: tuple[int, int], size: tuple[int, int], rule: ResizeRule, seed: int
) -> None:
    grid = np.random.default_rng(seed).standard_normal(shape)
    found = resize(torch.from_numpy(grid).float()[None, None], size, rule)[0, 0]
    np.testing.assert_allclose(found.numpy(), naive(grid, size, rule), atol=2e-5)


@pytest.mark.parametrize("rule", ["half_pixel", "corners", "asymmetric"])
def test_resize_by_each_rule_has_gradients(rule: ResizeRule) -> None:
    logits = torch.rand(1, 2, 3, 4, requires_grad=True)
    resize(logits, (6, 9), rule).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert float(logits.grad.sum()) == pytest.approx(2 * 6 * 9, rel=1e-5)
