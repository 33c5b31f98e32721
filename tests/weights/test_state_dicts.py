"""State dicts are found in files of training scripts."""

from __future__ import annotations

import argparse
import collections
import datetime
import functools
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from isanet_zoo.errors import CheckpointError
from isanet_zoo.manifest.config import HeadConfig
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.weights.checkpoints import load_checkpoint, load_encoder
from isanet_zoo.weights.containers import open_weights
from isanet_zoo.weights.layouts import SSSEG, ZOO
from isanet_zoo.weights.state_dicts import find_state
from tests.conftest import TINY_NETWORK, TinyZoo

State = dict[str, Tensor]
Path = pathlib.Path


def behind(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


def assert_loads(path: Path, state: State) -> None:
    """Check that a file loads as the network with these tensors, under upstream's names."""
    found = load_checkpoint(path, TINY_NETWORK, exact=True).state
    assert len(found) == len(state)
    assert all(torch.equal(found[SSSEG.ours(key)], tensor) for key, tensor in state.items())


@pytest.mark.parametrize(
    "prefix",
    [
        "module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "_orig_mod.module.",
        "model.student.", "module.model._orig_mod.",
    ],
)  # fmt: skip
def test_state_dict_behind_any_prefix_loads(prefix: str, tiny_zoo: TinyZoo, tmp_path: Path) -> None:
    state = behind(prefix, tiny_zoo.state)
    counters = {"n_averaged": torch.tensor(7)}
    for number, content in enumerate([state, state | counters, {"state_dict": counters | state}]):
        torch.save(content, tmp_path / f"{number}.pth")
        assert_loads(tmp_path / f"{number}.pth", tiny_zoo.state)
    safetensors.torch.save_file(state | counters, tmp_path / "x.safetensors")
    assert_loads(tmp_path / "x.safetensors", tiny_zoo.state)


WRAPPERS: dict[str, Callable[[State], object]] = {
    "other key": lambda state: {"weights": state, "epoch": 3},
    "two levels": lambda state: {"checkpoint": {"net": state}, "lr": [0.1, 0.2]},
    "pair": lambda state: (state, {"epoch": 3}),
    "list": lambda state: [3, state],
    "with numbers": lambda state: state | {"epoch": 3, "lr": 0.1, "_notes": None},
    "counter": lambda state: {"model": state | {"n_averaged": torch.tensor(3)}},
    "defaultdict": lambda state: {"model": collections.defaultdict(torch.Tensor, state)},
    "ordered": lambda state: {"model": collections.OrderedDict(state)},
    "compiled part": lambda state: {
        "model": {key.replace("in_conv.", "in_conv._orig_mod."): t for key, t in state.items()}
    },
    "parameters": lambda state: {key: nn.Parameter(t, False) for key, t in state.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("as_zip", [True, False])
def test_state_dict_in_any_wrapper_loads(
    wrapper: str, as_zip: bool, tiny_zoo: TinyZoo, tmp_path: Path
) -> None:
    content = WRAPPERS[wrapper](tiny_zoo.state)
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=as_zip)
    assert_loads(tmp_path / "x.pth", tiny_zoo.state)


class Config(dict[str, Any]):
    """A dict subclass with attributes, as configuration libraries have."""


class Buffer:
    """A log with arrays and a named function, as training frameworks save."""

    def __init__(self) -> None:
        self.history = np.arange(20_000.0)
        self.statistics = {"mean": np.mean, "self": self}


def test_objects_beside_the_tensors_are_ignored(tiny_zoo: TinyZoo, tmp_path: Path) -> None:
    config = Config(lr=0.1)
    config.path = pathlib.Path("a")  # type: ignore[attr-defined]
    content = {
        "best": np.float64(0.5),
        "args": argparse.Namespace(lr=0.1, path=pathlib.Path("/a/b")),
        "time": datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc),
        "message_hub": Buffer(),
        "config": config,
        "partial": functools.partial(dict, a=1),
        "optimizer": {"state": {0: {"buffer": torch.ones(3)}}, "groups": [{"params": {1, 2}}]},
        "model": tiny_zoo.state,
    }
    for as_zip in (True, False):
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=as_zip)
        assert_loads(tmp_path / "x.pth", tiny_zoo.state)


def tiny_model() -> ISANet:
    return ISANet("test_resnet", 5, aux_loss=True, head=TINY_NETWORK.head)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        nn.DataParallel,
        AveragedModel,
        lambda model: {"model": model, "epoch": 3},
        lambda model: {"ema": argparse.Namespace(module=model)},
    ],
)
def test_pickled_module_loads(wrap: Callable[[ISANet], object], tmp_path: Path) -> None:
    model = tiny_model()
    torch.save(wrap(model), tmp_path / "whole.pth")
    found = load_checkpoint(tmp_path / "whole.pth", TINY_NETWORK, exact=True)
    assert found.layout is ZOO
    assert found.state.keys() == model.state_dict().keys()
    assert all(torch.equal(found.state[key], t) for key, t in model.state_dict().items())


CHOICES: list[tuple[list[str], str]] = [
    (["model_ema", "model"], "model"),
    (["ema_state_dict", "state_dict"], "state_dict"),
    (["state_dict", "model"], "model"),
    (["first", "second"], "first"),
    (["teacher", "student"], "student"),
    (["model.ema", "model.net"], "model.net"),
]


@pytest.mark.parametrize(("places", "chosen"), CHOICES)
@pytest.mark.parametrize("nested", [True, False])
def test_several_state_dicts_are_chosen_from_by_rule(
    places: list[str],
    chosen: str,
    nested: bool,
    tiny_zoo: TinyZoo,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    content: dict[str, Any] = {}
    for place in places:
        scale = 1.0 if place == chosen else 2.0
        state = {key: (tensor * scale).to(tensor.dtype) for key, tensor in tiny_zoo.state.items()}
        content |= {place: state} if nested else behind(f"{place}.", state)
    if not nested and set(places) & {"model", "state_dict"}:
        pytest.skip("as prefixes these names have no rank")
    torch.save(content, tmp_path / "x.pth")
    with caplog.at_level(logging.WARNING, "isanet_zoo"):
        assert_loads(tmp_path / "x.pth", tiny_zoo.state)
    (message,) = caplog.messages
    assert f"loading '{chosen}" in message
    assert all(place in message for place in places)


def test_tensors_beside_the_state_dict_are_logged(
    tiny_zoo: TinyZoo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = behind("model.", tiny_zoo.state) | {"loss.weight": torch.ones(5)}
    torch.save(state, tmp_path / "x.pth")
    with caplog.at_level(logging.INFO, "isanet_zoo"):
        assert_loads(tmp_path / "x.pth", tiny_zoo.state)
    assert any("without loss.weight" in message for message in caplog.messages)


def test_tensor_beside_the_network_without_prefix_is_refused(
    tiny_zoo: TinyZoo, tmp_path: Path
) -> None:
    torch.save(tiny_zoo.state | {"criterion.weight": torch.ones(5)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"unknown: criterion\.weight"):
        load_checkpoint(tmp_path / "x.pth", TINY_NETWORK)


def test_network_tensor_of_another_kind_is_refused_with_the_way_out(
    tiny_zoo: TinyZoo, tmp_path: Path
) -> None:
    key = "out_conv.1.bias"
    sparse = tiny_zoo.state | {key: tiny_zoo.state[key].to_sparse()}
    torch.save(sparse, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"{key} are not dense.*torch\.save\(model\.state"):
        load_checkpoint(tmp_path / "x.pth", TINY_NETWORK)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "an empty dict"),
        ([1, 2], "a list"),
        (torch.zeros(3), "a tensor"),
        (argparse.Namespace(model=1), r"a argparse\.Namespace"),
        ({"epoch": 3, "lr": 0.1}, "a dict of epoch, lr"),
    ],
)
def test_file_without_state_dict_is_refused_with_the_way_out(
    content: object, words: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=rf"{words}.*torch\.save\(model\.state_dict\(\)"):
        load_checkpoint(tmp_path / "x.pth", TINY_NETWORK)


def test_deeply_nested_and_shared_content_is_searched_once(tmp_path: Path) -> None:
    content: Any = {"a.weight": torch.ones(2)}
    for _ in range(60):  # 2^60 paths
        content = {"x" * 400: content, "y" * 400: content}
    torch.save(content, tmp_path / "x.pth")
    with open_weights(tmp_path / "x.pth", "x") as file, pytest.raises(CheckpointError):
        find_state(file, ["a."])
    torch.save({"deep": {"deep": {"a.weight": torch.ones(2)}}}, tmp_path / "x.pth")
    with open_weights(tmp_path / "x.pth", "x") as file:
        assert list(find_state(file, ["a."])) == ["a.weight"]


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "model.encoder._orig_mod."])
@pytest.mark.parametrize("wrapper", ["model", "teacher", None])
def test_encoder_loads_from_any_wrapper(prefix: str, wrapper: str | None, tmp_path: Path) -> None:
    source, target = tiny_model(), tiny_model()
    state = behind(prefix, source.backbone.state_dict())
    content = state | {f"{prefix}fc.weight": torch.ones(2, 3), "epoch": 3}
    torch.save({wrapper: content} if wrapper else content, tmp_path / "encoder.pth")
    assert load_encoder(target, tmp_path / "encoder.pth") == ("fc.weight",)
    for key, tensor in source.backbone.state_dict().items():
        assert torch.equal(target.backbone.state_dict()[key], tensor), key


@pytest.mark.parametrize(("backbone", "counters"), [("resnet18_v1c", True), ("resnet50c", False)])
def test_load_encoder_accepts_upstream_s_names_of_a_stem(
    backbone: str, counters: bool, tmp_path: Path
) -> None:
    """As in the ImageNet weights that the recipes of mmsegmentation and sssegmentation name."""
    head = HeadConfig(channels=8, key_channels=8, aux_channels=8)
    source, target = (ISANet(backbone, 3, head=head) for _ in range(2))
    names = {f"conv1.{index}": f"stem.{index}" for index in (0, 1, 3, 4, 6)} | {"bn1": "stem.7"}
    state = {}
    for key, tensor in source.backbone.state_dict().items():
        part, _, leaf = key.rpartition(".")
        if counters or leaf != "num_batches_tracked":
            state[f"{names.get(part, part)}.{leaf}"] = tensor
    torch.save({"meta": {}, "state_dict": state | {"fc.weight": torch.ones(2)}}, tmp_path / "e.pth")
    assert "stem.7.running_var" in state
    assert load_encoder(target, tmp_path / "e.pth") == ("fc.weight",)
    for key, tensor in source.backbone.state_dict().items():
        assert torch.equal(target.backbone.state_dict()[key], tensor)
