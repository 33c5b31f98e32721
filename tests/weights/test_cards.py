"""A file that was trained here describes itself, and is taken at its word only if that is whole."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from isanet_zoo import create_model, get_weights, save_model
from isanet_zoo.errors import CheckpointError, InputError
from isanet_zoo.manifest.config import Preprocess
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.weights import Metric
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.weights.cards import read_card
from isanet_zoo.weights.checkpoints import load_checkpoint
from isanet_zoo.weights.convert import convert_checkpoint
from isanet_zoo.weights.tensors import state_digest
from tests.conftest import TINY_NETWORK, TinyZoo

FRUIT = LabelSet("fruit", "Fruit", ("apple", "pear"), ("#ff0000", "#00ff00"), (1, 2))


def fruit_model() -> ISANet:
    model = create_model("isanet_tiny", num_classes=2, aux_loss=True)
    model.label_set = FRUIT
    model.preprocess = Preprocess(resize=(64, 48), mean=(1.0, 2.0, 3.0))
    return model


def test_a_saved_model_comes_back_with_its_classes(tiny_zoo: TinyZoo, tmp_path: Path) -> None:
    model, recipe = fruit_model(), tiny_zoo.weights.recipe
    metric = Metric("mIoU", 51.5, "fruit val", (1.0,), False, "whole", "somebody", None)
    path = tmp_path / "fruit.safetensors"
    save_model(model, path, dataset="Fruit train", recipe=recipe, metrics=[metric])
    card = read_card(path)
    assert card is not None
    assert (card.dataset, card.recipe, card.metrics) == ("Fruit train", recipe, (metric,))
    again = create_model("isanet_tiny", weights=path, aux_loss=True)
    assert again.label_set == FRUIT
    assert again.preprocess == model.preprocess
    assert state_digest(again.state_dict()) == state_digest(model.state_dict())
    assert not again.training


def test_other_class_counts_leave_the_card_s_names_behind(
    tiny_zoo: TinyZoo, tmp_path: Path
) -> None:
    save_model(fruit_model(), tmp_path / "fruit.safetensors")
    model = create_model("isanet_tiny", weights=tmp_path / "fruit.safetensors", num_classes=7)
    assert model.label_set.name == "generic"
    assert model.load_report.fresh
    assert model.preprocess.resize == (64, 48)


@pytest.mark.usefixtures("tiny_zoo")
@pytest.mark.parametrize("card", ["{", "{}", '{"model": 3}', "[]"])
def test_a_card_that_makes_no_sense_is_an_error(card: str, tmp_path: Path) -> None:
    path = tmp_path / "fruit.safetensors"
    save_model(fruit_model(), path)
    save_file(load_file(path), path, metadata={"isanet_zoo": card})
    with pytest.raises(CheckpointError, match=r"fruit\.safetensors describes itself wrongly"):
        create_model("isanet_tiny", weights=path)


@pytest.mark.usefixtures("tiny_zoo")
def test_names_and_folders_that_cannot_be_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"end in \.safetensors"):
        save_model(fruit_model(), tmp_path / "fruit.pth")
    with pytest.raises(InputError, match="cannot be written"):
        save_model(fruit_model(), tmp_path / "nowhere" / "fruit.safetensors")
    assert list(tmp_path.glob("**/*.part")) == []


@pytest.mark.usefixtures("tiny_zoo")
def test_converting_keeps_the_card_and_may_halve_the_file(tmp_path: Path) -> None:
    source, target = tmp_path / "fruit.safetensors", tmp_path / "half.safetensors"
    model = fruit_model()
    save_model(model, source, dataset="Fruit")
    convert_checkpoint(source, target, "isanet_tiny", half=True)
    with safetensors.safe_open(target, "pt") as file:
        assert json.loads(file.metadata()["isanet_zoo"])["dataset"] == "Fruit"
        assert {file.get_tensor(key).dtype for key in file.keys()} == {  # noqa: SIM118
            torch.float16,
            torch.int64,
        }
    half = create_model("isanet_tiny", weights=target, aux_loss=True)
    assert half.label_set == FRUIT
    for key, tensor in half.state_dict().items():
        wide = model.state_dict()[key]
        assert tensor.dtype == wide.dtype
        assert torch.equal(tensor, wide.half().to(wide.dtype))


@pytest.mark.usefixtures("tiny_zoo")
def test_half_precision_of_other_layouts_is_refused(tmp_path: Path, tiny_zoo: TinyZoo) -> None:
    state = torch.load(tiny_zoo.published, weights_only=True)["model"]
    state["decoder.1.weight"] = state["decoder.1.weight"].half()
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match="float16"):
        load_checkpoint(tmp_path / "half.pth", TINY_NETWORK)


@pytest.mark.usefixtures("tiny_zoo")
def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "fruit.safetensors"
    (tmp_path / "plain").touch()
    save_model(fruit_model(), path)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_files_without_a_card_have_none(tiny_zoo: TinyZoo, tmp_path: Path) -> None:
    assert read_card(tiny_zoo.published) is None
    assert read_card(tmp_path / "absent.safetensors") is None
    assert get_weights("isanet_tiny").label_set.name == "tiny"
