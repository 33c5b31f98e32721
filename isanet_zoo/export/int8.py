"""Quantisation of float32 ONNX models to int8 for CPUs, with onnxruntime's quantiser.

Letters in shapes: H W image.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from isanet_zoo.errors import InputError
from isanet_zoo.export.rounding import round_weights
from isanet_zoo.imaging.preprocess import input_size, prepare, resize_pixels
from isanet_zoo.imaging.reading import ImageLike, find_images, read_image
from isanet_zoo.manifest.config import Preprocess

T = TypeVar("T")

MOST_IMAGES = 32  # of a calibration

# A convolution has to be quantised together with its activation: alone, its range would include the
# values that the activation cuts off (2 points of mIoU on CamVid). The products and the softmax of
# the attention stay in float: they take 3 per cent of the time, and int8 is not faster there.
OPERATORS = ["Conv", "Clip", "Relu", "Add", "Pad"]


def calibration_inputs(
    images: ImageLike | Iterable[ImageLike],
    config: Preprocess,
    size: tuple[int, int] | None,
    *,
    prepared: bool,
) -> list[Tensor]:
    """Return up to 32 images as inputs of the network.

    Args:
        images: a folder or an iterable.
        config: how images are prepared.
        size: (height, width) of the inputs; the size that `config` prescribes if None.
        prepared: return (1, 3, H, W) float32 with `config` applied, otherwise uint8 pixels.

    Raises:
        InputError: there are no images, or one cannot be read.
    """
    inputs = []
    for image in map(read_image, spread(list(find_images(images)))):
        pixels = resize_pixels(image.pixels[None], size or input_size(image.size, config))
        inputs.append(prepare(pixels, config, resize=False) if prepared else pixels)
    if not inputs:
        raise InputError("calibrate contains no images; some dozens are needed")
    return inputs


def spread(images: Sequence[T], most: int = MOST_IMAGES) -> Sequence[T]:
    """Return up to `most` evenly spaced images; neighbouring frames are near duplicates."""
    if len(images) <= most:
        return images
    return [images[i * (len(images) - 1) // (most - 1)] for i in range(most)]


def quantise(proto: Any, inputs: Sequence[Tensor]) -> Any:
    """Return a model in int8 with weights per channel, in the QDQ format.

    Args:
        proto: the model in float32, with one input `images`.
        inputs: the ranges of the activations are taken from these.
    """
    onnx: Any = importlib.import_module("onnx")
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    shapes: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
    with tempfile.TemporaryDirectory() as folder:
        original, merged, small = (Path(folder, name) for name in ("original", "merged", "small"))
        original.write_bytes(proto.SerializeToString())
        # Merges batch norms and infers shapes.
        shapes.quant_pre_process(str(original), str(merged), skip_symbolic_shape=True)
        rounded = onnx.load(str(merged))
        ranges = round_weights(rounded, inputs)
        quantization.quantize_static(
            rounded,
            str(small),
            _reader(inputs),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=OPERATORS,
            extra_options={"TensorQuantOverrides": ranges},
        )
        quantised = onnx.load(str(small))
    pad_in_int8(quantised)
    return quantised


def pad_in_int8(proto: Any) -> None:
    """Let a model pad its int8 maps with zeros, in place; the quantiser pads them in float32.

    A `Pad` between `DequantizeLinear` and `QuantizeLinear` of the same scale is replaced by one of
    the quantised map, whose value is the zero point.
    """
    nodes = proto.graph.node
    makers = {name: node for node in nodes for name in node.output}
    for pad in [node for node in nodes if node.op_type == "Pad"]:
        before = makers.get(pad.input[0])
        users = [node for node in nodes if pad.output[0] in node.input]
        if before is None or before.op_type != "DequantizeLinear" or len(users) != 1:
            continue
        (after,) = users
        if after.op_type != "QuantizeLinear" or after.input[1:] != before.input[1:]:
            continue
        quantised, _, zero_point = before.input
        pad.input[:] = [quantised, pad.input[1], zero_point]
        pad.output[0] = after.output[0]
        nodes.remove(after)
        if not any(before.output[0] in node.input for node in nodes):
            nodes.remove(before)


def _reader(inputs: Sequence[Tensor]) -> Any:
    """Return a `CalibrationDataReader`, which returns one input per call, then None."""
    quantization: Any = importlib.import_module("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(inputs)

        def get_next(self) -> dict[str, Any] | None:
            images = next(self.rest, None)
            return None if images is None else {"images": images.numpy()}

    return Reader()
