"""CUDA graphs, which launch all kernels of a network at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    images: Tensor  # the graph's input
    logits: Tensor  # the graph's output


class GraphedForward:
    """A function of one tensor, run through one CUDA graph per shape.

    The first call with a shape runs eagerly, so that single sizes have no overhead; the second one
    captures the graph. The most recently used graphs are kept. Calls run under a lock, as a graph
    has one buffer for its input.

    Args:
        forward: maps a tensor on a GPU to another, with the same kernels for the same shape.
        capacity: number of graphs that are kept; all use one memory pool.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], capacity: int = 8) -> None:
        self._forward = forward
        self._capacity = capacity
        self._graphs: OrderedDict[tuple[int, ...], _Captured | None] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()
        self._lock = threading.Lock()

    def __call__(self, images: Tensor) -> Tensor:
        """Return `forward(images)`."""
        shape = tuple(images.shape)
        with self._lock, torch.cuda.device(images.device):
            if shape not in self._graphs:
                self._graphs[shape] = None
                if len(self._graphs) > self._capacity:
                    self._graphs.popitem(last=False)
                return self._forward(images)
            captured = self._graphs[shape] or self._capture(images)
            self._graphs[shape] = captured
            self._graphs.move_to_end(shape)
            captured.images.copy_(images)
            captured.graph.replay()
            return captured.logits.clone()  # the next replay overwrites it

    def _capture(self, images: Tensor) -> _Captured:
        images = images.clone()
        graph = torch.cuda.CUDAGraph()
        # Meanwhile, other threads may allocate and copy for other predictors.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = self._forward(images)
        return _Captured(graph, images, logits)
