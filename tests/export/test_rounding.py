"""Tests of the rounding of weights to int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from isanet_zoo.export.rounding import channel_ranges, round_weights

Array = NDArray[np.float32]


def convolution(weight: Array, bias: Array | None, groups: int) -> onnx.ModelProto:
    """Return a model of one convolution, without padding."""
    arrays = {"weight": weight} | ({} if bias is None else {"bias": bias})
    node = helper.make_node("Conv", ["images", *arrays], ["maps"], group=groups)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, None, None, None])],
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, [1, None, None, None])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def tensors(model: onnx.ModelProto) -> dict[str, Array]:
    return {x.name: numpy_helper.to_array(x) for x in model.graph.initializer}


def outputs(model: onnx.ModelProto, images: torch.Tensor) -> Array:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found: Array = session.run(["maps"], {"images": images.numpy()})[0]
    return found


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(3, 8, 1, 1), (2, 3, 3, 3), (4, 5, 1, 1), (1, 1, 1, 1)]),
    tail=st.sampled_from([0.2, 1.0, 4.0]),
)
def test_no_sum_of_two_products_exceeds_16_bits(
    seed: int, shape: tuple[int, ...], tail: float
) -> None:
    weight = (np.random.default_rng(seed).standard_normal(shape) ** 3 * tail).astype(np.float32)
    ranges = channel_ranges(weight)
    assert (ranges >= np.abs(weight).max((1, 2, 3)) * (1 - 1e-6)).all()
    for channel, limit in zip(weight, ranges, strict=True):
        steps = [round(float(x)) for x in (channel.transpose(1, 2, 0) * (127 / limit)).ravel()]
        for first, second in zip(steps[::2], [*steps[1::2], 0], strict=False):
            products = [a * first + b * second for a in (0, 255) for b in (0, 255)]
            assert -(2**15) <= min(products) <= max(products) < 2**15


def test_range_is_the_largest_sum_of_neighbours_of_one_sign() -> None:
    weight = np.array([[3, 2, -1, 4], [1, -5, -3, -3], [0, 0, 0, 7]], np.float32)[:, :, None, None]
    assert channel_ranges(weight).tolist() == [5, 6, 7]
    depthwise = np.array([[3, 2], [1, -5]], np.float32)[:, None, None, :]
    assert channel_ranges(depthwise, groups=2).tolist() == [3, 5]


def test_range_of_a_channel_without_weights_is_not_zero() -> None:
    weight = np.array([[0, 0], [2, -1]], np.float32)[:, :, None, None]
    assert channel_ranges(weight) == pytest.approx([2e-4, 2])


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("biased", [True, False])
def test_rounded_weights_keep_the_mean_of_each_channel(groups: int, biased: bool) -> None:
    chance = np.random.default_rng(groups)
    weight = chance.standard_normal((12, 6 // groups, 3, 3)).astype(np.float32)
    bias = chance.standard_normal(12).astype(np.float32) if biased else None
    model = convolution(weight, bias, groups)
    # Each channel has one value, so that the mean inside a window is that of the map.
    images = [torch.rand(1, 6, 1, 1).expand(1, 6, 9, 9).contiguous() + 3 for _ in range(2)]
    expected = np.mean([outputs(model, x).mean((0, 2, 3)) for x in images], 0)

    overrides = round_weights(model, images)
    found = np.mean([outputs(model, x).mean((0, 2, 3)) for x in images], 0)
    np.testing.assert_allclose(found, expected, atol=1e-4)

    rounded = tensors(model)["weight"]
    steps = rounded / np.array([x["rmax"] / 127 for x in overrides["weight"]])[:, None, None, None]
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
    assert 0 < np.abs(rounded - weight).max() < 0.05
    uncorrected = convolution(rounded, bias, groups)
    shifted = np.mean([outputs(uncorrected, x).mean((0, 2, 3)) for x in images], 0)
    assert np.abs(shifted - expected).max() > 0.01


def test_int8_kernels_compute_what_float_kernels_compute_of_the_same_file(exported: Path) -> None:
    """Saturation on x86 without VNNI made them differ on many pixels."""
    path = str(exported / "int8.onnx")
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    images = {"images": torch.randn(1, 3, 120, 152, generator=torch.manual_seed(0)).numpy()}
    found: list[Any] = [
        onnxruntime.InferenceSession(path, options).run(None, images)[0]
        for options in (None, plain)
    ]
    difference = np.abs(found[0] - found[1])
    assert difference.mean() < 0.02 * np.abs(found[1]).mean()
