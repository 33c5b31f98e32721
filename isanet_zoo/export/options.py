"""Checks of the options of `export_onnx` before the export."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import torch

from isanet_zoo.errors import InputError, printable
from isanet_zoo.export.check import Shape, sizes_to_try
from isanet_zoo.export.graph import Output
from isanet_zoo.files import HEAD, check_target, open_regular
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.records import whole_number

DTYPES = (torch.float32, torch.float16)
LONGEST_SIDE = 8192  # pixels, of the input of a file that is not dynamic
PRODUCER = "isanet-zoo"


def check_onnx_target(path: Path, *, force: bool = False) -> None:
    """Check that an ONNX file can be written, before the work that makes its content.

    Args:
        path: the file to write.
        force: replace any file.

    Raises:
        InputError: the file cannot be written, its suffix is not ``.onnx``, or it exists and was
            not written by `export_onnx`.
    """
    if path.suffix.lower() != ".onnx":
        raise InputError(f"{printable(path)} is not the name of an ONNX file; end it with .onnx")
    check_target(path, is_ours=is_exported, force=force)


def is_exported(path: Path) -> bool:
    """Return True if `export_onnx` wrote a file; its first fields are version and producer."""
    try:
        with open_regular(path) as file:
            head = file.read(HEAD)
    except OSError:
        return False
    name = PRODUCER.encode()
    return re.match(rb"\x08[\x00-\x7f]\x12" + bytes([len(name)]) + name, head) is not None


def check_options(
    model: ISANet, dtype: torch.dtype, output: Output, preprocess: bool, calibrate: object
) -> None:
    """Check the options of `export_onnx`.

    Raises:
        InputError: they contradict each other or the network.
    """
    if not isinstance(model, ISANet):
        raise InputError(f"expected an ISANet, got {type(model).__name__}; see create_model")
    classes, channels = model.config.num_classes, model.config.in_chans
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; choose one of {', '.join(map(str, DTYPES))}")
    if output not in get_args(Output):
        raise InputError(f"output is {output!r}; choose one of {', '.join(get_args(Output))}")
    if output == "labels" and classes > 256:
        raise InputError(f"{classes} classes do not fit into 8-bit labels; export logits")
    if channels != 3 and (preprocess or calibrate is not None):
        raise InputError(
            f"this network has {channels} input channels, and only RGB images can be prepared; "
            "export it without preprocess and calibrate"
        )
    if calibrate is not None and dtype != torch.float32:
        raise InputError(f"calibrate writes an int8 file; it excludes dtype={dtype}")


def input_shapes(model: ISANet, dynamic: bool, size: tuple[int, int] | None) -> list[Shape]:
    """Return the shapes of the input to check; the first one is traced.

    Raises:
        InputError: `dynamic` and `size` contradict each other, or `size` is out of range.
    """
    if dynamic != (size is None):
        raise InputError(
            f"dynamic is {dynamic}, size is {size}; a file either is dynamic and has no size, or "
            "has a size=(height, width) and dynamic=False"
        )
    if size is None:
        sizes = sizes_to_try(model.config.head.partition)
    else:
        try:
            height, width = size
        except (TypeError, ValueError) as error:
            raise InputError(f"size is {size!r}; it must be (height, width)") from error
        height = whole_number("the height", height, at_most=LONGEST_SIDE)
        width = whole_number("the width", width, at_most=LONGEST_SIDE)
        sizes = [(1, height, width)]
    return [(batch, model.config.in_chans, height, width) for batch, height, width in sizes]
