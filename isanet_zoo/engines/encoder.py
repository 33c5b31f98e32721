"""Encoders for inference: batch norms merged into convolutions, little memory for feature maps."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from isanet_zoo.engines.blocks import CONVOLUTIONS, NORMS, class_name, open_block
from isanet_zoo.engines.row_blocks import Bottleneck, Residual

logger = logging.getLogger(__name__)


def fold_encoder(encoder: nn.Module, name: str) -> nn.Module:
    """Return an encoder that computes the same with fewer operations and less memory.

    Only timm's ResNets and EfficientNets, and networks of their blocks, are folded; others are
    returned as they are.

    Args:
        encoder: in evaluation mode. It must not be used afterwards.
        name: for the log.
    """
    kind = type(encoder).__name__
    if has_hooks(encoder):
        logger.info("%s is not folded: its %s has hooks or parametrizations", name, kind)
        return encoder
    if open_block(encoder) is None:
        logger.info("%s is not folded: %s is not a supported encoder", name, kind)
        return encoder
    layers = merge_norms(_flatten(encoder))
    if kinds := sorted({type(layer).__name__ for layer in layers if _has_norm(layer)}):
        logger.info("%s keeps the batch norms of %s", name, ", ".join(kinds))
    return FoldedEncoder(layers)


class FoldedEncoder(nn.Module):
    """Layers that are called one after another.

    Of the encoder's two feature maps, the one for the auxiliary head is not computed.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        for before, layer in pairwise(layers):
            if isinstance(layer, Bottleneck):
                # Their outputs are not views of other tensors.
                layer.overwrite = isinstance(before, (Residual, nn.MaxPool2d))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, C, H, W) to the last feature map (B, C', h, w), twice."""
        for layer in self.layers:
            x = layer(x)
        return x, x


def _flatten(module: nn.Module) -> list[nn.Module]:
    """Return layers that compute the same as a module when they are called one after another."""
    block = open_block(module)
    if block is None:
        _merge_inside(module)
        return [] if isinstance(module, nn.Identity) else [module]
    layers = [layer for part in block.layers for layer in _flatten(part)]
    if block.shortcut is None:
        return layers
    layers, shortcut = merge_norms(layers), merge_norms(_flatten(block.shortcut))
    kind = Bottleneck if Bottleneck.fits(layers, shortcut) else Residual
    return [kind(layers, shortcut, block.activation)]


def merge_norms(layers: Iterable[Any]) -> list[Any]:
    """Merge each batch norm into the convolution before it.

    Args:
        layers: called one after another.
    """
    merged: list[Any] = []
    for layer in layers:
        if merged and _is_mergeable(merged[-1], layer):
            merged[-1] = fuse_conv_bn_eval(merged[-1], layer)
            # timm's `BatchNormAct2d` includes an activation.
            merged += _flatten(getattr(layer, "act", nn.Identity()))
        else:
            merged.append(layer)
    return merged


def _is_mergeable(convolution: nn.Module, norm: nn.Module) -> bool:
    return (
        class_name(convolution) in CONVOLUTIONS
        and class_name(norm) in NORMS
        and getattr(norm, "running_mean", None) is not None
    )


def _merge_inside(module: nn.Module) -> None:
    """Merge the batch norms of timm's `ConvNormAct` in a block that is not supported."""
    for part in module.modules():
        if class_name(part) == "timm.layers.conv_bn_act.ConvNormAct":
            part.conv, *rest = merge_norms([part.conv, part.bn])
            part.bn = nn.Sequential(*rest)


def _has_norm(module: nn.Module) -> bool:
    return any(class_name(part) in NORMS for part in module.modules())


def has_hooks(network: nn.Module) -> bool:
    """Return True if any submodule has hooks or parametrizations, or a replaced `forward`."""
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or parametrize.is_parametrized(module)
        or "forward" in vars(module)
        for module in network.modules()
    )
