"""Segmentation head with interlaced attention, and the auxiliary head used in training.

Letters in shapes: B batch, C channels, K classes, h w feature map (1/8 of the image).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isanet_zoo.manifest.config import HeadConfig
from isanet_zoo.network.attention import ConvNormAct, InterlacedAttention


class ISAHead(nn.Module):
    """Reduce the encoder's last map, attend, fuse with what was attended to, classify."""

    def __init__(self, in_channels: int, num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        channels, activation = config.channels, config.activation
        self.reduce = ConvNormAct(in_channels, channels, kernel=3, activation=activation)
        self.attention = InterlacedAttention(
            channels,
            config.key_channels,
            partition=config.partition,
            value_bias=config.value_bias,
            activation=activation,
        )
        self.fuse = ConvNormAct(
            2 * channels, channels, kernel=config.fuse_kernel, activation=activation
        )
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.grad_checkpointing = False

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to logits (B, K, h, w)."""
        return self.classify(self.reduce(features))

    def classify(self, features: Tensor) -> Tensor:
        """Map reduced features (B, C, h, w) to logits (B, K, h, w)."""
        if self.grad_checkpointing and self.training:
            context = checkpoint(self.attention, features, use_reentrant=False)
        else:
            context = self.attention(features)  # (B, C, h, w)
        both = torch.cat([context, features], dim=1)  # (B, 2C, h, w)
        del context, features
        fused = self.fuse(both)  # (B, C, h, w)
        logits: Tensor = self.classifier(self.dropout(fused))
        return logits


class AuxiliaryHead(nn.Module):
    """A small classifier on the encoder's next-to-last map; it only helps training."""

    def __init__(self, in_channels: int, num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.reduce = ConvNormAct(
            in_channels, config.aux_channels, kernel=3, activation=config.activation
        )
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(config.aux_channels, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to logits (B, K, h, w)."""
        logits: Tensor = self.classifier(self.dropout(self.reduce(features)))
        return logits
