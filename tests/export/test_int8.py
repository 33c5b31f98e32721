"""Tests of quantised files and of their calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from isanet_zoo import ExportError, export_onnx
from isanet_zoo.export import check, int8, onnx_file
from tests.engines.exported import network
from tests.export.networks import FIXED, constant, read_description, run, small


def test_spread_returns_evenly_spaced_images_with_both_ends() -> None:
    names = [str(number) for number in range(100)]
    chosen = int8.spread(names)
    assert len(chosen) == int8.MOST_IMAGES
    assert (chosen[0], chosen[-1]) == ("0", "99")
    gaps = np.diff([names.index(str(name)) for name in chosen])
    assert gaps.max() - gaps.min() <= 1
    assert int8.spread(names[:5]) == names[:5]


def test_int8_file_is_quantised_smaller_and_agrees_on_most_labels(exported: Path) -> None:
    model, path = network(), exported / "int8.onnx"
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert "BatchNormalization" not in nodes
    assert nodes.count("QuantizeLinear") > 20
    assert path.stat().st_size < 2 * sum(parameter.numel() for parameter in model.parameters())
    inputs = int8.calibration_inputs(exported / "images", model.preprocess, None, prepared=True)
    with torch.no_grad():
        expected = [model.forward_logits(x).numpy() for x in inputs]
    found = [run(path, x) for x in inputs]
    same = [one.argmax(1) == other.argmax(1) for one, other in zip(found, expected, strict=True)]
    assert np.mean(same) > 0.8
    assert not np.array_equal(found[0], expected[0])
    assert read_description(path).label_set == model.label_set


def test_int8_file_with_too_few_equal_labels_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "trace", constant)
    monkeypatch.setattr(onnx_file, "quantise", lambda proto, _: proto)
    monkeypatch.setattr(check, "LEAST_AGREEMENT", 1.01)
    images = [np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)]
    with pytest.raises(ExportError, match="in int8 only"):
        export_onnx(small(), tmp_path / "other.onnx", **FIXED, calibrate=images)
    assert list(tmp_path.iterdir()) == []


def padded(scale_after: str) -> onnx.ModelProto:
    """Return a model that quantises maps, and pads them in float32."""
    constants = {
        **{"scale": np.float32(0.5), "other_scale": np.float32(0.25)},
        **{"zero": np.uint8(37), "pads": np.array([0, 0, 1, 2, 0, 0, 0, 1])},
    }
    steps = [
        ("QuantizeLinear", ["images", "scale", "zero"], "before"),
        ("DequantizeLinear", ["before", "scale", "zero"], "map"),
        ("Pad", ["map", "pads"], "padded"),
        ("QuantizeLinear", ["padded", scale_after, "zero"], "after"),
        ("DequantizeLinear", ["after", scale_after, "zero"], "maps"),
    ]
    shape = [1, 3, None, None]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output]) for kind, inputs, output in steps],
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(x), name) for name, x in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_pad_in_int8_pads_the_quantised_map_with_its_zero_point() -> None:
    model, images = padded("scale"), {"images": np.full((1, 3, 2, 2), 4, np.float32)}
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, images)[0]
    int8.pad_in_int8(model)
    onnx.checker.check_model(model, full_check=True)
    assert [x.op_type for x in model.graph.node] == ["QuantizeLinear", "Pad", "DequantizeLinear"]
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, images)[0]
    assert found.shape == (1, 3, 3, 5)
    assert np.array_equal(found, expected)


def test_pad_in_int8_another_scale_after_the_pad_changes_nothing() -> None:
    model = padded("other_scale")
    before = model.SerializeToString()
    int8.pad_in_int8(model)
    assert model.SerializeToString() == before


def test_int8_file_pads_in_int8(exported: Path) -> None:
    nodes = onnx.load(exported / "int8.onnx").graph.node
    makers = {name: node.op_type for node in nodes for name in node.output}
    pads = [makers[node.input[0]] for node in nodes if node.op_type == "Pad"]
    assert pads
    assert "DequantizeLinear" not in pads
