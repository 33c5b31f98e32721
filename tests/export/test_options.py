"""Tests that wrong options and targets are refused before the export."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from isanet_zoo import InputError, ISANet, export_onnx
from isanet_zoo.export import onnx_file
from isanet_zoo.export.options import PRODUCER, is_exported
from tests.export.networks import FIXED, small

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if the work begins."""
    monkeypatch.setattr(onnx_file, "for_onnx", lambda *_: pytest.fail("the export began"))


@pytest.mark.usefixtures("no_trace")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamic": False}, "dynamic is False, size is None"),
        ({"size": (64, 64)}, r"dynamic is True, size is \(64, 64\)"),
        ({"dynamic": False, "size": (0, 64)}, "the height is 0"),
        ({"dynamic": False, "size": (64, 10**9)}, "the width is 1000000000"),
        ({"dynamic": False, "size": 64}, r"size is 64; it must be \(height, width\)"),
        ({"dynamic": False, "size": (1, 2, 3)}, r"it must be \(height, width\)"),
        ({"dtype": torch.bfloat16}, "choose one of torch.float32, torch.float16"),
        ({"output": "scores"}, "choose one of logits, labels"),
        ({"calibrate": []}, "no images"),
        ({"calibrate": [], "dtype": torch.float16}, "int8"),
    ],
)
def test_export_with_wrong_options_is_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        export_onnx(small(), tmp_path / "model.onnx", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_trace")
def test_export_of_a_network_that_does_not_support_an_option_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(InputError, match="has 4 input channels"):
        export_onnx(small(in_chans=4), path, preprocess=True)
    with pytest.raises(InputError, match="300 classes do not fit"):
        export_onnx(ISANet("test_resnet", 300), path, output="labels")
    with pytest.raises(InputError, match="path is None; it must be a path"):
        export_onnx(small(), None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected an ISANet, got Identity"):
        export_onnx(torch.nn.Identity(), path)  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_trace")
@pytest.mark.parametrize(
    "name", ["best.safetensors", "model", "model.onnx.pth", ".onnx", "model.onnx\n"]
)
def test_export_to_a_name_that_is_not_of_an_onnx_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not the name of an ONNX file; end it with \.onnx"):
        export_onnx(small(), tmp_path / name, force=True)


@pytest.mark.usefixtures("no_trace")
@pytest.mark.parametrize(
    "name", ["missing/m.onnx", f"{'m' * 300}.onnx", "nul\0.onnx", "folder.onnx"]
)
def test_export_to_a_path_that_cannot_be_written_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        export_onnx(small(), tmp_path / name, force=True)


@pytest.mark.usefixtures("no_trace")
@pytest.mark.parametrize("force", [False, True])
def test_export_to_a_pipe_is_refused_at_once(force: bool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "link.onnx").symlink_to("pipe.onnx")
    for name in ("pipe.onnx", "link.onnx"):
        with pytest.raises(InputError, match="not a regular file"):
            export_onnx(small(), tmp_path / name, force=force)


FOREIGN: dict[str, Any] = {
    "empty": b"",
    "text": b"isanet-zoo",
    "another producer": onnx.ModelProto(ir_version=10, producer_name="pytorch"),
    "no producer": onnx.ModelProto(ir_version=10, doc_string=PRODUCER),
    "a longer name": onnx.ModelProto(ir_version=10, producer_name=f"{PRODUCER}-like"),
}


@pytest.mark.usefixtures("no_trace")
@pytest.mark.parametrize("kind", FOREIGN)
def test_export_over_a_foreign_file_is_refused(kind: str, tmp_path: Path) -> None:
    path, content = tmp_path / "model.onnx", FOREIGN[kind]
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists and was not written by isanet_zoo"):
        export_onnx(small(), path)
    assert path.read_bytes() == before


def test_export_replaces_its_own_file_and_with_force_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "trace", lambda *_: onnx.ModelProto(ir_version=10))
    path = tmp_path / "model.onnx"
    path.write_bytes(b"of another program")
    export_onnx(small(), path, **FIXED, check=False, force=True)
    assert is_exported(path)
    before = path.stat().st_ino
    export_onnx(small(), path, **FIXED, check=False)
    assert path.stat().st_ino != before
    assert list(tmp_path.iterdir()) == [path]
