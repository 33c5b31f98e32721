"""Descriptions in weight files: written, read, and refused."""

from __future__ import annotations

import gzip
import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from isanet_zoo import ISANet, create_model, save_model
from isanet_zoo.errors import CheckpointError, InputError
from isanet_zoo.manifest.config import HeadConfig, Preprocess
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.weights import Metric
from isanet_zoo.weights.checkpoints import load_checkpoint
from isanet_zoo.weights.convert import convert_checkpoint
from isanet_zoo.weights.description import Description, describe_published, read_description
from isanet_zoo.weights.tensors import state_digest
from tests.conftest import TINY_NETWORK, TinyZoo
from tests.reference import DATA

FRUIT = LabelSet("fruit", "Fruit", ("apple", "pear"), ("#ff0000", "#00ff00"), (1, 2))
METRIC = Metric("mIoU", 51.5, "fruit val", (1.0,), False, "whole", "somebody", None)


def fruit_model() -> ISANet:
    model = create_model("isanet_tiny", num_classes=2, aux_loss=True)
    model.label_set = FRUIT
    model.preprocess = Preprocess(resize=(64, 48), mean=(1.0, 2.0, 3.0))
    return model


@pytest.fixture
def fruit_file(tiny_zoo: TinyZoo, tmp_path: Path) -> Path:
    path = tmp_path / "fruit.safetensors"
    save_model(fruit_model(), path, recipe=tiny_zoo.weights.recipe)
    return path


# Saving


def test_saved_model_loads_with_its_classes(tiny_zoo: TinyZoo, tmp_path: Path) -> None:
    model, recipe = fruit_model(), tiny_zoo.weights.recipe
    path = tmp_path / "fruit.safetensors"
    save_model(model, path, dataset="Fruit train", recipe=recipe, metrics=[METRIC])
    description = read_description(path)
    assert description is not None
    assert (description.dataset, description.recipe) == ("Fruit train", recipe)
    assert description.metrics == (METRIC,)
    assert description.state_digest == state_digest(model.state_dict())
    again = create_model("isanet_tiny", weights=path, aux_loss=True)
    assert again.label_set == FRUIT
    assert again.preprocess == model.preprocess
    assert state_digest(again.state_dict()) == state_digest(model.state_dict())
    assert not again.training


def test_saved_model_loaded_with_another_class_count_has_generic_names(fruit_file: Path) -> None:
    model = create_model("isanet_tiny", weights=fruit_file, num_classes=7)
    assert model.label_set.name == "generic"
    assert model.load_report.fresh
    assert model.preprocess.resize == (64, 48)


@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel, torch.compile])
def test_save_model_removes_wrappers(
    wrap: Callable[[nn.Module], nn.Module], tiny_zoo: TinyZoo, tmp_path: Path
) -> None:
    model = fruit_model()
    save_model(wrap(model), tmp_path / "fruit.safetensors")
    again = create_model(tiny_zoo.weights.name, weights=tmp_path / "fruit.safetensors")
    assert again.label_set == FRUIT
    assert load_file(tmp_path / "fruit.safetensors").keys() == model.state_dict().keys()


def test_save_model_with_compiled_part_saves_plain_keys(tiny_zoo: TinyZoo, tmp_path: Path) -> None:
    model, plain = fruit_model(), fruit_model().state_dict().keys()
    model.backbone = torch.compile(model.backbone)  # type: ignore[assignment]
    assert model.state_dict().keys() != plain
    save_model(model, tmp_path / "fruit.safetensors")
    model.save_pretrained(tmp_path / "saved")
    for path in (tmp_path / "fruit.safetensors", tmp_path / "saved/model.safetensors"):
        assert load_file(path).keys() == plain
        create_model(tiny_zoo.weights.name, weights=path)


def test_save_model_of_another_network_is_refused(tmp_path: Path) -> None:
    for module in (nn.Linear(1, 1), nn.DataParallel(nn.Linear(1, 1))):
        with pytest.raises(InputError, match=r"model is a \w+; it must be an ISANet"):
            save_model(module, tmp_path / "linear.safetensors")


@pytest.mark.usefixtures("tiny_zoo")
def test_save_model_misspelt_fact_is_a_type_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="datasets"):
        save_model(fruit_model(), tmp_path / "a.safetensors", datasets="x")  # type: ignore[call-arg]


@pytest.mark.usefixtures("tiny_zoo")
def test_save_model_under_an_impossible_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        save_model(fruit_model(), tmp_path / "fruit.pth")
    with pytest.raises(InputError, match="cannot be written"):
        save_model(fruit_model(), tmp_path / "nowhere" / "fruit.safetensors")
    assert list(tmp_path.glob("**/*.part")) == []


@pytest.mark.usefixtures("tiny_zoo")
def test_save_model_replaces_only_its_own_files(tmp_path: Path) -> None:
    path = tmp_path / "fruit.safetensors"
    save_file({"theirs": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="was not written by isanet_zoo"):
        save_model(fruit_model(), path)
    assert load_file(path).keys() == {"theirs"}
    save_model(fruit_model(), path, force=True)
    save_model(fruit_model(), path)
    assert read_description(path) is not None


def test_save_model_lets_others_read_the_file(fruit_file: Path) -> None:
    (fruit_file.parent / "plain").touch()
    plain = (fruit_file.parent / "plain").stat().st_mode
    assert stat.S_IMODE(fruit_file.stat().st_mode) == stat.S_IMODE(plain)


def test_save_model_with_nan_is_refused_and_keeps_the_earlier_file(fruit_file: Path) -> None:
    before = fruit_file.read_bytes()
    model = fruit_model()
    nn.init.constant_(model.head.classifier.weight, float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        save_model(model, fruit_file)
    assert fruit_file.read_bytes() == before


# Conversion


def test_convert_keeps_the_description_and_halves_the_file(
    tiny_zoo: TinyZoo, tmp_path: Path
) -> None:
    source, target = tmp_path / "fruit.safetensors", tmp_path / "half.safetensors"
    model = fruit_model()
    save_model(model, source, dataset="Fruit")
    convert_checkpoint(source, target, tiny_zoo.weights.name, half=True)
    with safetensors.safe_open(target, "pt") as file:
        assert json.loads(file.metadata()["isanet_zoo"])["dataset"] == "Fruit"
        types = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
    assert types == {torch.float16, torch.int64}
    half = create_model("isanet_tiny", weights=target, aux_loss=True)
    assert half.label_set == FRUIT
    for key, tensor in half.state_dict().items():
        wide = model.state_dict()[key]
        assert tensor.dtype == wide.dtype
        assert torch.equal(tensor, wide.half().to(wide.dtype))


def test_half_precision_of_other_layouts_is_refused(tmp_path: Path, tiny_zoo: TinyZoo) -> None:
    state = torch.load(tiny_zoo.published, weights_only=True)["model"]
    state["decoder.1.weight"] = state["decoder.1.weight"].half()
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match="float16"):
        load_checkpoint(tmp_path / "half.pth", TINY_NETWORK)


# Reading


def test_read_description_of_files_without_one_is_none(tiny_zoo: TinyZoo, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tiny_zoo.published, *tmp_path.iterdir(), Path("/dev/zero"), tmp_path / "absent"):
        assert read_description(path) is None, path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "description cannot be read"),
        ("{}", "description: missing dataset"),
        ('{"model": 3}', "description: missing dataset"),
        ("[]", "description is a list; it must be an object"),
        ("[" * 100_000, "description cannot be read: it has too many levels"),
        ("9" * 100_000, "description cannot be read: an integer has 100000 digits"),
        ('{"a": 1, "a": 2}', "description cannot be read: the key 'a' occurs twice"),
        (" " * 2_000_000, "description cannot be read: it has more than"),
    ],
)
def test_create_model_with_a_broken_description_is_refused(
    text: str, message: str, fruit_file: Path
) -> None:
    save_file(load_file(fruit_file), fruit_file, metadata={"isanet_zoo": text})
    with pytest.raises(CheckpointError, match=rf"fruit\.safetensors: {message}"):
        create_model("isanet_tiny", weights=fruit_file)


def test_create_model_description_of_another_network_is_refused(fruit_file: Path) -> None:
    description = read_description(fruit_file)
    assert description is not None
    many = replace(
        description,
        network=replace(TINY_NETWORK, num_classes=4096),
        label_set=LabelSet.generic(4096),
    )
    save_file(load_file(fruit_file), fruit_file, metadata={"isanet_zoo": many.text()})
    with pytest.raises(
        CheckpointError, match="2 classes and 3 input channels, but its description has 4096 and 3"
    ):
        create_model("isanet_tiny", weights=fruit_file)


def test_description_with_attention_too_large_for_its_size_is_refused(tiny_zoo: TinyZoo) -> None:
    description = describe_published(tiny_zoo.weights)
    dense = replace(description.network, head=HeadConfig(partition=(1, 1)))
    replace(description, network=dense, preprocess=Preprocess(resize=(512, 512)))
    usual = replace(description.network, head=HeadConfig())
    for preprocess in (Preprocess(resize=(2048, 2048)), Preprocess(pad=(2048, 1024))):
        with pytest.raises(InputError, match="too large for attention with partition"):
            replace(description, network=dense, preprocess=preprocess)
        replace(description, network=usual, preprocess=preprocess)


def test_description_text_inverts_parse(tiny_zoo: TinyZoo) -> None:
    description = describe_published(tiny_zoo.weights)
    assert Description.parse(description.text(), "it") == description
    assert Description.parse(description.text(indent=2).encode(), "it") == description


# Files of version 0.1.0


@pytest.fixture
def old_folder(tmp_path: Path) -> Path:
    """A folder that version 0.1.0 saved."""
    source, folder = DATA / "saved_0.1.0", tmp_path / "old"
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = gzip.decompress((source / "fruit.safetensors.gz").read_bytes())
    (folder / "model.safetensors").write_bytes(tensors)
    return folder


def check_old(model: ISANet) -> None:
    assert model.label_set.names == ("apple, malus", "pear")
    assert model.label_set.ignore_index == 0
    assert model.config.head.fuse_kernel == 1
    assert (model.preprocess.resize, model.preprocess.window) == ((96, 64), (64, 64))
    assert model.aux_head is not None
    bias = model.state_dict()["head.classifier.bias"]
    assert bias.tolist() == [bias[0].item()] * 2
    assert model.weights is None


def test_folder_of_0_1_0_loads_and_is_saved_alike(old_folder: Path, tmp_path: Path) -> None:
    model = ISANet.from_pretrained(old_folder)
    check_old(model)
    model.save_pretrained(tmp_path / "new")
    old, new = (
        json.loads((folder / "config.json").read_text("utf-8"))
        for folder in (old_folder, tmp_path / "new")
    )
    recipe = new["recipe"]  # has values that 0.1.0 did not have: they are as then
    assert old["recipe"].items() <= recipe.items()
    assert (recipe["schedule"], recipe["loss"]) == ("poly", "cross_entropy")
    assert old | {"recipe": recipe} == new


def test_weight_file_of_0_1_0_loads(old_folder: Path, tiny_zoo: TinyZoo) -> None:
    path = old_folder / "model.safetensors"
    check_old(create_model(tiny_zoo.weights.name, weights=path, aux_loss=True))
    description = read_description(path)
    assert description is not None
    assert (description.dataset, description.metrics[0].value) == ("Fruit train", 51.5)


def test_finetuned_weight_file_of_0_1_0_names_its_model(
    old_folder: Path, tiny_zoo: TinyZoo
) -> None:
    path = old_folder / "model.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        text = json.loads(file.metadata()["isanet_zoo"])
    save_file(load_file(path), path, metadata={"isanet_zoo": json.dumps(text | {"model": "other"})})
    with pytest.raises(CheckpointError, match="was made from other, not from isanet_tiny"):
        create_model("isanet_tiny", weights=path)
    started = json.dumps(text | {"model": "isanet_tiny"})
    save_file(load_file(path), path, metadata={"isanet_zoo": started})
    model = create_model("isanet_tiny", weights=path)
    assert model.weights == tiny_zoo.weights
    assert model.origin is not None
    assert model.origin.provenance is not None
    assert not model.origin.provenance.unchanged
