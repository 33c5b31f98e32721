"""CUDA graphs: one launch for all the kernels of a network, where launching them takes longer."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    images: Tensor  # what the graph reads
    logits: Tensor  # what it writes


class GraphedForward:
    """Runs a function of one tensor through CUDA graphs, one for each shape.

    A shape's first call runs as ever, so that a size that is never seen again costs nothing more;
    the second records the graph. The graphs that were used last are kept. Calls take turns, as a
    graph has only one place for its input.

    Args:
        forward: maps a tensor on a GPU to another, with the same kernels for the same shape.
        capacity: graphs that are kept; all share one pool of memory.
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
        # Other threads may allocate and copy meanwhile, for predictors of their own.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = self._forward(images)
        return _Captured(graph, images, logits)
