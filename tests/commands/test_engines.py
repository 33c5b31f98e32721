"""Tests of exported files and engines as options of the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isanet_zoo import predict
from isanet_zoo.commands.main import main
from tests.engines.exported import counted_exports
from tests.learning.tiny import dataset


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of five classes."""
    dataset(tmp_path, "val", sizes=[(64, 80), (80, 64)])
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne")
    return tmp_path


def test_predict_takes_an_exported_file(
    exported: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = data / "images" / "val" / "0.png"
    graph, out = str(exported / "graph.onnx"), str(data / "out")
    assert main(["predict", str(image), "-m", graph, "-o", out, "--raw", "--confidence"]) == 0
    labels = np.asarray(Image.open(capsys.readouterr().out.splitlines()[0]))
    expected = predict(graph, image)
    assert not isinstance(expected, list)
    assert np.array_equal(labels, expected.labels)
    assert main(["predict", str(image), "-m", graph, "-w", "paper"]) == 1
    assert "has weights; drop --weights" in capsys.readouterr().err


def test_evaluate_takes_an_exported_file(
    exported: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = str(exported / "graph.onnx")
    assert main(["evaluate", graph, "--data", str(data), "--json"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["pixel_accuracy"] < 1


@pytest.mark.usefixtures("tiny")
def test_engine_option_exports_the_network_once(exported: Path, data: Path) -> None:
    image, options = str(data / "images" / "val" / "0.png"), ["--none", "-m", "isanet_tiny"]
    int8 = ["--dtype", "int8", "--calibrate", str(data / "images" / "val")]
    with counted_exports(exported / "graph.onnx") as exports:
        for extra in ([], [], int8, int8):
            command = ["predict", image, *options, "--engine", "onnxruntime", *extra]
            assert main(command) == 0
    assert [bool(export["calibrate"]) for export in exports] == [False, True]
