"""CUDA graphs, which launch all kernels of a network at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from isanet_zoo.engines import cuda
from isanet_zoo.engines.fast_path import FastPath, plain_only

TOLERANCE = 0.01  # of the largest logit; the kernels are the same, but not always their algorithms


class GraphedForward:
    """A function of one tensor, run through one CUDA graph per shape.

    The first call with a shape runs eagerly, so that single sizes have no overhead; the second one
    captures the graph and compares its result with the eager one. The most recently used graphs are
    kept. Calls run under a lock, as a graph has one buffer for its input.

    Args:
        forward: maps a tensor on a GPU to another, with the same kernels for the same shape.
        capacity: number of graphs that are kept; all use one memory pool.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], capacity: int = 8) -> None:
        self._forward = forward
        self._capacity = capacity
        self._graphs: OrderedDict[tuple[int, ...], cuda.Graph | None] = OrderedDict()
        self._pool = cuda.graph_pool()
        self._path = FastPath("CUDA graphs", _compare)
        self._lock = threading.Lock()

    def __call__(self, images: Tensor) -> Tensor:
        """Return `forward(images)`."""
        if plain_only():
            return self._forward(images)
        shape = tuple(images.shape)
        with self._lock, cuda.current(images.device):
            if shape in self._graphs:
                replay, eager = partial(self._replay, images), partial(self._forward, images)
                return self._path(shape, replay, eager)
            self._graphs[shape] = None
            if len(self._graphs) > self._capacity:
                oldest, _ = self._graphs.popitem(last=False)
                self._path.forget(oldest)
            return self._forward(images)

    def _replay(self, images: Tensor) -> Tensor:
        shape = tuple(images.shape)
        graph = self._graphs[shape] or cuda.Graph(self._forward, images, self._pool)
        self._graphs[shape] = graph
        self._graphs.move_to_end(shape)
        return graph(images)


def _compare(found: Tensor, expected: Tensor) -> str:
    """Describe the difference of logits; empty within the tolerance."""
    largest = float(torch.nan_to_num(expected, 0, 0, 0).abs().amax())
    agrees = torch.isclose(found, expected, rtol=0, atol=TOLERANCE * largest, equal_nan=True)
    if agrees.all():
        return ""
    worst = float((found - expected).abs().amax())
    return f"logits of {tuple(found.shape)} differ by {worst:.3g}, the largest is {largest:.3g}"
