"""Cost of a network for images of the size that its preprocessing states.

It is counted on torch's meta device, where the network computes shapes only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from isanet_zoo.errors import InputError
from isanet_zoo.manifest.config import NetworkConfig, Preprocess
from isanet_zoo.manifest.lookup import load_manifest
from isanet_zoo.network.isanet import ISANet

SMALL = 64  # pixels on a side, of an image whose size is not stated

# Bounds of a network from a file. The most expensive published model is within 4 % of each.
MOST_OPERATIONS = 4_300_000_000_000
MOST_VALUES = 70_000_000  # 280 MB in float32
MOST_PADDED = 1025 * 2049  # pixels that every image may be padded to


class Cost(NamedTuple):
    """Cost of one image of the largest stated size, without its labels.

    Attributes:
        operations: multiply-additions of convolutions and attention, over all tiles.
        largest_map: values of the largest feature map of a tile.
    """

    operations: int
    largest_map: int


@functools.lru_cache(16)
def count_cost(network: NetworkConfig, preprocess: Preprocess) -> Cost:
    """Return the cost of a network for an image that is prepared like this.

    Raises:
        InputError: the encoder cannot process images of that size.

    Example:
        >>> count_cost(NetworkConfig("test_resnet", 2), Preprocess(pad=(512, 512))).operations
        31258050560
    """
    height, width = preprocess.largest_size
    tiles, tile = preprocess.tiles((max(height, SMALL), max(width, SMALL)))
    with torch.device("meta"):
        on_meta = ISANet.from_config(network).float().eval()
        images = torch.empty(1, network.in_chans, *tile, dtype=torch.float32)
    try:
        with torch.no_grad(), _Counter() as counter:
            on_meta.forward_logits(images)
    except RuntimeError as error:
        raise InputError(
            f"{network.backbone} cannot process images of {tile} pixels: {error}"
        ) from error
    return Cost(tiles * counter.operations, counter.largest_map)


def check_cost(network: NetworkConfig, preprocess: Preprocess) -> None:
    """Raise InputError if images take a network more than every published one.

    A published network with its own preprocessing may have any number of classes and channels.
    """
    for weights in load_manifest().values():
        known = weights.network
        same = replace(network, num_classes=known.num_classes, in_chans=known.in_chans) == known
        if same and weights.preprocess == preprocess:
            return
    if math.prod(preprocess.pad or ()) > MOST_PADDED:
        raise InputError(
            f"preprocess.pad is {preprocess.pad}; a saved network may pad images to {MOST_PADDED} "
            "pixels"
        )
    cost = count_cost(network, preprocess)
    if cost.operations > MOST_OPERATIONS or cost.largest_map > MOST_VALUES:
        raise InputError(
            f"preprocess: images of {preprocess.largest_size} pixels take this network "
            f"{cost.operations:.2g} multiply-additions and feature maps of {cost.largest_map:.2g} "
            f"values; a saved network may take {MOST_OPERATIONS:.2g} and {MOST_VALUES:.2g}"
        )


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of the current thread."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0
        self.largest_map = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **(kwargs or {}), out_val=out) // 2
        if isinstance(out, Tensor):
            self.largest_map = max(self.largest_map, out.numel())
        return out
