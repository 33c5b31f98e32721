"""Small networks and exported files for the tests of the export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

from isanet_zoo import HeadConfig, ISANet
from isanet_zoo.export.graph import Graph
from isanet_zoo.network.backbones import widths
from isanet_zoo.weights.description import Description
from tests import reference

FIXED: dict[str, Any] = {"dynamic": False, "size": (97, 130)}  # traced in much less time


def randomised(model: ISANet) -> ISANet:
    """Set batch norms and the classifier so that outputs vary; a new network's are near zero."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.7, 1.3, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
    model.head.classifier.weight.data.mul_(20)
    return model.eval()


def small(**options: Any) -> ISANet:
    """Return a small network of 5 classes; `options` are passed to `ISANet`."""
    torch.manual_seed(0)
    head = HeadConfig(channels=16, key_channels=8, aux_channels=8)
    return randomised(ISANet("test_resnet", 5, **{"head": head} | options))


class _Encoder(nn.Sequential):
    """Convolutions at stride 8."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
        return features, features


def shallow(**options: Any) -> ISANet:
    """Return a network of two convolutions and a head without attention.

    It is traced in a quarter of the time: the sizes of the attention are long formulas.
    """
    model = small(**options)
    channels = widths(model.backbone)[-1]
    model.backbone = _Encoder(
        *(nn.Conv2d(model.config.in_chans, 16, 3, 4, 1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU()),
    )
    model.head.attention = nn.Identity()  # type: ignore[assignment]
    return randomised(model)


def constant(graph: Graph, images: Tensor, dynamic: bool) -> onnx.ModelProto:
    """Return a model for the shape of `images` that always returns the output for these.

    It takes the place of `trace` in tests of what follows.
    """
    with torch.no_grad():
        output = numpy_helper.from_array(graph(images).numpy(), "constant")
    kind = helper.np_dtype_to_tensor_dtype(images.numpy().dtype)
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["constant"], [graph.output])],
            "graph",
            [helper.make_tensor_value_info("images", kind, images.shape)],
            [helper.make_tensor_value_info(graph.output, output.data_type, output.dims)],
            [output],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )


def run(path: Path, images: torch.Tensor) -> NDArray[Any]:
    """Return the output of a file."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"images": images.numpy()})
    found: NDArray[Any] = output
    return found


def read_description(path: Path) -> Description:
    """Return the description in a file's metadata, which has no other entries."""
    ((key, text),) = ((entry.key, entry.value) for entry in onnx.load(path).metadata_props)
    assert key == "isanet_zoo"
    return Description.parse(text, path.name)


def write_images(folder: Path) -> Path:
    """Write three parts of a photo to a new folder."""
    folder.mkdir()
    with Image.open(reference.DATA / "images" / "home.jpg") as image:
        for number in range(3):
            part = image.crop((40 * number, 0, 40 * number + 200, 150))
            part.save(folder / f"{number}.png")
    return folder
