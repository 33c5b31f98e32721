"""Predictions on a real GPU; `test_rehearsal.py` is about the same without one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from isanet_zoo import Predictor
from isanet_zoo.engines.speed import measure_speeds
from isanet_zoo.inference.decide import _fused
from tests.engines.networks import make_network
from tests.gpu import needs_gpu

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (96, 128, 3)).astype(np.uint8) for _ in range(6)]


def labels_of(predictor: Any) -> NDArray[np.uint8]:
    """Return the labels of `IMAGES`, (B, H, W)."""
    return np.stack([found.labels for found in predictor(IMAGES)])


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_and_kernel_agree_with_the_plain_operations(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor: Any = Predictor(make_network(), device="cuda", dtype=dtype, confidence=True)
    fast = labels_of(predictor)
    assert not predictor.engine._forward._path._failed
    assert not _fused._failed
    monkeypatch.setenv("ISANET_ZOO_PLAIN", "1")
    assert (labels_of(predictor) == fast).mean() > 0.999


@needs_gpu
@pytest.mark.parametrize("options", [{}, {"tile": 64}, {"flip": True, "scales": (0.5, 1.0)}])
def test_segmenting_does_not_wait_for_the_gpu(options: dict[str, Any]) -> None:
    predictor = Predictor(make_network(), device="cuda", **options)
    labels_of(predictor)  # graphs and kernels are compiled and compared
    loaded = [(None, predictor._read(image)) for image in IMAGES]
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = predictor._segment([(0, *loaded[0])])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert batch.results()[0][1].labels.shape == (96, 128)


@needs_gpu
def test_predictor_of_a_gpu_that_is_not_the_current_one_uses_it() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    first, second = (Predictor(make_network(), device=index) for index in (0, 1))
    np.testing.assert_array_equal(labels_of(second), labels_of(first))
    assert second.device == torch.device("cuda", 1)


@needs_gpu
def test_speeds_of_a_gpu_are_measured() -> None:
    found = measure_speeds(torch.device("cuda", 0))
    assert 0 < found.float32 < 1
