"""A network and its exported files, which all tests share."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
from filelock import FileLock
from onnx import TensorProto, helper

from isanet_zoo import ISANet, Preprocess, export_onnx
from isanet_zoo.engines.graphs import cached_graph
from isanet_zoo.export import onnx_file
from tests.export.networks import small, write_images

PREPROCESS = Preprocess(mean=(110.5, 120.25, 99.0), std=(51.0, 62.5, 57.0), order="bgr")
SIZE = (96, 136)  # of the files for one size


@functools.cache
def network() -> ISANet:
    """Return the network, which is the same in every process."""
    made = small()
    made.preprocess = PREPROCESS
    return made


def make_files(folder: Path) -> None:
    """Write exported files of the network to a folder that several processes share.

    ``graph.onnx`` is what the engine caches: for all sizes, with the output `logits_8`.
    ``pixels.onnx`` is for one size, includes the normalisation and returns logits at full size;
    ``labels.onnx`` is the same file with an argmax. ``int8.onnx`` is `graph.onnx`, quantised with
    the images in ``images``.
    """
    with FileLock(f"{folder}.lock"):
        if (folder / "labels.onnx").exists():
            return
        folder.mkdir(exist_ok=True)
        with warnings.catch_warnings(), mock.patch.dict(os.environ, ISANET_ZOO_CACHE=str(folder)):
            warnings.simplefilter("ignore")  # the exporter uses functions that are deprecated
            cached_graph(network()).replace(folder / "graph.onnx")
            proto = onnx.load(folder / "graph.onnx")
            with mock.patch.object(onnx_file, "trace", return_value=proto):
                images = write_images(folder / "images")
                int8: dict[str, Any] = {"output": "logits_8", "calibrate": images}
                export_onnx(network(), folder / "int8.onnx", **int8)
            options: dict[str, Any] = {"dynamic": False, "size": SIZE, "preprocess": True}
            pixels = export_onnx(network(), folder / "pixels.onnx", **options)
        onnx.save(_with_argmax(onnx.load(pixels)), folder / "labels.onnx")


def _with_argmax(proto: Any) -> Any:
    """Change the output of a model from logits to labels."""
    proto.graph.node.append(helper.make_node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0))
    proto.graph.node.append(helper.make_node("Cast", ["best"], ["labels"], to=TensorProto.UINT8))
    proto.graph.output.pop()
    proto.graph.output.append(
        helper.make_tensor_value_info("labels", TensorProto.UINT8, [1, *SIZE])
    )
    return proto


@contextmanager
def counted_exports(graph: Path) -> Iterator[list[dict[str, Any]]]:
    """Replace `export_onnx` by a copy of `graph`; yield the options of each call."""
    calls: list[dict[str, Any]] = []

    def export(model: ISANet, path: Path, **options: Any) -> Path:
        calls.append(options)
        path.write_bytes(graph.read_bytes())
        return path

    with mock.patch("isanet_zoo.export.onnx_file.export_onnx", export):
        yield calls
