"""Tests of `isanet-zoo export`."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from isanet_zoo import zoo
from isanet_zoo.commands.main import main
from isanet_zoo.export import onnx_file
from isanet_zoo.export.options import is_exported
from tests.conftest import TinyZoo
from tests.export.networks import constant, read_description, run


def test_export_prints_the_path_and_logs_the_comparison(
    tiny_zoo: TinyZoo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    monkeypatch.setattr(onnx_file, "trace", constant)
    target = tmp_path / "tiny.onnx"
    options = ["--labels", "--preprocess", "--static", "97x130"]
    assert main(["export", "isanet_tiny", str(target), *options]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{target}\n"
    assert "1x3x97x130: the same labels in onnxruntime" in printed.err
    assert run(target, torch.zeros(1, 3, 97, 130, dtype=torch.uint8)).shape == (1, 97, 130)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["best.safetensors"], "end it with .onnx"),
        (["weights.onnx"], "was not written by isanet_zoo; choose another name"),
        (["missing/model.onnx"], "is not a folder"),
        (["model.onnx", "--int8"], "--calibrate DIR"),
        (["model.onnx", "--calibrate", "."], "--calibrate DIR"),
    ],
)
def test_export_that_cannot_succeed_fails_before_the_model_is_loaded(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(zoo, "create_model", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.chdir(tmp_path)
    for name in ("best.safetensors", "weights.onnx"):
        Path(name).write_bytes(b"weights")
    assert main(["export", "isanet_resnet50os8_voc", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"weights"}


def test_export_with_force_replaces_a_foreign_file(
    tiny_zoo: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    target = tmp_path / "tiny.onnx"
    target.write_bytes(b"of another program")
    monkeypatch.setattr(onnx_file, "trace", lambda *_: onnx.ModelProto(ir_version=10))
    options = ["--static", "40x48", "--no-check", "--force"]
    assert main(["export", "isanet_tiny", str(target), *options]) == 0
    assert is_exported(target)


def test_export_of_own_classes_writes_their_labels(
    tiny_zoo: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    monkeypatch.setattr(onnx_file, "trace", constant)
    (tmp_path / "own.json").write_text('{"thing": ["car", "person"]}')
    target = tmp_path / "tiny.onnx"
    options = ["--labels", "--static", "40x48", "--classes", str(tmp_path / "own.json")]
    assert main(["export", "isanet_tiny", str(target), *options, "--rest", "other"]) == 0
    assert set(run(target, torch.randn(1, 3, 40, 48)).ravel()) <= {0, 1}
    assert read_description(target).label_set.names == ("thing", "other")
