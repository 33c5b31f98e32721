"""Tests that the library changes nothing global in the process that uses it."""

from __future__ import annotations

import builtins
import dataclasses
import gc
import importlib
import locale
import logging
import math
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torch import nn

from isanet_zoo import Predictor, evaluate, export_onnx, train
from isanet_zoo.commands.main import main
from tests.learning import tiny


def attributes(owner: object) -> dict[str, object]:
    """Return the attributes of a class or module, but for the cache of `copyreg`."""
    return {name: value for name, value in vars(owner).items() if name != "__slotnames__"}


def global_state() -> dict[str, Any]:
    """Return what a library could change for others in this process, by name."""
    backends = torch.backends
    state: dict[str, Any] = {
        "torch.get_default_dtype": torch.get_default_dtype(),
        "torch.get_default_device": torch.get_default_device(),
        "torch.get_num_threads": torch.get_num_threads(),
        "torch.get_num_interop_threads": torch.get_num_interop_threads(),
        "torch.is_grad_enabled": torch.is_grad_enabled(),
        "torch.is_inference_mode_enabled": torch.is_inference_mode_enabled(),
        "torch.is_autocast_enabled": torch.is_autocast_enabled("cpu"),
        "torch.is_anomaly_enabled": torch.is_anomaly_enabled(),
        "torch.are_deterministic_algorithms_enabled": torch.are_deterministic_algorithms_enabled(),
        "torch.get_float32_matmul_precision": torch.get_float32_matmul_precision(),
        "torch.backends.cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark),
        "torch.backends.cudnn.allow_tf32": backends.cudnn.allow_tf32,
        "torch.backends.cuda.matmul.allow_tf32": backends.cuda.matmul.allow_tf32,
        "torch.backends.mkldnn.enabled": backends.mkldnn.enabled,
        "torch.get_rng_state": torch.get_rng_state().numpy().tobytes(),
        "torch.Tensor": attributes(torch.Tensor),
        "torch.nn.Module": attributes(nn.Module),
        "torch.nn.functional": attributes(nn.functional),
        "torch.multiprocessing": torch.multiprocessing.get_sharing_strategy(),  # type: ignore[no-untyped-call]
        "builtins": attributes(builtins),
        "math": attributes(math),
        "numpy.random": np.random.get_state()[1].tobytes(),  # type: ignore[index]
        "numpy.geterr": np.geterr(),
        "numpy.printoptions": str(np.get_printoptions()),
        "random": random.getstate(),
        "PIL": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK),
        "warnings.filters": list(warnings.filters),
        "warnings.showwarning": warnings.showwarning,
        "locale": locale.setlocale(locale.LC_ALL),
        "os.environ": dict(os.environ),
        "working folder": Path.cwd(),
        "socket.getdefaulttimeout": socket.getdefaulttimeout(),
        "multiprocessing": multiprocessing.get_start_method(allow_none=True),
        "gc": (gc.isenabled(), gc.get_threshold()),
        "sys": (sys.getrecursionlimit(), sys.excepthook, sys.stdout, sys.stderr, list(sys.path)),
    }
    state["umask"] = os.umask(0o022)
    os.umask(state["umask"])
    state |= {f"signal {number}": signal.getsignal(number) for number in signal.valid_signals()}
    for name in (None, "isanet_zoo", "torch", "timm", "PIL", "huggingface_hub"):
        logger = logging.getLogger(name)
        state[f"logger {name}"] = (logger.level, list(logger.handlers), logger.propagate)
    return state


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


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
    export_onnx(
        tiny.network(),
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


def test_import_and_first_prediction_change_nothing_global() -> None:
    code = (
        "import timm, huggingface_hub, numpy, torch;"
        "from tests.test_global_state import changes, global_state;"
        "before = global_state();"
        "import isanet_zoo, isanet_zoo.commands.main;"
        "model = isanet_zoo.ISANet('test_resnet', 3);"
        "random = torch.get_rng_state();"
        "isanet_zoo.Predictor(model)(numpy.zeros((40, 40, 3), numpy.uint8));"
        "assert torch.equal(random, torch.get_rng_state());"
        "print(changes(before, global_state()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "['torch.get_rng_state']\n"  # initialising a network draws numbers
