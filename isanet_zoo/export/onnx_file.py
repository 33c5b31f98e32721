"""From a network to an ONNX file that computes the same: proven first, then left in place.

What the file says about itself, in the `metadata_props` of its model::

    isanet_zoo    the version of this library
    model         the zoo's name of the weights, or the encoder's where they are nobody's
    label_set     JSON: names, colours and official ids of the classes
    preprocess    JSON: how a picture becomes the network's input, see `Preprocess`
    provenance    JSON: source, hash, licence and links of the weights, as far as they are known

Letters in shapes: B batch, C channels, K classes, H W image.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from isanet_zoo import records
from isanet_zoo.errors import EnvironmentProblem, InputError
from isanet_zoo.export.check import Shape, compare, compare_int8, noise, sizes_to_try
from isanet_zoo.export.graph import Graph, Output, for_onnx, trace
from isanet_zoo.export.int8 import quantise
from isanet_zoo.files import replace, temporary_file
from isanet_zoo.imaging.preprocess import input_size, prepare, resize_pixels
from isanet_zoo.imaging.reading import ImageLike, find_images, read_image
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.records import whole_number
from isanet_zoo.version import __version__

DTYPES = (torch.float32, torch.float16)
CALIBRATION = 32  # pictures at most


def export_onnx(
    model: ISANet,
    path: str | os.PathLike[str],
    *,
    dynamic: bool = True,
    size: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    output: Output = "logits",
    preprocess: bool = False,
    calibrate: ImageLike | Iterable[ImageLike] | None = None,
    check: bool = True,
) -> Path:
    """Write a network as an ONNX file; needs ``pip install 'isanet-zoo[onnx]'``.

    The input `images` is (B, C, H, W) float32, prepared as the weights say, or with `preprocess`
    (B, 3, H, W) uint8 RGB, and nothing is left but to bring the picture to its size. The output is
    `logits`, (B, K, H, W) float32, or `labels`, (B, H, W) uint8.

    Args:
        model: the network; its mode, device and type stay as they are.
        path: the file; it appears, or is replaced, once it is whole and checked.
        dynamic: one file for every batch, height and width; otherwise for one picture of `size`.
        size: (height, width) of the input where the file is not dynamic.
        dtype: of weights and arithmetic, `torch.float32` or `torch.float16` (half the size; fast
            where the runtime has kernels for it, such as on a GPU). Logits are float32 either way.
        output: logits or labels.
        preprocess: put normalisation and channel order into the file.
        calibrate: pictures like those that the file is for, a folder or an iterable; the file is
            then quantised to int8 for CPUs, with ranges of activations as on these pictures, of
            which it takes 32, evenly. None of them should be used to measure the file.
        check: run the file in onnxruntime at several sizes, odd and even, and compare it with the
            network before it is left in place: logits within 1e-4 (of float32; half precision is
            allowed 3 per cent of the largest), labels equal where two classes are not nearly tied.
            Labels of an int8 file have to agree on four in five pixels of the calibration.

    Returns:
        The path.

    Raises:
        InputError: the options contradict each other, or the file cannot be written.
        ExportError: the file would not compute what the network computes.
        EnvironmentProblem: onnx, onnxscript or onnxruntime is missing, or torch is too old.
    """
    target = Path(path)
    shapes = _check_options(model, dynamic, size, dtype, output, preprocess, calibrate)
    require("onnx", "onnxscript", "onnxruntime")
    network = copy.deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)
    network.aux_head = None
    graph = Graph(network, output, preprocess).eval()
    pictures = [] if calibrate is None else _inputs(calibrate, network, preprocess, size)
    proto = trace(for_onnx(graph, dtype), noise(shapes[0], preprocess), dynamic)
    try:
        with temporary_file(target.parent, ".onnx") as temporary:
            _write(proto, model, temporary)
            if check:
                compare(temporary, target, graph, shapes, dtype)
            if pictures:
                _write(quantise(proto, pictures), model, temporary)
                if check:
                    compare_int8(temporary, target, graph, shapes, pictures)
            replace(temporary, target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error}") from error
    return target


def _check_options(
    model: ISANet,
    dynamic: bool,
    size: tuple[int, int] | None,
    dtype: torch.dtype,
    output: Output,
    preprocess: bool,
    calibrate: object,
) -> list[Shape]:
    """Return the input's shapes to try, that to trace first.

    Raises:
        InputError: the options contradict each other.
    """
    if not isinstance(model, ISANet):
        raise InputError(f"expected an ISANet, got {type(model).__name__}; see create_model")
    classes, channels = model.config.num_classes, model.config.in_chans
    if dynamic != (size is None):
        raise InputError(
            f"dynamic is {dynamic}, size {size}; a dynamic file has no size of its own, and one "
            "that is not dynamic needs size=(height, width)"
        )
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype}; choose one of {', '.join(map(str, DTYPES))}")
    if output not in get_args(Output):
        raise InputError(f"output is {output!r}; choose one of {', '.join(get_args(Output))}")
    if output == "labels" and classes > 256:
        raise InputError(f"{classes} classes do not fit into 8-bit labels; export logits")
    if channels != 3 and (preprocess or calibrate is not None):
        raise InputError(
            f"this network takes {channels} channels, and only RGB pictures can be prepared; "
            "export it without preprocess and calibrate"
        )
    if calibrate is not None and dtype != torch.float32:
        raise InputError(f"calibrate makes an int8 file; dtype {dtype} cannot be had as well")
    if size is None:
        sizes = sizes_to_try(model.config.head.partition)
    else:
        height, width = size
        sizes = [(1, whole_number("the height", height), whole_number("the width", width))]
    return [(batch, channels, height, width) for batch, height, width in sizes]


def _inputs(
    images: ImageLike | Iterable[ImageLike],
    network: ISANet,
    preprocess: bool,
    size: tuple[int, int] | None,
) -> list[Tensor]:
    """Return pictures as inputs of the file, brought to the size that the weights were tested at.

    Raises:
        InputError: there are none, or one cannot be read.
    """
    config, inputs = network.preprocess, []
    for picture in map(read_image, _spread(list(find_images(images)))):
        pixels = picture.pixels[None]
        shown = size or input_size(picture.size, config)
        pixels = resize_pixels(pixels, shown)
        inputs.append(pixels if preprocess else prepare(pixels, config, resize=False))
    if not inputs:
        raise InputError("calibrate holds no pictures; give some dozens")
    return inputs


def _spread(images: Sequence[ImageLike]) -> Sequence[ImageLike]:
    """Return a few of many pictures, evenly: frames that are neighbours are alike."""
    if len(images) <= CALIBRATION:
        return images
    return [images[i * (len(images) - 1) // (CALIBRATION - 1)] for i in range(CALIBRATION)]


def _write(proto: Any, model: ISANet, path: Path) -> None:
    """Write an ONNX model with the metadata that the head of this module lists."""
    weights, report = model.weights, model.load_report
    provenance = {} if report is None else {"file": report.source.name, "trust": report.trust}
    if weights is not None:
        provenance |= {
            "dataset": weights.dataset,
            "family": weights.family,
            "sources": weights.sources,
            "sha256": weights.sha256 or weights.sha256_prefix,
            "licence": records.write(weights.licence),
            "links": records.write(weights.links),
        }
    metadata = {
        "isanet_zoo": __version__,
        "model": weights.name if weights is not None else model.config.backbone,
        "label_set": json.dumps(records.write(model.label_set), ensure_ascii=False),
        "preprocess": json.dumps(records.write(model.preprocess)),
        "provenance": json.dumps(provenance, ensure_ascii=False),
    }
    proto.producer_name, proto.producer_version = "isanet-zoo", __version__
    del proto.metadata_props[:]
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
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
