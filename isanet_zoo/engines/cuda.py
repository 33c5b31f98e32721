"""What the library uses of CUDA, in one place, which tests replace on machines without a GPU.

Nothing here waits for a GPU, except `Graph` when it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; from the CPU to a CUDA GPU through pinned memory."""
    if device.type != "cuda":
        return tensor.to(device)
    return (tensor if tensor.is_cuda else tensor.pin_memory()).to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU; from a CUDA GPU, it is complete after `record_event`'s event."""
    if not tensor.is_cuda:
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def record_event(device: torch.device) -> Any:
    """Return an event after all that was requested of a CUDA GPU so far; None for other devices."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def current(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA GPU the current one, on which graphs and Triton's kernels run."""
    return torch.cuda.device(device)


def graph_pool() -> Any:
    """Return a memory pool that several graphs may share."""
    return torch.cuda.graph_pool_handle()


class Graph:
    """All kernels of a function of one tensor, launched at once.

    Graphs that share a pool must not run at the same time.

    Args:
        function: runs the same kernels for tensors of one shape.
        images: a tensor of this shape, on the current GPU.
        pool: the memory of its intermediate tensors and its output.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], images: Tensor, pool: Any) -> None:
        self._images = images.clone()
        self._graph = torch.cuda.CUDAGraph()
        # Meanwhile, other threads may allocate and copy for other predictors.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._output = function(self._images)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the function of `images`."""
        self._images.copy_(images)
        self._graph.replay()
        return self._output.clone()  # the next replay overwrites it
