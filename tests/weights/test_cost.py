"""Costs of networks are counted, and files that exceed every published model are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from isanet_zoo import ISANet, create_model, get_weights, list_models, save_model
from isanet_zoo.errors import CheckpointError, InputError
from isanet_zoo.manifest.config import HeadConfig, NetworkConfig, Preprocess
from isanet_zoo.weights import cost, saving

SMALL_HEAD = HeadConfig(channels=16, key_channels=8)


def naive(network: ISANet, size: tuple[int, int]) -> tuple[int, int]:
    """Return the multiply-additions and the largest output of a forward pass that is really run."""
    operations, largest = 0, 0

    def count(module: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal operations, largest
        if isinstance(module, nn.Conv2d):
            operations += out.numel() * math.prod(module.weight.shape[1:])
            largest = max(largest, out.numel())

    for module in network.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        maps = network.eval().forward_logits(torch.zeros(1, 3, *size))
    head = network.config.head
    windows = [-(-side // p) for side, p in zip(maps.shape[2:], head.partition, strict=True)]
    among, groups = math.prod(windows), math.prod(head.partition)
    pairs = groups * among**2 + among * groups**2
    return operations + pairs * (head.key_channels + head.channels), largest


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    pad=st.tuples(st.integers(65, 150), st.integers(65, 150)),
    partition=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    fuse_kernel=st.sampled_from([1, 3]),
)
def test_cost_equals_the_count_over_a_forward_pass(
    pad: tuple[int, int], partition: tuple[int, int], fuse_kernel: Any
) -> None:
    head = replace(SMALL_HEAD, partition=partition, fuse_kernel=fuse_kernel)
    network = ISANet("test_resnet", 2, head=head)
    found = cost.count_cost(network.config, Preprocess(pad=pad))
    operations, largest = naive(network, pad)
    assert found.operations == operations
    assert found.largest_map >= largest


def test_cost_of_tiles_is_that_of_all_of_them() -> None:
    network = NetworkConfig("test_resnet", 2, head=SMALL_HEAD)
    tiled = Preprocess(pad=(128, 192), window=(64, 64), stride=(64, 64))
    one, six = (cost.count_cost(network, p) for p in (Preprocess(pad=(64, 64)), tiled))
    assert six == (6 * one.operations, one.largest_map)


def test_bounds_are_those_of_the_most_expensive_published_models() -> None:
    names = ("mmseg_769x769_40k", "paddle_769x769_80k")
    weights = [get_weights(f"isanet_resnet101os8_cityscapes.{name}") for name in names]
    tiled, padded = (cost.count_cost(w.network, w.preprocess) for w in weights)
    assert 0.97 < tiled.operations / cost.MOST_OPERATIONS <= 1
    assert 0.96 < padded.largest_map / cost.MOST_VALUES <= 1
    assert math.prod(weights[1].preprocess.pad or ()) == cost.MOST_PADDED


@pytest.mark.parametrize("name", list_models())
def test_published_networks_with_other_classes_and_channels_are_within_the_bounds(
    name: str,
) -> None:
    weights = get_weights(name)
    cost.check_cost(weights.network, weights.preprocess)
    own = replace(weights.network, num_classes=1000, in_chans=4)
    cost.check_cost(own, weights.preprocess)


EXPENSIVE = [
    ({"pad": (2048, 2048)}, {}, "may pad images to 2100225 pixels"),
    ({"resize": (2200, 2200)}, {"key_channels": 4096, "channels": 4096}, "multiply-additions"),
    ({"resize": (2200, 2200)}, {"partition": (4, 4)}, "feature maps of 3.6e+08 values"),
]


@pytest.mark.parametrize(("preprocess", "head", "words"), EXPENSIVE)
def test_network_more_expensive_than_every_published_one_is_refused(
    preprocess: dict[str, Any], head: dict[str, Any], words: str
) -> None:
    config = NetworkConfig("test_resnet", 2, head=replace(SMALL_HEAD, **head))
    with pytest.raises(InputError) as caught:
        cost.check_cost(config, Preprocess(**preprocess))
    assert words in str(caught.value)


def test_own_network_may_be_expensive_until_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    network = ISANet("test_resnet", 2, head=SMALL_HEAD, preprocess=Preprocess(pad=(2048, 2048)))
    with pytest.raises(InputError, match="may pad images to"):
        save_model(network, path)
    with pytest.raises(InputError, match="may pad images to"):
        network.save_pretrained(tmp_path / "folder")
    with pytest.raises(InputError, match="path is None; it must be a path"):
        save_model(network, None)  # type: ignore[arg-type]
    assert not list(tmp_path.rglob("*.safetensors"))
    with monkeypatch.context() as patch:
        patch.setattr(saving, "check_cost", lambda *_: None)
        save_model(network, path)
        network.save_pretrained(tmp_path / "folder")
    for source in (path, tmp_path / "folder"):
        with pytest.raises(CheckpointError, match="may pad images to"):
            create_model(str(source), pretrained=True)
