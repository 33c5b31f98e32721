"""Residual blocks and convolutions of inference, which process large maps a few rows at a time.

The encoder's last maps are the largest tensors of a prediction, and a bottleneck needs two of them:
its shortcut, and the sum. But a block of rows needs only these rows of the input and a halo of
neighbouring rows. Hence row blocks pass through all convolutions one by one, and the output is
written over rows of the input that are no longer needed::

    top of the map                                                        bottom
    input   | read later .............. | halo | row block | halo |
    output                                     | row block | written before ... |
                                          <- next row block

A row of the output is at least as large as one of the input, and its n-th row starts n rows from
the top of the same memory. Processed from the bottom to the top, it never reaches a row that is
still to be read.

Letters in shapes: B batch, C input channels, N narrow channels, M output channels, h w feature map,
r rows of a row block, p rows of a part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isanet_zoo.engines.blocks import keeps_size

# In bytes. Measured: row blocks are slower for smaller maps, and slightly faster for larger ones.
LARGE = 2**26  # maps that are processed in row blocks
ROW_BLOCK = 2**22  # rows of a narrow map
PART = 2**21  # rows of a wide map that are made of a row block


class Residual(nn.Module):
    """A residual block for inference: ``activation(layers(x) + shortcut(x))``.

    The sum is written over the output of the last layer.

    Args:
        layers: called one after another.
        shortcut: called one after another; none for the input itself.
        activation: applied to the sum.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        shortcut: Sequence[nn.Module] = (),
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.shortcut = nn.Sequential(*shortcut)
        self.activation = activation or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, M, h, w)."""
        shortcut = x
        for layer in self.layers:
            x = layer(x)
        x += self.shortcut(shortcut)
        out: Tensor = self.activation(x)
        return out


class Bottleneck(Residual):
    """A residual block of a pointwise, a spatial and a pointwise convolution.

    The layers are these convolutions with element-wise activations in between.

    Attributes:
        overwrite: the output may be written over the input.
    """

    overwrite = False

    @staticmethod
    def fits(layers: Sequence[nn.Module], shortcut: Sequence[nn.Module]) -> bool:
        """Return True if layers and a shortcut can be processed in row blocks."""
        if len(layers) != 5 or not all(type(layer) is nn.Conv2d for layer in layers[::2]):
            return False
        spatial: Any = layers[2]
        return (
            all(map(_is_pointwise, (layers[0], layers[4], *shortcut)))
            and keeps_size(spatial)
            and spatial.in_channels == spatial.out_channels < layers[4].out_channels
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, M, h, w)."""
        last: Any = self.layers[-1]
        wide = last.out_channels
        if not _is_large(x, wide):
            return super().forward(x)
        x = x.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1)  # (B, h, w, C), contiguous
        # `resize_` keeps the values of `x` where they are in memory, which `rows` still describes.
        out = x if self.overwrite and wide >= channels else x.new_empty(0)
        out.resize_((batch, wide, height, width), memory_format=torch.channels_last)
        for image in reversed(range(batch)):
            self._process(rows[image], out[image])
        return out

    def _process(self, rows: Tensor, out: Tensor) -> None:
        """Process one image in row blocks, from the bottom to the top.

        Args:
            rows: the input, (h, w, C).
            out: the output, (M, h, w); its memory may be that of the input, see the module.
        """
        layers: Any = self.layers
        first, first_act, spatial, spatial_act, last = layers
        height, width, _ = rows.shape
        halo, narrow = spatial.padding[0], spatial.in_channels
        size = max(ROW_BLOCK // (narrow * width * rows.itemsize), 1)
        part_size = max(PART // (last.out_channels * width * rows.itemsize), 1)
        # The row block with its halo, as the spatial convolution's input. Rows beyond the map are
        # zeros: its padding.
        window = rows.new_zeros(1, halo + size + halo, width, narrow).permute(0, 3, 1, 2)
        done = height  # the first row that has passed the first convolution
        for top in reversed(range(0, height, size)):
            window[:, :, size:] = window[:, :, : 2 * halo].clone()  # shared with the block below
            above = max(halo - top, 0)  # rows beyond the map
            window[:, :, :above] = 0
            if (start := max(top - halo, 0)) < done:
                new = first_act(first(rows[start:done].permute(2, 0, 1)[None]))
                window[:, :, above : above + done - start] = new
                done = start
                del new  # in reverse order of allocation, which avoids heap fragmentation
            block = spatial_act(_convolve(spatial, window))  # (1, N, r, w)
            bottom = min(top + size, height)
            for begin in reversed(range(top, bottom, part_size)):
                end = min(begin + part_size, bottom)
                part = last(block[:, :, begin - top : end - top])  # (1, M, p, w)
                part += self.shortcut(rows[begin:end].permute(2, 0, 1)[None])
                out[:, begin:end] = self.activation(part)[0]
                del part
            del block


class RowBlockConvolution(nn.Module):
    """A convolution that keeps the size, and an activation, for inference.

    Args:
        convolution: the convolution.
        activation: the activation; it may work in place.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module) -> None:
        super().__init__()
        self.convolution, self.activation = convolution, activation

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, M, h, w); `x` is overwritten."""
        convolution: Any = self.convolution
        batch, channels, height, width = x.shape
        made, halo = convolution.out_channels, convolution.padding[0]
        if 2 * made > channels or not _is_large(x, made):
            out: Tensor = self.activation(convolution(x))
            return out

        x = x.contiguous(memory_format=torch.channels_last)
        rows = x.permute(0, 2, 3, 1)  # (B, h, w, C), contiguous
        # A row of the output is at most half as large as one of the input: row n ends before row
        # n / 2 of the input. The next row block reads from row n - halo on, which is not before
        # that from n = 2 * halo on.
        written = rows.reshape(-1)[: batch * height * width * made]
        written = written.view(batch, height, width, made)
        size = max(ROW_BLOCK // (made * width * x.itemsize), 2 * halo, 1)
        for image in range(batch):
            for top in range(0, height, size):
                bottom = min(top + size, height)
                block = rows[image, max(top - halo, 0) : bottom + halo].permute(2, 0, 1)[None]
                missing = max(halo - top, 0), max(bottom + halo - height, 0)
                block = self.activation(_convolve(convolution, block, *missing))  # (1, M, r, w)
                written[image, top:bottom] = block[0].permute(1, 2, 0)
        return written.permute(0, 3, 1, 2).clone()


def _is_large(x: Tensor, channels: int) -> bool:
    """Return True if a map is large enough to be processed in row blocks.

    Args:
        x: the input, (B, C, h, w).
        channels: of the output.
    """
    if not x.is_cpu or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return x.nbytes // x.shape[1] * max(x.shape[1], channels) >= LARGE


def _convolve(convolution: Any, x: Tensor, above: int = 0, below: int = 0) -> Tensor:
    """Convolve a row block with its halo, (1, C, halo + r + halo, w), to (1, M, r, w).

    Args:
        convolution: keeps the size; its padding is the halo.
        x: the rows.
        above: rows of the halo that are missing above, because they are beyond the map.
        below: rows that are missing below.
    """
    halo, across = convolution.padding
    pad = halo if above or below else 0
    x = F.conv2d(
        x,
        convolution.weight,
        convolution.bias,
        padding=(pad, across),
        dilation=convolution.dilation,
        groups=convolution.groups,
    )
    return x[:, :, pad - above : x.shape[2] - pad + below]


def _is_pointwise(layer: nn.Module) -> bool:
    """Return True if a layer is a convolution of single positions."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == layer.stride == (1, 1)
        and layer.padding == (0, 0)
    )
