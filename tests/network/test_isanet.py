"""ISANet as a module: outputs, dropout, freezing, checkpointing, parameter groups."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from isanet_zoo.errors import InputError
from isanet_zoo.manifest.config import HeadConfig
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.network import backbones
from isanet_zoo.network.backbones import create_backbone
from isanet_zoo.network.isanet import ISANet, ISANetOutput

HEAD = HeadConfig(channels=16, key_channels=8, partition=(4, 4), aux_channels=12, dropout=0.0)


def tiny(*, aux_loss: bool = False, in_chans: int = 3, head: HeadConfig = HEAD) -> ISANet:
    torch.manual_seed(0)
    return ISANet("test_resnet", num_classes=5, aux_loss=aux_loss, in_chans=in_chans, head=head)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (57, 83), (8, 8), (1, 200)])
def test_forward_returns_logits_of_the_images_size(height: int, width: int) -> None:
    model = tiny().eval()
    images = torch.randn(2, 3, height, width)
    assert model(images).shape == (2, 5, height, width)
    assert model.forward_logits(images).shape == (2, 5, -(-height // 8), -(-width // 8))


@pytest.mark.parametrize(("resize", "corners"), [("half_pixel", False), ("corners", True)])
def test_forward_resizes_by_the_configured_rule(resize: str, corners: bool) -> None:
    head = HeadConfig(**(vars(HEAD) | {"resize": resize}))
    model = tiny(head=head).eval()
    images = torch.randn(1, 3, 50, 70)
    expected = F.interpolate(
        model.forward_logits(images), (50, 70), mode="bilinear", align_corners=corners
    )
    torch.testing.assert_close(model(images), expected)


def test_forward_returns_auxiliary_logits_in_training_only() -> None:
    model = tiny(aux_loss=True)
    images = torch.randn(2, 3, 48, 64)
    output = model(images)
    assert isinstance(output, ISANetOutput)
    assert output.out.shape == output.aux.shape == (2, 5, 48, 64)
    assert isinstance(model.eval()(images), torch.Tensor)
    assert isinstance(tiny()(images), torch.Tensor)


@pytest.mark.parametrize(("part", "last"), [("head", "fuse"), ("aux_head", "reduce")])
def test_dropout_drops_whole_channels_before_the_classifier(part: str, last: str) -> None:
    model = tiny(aux_loss=True, head=HeadConfig(**(vars(HEAD) | {"dropout": 0.5})))
    head = model.get_submodule(part)
    seen = []
    head.get_submodule(last).register_forward_hook(lambda *call: seen.append(call[-1]))
    head.get_submodule("classifier").register_forward_pre_hook(lambda _, args: seen.append(*args))
    width = head.get_parameter("reduce.conv.weight").shape[1]
    features = torch.randn(4, width, 8, 12)
    head(features)
    before, after = seen
    dropped = (after == 0).all(dim=(2, 3))  # (B, C)
    kept = (after == 2 * before).all(dim=(2, 3))  # (B, C)
    assert (dropped | kept).all()
    assert not dropped.all()
    assert not kept.all()
    seen.clear()
    head.eval()(features)
    assert torch.equal(*seen)


@pytest.mark.parametrize("freeze", ["freeze_backbone", "freeze_norm"])
def test_frozen_parts_do_not_change_in_training(freeze: str) -> None:
    model = tiny(aux_loss=True)
    keys = model.state_dict().keys()
    getattr(model, freeze)()
    model.train()
    frozen_prefix = "backbone." if freeze == "freeze_backbone" else ""
    before = copy.deepcopy(model.state_dict())
    optimiser = torch.optim.SGD(model.param_groups(lr=0.1))
    output = model(torch.randn(4, 3, 48, 64))
    (output.out.square().mean() + output.aux.square().mean()).backward()
    optimiser.step()
    assert model.training
    assert model.state_dict().keys() == keys
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for key, tensor in model.state_dict().items():
        is_norm = key.rpartition(".")[0] in norms
        if key.startswith(frozen_prefix) and (is_norm or freeze == "freeze_backbone"):
            assert torch.equal(tensor, before[key]), key
    for key in ("head.reduce.conv.weight", "head.classifier.weight"):
        assert not torch.equal(model.state_dict()[key], before[key])


@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint")  # by older versions of timm
def test_checkpointing_keeps_the_gradients() -> None:
    plain, checkpointed = tiny(), tiny()
    checkpointed.set_grad_checkpointing()
    images = torch.randn(2, 3, 64, 64)
    for model in (plain, checkpointed):
        model.train()(images).square().mean().backward()
    pairs = zip(plain.named_parameters(), checkpointed.parameters(), strict=True)
    for (name, first), second in pairs:
        assert first.grad is not None, name
        torch.testing.assert_close(first.grad, second.grad, msg=name)


@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint")
def test_checkpointing_recomputes_attention() -> None:
    model = tiny().train()
    calls = []
    model.head.attention.register_forward_pre_hook(lambda *_: calls.append(1))
    model.set_grad_checkpointing()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert len(calls) == 2
    model.set_grad_checkpointing(False)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert len(calls) == 3


def test_param_groups_contain_each_parameter_once() -> None:
    model = tiny(aux_loss=True)
    backbone, heads = model.param_groups(0.01, head_multiplier=10)
    assert (backbone["lr"], heads["lr"]) == (0.01, pytest.approx(0.1))
    assert {id(p) for p in backbone["params"]} == {id(p) for p in model.backbone.parameters()}
    total = len(backbone["params"]) + len(heads["params"])
    assert total == len(list(model.parameters()))
    model.freeze_backbone()
    assert [group["name"] for group in model.param_groups(0.01)] == ["heads"]


def test_isanet_supports_other_channel_counts_and_backbones() -> None:
    assert tiny(in_chans=4).eval()(torch.randn(1, 4, 32, 32)).shape == (1, 5, 32, 32)
    model = ISANet("mobilenetv3_small_050", num_classes=3, head=HEAD).eval()
    assert model.forward_logits(torch.randn(1, 3, 64, 64)).shape == (1, 3, 8, 8)


def test_isanet_passes_channels_and_pretrained_to_the_encoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def create(name: str, *, in_chans: int, pretrained: bool) -> nn.Module:
        seen.append((name, in_chans, pretrained))
        return create_backbone(name, in_chans=in_chans)

    monkeypatch.setattr(backbones, "create_backbone", create)
    ISANet("test_resnet", 5)
    ISANet("test_resnet", 5, in_chans=4, pretrained_backbone=True)
    assert seen == [("test_resnet", 3, False), ("test_resnet", 4, True)]


def test_architecture_numbers_shape_the_parameters() -> None:
    shapes = {key: tuple(value.shape) for key, value in tiny(aux_loss=True).state_dict().items()}
    assert shapes["head.fuse.conv.weight"] == (16, 32, 3, 3)
    assert "head.attention.long_range.value.bias" not in shapes
    assert shapes["aux_head.reduce.conv.weight"][0] == 12
    other = HeadConfig(**(vars(HEAD) | {"fuse_kernel": 1, "value_bias": True}))
    shapes = {key: tuple(value.shape) for key, value in tiny(head=other).state_dict().items()}
    assert shapes["head.fuse.conv.weight"] == (16, 32, 1, 1)
    assert shapes["head.attention.short_range.value.bias"] == (16,)


def test_activation_reaches_every_layer_of_the_heads() -> None:
    model = tiny(aux_loss=True, head=HeadConfig(**(vars(HEAD) | {"activation": "leaky_relu"})))
    kinds = {
        type(module)
        for part in (model.head, model.aux_head)
        if part is not None
        for module in part.modules()
    }
    assert nn.LeakyReLU in kinds
    assert nn.ReLU not in kinds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet50x"}, "timm has no model 'resnet50x'"),
        ({"backbone": "vit_tiny_patch16_224"}, "cannot be an encoder at stride 8"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": 10**12}, "num_classes is 1000000000000; it must be .* from 1 to 4096"),
        ({"in_chans": 0}, "in_chans is 0"),
        ({"in_chans": 10**9}, "in_chans is 1000000000; it must be .* from 1 to 1024"),
        ({"backbone": None}, "backbone is None; it must be a string"),
        ({"label_set": LabelSet.generic(4)}, "label_set is not a LabelSet of 5 classes"),
        ({"label_set": ["a", "b", "c", "d", "e"]}, "label_set is not a LabelSet of 5 classes"),
        ({"preprocess": "imagenet"}, "preprocess is a str, not a Preprocess"),
        ({"head": {"channels": 10**9}}, "head"),
    ],
)
def test_isanet_argument_out_of_range_is_refused(options: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"backbone": "test_resnet", "num_classes": 5} | options
    with pytest.raises(InputError, match=message):
        ISANet(**arguments)  # type: ignore[arg-type]
