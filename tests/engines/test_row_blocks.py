"""Tests that row blocks compute the same as whole maps."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from isanet_zoo.engines import row_blocks
from isanet_zoo.engines.encoder import FoldedEncoder, fold_encoder
from isanet_zoo.engines.row_blocks import Bottleneck, Residual, RowBlockConvolution
from isanet_zoo.network.backbones import create_backbone
from tests.engines.networks import relative, settle


@pytest.fixture(autouse=True)
def small_row_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Process every map in row blocks of few rows; no gradients."""
    monkeypatch.setattr(row_blocks, "LARGE", 0)
    monkeypatch.setattr(row_blocks, "ROW_BLOCK", 700)
    monkeypatch.setattr(row_blocks, "PART", 1500)
    with torch.no_grad():
        yield


def make_layers(inputs: int, dilation: int) -> list[nn.Module]:
    """Return the layers of a bottleneck from `inputs` channels to 16."""
    return [
        nn.Conv2d(inputs, 4, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, padding=dilation, dilation=dilation),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 16, 1),
    ]


def make_shortcut(inputs: int) -> list[nn.Module]:
    """Return a shortcut from `inputs` channels to 16."""
    return [] if inputs == 16 else [nn.Conv2d(inputs, 16, 1)]


def make_block(inputs: int = 16, dilation: int = 2) -> Bottleneck:
    torch.manual_seed(0)
    return Bottleneck(
        make_layers(inputs, dilation), make_shortcut(inputs), nn.ReLU(inplace=True)
    ).eval()


def whole(block: Residual, x: torch.Tensor) -> torch.Tensor:
    """Return the output of a block from its definition, without row blocks."""
    y = x.clone()
    for layer in block.layers:
        y = layer(y)
    return block.activation(y + block.shortcut(x.clone()))  # type: ignore[no-any-return]


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 23), st.integers(1, 9)),
    dilation=st.integers(1, 5),
    inputs=st.sampled_from([16, 6, 20]),  # as many channels as in the output, fewer, more
    row_block=st.integers(1, 3000),
    part=st.integers(1, 3000),
    overwrite=st.booleans(),
    channels_last=st.booleans(),
)
def test_bottleneck_in_row_blocks_equals_the_whole(
    shape: tuple[int, int, int],
    dilation: int,
    inputs: int,
    row_block: int,
    part: int,
    overwrite: bool,
    channels_last: bool,
) -> None:
    block = make_block(inputs, dilation)
    block.overwrite = overwrite
    batch, height, width = shape
    x = torch.randn(batch, inputs, height, width)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    original, expected = x.clone(), whole(block, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_blocks, "ROW_BLOCK", row_block)
        patch.setattr(row_blocks, "PART", part)
        actual = block(x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    if not overwrite:
        assert torch.equal(x, original)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 23), st.integers(1, 9)),
    channels=st.tuples(st.integers(1, 12), st.integers(1, 6)),
    dilation=st.integers(1, 4),
    kernel=st.sampled_from([1, 3]),
    row_block=st.integers(1, 1000),
)
def test_convolution_in_row_blocks_equals_the_whole(
    shape: tuple[int, int, int],
    channels: tuple[int, int],
    dilation: int,
    kernel: int,
    row_block: int,
) -> None:
    torch.manual_seed(0)
    halo = dilation * (kernel // 2)
    convolution = nn.Conv2d(*channels, kernel, padding=halo, dilation=dilation)
    batch, height, width = shape
    x = torch.randn(batch, channels[0], height, width)
    expected = convolution(x).relu()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_blocks, "ROW_BLOCK", row_block)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            again = x.clone(memory_format=memory_format)  # it is overwritten
            actual = RowBlockConvolution(convolution, nn.ReLU(inplace=True))(again)
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
            # The memory of the input is not kept.
            assert actual.untyped_storage().nbytes() == actual.nbytes


def test_bottleneck_with_overwrite_returns_the_memory_of_its_input() -> None:
    x = torch.randn(1, 16, 9, 7).contiguous(memory_format=torch.channels_last)
    block = make_block()
    block.overwrite = True
    assert block(x).data_ptr() == x.data_ptr()


def test_bottleneck_with_gradients_computes_the_whole() -> None:
    block = make_block()
    x = torch.randn(1, 16, 9, 7, requires_grad=True)
    with torch.enable_grad():
        block(x).sum().backward()
    assert x.grad is not None
    assert block.layers[0].get_parameter("weight").grad is not None


POOL = nn.AvgPool2d(3, 1, 1)


@pytest.mark.parametrize(
    ("position", "layer"),
    [
        (0, nn.Conv2d(16, 4, 3, padding=1)),
        (2, nn.Conv2d(4, 4, 3, padding=1, stride=2)),
        (2, nn.Conv2d(4, 4, 3, padding=2)),
        (2, nn.Conv2d(4, 4, 2, padding=1)),
        (2, nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
        (2, nn.Conv2d(4, 4, 3, padding="same")),
        (4, POOL),
        (4, nn.Conv2d(4, 4, 1)),  # no wider than in between
    ],
)
def test_bottleneck_does_not_fit_layers_that_use_rows_otherwise(
    position: int, layer: nn.Module
) -> None:
    layers = make_layers(16, 1)
    assert Bottleneck.fits(layers, [])
    layers[position] = layer
    assert not Bottleneck.fits(layers, [])


def test_bottleneck_does_not_fit_a_shortcut_that_uses_other_rows() -> None:
    layers = make_layers(6, 1)
    assert Bottleneck.fits(layers, make_shortcut(6))
    assert not Bottleneck.fits(layers, [POOL, nn.Conv2d(6, 16, 1)])
    assert not Bottleneck.fits([*layers, nn.ReLU()], make_shortcut(6))


# All but the one with a stride; not those whose shortcut averages; not those with attention.
@pytest.mark.parametrize(
    ("name", "expected"), [("resnet26", 7), ("resnet26d", 5), ("ecaresnet26t", 0)]
)
def test_folded_encoder_in_row_blocks_computes_the_same(name: str, expected: int) -> None:
    torch.manual_seed(0)
    encoder = create_backbone(name)
    settle(encoder)
    folded = fold_encoder(copy.deepcopy(encoder), name)
    found = [module for module in folded.modules() if isinstance(module, Bottleneck)]
    assert len(found) == expected
    for memory_format in (torch.contiguous_format, torch.channels_last):
        images = torch.randn(2, 3, 65, 50).contiguous(memory_format=memory_format)
        original = images.clone()
        folded.to(memory_format=memory_format)
        assert relative(folded(images)[1], encoder(images)[-1]) < 2e-5
        assert torch.equal(images, original)


def test_folded_encoder_overwrites_maps_that_have_no_later_use() -> None:
    folded = fold_encoder(create_backbone("resnet26").eval(), "resnet26")
    blocks = [module for module in folded.modules() if isinstance(module, Bottleneck)]
    assert all(block.overwrite for block in blocks)


def test_folded_encoder_never_overwrites_its_input() -> None:
    encoder = FoldedEncoder([make_block(), nn.ReLU(), make_block()])
    x = torch.randn(1, 16, 9, 7).contiguous(memory_format=torch.channels_last)
    original = x.clone()
    expected = whole(make_block(), whole(make_block(), x).relu())
    torch.testing.assert_close(encoder(x)[1], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, original)
