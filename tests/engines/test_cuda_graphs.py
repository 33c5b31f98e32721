"""Tests of CUDA graphs by shape, with graphs that are replaced on machines without a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from isanet_zoo.engines import cuda
from isanet_zoo.engines.cuda_graphs import GraphedForward


class Graph:
    """Computes like `cuda.Graph`, with an error that is added to its result."""

    error = 0.0
    made: list[tuple[int, ...]]

    def __init__(self, function: Callable[[Tensor], Tensor], images: Tensor, pool: Any) -> None:
        self.function, self.shape = function, images.shape
        self.made.append(tuple(images.shape))

    def __call__(self, images: Tensor) -> Tensor:
        assert images.shape == self.shape
        return self.function(images) + self.error


@pytest.fixture(autouse=True)
def graph(monkeypatch: pytest.MonkeyPatch) -> type[Graph]:
    monkeypatch.setattr(cuda, "current", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(cuda, "graph_pool", lambda: None)
    fake = type("Fake", (Graph,), {"made": []})
    monkeypatch.setattr(cuda, "Graph", fake)
    return fake


def images(size: int) -> Tensor:
    return torch.linspace(-1, 1, size).reshape(1, size)


def test_graph_is_captured_at_the_second_call_and_kept(graph: type[Graph]) -> None:
    calls: list[int] = []

    def double(x: Tensor) -> Tensor:
        calls.append(x.shape[1])
        return 2 * x

    forward = GraphedForward(double, capacity=2)
    for size in (4, 4, 4, 5, 5):
        assert torch.equal(forward(images(size)), 2 * images(size))
    assert graph.made == [(1, 4), (1, 5)]
    assert calls == [4, 4, 4, 4, 5, 5, 5]  # eager; compared: eager and graph; graph alone
    for size in (6, 5, 4, 4):  # 4 was the least recently used, so it is captured again
        forward(images(size))
    assert graph.made == [(1, 4), (1, 5), (1, 4)]


@pytest.mark.parametrize("error", [0.03, float("nan")])
def test_graph_beyond_the_tolerance_is_not_used(
    error: float, graph: type[Graph], caplog: pytest.LogCaptureFixture
) -> None:
    graph.error = error
    forward = GraphedForward(lambda x: 2 * x)
    for size in (4, 4, 4, 5, 5):
        assert torch.equal(forward(images(size)), 2 * images(size))
    assert graph.made == [(1, 4)]
    (record,) = caplog.records
    assert record.getMessage().startswith("CUDA graphs failed (logits of (1, 4) differ by ")


def test_graph_within_the_tolerance_is_used(graph: type[Graph]) -> None:
    graph.error = 0.015
    forward = GraphedForward(lambda x: 2 * x)
    results = [forward(images(4)) for _ in range(3)]
    assert torch.equal(results[2], 2 * images(4) + 0.015)


def test_graph_of_logits_that_are_not_finite_is_used(graph: type[Graph]) -> None:
    bad = torch.tensor([[float("nan"), float("inf"), 1.0]])
    forward = GraphedForward(lambda x: x)
    for _ in range(3):
        torch.testing.assert_close(forward(bad), bad, equal_nan=True)
    assert graph.made == [(1, 3)]


def test_network_that_cannot_be_captured_runs_eagerly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def capture(function: Callable[[Tensor], Tensor], images: Tensor, pool: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda, "Graph", capture)
    forward = GraphedForward(lambda x: 2 * x)
    for size in (4, 4, 4, 5, 5):
        assert torch.equal(forward(images(size)), 2 * images(size))
    (record,) = caplog.records
    assert "CUDA graphs failed (RuntimeError: operation not permitted" in record.getMessage()


def test_variable_switches_graphs_off(graph: type[Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISANET_ZOO_PLAIN", "1")
    forward = GraphedForward(lambda x: 2 * x)
    for _ in range(3):
        assert torch.equal(forward(images(4)), 2 * images(4))
    assert graph.made == []
