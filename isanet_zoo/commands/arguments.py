"""Arguments of several commands, and the values made from them."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isanet_zoo.commands.output import print_trust
from isanet_zoo.errors import InputError
from isanet_zoo.manifest.own_classes import read_own_classes
from isanet_zoo.records import whole_number

if TYPE_CHECKING:
    from isanet_zoo.network.isanet import ISANet


def add_names(parser: argparse.ArgumentParser) -> None:
    """Add names of weights, or `--all`."""
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("names", nargs="*", default=[], metavar="NAME", help="see `list`")
    either.add_argument("--all", action="store_true", help="all of them")


def add_model(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Add a model, by name or as a file or folder; `more` continues its help."""
    help_ = f"see `list`; or a file or folder that isanet-zoo wrote{more}"
    parser.add_argument("name", metavar="NAME|PATH", help=help_)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add `--weights`."""
    parser.add_argument("-w", "--weights", help="a tag of the model, or a file")


def add_prediction(parser: argparse.ArgumentParser) -> None:
    """Add the options of a prediction, which `prediction` reads."""
    add_device(parser, "cpu, cuda:0 or mps")
    parser.add_argument(
        "--engine",
        choices=("torch", "onnxruntime"),
        help="onnxruntime is faster on some CPUs; its first run exports the network (default: "
        "torch, for exported files onnxruntime)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "auto", "int8"),
        help="type of the arithmetic; auto: bfloat16 if it is measured to be faster; int8: with "
        "--engine onnxruntime and --calibrate (default: float32, or that of an exported file)",
    )
    parser.add_argument(
        "--calibrate",
        type=to_path,
        metavar="DIR",
        help="images for int8, like those to segment but not those of a test",
    )
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images per batch (default: 1)"
    )
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="S",
        help="average over images resized by these factors, such as 0.75 1 1.25",
    )
    parser.add_argument("--flip", action="store_true", help="average with the flipped image")
    parser.add_argument(
        "--tile",
        type=tile,
        metavar="SIDE|HxW|whole",
        help="sliding window of this size in pixels, or none (default: the weights' test protocol)",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=0.25,
        metavar="FRACTION",
        help="overlap of neighbouring tiles (default: 0.25)",
    )
    parser.add_argument("--no-resize", action="store_true", help="keep the size of the images")
    add_classes(parser)


def add_no_check(parser: argparse.ArgumentParser) -> None:
    """Add `--no-check`."""
    parser.add_argument(
        "--no-check", action="store_true", help="do not read all masks before the start"
    )


def add_classes(parser: argparse.ArgumentParser) -> None:
    """Add the options of own classes, which `own_classes` reads."""
    parser.add_argument(
        "--classes",
        type=to_path,
        metavar="FILE",
        help='own classes made of the model\'s: a JSON file such as {"vehicle": ["car", "bus"]}',
    )
    parser.add_argument(
        "--rest", metavar="NAME", help="with --classes, the own class of all other classes"
    )


def own_classes(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_classes` as arguments `classes` and `rest`.

    Raises:
        InputError: the file cannot be used, or `--rest` is given without it.
    """
    if options.classes is None and options.rest is not None:
        raise InputError("--rest needs --classes FILE")
    return {
        "classes": None if options.classes is None else read_own_classes(options.classes),
        "rest": options.rest,
    }


def add_device(parser: argparse.ArgumentParser, examples: str) -> None:
    """Add `--device`, with examples for its help."""
    parser.add_argument("--device", help=f"such as {examples} (default: the best available)")


def add_json(parser: argparse._ActionsContainer, text: str = "print JSON") -> None:
    """Add `--json`, with its help."""
    parser.add_argument("--json", action="store_true", help=text)


def add_manifest(parser: argparse.ArgumentParser) -> None:
    """Add `--manifest`."""
    parser.add_argument(
        "--manifest", type=to_path, help="the file to write (default: the one in use)"
    )


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Add `--dry-run`."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="write nothing: list the files with their sizes, and print the model card",
    )


def to_path(text: str) -> Path:
    """Return text as a path; refuse an empty one, as of an unset variable."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; write . for the current folder")
    return Path(text)


def tile(text: str) -> int | tuple[int, int] | str:
    """Return a tile's side or (height, width) in pixels, or `whole`."""
    if text == "whole":
        return text
    try:
        return size(text) if "x" in text else size(f"{text}x{text}")[0]
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a side in pixels such as 512, a size such as 512x1024, or whole"
        ) from error


def size(text: str) -> tuple[int, int]:
    """Return height and width from text such as `512x1024`."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in pixels such as 512x1024")
    return int(height), int(width)


def prediction(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return the options of `add_prediction` as arguments of `Predictor`, for a model's name.

    Raises:
        InputError: the device is not available, or a number is out of range.
    """
    import torch

    from isanet_zoo.engines.engine import is_onnx
    from isanet_zoo.inference.predictor import MAX_BATCH
    from isanet_zoo.inference.views import Views

    views = Views(
        scales=options.scales,
        flip=options.flip,
        tile=options.tile,
        overlap=options.overlap,
        resize=not options.no_resize,
    )
    dtype, on_cpu = options.dtype, options.engine == "onnxruntime" or is_onnx(name)
    chosen = {
        "engine": options.engine,
        "device": device(options, "cpu" if on_cpu else None),
        "dtype": dtype if dtype in (None, "auto", "int8") else getattr(torch, dtype),
        "calibrate": options.calibrate,
        "batch_size": whole_number("--batch-size", options.batch_size, at_most=MAX_BATCH),
    }
    return dataclasses.asdict(views) | chosen | own_classes(options)


def device(options: argparse.Namespace, default: str | None = None) -> str:
    """Return the device of `--device`, or the default.

    The default is the best device if None: under `torchrun`, a separate GPU for each process.

    Raises:
        InputError: this machine does not have it.
    """
    from isanet_zoo.engines.engine import best_device, resolve_device

    if default is None:
        default = str(best_device())
        if default.startswith("cuda"):
            default = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return str(resolve_device(options.device, default))


def load(name: str, weights: str | None, *, show_trust: bool = True) -> ISANet | str:
    """Load the model of a command; an exported file is returned as it is.

    Args:
        name: of the model, or a path.
        weights: those of `add_weights`.
        show_trust: print the trust of the weights.

    Raises:
        ZooError: as `create_model`.
    """
    from isanet_zoo.engines.engine import is_onnx
    from isanet_zoo.zoo import create_model

    if is_onnx(name):
        if weights is not None:
            raise InputError(f"{name} has weights; drop --weights")
        return name
    model = create_model(name, weights is None, weights=weights)
    if show_trust:
        print_trust(name, model.load_report.trust)
    return model
