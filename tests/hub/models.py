"""Small models to be saved, and comparisons of loaded ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from isanet_zoo import ISANet, create_model, predict
from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.manifest.config import Preprocess
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.weights import Metric
from isanet_zoo.weights.description import Description
from tests import reference
from tests.conftest import TINY_NETWORK

BUILT_IN = "isanet_efficientnet_lite0os8_camvid"
FILES = {"README.md", "config.json", "model.safetensors"}
IMAGE = reference.DATA / "images" / "home.jpg"
FRUIT = LabelSet(
    "fruit",
    "Fruit of a market",
    ("background", "apple, malus", "pear", "plum | sloe", "quince"),
    ("#000000", "#ff0000", "#00ff00", "#0000ff", "#ffff00"),
    (0, 10, 20, 30, 40),
    ignore_index=254,
)
MEASURED = Metric("mIoU", 51.5, "Fruit val", (1.0,), False, "whole", "somebody", None)


def random_model(in_chans: int = 3, *, aux_loss: bool = True, seed: int = 0) -> ISANet:
    """Return a small network whose numbers differ from the defaults."""
    torch.manual_seed(seed)
    model = ISANet(
        TINY_NETWORK.backbone,
        5,
        in_chans=in_chans,
        aux_loss=aux_loss,
        head=replace(TINY_NETWORK.head, fuse_kernel=1, value_bias=True, activation="leaky_relu"),
        label_set=FRUIT,
        preprocess=Preprocess(resize=(96, 64), mean=(1.0, 2.0, 3.0), std=(9, 8, 7), order="bgr"),
    )
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    return model.eval()


def finetuned() -> ISANet:
    """Return a small network of the zoo with other classes, after one step of training."""
    model = create_model("isanet_tiny", pretrained=True, num_classes=5, aux_loss=True)
    model.label_set = FRUIT
    model.train()
    optimizer = torch.optim.SGD(model.param_groups(lr=0.01))
    out, aux = model(torch.randn(2, 3, 64, 64))
    (out.square().mean() + aux.square().mean()).backward()
    optimizer.step()
    return model.eval()


def assert_same(model: ISANet, again: ISANet) -> None:
    """Check that two networks have equal tensors, classes and preprocessing."""
    before, after = model.state_dict(), again.state_dict()
    assert list(before) == list(after)
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype, key
        assert torch.equal(tensor, after[key]), key
    assert again.config == model.config
    assert again.label_set == model.label_set
    assert (again.classes, again.palette) == (model.classes, model.palette)
    assert again.preprocess == model.preprocess
    assert not any(module.training for module in again.modules())
    assert not any(parameter.is_meta for parameter in again.parameters())


def read_config(folder: Path) -> Description:
    return Description.parse((folder / "config.json").read_text("utf-8"), "config.json")


def labels(model: ISANet) -> Segmentation:
    result = predict(model, IMAGE)
    assert isinstance(result, Segmentation)
    return result


def edit(folder: Path, *keys: str, value: Any = None) -> None:
    """Change a field of a saved config; without a value, delete it."""
    path = folder / "config.json"
    document = place = json.loads(path.read_text("utf-8"))
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(document), "utf-8")


def fields(tree: dict[str, Any], *above: str) -> Iterator[tuple[str, ...]]:
    """Yield the fields of a config, at any depth."""
    for key, value in tree.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from fields(value, *above, key)
