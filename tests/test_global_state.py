"""Tests that the library changes nothing global in the process that uses it."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from isanet_zoo import Predictor, evaluate, export_onnx, train
from isanet_zoo.commands.main import main
from tests.export.networks import shallow
from tests.global_state import changes, global_state
from tests.learning import tiny


def predict(folder: Path) -> None:
    predictor = Predictor(
        tiny.network(), scales=(1, 1.5), flip=True, tile=40, confidence=True, dtype="auto"
    )
    predictor(np.zeros((50, 70, 3), np.uint8)).save(folder / "labels.png")  # type: ignore[union-attr]


def learn(folder: Path) -> None:
    dataset = tiny.dataset(folder / "data")
    model = tiny.network(dataset.label_set, dropout=0.1)
    recipe = dataclasses.replace(tiny.RECIPE, epochs=1)
    train(model, dataset, recipe, folder / "run", validation=dataset)
    evaluate(model, dataset)


def export(folder: Path) -> None:
    calibrate = [np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)]
    with torch.random.fork_rng():
        model = shallow()
    export_onnx(
        model,
        folder / "model.onnx",
        dynamic=False,
        size=(40, 48),
        calibrate=calibrate,
        check=False,
    )


def commands(folder: Path) -> None:
    assert main(["list", "--json"]) == 0
    assert main(["-v", "info", "isanet_resnet50os8_voc"]) == 0
    (folder / "bad.png").touch()
    assert main(["predict", str(folder / "bad.png"), "-o", str(folder)]) == 1


# What importing onnxruntime and tqdm's lock change is not the library's doing.
importlib.import_module("onnxruntime.quantization")
importlib.import_module("tqdm").tqdm.get_lock()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("use", [predict, learn, export, commands])
def test_use_of_the_library_changes_nothing_global(
    use: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = global_state()
    use(tmp_path)
    assert changes(before, global_state()) == []


def test_import_of_all_names_and_first_prediction_change_nothing_global() -> None:
    code = """
import sys, huggingface_hub, numpy, safetensors, timm, torch
from tests.global_state import changes, global_state
assert "isanet_zoo" not in sys.modules
before = global_state()
from isanet_zoo import *
import isanet_zoo.commands.main
print(changes(before, global_state()))
model = ISANet("test_resnet", 3)  # initialising a network draws numbers
initialised = global_state()
Predictor(model)(numpy.zeros((40, 40, 3), numpy.uint8))
print(changes(initialised, global_state()), changes(before, global_state()))
"""
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == ["[]", "[] ['torch.get_rng_state']"]
