"""By strips and in place, a block computes what it computes as a whole."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from isanet_zoo.engines import folding, row_blocks
from isanet_zoo.engines.row_blocks import StripBottleneck, StripConvolution
from isanet_zoo.network.isanet import ISANet
from tests.engines.test_folding import HEAD, relative, settle


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let strips of few rows be worth it for every map; no gradients."""
    monkeypatch.setattr(row_blocks, "LARGE", 0)
    monkeypatch.setattr(row_blocks, "STRIP", 700)
    monkeypatch.setattr(row_blocks, "PIECE", 1500)
    with torch.no_grad():
        yield


def make_block(inputs: int, dilation: int, shortcut: str) -> Any:
    """Return a folded bottleneck, from so many channels to 16."""
    downsample = None
    if shortcut == "pointwise":
        downsample = nn.Sequential(nn.Identity(), nn.Conv2d(inputs, 16, 1), nn.Identity())
    elif shortcut == "average":
        downsample = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(inputs, 16, 1))
    block: Any = Bottleneck(inputs, 4, downsample=downsample, dilation=dilation)
    for name in ("bn1", "bn2", "bn3"):
        setattr(block, name, nn.Identity())
    for name in ("conv1", "conv2", "conv3"):
        nn.init.normal_(getattr(block, name).weight, std=0.5)
        getattr(block, name).bias = nn.Parameter(torch.randn(getattr(block, name).out_channels))
    return block.eval()


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 23), st.integers(1, 9)),
    dilation=st.integers(1, 5),
    # As many channels before as behind, fewer, and more.
    kind=st.sampled_from(
        [(16, "none"), (16, "pointwise"), (6, "pointwise"), (20, "pointwise"), (6, "average")]
    ),
    strip=st.integers(1, 3000),
    piece=st.integers(1, 3000),
    overwrite=st.booleans(),
    channels_last=st.booleans(),
)
def test_bottleneck_is_the_same_map(
    shape: tuple[int, int, int],
    dilation: int,
    kind: tuple[int, str],
    strip: int,
    piece: int,
    overwrite: bool,
    channels_last: bool,
) -> None:
    torch.manual_seed(0)
    inputs, shortcut = kind
    block = make_block(inputs, dilation, shortcut)
    batch, height, width = shape
    x = torch.randn(batch, inputs, height, width)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    untouched = x.clone()
    expected = block(x.clone())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_blocks, "STRIP", strip)
        patch.setattr(row_blocks, "PIECE", piece)
        actual = StripBottleneck(block)(x, overwrite=overwrite)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    if not overwrite:
        assert torch.equal(x, untouched)


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 23), st.integers(1, 9)),
    channels=st.tuples(st.integers(1, 12), st.integers(1, 6)),
    dilation=st.integers(1, 4),
    kernel=st.sampled_from([1, 3]),
    strip=st.integers(1, 1000),
)
def test_convolution_is_the_same_map(
    shape: tuple[int, int, int],
    channels: tuple[int, int],
    dilation: int,
    kernel: int,
    strip: int,
) -> None:
    torch.manual_seed(0)
    rim = dilation * (kernel // 2)
    convolution = nn.Conv2d(*channels, kernel, padding=rim, dilation=dilation)
    batch, height, width = shape
    x = torch.randn(batch, channels[0], height, width)
    expected = convolution(x).relu()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_blocks, "STRIP", strip)
        for order in (torch.contiguous_format, torch.channels_last):
            again = x.clone(memory_format=order)  # as it is overwritten
            actual = StripConvolution(convolution, nn.ReLU(inplace=True))(again)
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
            assert actual.untyped_storage().nbytes() == actual.nbytes  # the input's is let go of


def test_what_is_overwritten_is_the_input_s_memory() -> None:
    x = torch.randn(1, 16, 9, 7).contiguous(memory_format=torch.channels_last)
    out = StripBottleneck(make_block(16, 2, "none"))(x, overwrite=True)
    assert out.data_ptr() == x.data_ptr()


def test_gradients_go_the_plain_way() -> None:
    block = make_block(16, 2, "none")
    x = torch.randn(1, 16, 9, 7, requires_grad=True)
    with torch.enable_grad():
        StripBottleneck(block)(x, overwrite=True).sum().backward()
    assert x.grad is not None
    assert block.conv1.weight.grad is not None


# Bottlenecks as they are; with shortcuts that average; with attention, which sees whole maps; with
# norms of the picture's own.
@pytest.mark.parametrize(
    ("backbone", "expected"),
    [("resnet26", 7), ("resnet26d", 7), ("seresnet50", 0), ("resnet50_gn", 0)],
)
def test_networks_are_the_same_map(backbone: str, expected: int) -> None:
    torch.manual_seed(0)
    network = ISANet(backbone, 7, head=HEAD)
    settle(network)
    folded = copy.deepcopy(network)
    folding.fold(folded)
    found = [module for module in folded.modules() if isinstance(module, StripBottleneck)]
    assert len(found) == expected  # all but the one with a stride
    images = torch.randn(2, 3, 97, 85)
    before = images.clone()
    assert relative(folded.forward_logits(images), network.forward_logits(images)) < 2e-5
    folded.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    assert relative(folded.forward_logits(images), network.forward_logits(images)) < 2e-5
    assert torch.equal(images, before)


def test_maps_die_where_they_are_read_for_the_last_time() -> None:
    network: Any = ISANet("resnet26", 7, head=HEAD).eval()
    folding.fold(network)
    overwrites = {
        str(node.target): node.kwargs["overwrite"]
        for node in network.backbone.graph.nodes
        if "overwrite" in node.kwargs
    }
    # The input of `layer2.1` comes from a block that did not go by row_blocks.
    assert [name for name, allowed in overwrites.items() if not allowed] == ["layer2.1"]


class Twice(nn.Module):
    """Reads the input, and the output of a bottleneck, more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = make_block(16, 1, "none"), make_block(16, 2, "none")

    def forward(self, x: Tensor) -> list[Tensor]:
        once = self.first(x)
        return [once, self.second(once) * once + x]


def test_what_is_read_again_is_not_overwritten() -> None:
    torch.manual_seed(0)
    network = Twice().eval()
    x = torch.randn(1, 16, 9, 7).contiguous(memory_format=torch.channels_last)
    expected = network(x.clone())[1]
    graph = folding._fold_backbone(copy.deepcopy(network))
    assert any(isinstance(module, StripBottleneck) for module in graph.modules())
    torch.testing.assert_close(graph(x)[1], expected, rtol=1e-4, atol=1e-4)
