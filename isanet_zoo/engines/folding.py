"""A network for inference: the same function in fewer operations.

- A batch norm after a convolution is merged into the convolution.
- The attention weights of a group sum to one. So the value projection V and the output projection
  W are two linear maps in a row, W·(A·(V·x)) = A·((W·V)·x), and become one.
- The groups of interlaced attention are independent: on a CPU they are processed in place, in
  chunks that fit the cache.

Letters in shapes: B batch, C channels, D key channels, h w feature map, P window, Q number of
windows per side, G groups, N positions in a group.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isanet_zoo.engines.blocks import NORMS, class_name
from isanet_zoo.engines.encoder import fold_encoder, has_hooks, merge_norms
from isanet_zoo.engines.row_blocks import RowBlockConvolution
from isanet_zoo.network.attention import ConvNormAct, InterlacedAttention, SelfAttention
from isanet_zoo.network.head import ISAHead
from isanet_zoo.network.isanet import ISANet

logger = logging.getLogger(__name__)

POSITIONS = 1024  # of one chunk on a CPU: 512 channels of them are 2 MiB

HEAD_LAYERS = {  # a head with other layers is not folded
    *(ISAHead, InterlacedAttention, SelfAttention, ConvNormAct, nn.Conv2d, nn.BatchNorm2d),
    *(nn.SyncBatchNorm, nn.ReLU, nn.LeakyReLU, nn.Dropout2d, nn.Sequential),
}


@torch.no_grad()
def fold(network: ISANet, dtype: torch.dtype = torch.float32) -> None:
    """Fold a network that is in evaluation mode, and make it compute in `dtype`.

    Parts that the library does not support are left as they are. The classifier computes in
    float32: in a smaller type, classes would tie.

    Args:
        network: changed in place.
        dtype: type of the arithmetic.
    """
    network.aux_head = None
    head: Any = network.head
    if _overrides_forward(network):
        logger.info("%s is not folded: it has its own forward pass", type(network).__name__)
    else:
        network.backbone = fold_encoder(network.backbone, network.config.backbone)
        if _is_supported(head):
            _fold_head(head)
        else:
            logger.info("the head is not folded: it has hooks or other layers")
    network.to(dtype)
    head.classifier.float()
    head.dropout = _ToFloat32()  # in evaluation mode, dropout is the identity


def _overrides_forward(network: ISANet) -> bool:
    """Return True if a subclass may use the feature maps in another way."""
    return (
        type(network).forward_features is not ISANet.forward_features
        or type(network).forward_logits is not ISANet.forward_logits
    )


def _is_supported(head: nn.Module) -> bool:
    """Return True if a head consists of the library's layers alone, without hooks."""
    parts = list(head.modules())
    norms: list[Any] = [part for part in parts if class_name(part) in NORMS]
    return (
        not has_hooks(head)
        and {type(part) for part in parts} <= HEAD_LAYERS
        and all(norm.running_mean is not None for norm in norms)
    )


def _fold_head(head: Any) -> None:
    head.reduce = RowBlockConvolution(*_merge(head.reduce))
    head.fuse = RowBlockConvolution(*_merge(head.fuse))
    head.attention = FoldedInterlacedAttention(head.attention)


def _merge(part: Any) -> list[Any]:
    """Return a `ConvNormAct` as a convolution and an activation."""
    return merge_norms([part.conv, part.norm, part.act])


class _ToFloat32(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class FoldedSelfAttention(nn.Module):
    """`SelfAttention` among the positions of each group."""

    def __init__(self, original: SelfAttention) -> None:
        super().__init__()
        self.query = nn.Sequential(*(layer for part in original.query for layer in _merge(part)))
        self.key = nn.Sequential(*(layer for part in original.key for layer in _merge(part)))
        convolution, self.act = _merge(original.project)
        self.value = copy.deepcopy(original.value)
        weight, value = convolution.weight.flatten(1), original.value.weight.flatten(1)
        self.value.weight = nn.Parameter((weight @ value)[..., None, None])
        self.value.bias = None
        self.bias = convolution.bias  # (C,)
        if original.value.bias is not None:
            self.bias = nn.Parameter(self.bias + weight @ original.value.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (G, N, C) to (G, N, C)."""
        # As an image, since convolutions have the fastest kernels on all CPUs; this is a view.
        image = x[None].permute(0, 3, 1, 2)  # (1, C, G, N), channels last
        parts: tuple[nn.Module, ...] = (self.query, self.key, self.value)
        # (G, N, D), (G, N, D), (G, N, C)
        query, key, value = (part(image).permute(0, 2, 3, 1)[0] for part in parts)
        context = F.scaled_dot_product_attention(query, key, value)  # (G, N, C)
        out: Tensor = self.act(context + self.bias)
        return out

    def transform(self, x: Tensor) -> Tensor:
        """Map inputs (B, C, h, w), already averaged by attention, to outputs."""
        out: Tensor = self.act(self.value(x) + self.bias[:, None, None])
        return out


class FoldedInterlacedAttention(nn.Module):
    """`InterlacedAttention` on maps in channels-last order."""

    def __init__(self, original: InterlacedAttention) -> None:
        super().__init__()
        self.partition = original.partition
        self.long_range = FoldedSelfAttention(original.long_range)
        self.short_range = FoldedSelfAttention(original.short_range)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h, w), for any h and w."""
        batch, channels, height, width = x.shape
        window_h, window_w = self.partition
        windows_h, windows_w = -(-height // window_h), -(-width // window_w)
        pad_h, pad_w = windows_h * window_h - height, windows_w * window_w - width
        top, left = pad_h // 2, pad_w // 2
        x = x.permute(0, 2, 3, 1)
        x = F.pad(x, (0, 0, left, pad_w - left, top, pad_h - top)).contiguous()  # never `x` itself
        grid = x.view(batch, windows_h, window_h, windows_w, window_w, channels)
        # (B, P_h, P_w, Q_h, Q_w, C): a group for each place in a window
        _attend(self.long_range, grid.permute(0, 2, 4, 1, 3, 5))
        # (B, Q_h, Q_w, P_h, P_w, C): a group for each window
        _attend(self.short_range, grid.permute(0, 1, 3, 2, 4, 5))
        return x[:, top : top + height, left : left + width].permute(0, 3, 1, 2)


def _attend(attention: FoldedSelfAttention, grid: Tensor) -> None:
    """Replace the values of all groups of a grid, (B, G_h, G_w, N_h, N_w, C), in place.

    A group reads and writes its own positions only.
    """
    positions = grid.shape[3] * grid.shape[4]
    if grid.device.type != "cpu" or torch.compiler.is_compiling():
        parts = [grid]
    else:
        step = max(POSITIONS // positions, 1)
        parts = [part for image in grid for row in image for part in row.split(step)]
    for part in parts:
        tokens = part.reshape(-1, positions, grid.shape[-1])  # (G, N, C)
        part.copy_(attention(tokens).reshape(part.shape))
