"""Convolutions over large maps in little memory: in place, a strip of rows at a time.

The encoder's last maps are the largest things that a prediction holds, and in the plain order there
are two of them at a time: a bottleneck's shortcut, and what is added to it. But a strip of rows
needs no more than the rows around it. So strips can go through a whole block one by one, and each
be written over a part of the input that nothing else will read.

Letters in shapes: B batch, C input channels, N narrow channels, M output channels, h w feature map,
r rows of a strip, p of a piece of it, d rows around a strip.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# In bytes. Measured: strips cost time where maps are smaller, and save some where they are not.
LARGE = 2**26  # a map that is worth it
STRIP = 2**22  # of a narrow map
PIECE = 2**21  # of a wide map, made of a strip


class StripBottleneck(nn.Module):
    """timm's `Bottleneck` for inference.

    Args:
        block: the bottleneck, its norms folded, its second convolution without a stride.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block
        self.pointwise_shortcut = all(map(_is_pointwise, block.downsample or ()))

    def forward(self, x: Tensor, *, overwrite: bool = False) -> Tensor:
        """Map (B, C, h, w) to (B, M, h, w).

        Args:
            x: the input.
            overwrite: nobody reads `x` afterwards, so its memory may become the output's.
        """
        block: Any = self.block
        batch, channels, height, width = x.shape
        narrow, wide = block.conv2.in_channels, block.conv3.out_channels
        if not self.pointwise_shortcut or not _worth_it(x, wide):
            out: Tensor = block(x)
            return out

        shortcut = block.downsample or nn.Identity()
        x = x.contiguous(memory_format=torch.channels_last)
        before = x.permute(0, 2, 3, 1)  # (B, h, w, C): as it lies in memory
        # Resized, `x` keeps its values where they are. As M >= C, no position of the output then
        # lies before the input's: from the last to the first, only what was read is written over.
        out = x if overwrite and wide >= channels else x.new_empty(0)
        out.resize_((batch, wide, height, width), memory_format=torch.channels_last)

        rim = block.conv2.padding[0]
        rows = max(STRIP // (narrow * width * x.itemsize), 1)
        fewer = max(PIECE // (wide * width * x.itemsize), 1)
        window = x.new_empty(1, rim + rows + rim, width, narrow).permute(0, 3, 1, 2)
        for image in reversed(range(batch)):
            window.zero_()  # as the padding below the map is
            known = height  # the first row that went through the first convolution
            for top in reversed(range(0, height, rows)):
                window[:, :, rows:] = window[:, :, : 2 * rim].clone()  # of the strip below
                above = max(rim - top, 0)  # rows of padding
                window[:, :, :above] = 0
                if (first := max(top - rim, 0)) < known:
                    new = block.act1(block.conv1(before[image, first:known].permute(2, 0, 1)[None]))
                    window[:, :, above : above + known - first] = new
                    known = first
                    del new  # freed in reverse order of allocation, the heap does not crumble
                strip = block.act2(_convolve(block.conv2, window))  # (1, N, r, w)
                for start in reversed(range(top, min(top + rows, height), fewer)):
                    here = slice(start, min(start + fewer, top + rows, height))
                    piece = block.conv3(strip[:, :, start - top : here.stop - top])  # (1, M, p, w)
                    piece += shortcut(before[image, here].permute(2, 0, 1)[None])
                    out[image, :, here] = block.act3(piece)[0]
                    del piece
                del strip
        return out


class StripConvolution(nn.Module):
    """A convolution that keeps the size, and an activation, for inference.

    Args:
        convolution: the convolution.
        activation: the activation; it may work in place.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module) -> None:
        super().__init__()
        self.convolution, self.activation = convolution, activation

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, M, h, w); what `x` holds afterwards is of no use."""
        convolution: Any = self.convolution
        batch, channels, height, width = x.shape
        made, rim = convolution.out_channels, convolution.padding[0]
        if 2 * made > channels or not _worth_it(x, made):
            out: Tensor = self.activation(convolution(x))
            return out

        x = x.contiguous(memory_format=torch.channels_last)
        before = x.permute(0, 2, 3, 1)  # (B, h, w, C): as it lies in memory
        # The output's n-th row takes at most half of the input's, so it ends before row n / 2. The
        # next strip begins to read at row n - d, which is not before that from n = 2d on.
        after = before.reshape(-1)[: batch * height * width * made]
        after = after.view(batch, height, width, made)
        rows = max(STRIP // (made * width * x.itemsize), 2 * rim, 1)
        for image in range(batch):
            for top in range(0, height, rows):
                bottom = min(top + rows, height)
                strip = before[image, max(top - rim, 0) : bottom + rim].permute(2, 0, 1)[None]
                missing = max(rim - top, 0), max(bottom + rim - height, 0)
                strip = self.activation(_convolve(convolution, strip, *missing))  # (1, M, r, w)
                after[image, top:bottom] = strip[0].permute(1, 2, 0)
        return after.permute(0, 3, 1, 2).clone()


def _worth_it(x: Tensor, channels: int) -> bool:
    """Say whether to go by strips, from `x` (B, C, h, w) to so many channels, or the plain way."""
    if not x.is_cpu or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return x.nbytes // x.shape[1] * max(x.shape[1], channels) >= LARGE


def _convolve(convolution: Any, x: Tensor, above: int = 0, below: int = 0) -> Tensor:
    """Convolve r rows with those around them, (1, C, d + r + d, w), to (1, M, r, w).

    Args:
        convolution: keeps the size, with a padding of d.
        x: the rows.
        above: how many of them are missing above: they would be zeros.
        below: how many are missing below.
    """
    rim, across = convolution.padding
    pad = rim if above or below else 0
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
    """Say whether each position of a layer's output depends on the same of its input only."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0)
    return isinstance(layer, nn.Identity)
