"""Tests of timm's encoders, and of their variants in other projects."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from torch import nn

from isanet_zoo import create_model
from isanet_zoo.errors import CheckpointError, DownloadError, InputError, OfflineError
from isanet_zoo.network.backbones import create_backbone, replace_same_padding
from tests.hub import stand_in
from tests.hub.stand_in import Hub


@pytest.mark.parametrize(("name", "timm"), [("resnet50_vd", "resnet50d")])
def test_create_backbone_of_paddle_dilates_more_and_averages_less(name: str, timm: str) -> None:
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
    with pytest.raises(InputError, match="no ImageNet weights for 'resnet18_v1c'; pass a file"):
        create_backbone("resnet18_v1c", pretrained=True)


def test_create_backbone_of_the_authors_keeps_a_partial_window() -> None:
    with torch.device("meta"):
        images = torch.zeros(1, 3, 128, 160)
        sizes = [
            tuple(create_backbone(name)(images)[1].shape[-2:])
            for name in ("resnet101s", "deepbase_resnet101")
        ]
    assert sizes == [(16, 20), (17, 21)]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnetv2_b0"])
def test_replace_same_padding_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    network = create_backbone(name).eval()
    for size in ((64, 96), (61, 75), (50, 33)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected = network(images)
            replaced = copy.deepcopy(network)
            replace_same_padding(replaced)
            assert str(replaced) != str(network)
            for one, other in zip(replaced(images), expected, strict=True):
                assert torch.equal(one, other)


# ImageNet weights


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in of the Hub that has timm's ImageNet weights of `test_resnet`."""
    with stand_in.running() as hub:
        stand_in.connect(hub, monkeypatch, tmp_path, None)
        state = timm.create_model("test_resnet").state_dict()
        state["layer1.0.conv1.weight"].fill_(0.5)
        repository = hub.make("timm/test_resnet.r160_in1k")
        repository.commit({"model.safetensors": safetensors.torch.save(state)})
        yield hub


def test_pretrained_backbone_is_loaded_from_the_hub_and_offline_from_its_cache(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISANET_ZOO_OFFLINE", "1")
    with pytest.raises(OfflineError, match="not cached, and offline mode is on; unset ISANET_ZOO"):
        create_backbone("test_resnet", pretrained=True)
    assert hub.seen == []
    monkeypatch.delenv("ISANET_ZOO_OFFLINE")
    online: Any = create_backbone("test_resnet", pretrained=True)
    assert (online.layer1[0].conv1.weight == 0.5).all()
    seen = len(hub.seen)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # after huggingface_hub was imported
    offline: Any = create_backbone("test_resnet", pretrained=True)
    assert (offline.layer1[0].conv1.weight == 0.5).all()
    assert len(hub.seen) == seen


def test_pretrained_backbone_without_a_connection_is_one_error(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stand_in.Hub() as closed:
        url = closed.url
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(DownloadError, match=r"connection was refused.*pretrained_backbone=False"):
        create_backbone("test_resnet", pretrained=True)


def test_pretrained_backbone_that_the_hub_lacks_or_damages_is_one_error(hub: Hub) -> None:
    repository = hub.repositories["timm/test_resnet.r160_in1k"]
    repository.private = True
    with pytest.raises(DownloadError, match="could not be downloaded"):
        create_backbone("test_resnet", pretrained=True)
    repository.private = False
    repository.commit({"model.safetensors": b"damaged"})
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        create_backbone("test_resnet", pretrained=True)


def test_create_model_with_a_pretrained_backbone_offline_is_one_error() -> None:
    with pytest.raises(OfflineError, match="ImageNet weights for 'resnet50c' are not cached"):
        create_model("isanet_resnet50os8_voc", pretrained_backbone=True)
