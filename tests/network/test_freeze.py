"""Freezing parts of a network by name."""

from __future__ import annotations

import copy

import pytest
import torch

from isanet_zoo.errors import InputError
from isanet_zoo.manifest.config import HeadConfig
from isanet_zoo.network.isanet import ISANet

HEAD = HeadConfig(channels=16, key_channels=8, partition=(4, 4), aux_channels=12, dropout=0.0)
PARTS = ("backbone.layer1", "head.fuse")


def tiny() -> ISANet:
    torch.manual_seed(0)
    return ISANet("test_resnet", num_classes=5, head=HEAD)


def is_frozen(name: str) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in PARTS)


def test_freeze_keeps_parts_in_evaluation_mode() -> None:
    model = tiny().train()
    assert model.freeze(*PARTS) is model
    for mode in (True, False, True):
        for name, module in model.named_modules():
            assert module.training == (model.training and not is_frozen(name)), name
        assert model.training == mode
        model.train(not mode)


def test_freeze_stops_only_the_named_parts_and_keeps_keys() -> None:
    model = tiny().train()
    keys = list(model.state_dict())
    model.freeze(*PARTS)
    assert list(model.state_dict()) == keys
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not is_frozen(name)), name
    before = copy.deepcopy(model.state_dict())
    optimiser = torch.optim.SGD(model.param_groups(0.1))
    model(torch.randn(4, 3, 48, 64)).square().mean().backward()
    optimiser.step()
    changed = {key for key, value in model.state_dict().items() if not value.equal(before[key])}
    assert not any(map(is_frozen, changed))
    assert {"head.reduce.conv.weight", "head.reduce.norm.running_mean"} & changed
    assert any(key.startswith("backbone.layer2.") for key in changed)


def test_freeze_twice_freezes_both_parts() -> None:
    model = tiny()
    model.freeze("backbone.layer1").freeze("head.fuse").freeze().train()
    for name, module in model.named_modules():
        assert module.training != is_frozen(name), name


def test_freeze_keeps_evaluation_mode() -> None:
    model = tiny().eval().freeze("backbone.layer1")
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    "name", ["backbone.layer9", "neck", "head.classifier.weight", "aux_head.x"]
)
def test_freeze_unknown_part_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"cannot freeze {name}: "):
        tiny().freeze(name)
