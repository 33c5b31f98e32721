"""Rounding of a model's weights to int8, before onnxruntime's quantiser does it.

The quantiser takes the range of an output channel from its largest weight, and rounds each weight
to the nearest step. This module avoids two errors of that:

- x86 processors without VNNI multiply two neighbouring activations, which are unsigned, by their
  weights and add the products in 16 bits, where the sum may saturate. The range of a channel here
  is the largest sum of two neighbouring weights: no sum saturates, and all processors agree.
- Rounding shifts the mean of a channel, as activations after a ReLU are not negative. The bias is
  corrected by that shift (Nagel et al., arXiv 1906.04721, section 4.2).

Letters in shapes: C input channels, O output channels, G groups, k k kernel.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array: TypeAlias = npt.NDArray[np.floating[Any]]

LARGEST = 127  # the range in steps; -128 is not used
LEAST_RANGE = 1e-4  # of a channel, in the tensor's range: the bias has to fit into int32


def round_weights(proto: Any, inputs: Sequence[Tensor]) -> dict[str, list[dict[str, Any]]]:
    """Round the weights of all convolutions, and correct their biases, in place.

    Args:
        proto: a model in float32 without batch norms, with one input `images`. Its rounded weights
            are float32, too.
        inputs: images like those that the model is for.

    Returns:
        The ranges of the weights, for the quantiser's option `TensorQuantOverrides`.
    """
    onnx: Any = importlib.import_module("onnx")
    means = _mean_inputs(proto, inputs)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    overrides = {}
    for node in _convolutions(proto):
        stored = tensors[node.input[1]]
        weight = onnx.numpy_helper.to_array(stored)  # (O, C/G, k, k)
        groups = len(means[node.input[0]]) // weight.shape[1]
        ranges = channel_ranges(weight, groups)
        rounded = _round(weight, ranges)
        stored.CopyFrom(onnx.numpy_helper.from_array(rounded, stored.name))
        overrides[stored.name] = _override(ranges)

        if len(node.input) == 2:  # no bias
            zeros = np.zeros(len(weight), np.float32)
            node.input.append(f"{stored.name}_bias")
            proto.graph.initializer.append(onnx.numpy_helper.from_array(zeros, node.input[2]))
            tensors[node.input[2]] = proto.graph.initializer[-1]
        bias = tensors[node.input[2]]
        shift = _shift(rounded - weight, means[node.input[0]], groups)
        corrected = (onnx.numpy_helper.to_array(bias) - shift).astype(np.float32)
        bias.CopyFrom(onnx.numpy_helper.from_array(corrected, bias.name))
    return overrides


def channel_ranges(weight: Array, groups: int = 1) -> Array:
    """Return the range of each output channel of a weight (O, C/G, k, k), (O,) float32.

    It is the largest sum of two weights of the same sign that are neighbours in onnxruntime's order
    (k, k, C). Depthwise kernels add in 32 bits, so that it is the largest weight there.
    """
    rows = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)  # (O, k·k·C/G)
    pairs = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(weight), -1, 2)
    sums = [np.maximum(x, 0).sum(-1).max(1) for x in (pairs, -pairs)]  # of each sign, (O,)
    ranges: Array = np.maximum(*sums) if groups == 1 else np.abs(rows).max(1)
    limited: Array = np.maximum(ranges, LEAST_RANGE * ranges.max())
    return limited


def _round(weight: Array, ranges: Array) -> Array:
    """Round a weight (O, C/G, k, k) to multiples of a step per output channel."""
    steps = np.maximum(ranges / LARGEST, np.finfo(np.float32).tiny)[:, None, None, None]
    rounded: Array = np.round(weight / steps) * steps
    return rounded


def _shift(error: Array, mean: Array, groups: int) -> Array:
    """Return the mean of each output channel, (O,), that an error of a weight causes.

    Args:
        error: (O, C/G, k, k).
        mean: of each input channel, (C,). The zeros around a map are neglected.
        groups: G.
    """
    by_group = error.sum((2, 3)).reshape(groups, -1, error.shape[1])  # (G, O/G, C/G)
    shift: Array = np.einsum("goc,gc->go", by_group, mean.reshape(groups, -1)).ravel()
    return shift


def _override(ranges: Array) -> list[dict[str, Any]]:
    """Return an entry of `TensorQuantOverrides` for the ranges of the output channels."""
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    int8 = {"quant_type": quantization.QuantType.QInt8, "symmetric": True}
    channels = [int8 | {"rmin": -limit, "rmax": limit} for limit in ranges]
    return [channels[0] | {"axis": 0}, *channels[1:]]


def _mean_inputs(proto: Any, inputs: Sequence[Tensor]) -> dict[str, Array]:
    """Return the mean of each channel of the inputs of convolutions, (C,), by their names."""
    onnx: Any = importlib.import_module("onnx")
    onnxruntime: Any = importlib.import_module("onnxruntime")
    names = sorted({node.input[0] for node in _convolutions(proto)})
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    axes = onnx.numpy_helper.from_array(np.array([0, 2, 3]), "axes_of_means")
    model.graph.initializer.append(axes)
    for name in names:
        mean = f"{name}_mean"
        node = onnx.helper.make_node("ReduceMean", [name, axes.name], [mean], keepdims=0)
        model.graph.node.append(node)
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(mean, onnx.TensorProto.FLOAT, None)
        )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    wanted = [f"{name}_mean" for name in names]
    found = [session.run(wanted, {"images": images.numpy()}) for images in inputs]
    means = (np.mean(of_images, 0) for of_images in zip(*found, strict=True))
    return dict(zip(names, means, strict=True))


def _convolutions(proto: Any) -> list[Any]:
    """Return the nodes of all convolutions."""
    return [node for node in proto.graph.node if node.op_type == "Conv"]
