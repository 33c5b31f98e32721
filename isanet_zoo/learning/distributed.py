"""Several processes as one: who does what, and how their numbers become one.

Without a process group there is one process, and nothing is communicated.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from isanet_zoo.network import backbones

T = TypeVar("T")


def rank() -> int:
    """Return this process's number."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


@contextlib.contextmanager
def process_group(device: str | torch.device) -> Iterator[None]:
    """Join the group that `torchrun` started this process for, if it did."""
    device = torch.device(device)
    if "TORCHELASTIC_RUN_ID" not in os.environ or distributed.is_initialized():
        yield
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def gather(value: T) -> list[T]:
    """Return the values of all processes, in their order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def summed(value: Tensor) -> Tensor:
    """Return the sum over all processes."""
    if world_size() > 1:
        value = value.clone()
        distributed.all_reduce(value)
    return value


def synchronise_norms(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network with batch norms that see the batches of all processes."""
    if world_size() == 1:
        return network
    if device.type != "cpu":
        return backbones.synchronise_norms(network)
    for norm in network.modules():  # torch's SyncBatchNorm takes no tensors on the CPU
        if isinstance(norm, nn.BatchNorm2d):
            norm.__class__ = _SyncedNorm
    return network


class _Sum(torch.autograd.Function):
    """The sum over all processes, through which gradients flow."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return summed(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return summed(gradients[0])


class _SyncedNorm(nn.BatchNorm2d):
    """A batch norm over the batches of all processes, also in the place of timm's kinds."""

    def forward(self, x: Tensor) -> Tensor:
        y = self._normalise(x.float()) if self.training else super().forward(x.float())
        for part in ("drop", "act"):  # of timm's BatchNormAct2d
            y = getattr(self, part, nn.Identity())(y)
        return y.to(x.dtype)

    def _normalise(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        count = x.numel() / x.shape[1] * world_size()
        mean: Tensor = _Sum.apply(x.sum((0, 2, 3))) / count  # (C,)
        centred = x - mean[:, None, None]
        variance: Tensor = _Sum.apply((centred * centred).sum((0, 2, 3))) / count  # (C,)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centred * scale[:, None, None] + self.bias[:, None, None]
