"""Tests of quantised files and of their calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from isanet_zoo import ExportError, export_onnx
from isanet_zoo.export import check, int8
from tests.export.networks import FIXED, read_description, run, small, write_images

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_spread_returns_evenly_spaced_images_with_both_ends() -> None:
    names = [str(number) for number in range(100)]
    chosen = int8.spread(names)
    assert len(chosen) == int8.MOST_IMAGES
    assert (chosen[0], chosen[-1]) == ("0", "99")
    gaps = np.diff([names.index(str(name)) for name in chosen])
    assert gaps.max() - gaps.min() <= 1
    assert int8.spread(names[:5]) == names[:5]


def test_int8_file_is_quantised_smaller_and_agrees_on_most_labels(tmp_path: Path) -> None:
    model, folder = small(), write_images(tmp_path / "images")
    options: dict[str, Any] = {"dynamic": False, "size": (150, 200)}
    path = export_onnx(model, tmp_path / "model.onnx", **options, calibrate=folder)
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert "BatchNormalization" not in nodes
    assert nodes.count("QuantizeLinear") > 20
    assert path.stat().st_size < 2 * sum(parameter.numel() for parameter in model.parameters())
    inputs = int8.calibration_inputs(folder, model.preprocess, None, prepared=True)
    with torch.no_grad():
        same = [run(path, x).argmax(1) == model(x).argmax(1).numpy() for x in inputs]
    assert np.mean(same) > 0.8
    assert read_description(path).label_set == model.label_set


def test_int8_file_with_too_few_equal_labels_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "LEAST_AGREEMENT", 1.01)
    images = [np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)]
    with pytest.raises(ExportError, match="in int8 only"):
        export_onnx(small(), tmp_path / "other.onnx", **FIXED, calibrate=images)
    assert list(tmp_path.iterdir()) == []
