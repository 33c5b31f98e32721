"""`torch.distributed` helpers that also work in one process, without communication."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from isanet_zoo.errors import ZooError

T = TypeVar("T")


def rank() -> int:
    """Return the number of this process."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


@contextlib.contextmanager
def process_group(device: str | torch.device) -> Iterator[None]:
    """Join the group of `torchrun`, if it started this process; leave it on exit."""
    device = torch.device(device)
    if "TORCHELASTIC_RUN_ID" not in os.environ or distributed.is_initialized():
        yield
        return
    with contextlib.ExitStack() as stack:
        if device.type == "cuda":  # NCCL exchanges objects on the current device
            stack.enter_context(torch.cuda.device(device))
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        stack.callback(distributed.destroy_process_group)
        yield


def gather(value: T) -> list[T]:
    """Return the values of all processes, in their order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def run_on_first(action: Callable[[], object]) -> None:
    """Call a function in process 0 alone; if it raises a `ZooError`, raise it in all processes."""
    error = None
    if rank() == 0:
        try:
            action()
        except ZooError as caught:
            error = caught
    if error := gather(error)[0]:
        raise error


def add_up(value: Tensor) -> Tensor:
    """Return the sum over all processes."""
    if world_size() > 1:
        value = value.clone()
        distributed.all_reduce(value)
    return value


def copy_from_first(tensors: Iterator[Tensor]) -> None:
    """Overwrite tensors with those of process 0."""
    if world_size() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)
