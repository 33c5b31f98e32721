"""The other projects' encoders are timm's, but for what they are said to differ in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from isanet_zoo.errors import InputError
from isanet_zoo.network.backbones import create_backbone, ease_export


@pytest.mark.parametrize(("name", "timm"), [("resnet50_vd", "resnet50d")])
def test_paddle_s_encoder_dilates_and_pools_otherwise(name: str, timm: str) -> None:
    ours: Any = create_backbone(name)
    theirs: Any = create_backbone(timm)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    dilations = [block.conv2.dilation for block in (*ours.layer3, *ours.layer4)]
    assert dilations == [(2, 2)] * 6 + [(4, 4)] * 3
    for stage in (ours.layer3, ours.layer4):
        assert isinstance(stage[0].downsample[0], nn.Identity)
    assert isinstance(ours.layer2[0].downsample[0], nn.AvgPool2d)
    # Each of the two changes what is computed.
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours.eval(), theirs.eval()
        assert not torch.allclose(ours(images)[0], theirs(images)[0], atol=1e-4)


def test_create_backbone_resnet18_v1c_dilates_the_first_convolution_of_a_block_only() -> None:
    with torch.device("meta"):
        encoder: Any = create_backbone("resnet18_v1c")
    blocks = [*encoder.layer3, *encoder.layer4]
    for number, dilations in ((1, [1, 2, 2, 4]), (2, [1, 1, 1, 1])):
        convolutions = [getattr(block, f"conv{number}") for block in blocks]
        assert [conv.dilation for conv in convolutions] == [(d, d) for d in dilations]
        assert [conv.padding for conv in convolutions] == [(d, d) for d in dilations]
    shortcuts = [(s[0].downsample[0].kernel_size, s[0].downsample[0].stride) for s in (
        encoder.layer2, encoder.layer3, encoder.layer4)]  # fmt: skip
    assert shortcuts == [((1, 1), (2, 2)), ((1, 1), (1, 1)), ((1, 1), (1, 1))]
    assert [part.out_channels for part in encoder.conv1 if hasattr(part, "stride")] == [32, 32, 64]
    assert sum(p.numel() for p in encoder.parameters()) == 11_195_744


def test_create_backbone_without_imagenet_weights_in_timm_is_refused() -> None:
    with pytest.raises(InputError, match="no ImageNet weights for 'resnet18_v1c'; load a file"):
        create_backbone("resnet18_v1c", pretrained=True)


def test_the_authors_encoder_keeps_a_partial_window() -> None:
    with torch.device("meta"):
        images = torch.zeros(1, 3, 128, 160)
        sizes = [
            tuple(create_backbone(name)(images)[1].shape[-2:])
            for name in ("resnet101s", "deepbase_resnet101")
        ]
    assert sizes == [(16, 20), (17, 21)]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnetv2_b0"])
def test_encoders_that_pad_as_tensorflow_does_stay_the_same(name: str) -> None:
    torch.manual_seed(0)
    network = create_backbone(name).eval()
    for size in ((64, 96), (61, 75), (50, 33)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected = network(images)
            eased = copy.deepcopy(network)
            ease_export(eased)
            assert str(eased) != str(network)
            for one, other in zip(eased(images), expected, strict=True):
                assert torch.equal(one, other)
