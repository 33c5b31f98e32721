"""Tests that wrong files are detected before they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from isanet_zoo import ExportError, export_onnx
from isanet_zoo.export import check, onnx_file, options
from isanet_zoo.export.graph import Graph
from tests.export.networks import FIXED, constant, small


@pytest.mark.parametrize("preprocess", [False, True])
def test_noise_is_the_same_for_every_default_device(preprocess: bool) -> None:
    expected = check.noise((1, 3, 4, 5), preprocess)
    with torch.device("meta"):
        assert torch.equal(check.noise((1, 3, 4, 5), preprocess), expected)


def test_static_file_in_place_of_a_dynamic_one_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "trace", constant)
    with pytest.raises(ExportError, match=r"model.onnx was not written: .* 1x3x97x141"):
        export_onnx(small(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("output", ["logits", "labels"])
def test_file_with_other_outputs_is_not_written_and_keeps_the_older_one(
    output: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(graph: Graph, images: torch.Tensor, dynamic: bool) -> onnx.ModelProto:
        if output == "logits":
            graph.network.get_parameter("head.classifier.bias").add_(1e-2)
        return constant(graph, images.flip(-1) if output == "labels" else images, dynamic)

    monkeypatch.setattr(onnx_file, "trace", wrong)
    path = tmp_path / "model.onnx"
    older = onnx.ModelProto(ir_version=10, producer_name=options.PRODUCER).SerializeToString()
    path.write_bytes(older)
    with pytest.raises(ExportError, match=f"1x3x97x130 its {output} differ: "):
        export_onnx(small(), path, **FIXED, output=output)
    assert path.read_bytes() == older
    assert list(tmp_path.iterdir()) == [path]
