"""Tests of the fast depthwise convolution against torch's, and of its use in networks."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from isanet_zoo.engines.depthwise import DepthwiseConv2d, restore_depthwise, speed_up_depthwise
from isanet_zoo.manifest.config import HeadConfig
from isanet_zoo.network.isanet import ISANet

FORMATS = [torch.contiguous_format, torch.channels_last]
HEAD = HeadConfig(channels=16, key_channels=8, partition=(4, 4), aux_channels=12, dropout=0.0)


def depthwise(channels: int, kernel: int, dilation: int, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(
        channels,
        channels,
        kernel,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        groups=channels,
        bias=bias,
    )


def speed_up(convolution: nn.Conv2d) -> nn.Conv2d:
    """Return a fast copy of a convolution."""
    fast = copy.deepcopy(convolution)
    assert speed_up_depthwise(fast) == 1
    return fast


def run(layer: nn.Module, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, and the gradients of the input and of the weight."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    weight = layer.get_parameter("weight")
    output = layer(x)
    of_x, of_weight = torch.autograd.grad(output, (x, weight), gradient.to(output.dtype))
    return output.detach(), of_x, of_weight


@given(
    channels=st.sampled_from([2, 5, 16, 40]),
    kernel=st.sampled_from([3, 5, 7]),
    dilation=st.sampled_from([1, 2, 4]),
    batch=st.sampled_from([1, 3]),
    height=st.integers(1, 33),
    width=st.integers(1, 33),
    memory_format=st.sampled_from(FORMATS),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_fast_convolution_equals_torch_s_in_both_directions(
    channels: int,
    kernel: int,
    dilation: int,
    batch: int,
    height: int,
    width: int,
    memory_format: torch.memory_format,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    plain = depthwise(channels, kernel, dilation)
    fast = speed_up(plain)
    x, gradient = torch.randn(2, batch, channels, height, width)
    x = x.contiguous(memory_format=memory_format)
    output, of_x, of_weight = run(fast, x, gradient)
    expected = run(plain, x, gradient)
    assert output.dtype == torch.float32
    assert torch.equal(output, expected[0])
    torch.testing.assert_close(of_x, expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(of_weight, expected[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (5, 4), (7, 4), (3, 4)])
def test_fast_convolution_under_autocast_computes_in_bfloat16(
    kernel: int, dilation: int, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    plain = depthwise(16, kernel, dilation)
    fast = speed_up(plain)
    x, gradient = torch.randn(2, 2, 16, 21, 18)
    x = x.contiguous(memory_format=memory_format)
    exact = run(plain, x, gradient)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = run(plain, x, gradient), run(fast, x, gradient)
    for mine, their, right in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == their.dtype
        error = (mine.float() - right).norm() / right.norm()
        assert error < 0.01
        assert error < 1.5 * (their.float() - right).norm() / right.norm() + 1e-6
    assert ours[0].dtype == torch.bfloat16
    assert ours[1].dtype == ours[2].dtype == torch.float32


def test_fast_convolution_computes_only_requested_gradients() -> None:
    layer = speed_up(depthwise(4, 5, 4))
    x = torch.randn(1, 4, 9, 9)
    (layer(x)).sum().backward()
    assert layer.weight.grad is not None
    layer.weight.grad = None
    layer.requires_grad_(False)
    assert not layer(x).requires_grad
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (5, 4)])
def test_fast_convolution_with_bias_equals_torch_s(kernel: int, dilation: int) -> None:
    plain = depthwise(6, kernel, dilation, bias=True)
    fast = speed_up(plain)
    x, gradient = torch.randn(2, 2, 6, 19, 23)
    for layer in (plain, fast):
        layer(x).backward(gradient)
    torch.testing.assert_close(fast(x), plain(x))
    assert plain.bias is not None
    assert fast.bias is not None
    torch.testing.assert_close(fast.bias.grad, plain.bias.grad, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(x).dtype == torch.bfloat16


def convolutions() -> nn.ModuleDict:
    """Return convolutions; those whose names start with "fast" are supported."""
    options = {"groups": 8, "bias": False}
    return nn.ModuleDict(
        {
            "fast3": nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            "nested": nn.Sequential(nn.ReLU(), nn.Sequential(depthwise(8, 5, 4))),
            "fast7": depthwise(8, 7, 2),
            "fast_biased": nn.Conv2d(8, 8, 3, padding=1, groups=8),
            "strided": nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False),
            "dense": nn.Conv2d(8, 8, 3, padding=1, bias=False),
            "parametrized": parametrizations.weight_norm(depthwise(8, 7, 2)),
            "grouped": nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False),
            "wider": nn.Conv2d(8, 16, 3, padding=1, groups=8, bias=False),
            "unpadded": nn.Conv2d(8, 8, 3, groups=8, bias=False),
            "reflecting": nn.Conv2d(
                8, 8, 3, padding=1, padding_mode="reflect", groups=8, bias=False
            ),
            "even": nn.Conv2d(8, 8, 2, padding=1, groups=8, bias=False),
            "oblong": nn.Conv2d(8, 8, (3, 5), padding=(1, 2), **options),  # type: ignore[arg-type]
            "skewed": nn.Conv2d(8, 8, 3, padding=(1, 2), dilation=(1, 2), groups=8, bias=False),
            "single": nn.Conv2d(1, 1, 3, padding=1, bias=False),
            "transposed": nn.ConvTranspose2d(8, 8, 3, padding=1, groups=8, bias=False),
        }
    )


def test_speed_up_depthwise_changes_supported_layers_and_keeps_names_and_parameters() -> None:
    network = convolutions().eval()
    network["fast3"].requires_grad_(False)
    keys, parameters = list(network.state_dict()), dict(network.named_parameters())
    assert speed_up_depthwise(network) == 4
    changed = {
        name for name, module in network.named_modules() if isinstance(module, DepthwiseConv2d)
    }
    assert changed == {"fast3", "nested.1.0", "fast7", "fast_biased"}
    assert list(network.state_dict()) == keys
    for name, parameter in network.named_parameters():
        assert parameter is parameters[name]
    assert not network["fast3"].get_parameter("weight").requires_grad
    assert not any(module.training for module in network.modules())
    assert speed_up_depthwise(network) == 0


def test_restore_depthwise_undoes_every_change_and_keeps_the_parameters() -> None:
    network = convolutions().eval()
    kinds = [type(module) for module in network.modules()]
    parameters = dict(network.named_parameters())
    count = speed_up_depthwise(network)
    assert restore_depthwise(network) == count > 0
    assert [type(module) for module in network.modules()] == kinds
    assert not any(module.training for module in network.modules())
    for name, parameter in network.named_parameters():
        assert parameter is parameters[name]
    assert restore_depthwise(network) == 0


def test_speed_up_depthwise_and_restore_keep_hooks() -> None:
    layer = depthwise(8, 7, 2)
    x = torch.randn(1, 8, 9, 9)
    expected = 2 * layer(x)
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    speed_up_depthwise(layer)
    torch.testing.assert_close(layer(x), expected)
    restore_depthwise(layer)
    torch.testing.assert_close(layer(x), expected)


def test_speed_up_depthwise_of_a_network_keeps_outputs_and_gradients() -> None:
    torch.manual_seed(0)
    model = ISANet("mobilenetv3_small_050", num_classes=3, head=HEAD).eval()
    fast = copy.deepcopy(model)
    state = model.state_dict()
    count = speed_up_depthwise(fast)
    convolutions = [
        module
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
        and module.groups == module.in_channels > 1
        and module.stride == (1, 1)
    ]
    assert count == len(convolutions) > 5
    assert max(module.dilation[0] * (module.kernel_size[0] - 1) for module in convolutions) >= 16
    assert fast.state_dict().keys() == state.keys()
    fast.load_state_dict(state)
    images = torch.randn(2, 3, 64, 80)
    with torch.no_grad():
        torch.testing.assert_close(fast(images), model(images), rtol=0, atol=1e-5)
    for network in (model, fast):
        network(images).square().mean().backward()
    for (name, one), other in zip(model.named_parameters(), fast.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        scale = one.grad.abs().max().item()
        torch.testing.assert_close(
            other.grad, one.grad, rtol=1e-3, atol=1e-4 * scale + 1e-7, msg=name
        )


def test_speed_up_depthwise_of_a_resnet_changes_nothing() -> None:
    model = ISANet("test_resnet", num_classes=3, head=HEAD)
    before = [type(module) for module in model.modules()]
    assert speed_up_depthwise(model) == 0
    assert [type(module) for module in model.modules()] == before
