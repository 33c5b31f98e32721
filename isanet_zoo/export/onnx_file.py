"""Export to ONNX; the file is verified with onnxruntime before it is written.

The `metadata_props` of the file contain the `Description` of the network, under ``isanet_zoo``.

Letters in shapes: B batch, C channels, K classes, H W image.
"""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from isanet_zoo.errors import EnvironmentProblem, InputError, printable
from isanet_zoo.export.check import compare, compare_int8, noise
from isanet_zoo.export.graph import Graph, Output, for_onnx, trace
from isanet_zoo.export.int8 import calibration_inputs, quantise, spread
from isanet_zoo.export.options import PRODUCER, check_onnx_target, check_options, input_shapes
from isanet_zoo.files import atomic_write, to_path
from isanet_zoo.imaging.reading import ImageLike
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.own_classes import OwnClasses, merge_classes
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.version import __version__
from isanet_zoo.weights.description import Description
from isanet_zoo.weights.saving import describe
from isanet_zoo.weights.tensors import DESCRIPTION

COMPARED = 8  # calibration images, of an int8 file


def export_onnx(
    model: ISANet,
    path: str | os.PathLike[str],
    *,
    dynamic: bool = True,
    size: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    output: Output = "logits",
    preprocess: bool = False,
    classes: OwnClasses | None = None,
    rest: str | None = None,
    calibrate: ImageLike | Iterable[ImageLike] | None = None,
    check: bool = True,
    force: bool = False,
) -> Path:
    """Write a network as an ONNX file; needs ``pip install 'isanet-zoo[onnx]'``.

    The input `images` is (B, C, H, W) float32, prepared like the input of the network; with
    `preprocess` it is (B, 3, H, W) uint8 RGB, which only has to be resized. The output is `logits`,
    (B, K, H, W) float32; `labels`, (B, H, W) uint8; or `logits_8`, the logits before they are
    resized, (B, K, H/8, W/8) float32. `Predictor` takes such a file in place of a network.

    torch's exporter replaces functions of torch while it traces the network: use no other network
    in this process at the same time.

    Args:
        model: the network. It is not changed.
        path: the file to write, ``*.onnx``.
        dynamic: write one file for every batch, height and width; otherwise for one image of
            `size`.
        size: (height, width) of the input of a file that is not dynamic.
        dtype: of weights and arithmetic, `torch.float32` or `torch.float16` (half the size; fast on
            devices with such kernels, such as GPUs). Logits are float32 either way.
        output: logits, labels or logits_8.
        preprocess: include normalisation and channel order in the file.
        classes: own classes made of the network's, as for `predict`. The softmax of their logits is
            the sum of the probabilities of the classes that they consist of.
        rest: name of an own class of all other classes; if None, these remain as they are.
        calibrate: images like those that the file will be used for, a folder or an iterable. The
            file is quantised to int8 for CPUs, with the ranges of activations of up to 32 of these
            images. Do not measure the file on them.
        check: run the file in onnxruntime at several sizes, odd and even, and compare it with the
            network before it is written: logits within 1e-4 (in half precision within 3 per cent of
            the largest), labels equal unless two classes are nearly tied. The labels of an int8
            file have to agree on 80 per cent of the pixels of eight of the calibration images.
        force: replace `path` even if it is not a file that this function wrote.

    Returns:
        The path.

    Raises:
        InputError: options contradict each other, or the file cannot be written.
        UnknownModelError: the network has no class of a name in `classes`.
        ExportError: the file does not compute what the network computes.
        EnvironmentProblem: onnx, onnxscript or onnxruntime is missing, or torch is too old.
    """
    target = to_path(path, "path")
    check_onnx_target(target, force=force)
    check_options(model, dtype, output, preprocess, calibrate)
    merged = merge_classes(model.label_set, classes, rest)
    shapes = input_shapes(model, dynamic, size)
    require("onnx", "onnxscript", "onnxruntime")
    description = describe(model, check_parts=False)
    groups = None
    if classes is not None:
        if output == "logits_8":
            raise InputError("own classes are merged at full size; export logits or labels")
        description, groups = _merge(description, merged.label_set), merged.groups
    network = copy.deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)
    network.aux_head = None
    graph = Graph(network, output, preprocess, groups).eval()
    inputs = []
    if calibrate is not None:
        inputs = calibration_inputs(calibrate, model.preprocess, size, prepared=not preprocess)
    proto = trace(for_onnx(graph, dtype), noise(shapes[0], preprocess), dynamic)
    try:
        with atomic_write(target) as temporary:
            _write(proto, description, str(dtype), temporary)
            if check:
                compare(temporary, target, graph, shapes, dtype)
            if inputs:
                _write(quantise(proto, inputs), description, "torch.int8", temporary)
                if check:
                    compare_int8(temporary, target, graph, shapes, spread(inputs, COMPARED))
    except OSError as error:
        raise InputError(f"{printable(target)} cannot be written: {error}") from error
    return target


def _merge(description: Description, label_set: LabelSet) -> Description:
    """Return the description of a file with own classes, which was not evaluated."""
    network = replace(description.network, num_classes=len(label_set))
    return replace(description, network=network, label_set=label_set, metrics=())


def _write(proto: Any, description: Description, dtype: str, path: Path) -> None:
    """Write an ONNX model with a description in its metadata, and its type as its doc string."""
    proto.producer_name, proto.producer_version = PRODUCER, __version__
    proto.doc_string = dtype.removeprefix("torch.")
    del proto.metadata_props[:]
    proto.metadata_props.add(key=DESCRIPTION, value=description.text())
    path.write_bytes(proto.SerializeToString())


def require(*packages: str) -> None:
    """Import packages of the extra `onnx`.

    Raises:
        EnvironmentProblem: one is missing.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise EnvironmentProblem(
                f"{package} cannot be imported ({error}): pip install 'isanet-zoo[onnx]'"
            ) from error
