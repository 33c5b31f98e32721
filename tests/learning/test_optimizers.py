"""Tests of optimizer and moving average, compared with upstream and with a loop."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from isanet_zoo import create_model, get_weights
from isanet_zoo.learning.optimizers import create_optimizer, moving_average
from isanet_zoo.learning.trainer import Trainer
from isanet_zoo.manifest.config import HeadConfig
from isanet_zoo.network.isanet import ISANet
from tests import reference

GOLDEN = json.loads((reference.DATA / "golden" / "ssseg_poly_lr.json").read_text())
HEAD = HeadConfig(channels=16, key_channels=8, partition=(4, 4), aux_channels=12)
RECIPE = get_weights("isanet_resnet50os8_voc").recipe


def tiny() -> ISANet:
    torch.manual_seed(0)
    return ISANet("test_resnet", num_classes=5, aux_loss=True, head=HEAD)


@pytest.mark.parametrize("name", GOLDEN)
def test_trainer_uses_upstream_s_learning_rates(name: str) -> None:
    expected = {int(step): rate for step, rate in GOLDEN[name]["lr_at_iter"].items()}
    trainer = Trainer(tiny(), get_weights(name).recipe, steps=GOLDEN[name]["max_iters"])
    images, target = torch.zeros(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.int64)
    for step, rate in expected.items():
        trainer.step = step
        assert trainer.lr == pytest.approx(rate, rel=0, abs=1e-12)
        trainer.train_step(images, target)
        for group in trainer.optimizer.param_groups:
            assert group["lr"] == pytest.approx(rate, rel=0, abs=1e-12)


@pytest.mark.parametrize("name", GOLDEN)
def test_optimizer_equals_upstream_s(name: str) -> None:
    (expected,) = GOLDEN[name]["param_groups"]
    with torch.device("meta"):
        model = create_model(name, aux_loss=True)
    optimizer = create_optimizer(model, get_weights(name).recipe)
    assert type(optimizer) is torch.optim.SGD
    assert sum(len(group["params"]) for group in optimizer.param_groups) == expected["num_params"]
    for group in optimizer.param_groups:
        for option in ("momentum", "dampening", "weight_decay", "nesterov", "maximize"):
            assert group[option] == expected[option]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_heads_have_a_multiple_of_the_learning_rate(kind: Literal["sgd", "adamw"]) -> None:
    model = tiny()
    recipe = replace(RECIPE, optimizer=kind, lr=0.02, head_multiplier=5.0, momentum=0.8)
    optimizer = create_optimizer(model, recipe)
    backbone, heads = optimizer.param_groups
    assert (backbone["lr"], heads["lr"]) == (0.02, pytest.approx(0.1))
    assert {id(p) for p in backbone["params"]} == {id(p) for p in model.backbone.parameters()}
    assert len(backbone["params"]) + len(heads["params"]) == len(list(model.parameters()))
    for group in (backbone, heads):
        assert group["weight_decay"] == recipe.weight_decay
        if kind == "adamw":
            assert group["betas"] == (0.8, 0.999)
        else:
            assert group["momentum"] == 0.8
    assert type(optimizer) is {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[kind]


def test_frozen_parameters_are_not_optimized() -> None:
    model = tiny().freeze("backbone.conv1", "aux_head")
    optimizer = create_optimizer(model, RECIPE)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    expected = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if not name.startswith(("backbone.conv1.", "aux_head."))
    }
    assert held == expected


@pytest.mark.parametrize("decay", [0.0, 0.4, 0.999])
def test_moving_average_equals_a_loop(decay: float) -> None:
    model = tiny()
    average = moving_average(model, decay)
    torch.manual_seed(1)
    expected: dict[str, Tensor] = {}
    for update in range(12):
        for number, tensor in enumerate(model.state_dict().values()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor))
            else:
                tensor.fill_(100 * update + number)
        average.update_parameters(model)
        # the first update copies
        kept = min(decay, (1 + update) / (10 + update)) if update else 0.0
        for key, tensor in model.state_dict().items():
            if update and tensor.is_floating_point():
                expected[key] = kept * expected[key] + (1 - kept) * tensor.double()
            else:
                expected[key] = tensor.clone().double()
    result = average.module.state_dict()
    assert result.keys() == expected.keys()
    assert any(not tensor.is_floating_point() for tensor in result.values())
    for key, tensor in result.items():
        assert tensor.dtype == model.state_dict()[key].dtype
        torch.testing.assert_close(tensor.double(), expected[key], rtol=0, atol=1e-5, msg=key)


def test_moving_average_is_a_copy() -> None:
    model = tiny()
    average = moving_average(model, 0.9)
    average.update_parameters(model)
    before = average.module.state_dict()["head.classifier.weight"].clone()
    with torch.no_grad():
        model.get_parameter("head.classifier.weight").zero_()
    assert torch.equal(average.module.state_dict()["head.classifier.weight"], before)
