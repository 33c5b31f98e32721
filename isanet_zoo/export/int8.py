"""From a float32 ONNX model to one in int8, for CPUs, with onnxruntime's own quantiser."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

# What convolutions are made of. A convolution has to be quantised with the activation behind it:
# alone, its range would be that of the values which the activation cuts off (2 points of mIoU on
# CamVid). The products and the softmax of the attention stay in float: they take 3 per cent of the
# time, and quantising them gains nothing.
OPERATORS = ["Conv", "Clip", "Relu", "Add"]


def quantise(proto: Any, inputs: Sequence[Tensor]) -> Any:
    """Return a model in int8 (QDQ: scales stand beside the operators), weights per channel.

    Args:
        proto: the model in float32; its input is called `images`.
        inputs: what the ranges of the activations are taken from.
    """
    onnx: Any = importlib.import_module("onnx")
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    shapes: Any = importlib.import_module("onnxruntime.quantization.shape_inference")
    with tempfile.TemporaryDirectory() as folder:
        plain, folded, small = (Path(folder, name) for name in ("plain", "folded", "small"))
        plain.write_bytes(proto.SerializeToString())
        # Folds what the exporter has left to fold, such as batch norms, and infers shapes.
        shapes.quant_pre_process(str(plain), str(folded), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(folded),
            str(small),
            _reader(inputs),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=OPERATORS,
        )
        return onnx.load(str(small))


def _reader(inputs: Sequence[Tensor]) -> Any:
    """Return inputs as the quantiser reads them: one after the other, then None."""
    quantization: Any = importlib.import_module("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(inputs)

        def get_next(self) -> dict[str, Any] | None:
            images = next(self.left, None)
            return None if images is None else {"images": images.numpy()}

    return Reader()
