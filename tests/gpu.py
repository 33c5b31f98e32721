"""Marks of tests that need a GPU; `pytest -m gpu` selects them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

T = TypeVar("T", bound=Callable[..., None])

MARKS = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
)
CUDA = pytest.param("cuda", marks=MARKS)  # a device in `parametrize`


def needs_gpu(test: T) -> T:
    """Mark a test."""
    for mark in MARKS:
        test = mark(test)
    return test
