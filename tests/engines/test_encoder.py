"""Tests that folded encoders compute the same as timm's."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from timm.layers import ConvNormAct
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from isanet_zoo.engines.encoder import FoldedEncoder, fold_encoder, merge_norms
from isanet_zoo.engines.row_blocks import Residual
from isanet_zoo.network.backbones import create_backbone
from tests.engines.networks import NORM, relative, settle


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    """Compute as inference does."""
    with torch.no_grad():
        yield


def make_encoder(name: str) -> nn.Module:
    torch.manual_seed(0)
    encoder = create_backbone(name)
    settle(encoder)
    return encoder


def kept_norms(module: nn.Module) -> int:
    return sum(isinstance(part, NORM) for part in module.modules())


# Encoders whose batch norms are all merged: stems of one and of three convolutions, average
# pooling in shortcuts, attention between the last norm and the sum, norms with activations,
# expansions by full convolutions, TensorFlow's padding, blocks of timm's `ConvNormAct`.
FOLDED = (
    *("test_resnet", "resnet18d", "seresnet18", "resnet50_vd"),
    *("tf_efficientnet_lite0", "mobilenetv3_small_050", "tf_efficientnetv2_b0"),
    *("mobilenetv4_conv_small", "regnetx_002", "convnext_atto"),
)


@pytest.mark.parametrize("name", FOLDED)
def test_fold_encoder_merges_all_norms_and_computes_the_same(name: str) -> None:
    encoder = make_encoder(name)
    folded = fold_encoder(copy.deepcopy(encoder), name)
    assert isinstance(folded, FoldedEncoder)
    assert kept_norms(folded) == 0
    for memory_format in (torch.contiguous_format, torch.channels_last):
        images = torch.randn(2, 3, 65, 50).contiguous(memory_format=memory_format)
        original = images.clone()
        low, high = folded.to(memory_format=memory_format)(images)
        assert relative(high, encoder(images)[-1]) < 2e-5
        assert low is high  # nothing needs the first map
        assert torch.equal(images, original)


@pytest.mark.parametrize(("name", "kind"), [("resnest14d", "ResNestBottleneck")])
def test_fold_encoder_with_unsupported_blocks_logs_and_keeps_their_norms(
    name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = make_encoder(name)
    with caplog.at_level("INFO"):
        folded = fold_encoder(copy.deepcopy(encoder), name)
    assert [record.message for record in caplog.records] == [
        f"{name} keeps the batch norms of {kind}"
    ]
    assert 0 < kept_norms(folded) < kept_norms(encoder)  # those of the stem are merged
    images = torch.randn(1, 3, 64, 72)
    assert relative(folded(images)[1], encoder(images)[-1]) < 2e-5


class Foreign(nn.Module):
    """An encoder that is not timm's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> list[Tensor]:
        low = self.layers(x)
        return [low, self.layers(x.flip(-1))]


def test_fold_encoder_of_another_class_logs_and_returns_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    encoder = Foreign().eval()
    with caplog.at_level("INFO"):
        assert fold_encoder(encoder, "mine") is encoder
    assert [record.message for record in caplog.records] == [
        "mine is not folded: Foreign is not a supported encoder"
    ]


@pytest.mark.parametrize("kind", ["hook", "pre_hook", "weight_norm", "forward"])
def test_fold_encoder_with_hooks_logs_and_returns_it(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = make_encoder("test_resnet")
    part = encoder.get_submodule("layer1.0.conv1")
    if kind == "hook":
        part.register_forward_hook(lambda module, args, output: 0.5 * output)
    elif kind == "pre_hook":
        part.register_forward_pre_hook(lambda module, args: (0.5 * args[0],))
    elif kind == "weight_norm":
        parametrizations.weight_norm(part)
    else:
        part.forward = lambda x: x
    with caplog.at_level("INFO"):
        assert fold_encoder(encoder, "test_resnet") is encoder
    assert [record.message for record in caplog.records] == [
        "test_resnet is not folded: its FeatureListNet has hooks or parametrizations"
    ]


def test_fold_encoder_with_a_layer_that_timm_does_not_have_keeps_the_block() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.5 * x

    encoder = make_encoder("test_resnet")
    block = encoder.get_submodule("layer3.0")
    block.scale = Half()
    folded = fold_encoder(copy.deepcopy(encoder), "test_resnet")
    assert isinstance(folded, FoldedEncoder)
    assert [type(layer) for layer in folded.layers if kept_norms(layer)] == [type(block)]
    images = torch.randn(1, 3, 64, 72)
    assert relative(folded(images)[1], encoder(images)[-1]) < 2e-5


def test_fold_encoder_of_a_subclassed_block_keeps_the_block() -> None:
    encoder = make_encoder("test_resnet")
    block = encoder.get_submodule("layer3.0")
    kind = type(block)

    class Negative(kind):  # type: ignore[misc,valid-type]
        def forward(self, x: Tensor) -> Tensor:
            return torch.neg(super().forward(x))

    block.__class__ = Negative
    folded = fold_encoder(copy.deepcopy(encoder), "test_resnet")
    images = torch.randn(1, 3, 64, 72)
    assert relative(folded(images)[1], encoder(images)[-1]) < 2e-5
    assert kept_norms(folded) > 0


class Scaled(nn.Conv2d):
    """A convolution with its own arithmetic, as weight standardisation has."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


@pytest.mark.parametrize(
    ("convolution", "norm"),
    [
        (Scaled(3, 4, 1), nn.BatchNorm2d(4)),
        (nn.Conv2d(3, 4, 1), nn.InstanceNorm2d(4)),
        (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        (nn.ReLU(), nn.BatchNorm2d(3)),
    ],
)
def test_merge_norms_keeps_layers_that_are_not_a_convolution_and_its_norm(
    convolution: nn.Module, norm: nn.Module
) -> None:
    layers = [convolution.eval(), norm.eval()]
    assert merge_norms(layers) == layers


def test_merge_norms_keeps_the_original_layers_unchanged() -> None:
    """A convolution may also be used elsewhere."""
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    norm = nn.BatchNorm2d(4)
    settle(norm)
    weight = convolution.weight.clone()
    (merged,) = merge_norms([convolution.eval(), norm])
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(merged(x), norm(convolution(x)), rtol=1e-4, atol=1e-5)
    assert merged is not convolution
    assert torch.equal(convolution.weight, weight)


def test_merge_norms_keeps_the_activation_of_timm_s_norm() -> None:
    layer = ConvNormAct(3, 4, 3)
    settle(layer)
    merged = nn.Sequential(*merge_norms([layer.conv, layer.bn]))
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(merged(x), layer(x), rtol=1e-4, atol=1e-5)
    assert [type(part) for part in merged] == [nn.Conv2d, nn.ReLU]


@pytest.mark.parametrize("name", ["test_resnet", "tf_efficientnet_lite0"])
def test_folded_encoder_adds_shortcuts_in_place(name: str) -> None:
    folded = fold_encoder(make_encoder(name), name)
    images = torch.randn(1, 3, 64, 64)
    with torch.profiler.profile() as profile:
        folded(images)
    counts = {event.key: event.count for event in profile.key_averages()}
    residuals = sum(isinstance(layer, Residual) for layer in folded.modules())
    assert residuals > 0
    assert counts["aten::add_"] == residuals
    assert "aten::add" not in counts
