"""Depthwise convolutions that are fast on a CPU, in both directions.

Encoders with depthwise convolutions (EfficientNet, MobileNet) are dilated to reach stride 8, and
oneDNN has no fast path for the gradients of such kernels, for large dilated ones not even forwards.
Two rewritings have one: a convolution of dilation d works on d x d interleaved pictures (phases)
that know nothing of each other; and the gradient with respect to the input of a convolution that
keeps the size is the convolution with the turned kernel. Outputs are equal to the last bit,
gradients to float noise. `benchmarks/depthwise.py` shows what it gains.

Letters in shapes: B batch, C channels, H W map, d dilation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isanet_zoo.engines.hooks import has_hooks


def speed_up_depthwise(network: nn.Module) -> int:
    """Let a network's depthwise convolutions take the fast path; names and values stay.

    Only for networks that run on the CPU: the rewritings cost time elsewhere.

    Returns:
        How many convolutions that concerned.
    """
    count = 0
    for parent in network.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Conv2d and _is_depthwise(child) and not has_hooks(child):
                setattr(parent, name, DepthwiseConv2d(child))
                count += 1
    return count


def restore_depthwise(network: nn.Module) -> int:
    """Undo `speed_up_depthwise`; names and parameters are kept.

    Returns:
        The number of convolutions that were replaced.
    """
    count = 0
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DepthwiseConv2d):
                setattr(parent, name, child.plain())
                count += 1
    return count


def _is_depthwise(convolution: nn.Conv2d) -> bool:
    """Say whether `DepthwiseConv2d` can take a convolution's place."""
    kernel, dilation = convolution.kernel_size[0], convolution.dilation[0]
    return (
        1 < convolution.groups == convolution.in_channels == convolution.out_channels
        and convolution.stride == (1, 1)
        and convolution.padding_mode == "zeros"
        and convolution.kernel_size == (kernel, kernel)
        and kernel % 2 == 1
        and convolution.dilation == (dilation, dilation)
        and convolution.padding == (dilation * (kernel // 2),) * 2
    )


class DepthwiseConv2d(nn.Conv2d):
    """A square depthwise convolution that keeps the size; it takes over `original`."""

    def __init__(self, original: nn.Conv2d) -> None:
        super().__init__(**_geometry(original), device="meta")
        self.weight, self.bias = original.weight, original.bias
        self.train(original.training)

    def plain(self) -> nn.Conv2d:
        """Return torch's own convolution with the same parameters."""
        plain = nn.Conv2d(**_geometry(self), device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W) to the same shape."""
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        output: Tensor = _Depthwise.apply(x, self.weight, self.bias, self.dilation[0])
        return output


def _geometry(convolution: nn.Conv2d) -> dict[str, Any]:
    """Return the arguments that make a convolution for which `_is_depthwise` holds."""
    return {
        "in_channels": convolution.in_channels,
        "out_channels": convolution.out_channels,
        "kernel_size": convolution.kernel_size[0],
        "padding": convolution.padding[0],
        "dilation": convolution.dilation[0],
        "groups": convolution.groups,
    }


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
            turned = weight.to(gradient.dtype).flip(2, 3)
            of_x = _convolve(gradient, turned, None, ctx.dilation)
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(x, gradient, weight, ctx.dilation)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.float().sum((0, 2, 3)).to(weight.dtype)
        return of_x, of_weight, of_bias, None


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Convolve (B, C, H, W) with (C, 1, k, k), and add a bias (C,)."""
    channels, kernel = weight.shape[0], weight.shape[-1]
    half = kernel // 2
    if (kernel - 1) * dilation < 16:  # measured: below that, oneDNN's own way is faster
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
