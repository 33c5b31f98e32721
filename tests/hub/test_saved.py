"""Saved models: round trips through a folder."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isanet_zoo import CheckpointError, ISANet, create_model
from tests.conftest import TINY_NETWORK, TinyZoo
from tests.hub.models import (
    BUILT_IN,
    FILES,
    FRUIT,
    MEASURED,
    assert_same,
    finetuned,
    labels,
    random_model,
)


def test_round_trip_of_a_published_model_keeps_everything(
    tiny_zoo: TinyZoo, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    model = create_model("isanet_tiny", pretrained=True, aux_loss=True)
    assert model.save_pretrained(tmp_path / "deep" / "saved") == tmp_path / "deep" / "saved"
    assert {path.name for path in (tmp_path / "deep" / "saved").iterdir()} == FILES
    again = ISANet.from_pretrained(tmp_path / "deep" / "saved")
    assert_same(model, again)
    assert np.array_equal(labels(model).labels, labels(again).labels)
    assert again.weights == tiny_zoo.weights
    assert again.load_report.trust == "local"


def test_round_trip_of_the_built_in_model_keeps_labels(tmp_path: Path) -> None:
    model = create_model(BUILT_IN, pretrained=True)
    model.save_pretrained(tmp_path)
    again = ISANet.from_pretrained(str(tmp_path))
    assert_same(model, again)
    model.preprocess = again.preprocess = replace(again.preprocess, resize=(160, 120))
    assert np.array_equal(labels(model).labels, labels(again).labels)


def test_round_trip_of_a_fine_tuned_model_keeps_its_classes(
    tiny_zoo: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    model = finetuned()
    model.save_pretrained(tmp_path, dataset="Fruit train", metrics=[MEASURED])
    again = ISANet.from_pretrained(tmp_path)
    assert_same(model, again)
    before, after = labels(model), labels(again)
    assert np.array_equal(before.labels, after.labels)
    assert after.label_set == FRUIT
    assert after.mask("apple").shape == after.labels.shape
    assert after.to_image().getpalette()[:15] == [c for rgb in FRUIT.colours for c in rgb]  # type: ignore[index]


@pytest.mark.parametrize("aux_loss", [False, True])
def test_round_trip_keeps_four_channels_and_the_auxiliary_head(
    aux_loss: bool, tmp_path: Path
) -> None:
    model = random_model(in_chans=4, aux_loss=aux_loss)
    model.save_pretrained(tmp_path)
    again = ISANet.from_pretrained(tmp_path)
    assert_same(model, again)
    images = torch.randn(2, 4, 41, 57)
    with torch.no_grad():
        assert torch.equal(model(images), again(images))
    assert again.config.in_chans == 4
    assert (again.aux_head is None) is not aux_loss


def test_loaded_model_can_be_trained(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path)
    model = ISANet.from_pretrained(tmp_path).train()
    out, aux = model(torch.randn(2, 3, 32, 32))
    (out.sum() + aux.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_loading_is_independent_of_torchs_default_type(tmp_path: Path) -> None:
    model = random_model()
    model.save_pretrained(tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        again = ISANet.from_pretrained(tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(model, again)


def test_round_trip_of_float16_gives_float32(tmp_path: Path) -> None:
    model = random_model().half()
    model.save_pretrained(tmp_path)
    again = ISANet.from_pretrained(tmp_path)
    assert_same(model.float(), again)


def test_equal_models_are_saved_as_equal_files(tmp_path: Path) -> None:
    for name in ("a/same", "b/same"):
        random_model().save_pretrained(tmp_path / name)
    for file in FILES:
        a, b = (tmp_path / name / "same" / file for name in "ab")
        assert a.read_bytes() == b.read_bytes()


def test_saved_weights_load_without_their_folder(tiny_zoo: TinyZoo, tmp_path: Path) -> None:
    model = random_model()
    model.save_pretrained(tmp_path)
    alone = tmp_path / "model.safetensors"
    again = create_model("isanet_tiny", weights=alone, aux_loss=True)
    assert_same(model, again)
    assert again.weights is None  # it did not start from published weights
    assert tiny_zoo.weights.name == "isanet_tiny"


def test_later_save_replaces_its_files_and_keeps_others(tmp_path: Path) -> None:
    random_model(seed=1).save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    model = random_model(seed=2)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"notes.txt"}
    assert_same(model, ISANet.from_pretrained(tmp_path))


def test_saved_files_have_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    random_model().save_pretrained(tmp_path)
    expected = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in FILES} == {expected}


class Calibrated(ISANet):
    """An ISANet with an additional parameter."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.temperature = torch.nn.Parameter(torch.ones(1))


def test_round_trip_of_a_subclass_keeps_its_parameters(tmp_path: Path) -> None:
    model = Calibrated("test_resnet", 5, head=TINY_NETWORK.head)
    torch.nn.init.constant_(model.temperature, 2.5)
    model.save_pretrained(tmp_path)
    assert Calibrated.from_pretrained(tmp_path).temperature.item() == 2.5
    with pytest.raises(CheckpointError, match="unknown: temperature"):
        ISANet.from_pretrained(tmp_path)
