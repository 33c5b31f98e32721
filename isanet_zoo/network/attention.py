"""Interlaced sparse self-attention (Huang et al., arXiv 1907.12273).

In dense self-attention, each of the h·w positions attends to all others. Interlaced attention
reaches the same positions in two steps, each among few positions: first among those at the same
place of all windows (long range), then among those of one window (short range).

Letters in shapes: B batch, C channels, D key channels, h w feature map, P window, Q number of
windows per side, so that h = Q_h · P_h once the map is padded.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from isanet_zoo.network.exporting import open_size

Activation = Literal["relu", "leaky_relu"]


class ConvNormAct(nn.Module):
    """Convolution without bias that keeps the size, batch norm, activation."""

    def __init__(
        self, in_channels: int, channels: int, *, kernel: int = 1, activation: Activation
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        # torch's default slope, 0.01, is the one that the published weights use.
        self.act = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}[activation](inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, channels, h, w)."""
        out: Tensor = self.act(self.norm(self.conv(x)))
        return out


class SelfAttention(nn.Module):
    """Single-head self-attention among all positions of each map of a batch."""

    def __init__(
        self, channels: int, key_channels: int, *, value_bias: bool, activation: Activation
    ) -> None:
        super().__init__()
        self.query = nn.Sequential(
            ConvNormAct(channels, key_channels, activation=activation),
            ConvNormAct(key_channels, key_channels, activation=activation),
        )
        self.key = nn.Sequential(
            ConvNormAct(channels, key_channels, activation=activation),
            ConvNormAct(key_channels, key_channels, activation=activation),
        )
        self.value = nn.Conv2d(channels, channels, 1, bias=value_bias)
        self.project = ConvNormAct(channels, channels, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h, w)."""
        query = self.query(x).flatten(2).transpose(1, 2)  # (B, h·w, D)
        key = self.key(x).flatten(2).transpose(1, 2)  # (B, h·w, D)
        value = self.value(x).flatten(2).transpose(1, 2)  # (B, h·w, C)
        context = F.scaled_dot_product_attention(query, key, value)  # (B, h·w, C), scaled by D^-½
        out: Tensor = self.project(context.transpose(1, 2).reshape(x.shape))
        return out

    def transform(self, x: Tensor) -> Tensor:
        """Map inputs (B, C, h, w), already averaged by attention, to outputs."""
        out: Tensor = self.project(self.value(x))
        return out


class InterlacedAttention(nn.Module):
    """Long-range, then short-range self-attention.

    Args:
        channels: C.
        key_channels: D.
        partition: (P_h, P_w), the size of a window.
        value_bias: whether the value projections have a bias.
        activation: non-linearity of all projections.
    """

    def __init__(
        self,
        channels: int,
        key_channels: int,
        *,
        partition: tuple[int, int] = (8, 8),
        value_bias: bool = False,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.partition = partition
        self.long_range = SelfAttention(
            channels, key_channels, value_bias=value_bias, activation=activation
        )
        self.short_range = SelfAttention(
            channels, key_channels, value_bias=value_bias, activation=activation
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h, w), for any h and w."""
        batch, channels, height, width = x.shape
        window_h, window_w = self.partition
        # `(n + p - 1) // p` and an unconditional pad: both stay symbolic in an exported network.
        windows_h = open_size((height + window_h - 1) // window_h)
        windows_w = open_size((width + window_w - 1) // window_w)
        # Zeros on both sides take part in attention: the published weights were trained like this.
        pad_h, pad_w = windows_h * window_h - height, windows_w * window_w - width
        top, left = pad_h // 2, pad_w // 2
        x = F.pad(x, (left, pad_w - left, top, pad_h - top))

        x = self.long_range(self.to_places(x, windows_h, windows_w))
        x = self.short_range(self.to_windows(x, windows_h, windows_w))

        x = x.reshape(batch, windows_h, windows_w, channels, window_h, window_w)
        x = x.permute(0, 3, 1, 4, 2, 5)  # (B, C, Q_h, P_h, Q_w, P_w): the map again
        x = x.reshape(batch, channels, windows_h * window_h, windows_w * window_w)
        # A negative pad crops. A slice would tie an exported graph to maps that need padding.
        return F.pad(x, (-left, left - pad_w, -top, top - pad_h))  # (B, C, h, w)

    def to_places(self, x: Tensor, windows_h: int, windows_w: int) -> Tensor:
        """Map a padded map (B, C, h, w) to one map per place in a window.

        Returns:
            (B·P_h·P_w, C, Q_h, Q_w).
        """
        window_h, window_w = self.partition
        x = x.reshape(-1, x.shape[1], windows_h, window_h, windows_w, window_w)
        x = x.permute(0, 3, 5, 1, 2, 4)  # (B, P_h, P_w, C, Q_h, Q_w)
        return x.reshape(-1, *x.shape[3:])

    def to_windows(self, x: Tensor, windows_h: int, windows_w: int) -> Tensor:
        """Map the result of `to_places` to one map per window.

        Returns:
            (B·Q_h·Q_w, C, P_h, P_w).
        """
        x = x.reshape(-1, *self.partition, x.shape[1], windows_h, windows_w)
        x = x.permute(0, 4, 5, 3, 1, 2)  # (B, Q_h, Q_w, C, P_h, P_w)
        return x.reshape(-1, *x.shape[3:])
