"""Stress test: predictors in several threads, and a network of the user in another one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isanet_zoo import ISANet, Predictor
from tests.engines.networks import make_network

IMAGES: list[NDArray[Any]] = [
    np.random.default_rng(seed).integers(0, 256, (40 + 8 * seed, 56, 3)).astype(np.uint8)
    for seed in range(3)
]


class Foreign(nn.Module):
    """An encoder that the library does not support."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, width, 8, stride=8), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.norm(self.convolution(x))
        return [features, features.relu()]


def make_networks() -> dict[str, ISANet]:
    """Return networks that are folded, partly folded and not folded."""
    networks = {name: make_network(name) for name in ("test_resnet", "mobilenetv3_small_050")}
    foreign, hooked = make_network(), make_network()
    foreign.backbone = Foreign(foreign.head.reduce.conv.in_channels).eval()
    hooked.backbone = timm.create_model(
        "test_resnet", features_only=True, output_stride=8, out_indices=(-2, -1), feature_cls="hook"
    ).eval()
    return networks | {"foreign": foreign, "hooked": hooked}


def labels(predictor: Predictor) -> list[NDArray[np.uint8]]:
    return [one.labels for one in predictor(IMAGES)]  # type: ignore[union-attr]


def repeat(compute: Callable[[], Tensor], expected: Tensor, stop: threading.Event) -> int:
    """Compute until `stop` is set; return how often the result was the expected one."""
    count = 0
    while not stop.is_set():
        assert torch.equal(compute(), expected)
        count += 1
    return count


def test_predictors_in_threads_compute_the_same_and_disturb_no_other_network() -> None:
    networks = make_networks()
    expected = {name: labels(Predictor(network)) for name, network in networks.items()}
    shared = {name: Predictor(network) for name, network in networks.items()}
    unrelated = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU()))
    unrelated.eval().requires_grad_(False)
    x = torch.randn(1, 3, 20, 20)
    before = {name: getattr(nn.Module, name) for name in ("__call__", "__getattr__", "forward")}
    stop = threading.Event()

    def build_and_use(number: int) -> None:
        for name in list(networks)[number % 2 :] * 2:
            for predictor in (Predictor(networks[name]), shared[name]):
                for found, wanted in zip(labels(predictor), expected[name], strict=True):
                    np.testing.assert_array_equal(found, wanted)

    with ThreadPoolExecutor(5) as pool:
        other = pool.submit(repeat, lambda: unrelated(x), unrelated(x), stop)
        workers = [pool.submit(build_and_use, number) for number in range(4)]
        errors = [worker.exception() for worker in workers]
        stop.set()
        assert other.result() > 10
    assert errors == [None] * 4
    for name, function in before.items():
        assert getattr(nn.Module, name) is function
