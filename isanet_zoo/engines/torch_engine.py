"""The engine that computes with torch, on CUDA, MPS and the CPU.

Letters in shapes: B batch, K classes, h w image.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from isanet_zoo.engines.cuda_graphs import GraphedForward
from isanet_zoo.engines.depthwise import restore_depthwise, speed_up_depthwise
from isanet_zoo.engines.encoder import has_hooks
from isanet_zoo.engines.folding import fold
from isanet_zoo.network.isanet import ISANet

CONNECTIONS = {"_turn", "_forward"}  # attributes that are created again in a copy


class TorchEngine:
    """A folded copy of a network, see `isanet_zoo.engines.folding`.

    Args:
        network: the network; it is not changed.
        device: where to compute.
        dtype: type of the arithmetic.
        compile: pass the copy to `torch.compile`.

    Attributes:
        network: the folded copy.

    The other attributes are those of `isanet_zoo.engines.engine.Engine`.
    """

    name = "torch"
    output: Literal["logits", "labels"] = "logits"
    input_size: tuple[int, int] | None = None

    def __init__(
        self,
        network: ISANet,
        device: torch.device,
        dtype: torch.dtype,
        *,
        compile: bool = False,  # noqa: A002 - torch's word
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.label_set = network.label_set
        self.preprocess = network.preprocess
        self.resize = network.config.head.resize
        self.network = _prepare(network, device, dtype)
        if device.type == "cpu" and not compile:
            speed_up_depthwise(self.network)
        self._compile = compile
        self._connect()

    def _connect(self) -> None:
        """Create what a pickle cannot contain: locks, graphs and compiled functions."""
        # Hooks, such as those of timm's `FeatureHookNet`, store feature maps on the module.
        hooked = has_hooks(self.network)
        self._turn = threading.Lock() if hooked else contextlib.nullcontext()
        self._forward: Callable[[Tensor], Tensor] = self.network.forward_logits
        if self._compile:
            self._forward = torch.compile(self._forward)
        elif uses_graphs(self.device):
            self._forward = GraphedForward(self._forward)

    def __getstate__(self) -> dict[str, Any]:
        return {name: part for name, part in vars(self).items() if name not in CONNECTIONS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._connect()

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Map prepared images (B, 3, h, w) float32 to logits (B, K, h/8, w/8) float32."""
        images = images.to(self.device, self.dtype, memory_format=torch.channels_last)
        with self._turn, torch.autocast(self.device.type, enabled=False):
            return self._forward(images)

    @torch.inference_mode()
    def reduced_features(self, images: Tensor) -> Tensor:
        """Map prepared images (B, 3, h, w) to the input of the attention, (B, C, h/8, w/8)."""
        images = images.to(self.device, self.dtype, memory_format=torch.channels_last)
        with self._turn, torch.autocast(self.device.type, enabled=False):
            features: Tensor = self.network.head.reduce(self.network.forward_features(images)[1])
            return features


def uses_graphs(device: torch.device) -> bool:
    """Return True if a device can run CUDA graphs."""
    return device.type == "cuda"


def _prepare(network: ISANet, device: torch.device, dtype: torch.dtype) -> ISANet:
    """Return a folded copy of a network in its fastest memory format."""
    folded = copy.deepcopy(network).eval()
    restore_depthwise(folded)
    folded.to(device, torch.float32)
    with torch.autocast(device.type, enabled=False):
        fold(folded, dtype)
    return folded.to(memory_format=torch.channels_last)
