"""Fast depthwise convolutions on CPUs, forward and backward.

Encoders with depthwise convolutions (EfficientNet, MobileNet) are dilated to reach stride 8. oneDNN
has no fast path for the gradients of dilated kernels, and none for the forward pass of large ones.
Two equivalent computations have one: a convolution of dilation d is an undilated convolution of
d x d interleaved images (phases), and the gradient with respect to the input of a convolution that
keeps the size is the convolution with the flipped kernel. Outputs are bit-identical, gradients
equal up to rounding. `benchmarks/depthwise.py` measures the speed.

Letters in shapes: B batch, C channels, H W map, d dilation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isanet_zoo.engines.blocks import keeps_size


def speed_up_depthwise(network: nn.Module) -> int:
    """Make a network's depthwise convolutions `DepthwiseConv2d`, in place.

    Only for networks on the CPU: elsewhere, torch's own kernels are faster. Names, parameters and
    hooks are kept.

    Returns:
        The number of convolutions that were changed.
    """
    found = [
        module
        for module in network.modules()
        if type(module) is nn.Conv2d and _is_depthwise(module)
    ]
    for module in found:
        module.__class__ = DepthwiseConv2d  # unlike a new module, it keeps the hooks
    return len(found)


def restore_depthwise(network: nn.Module) -> int:
    """Undo `speed_up_depthwise`.

    Returns:
        The number of convolutions that were changed.
    """
    found: list[nn.Module] = [
        module for module in network.modules() if type(module) is DepthwiseConv2d
    ]
    for module in found:
        module.__class__ = nn.Conv2d
    return len(found)


def _is_depthwise(convolution: nn.Conv2d) -> bool:
    """Return True if `DepthwiseConv2d` computes the same as a convolution."""
    groups = convolution.groups
    return 1 < groups == convolution.in_channels == convolution.out_channels and keeps_size(
        convolution
    )


class DepthwiseConv2d(nn.Conv2d):
    """A convolution for which `_is_depthwise` holds, with another `forward`."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W) to the same shape."""
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        output: Tensor = _Depthwise.apply(x, self.weight, self.bias, self.dilation[0])
        return output


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        bias = None if bias is None else bias.to(x.dtype)
        return _convolve(x, weight.to(x.dtype), bias, dilation)

    @staticmethod
    def backward(
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            flipped = weight.to(gradient.dtype).flip(2, 3)
            of_x = _convolve(gradient, flipped, None, ctx.dilation)
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(x, gradient, weight, ctx.dilation)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.float().sum((0, 2, 3)).to(weight.dtype)
        return of_x, of_weight, of_bias, None


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Convolve (B, C, H, W) with (C, 1, k, k), and add a bias (C,)."""
    channels, kernel = weight.shape[0], weight.shape[-1]
    half = kernel // 2
    if (kernel - 1) * dilation < 16:  # measured: below that, oneDNN is faster
        return F.conv2d(x, weight, bias, 1, half * dilation, dilation, channels)
    batch, _, height, width = x.shape
    out = F.conv2d(_split(x, dilation), weight, bias, 1, half, 1, channels)
    rows, columns = out.shape[-2:]
    out = out.permute(0, 2, 3, 1).reshape(dilation, dilation, batch, rows, columns, channels)
    out = out.permute(2, 3, 0, 4, 1, 5)  # (B, H/d, d, W/d, d, C)
    out = out.reshape(batch, rows * dilation, columns * dilation, channels)
    return out.permute(0, 3, 1, 2)[:, :, :height, :width]


def _split(x: Tensor, dilation: int) -> Tensor:
    """Return the phases of (B, C, H, W) as (d·d·B, C, H/d, W/d), rounded up with zeros."""
    if dilation == 1:
        return x
    batch, channels, height, width = x.shape
    rows, columns = -(-height // dilation), -(-width // dilation)
    x = F.pad(x, (0, columns * dilation - width, 0, rows * dilation - height))
    x = x.reshape(batch, channels, rows, dilation, columns, dilation)
    x = x.permute(3, 5, 0, 2, 4, 1)  # (d, d, B, H/d, W/d, C)
    return x.reshape(-1, rows, columns, channels).permute(0, 3, 1, 2)


def _weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """Return the gradient of (C, 1, k, k); in float32, where oneDNN is several times faster."""
    half = weight.shape[-1] // 2
    of_weight: Tensor = torch.ops.aten.convolution_backward(
        _split(gradient, dilation).float().contiguous(memory_format=torch.channels_last),
        _split(x, dilation).float().contiguous(memory_format=torch.channels_last),
        weight.float(),
        None,
        [1, 1],
        [half, half],
        [1, 1],
        False,
        [0, 0],
        weight.shape[0],
        [False, True, False],
    )[1]
    return of_weight.to(weight.dtype)
