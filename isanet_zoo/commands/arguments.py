"""Arguments that several commands share, and the values made from them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from isanet_zoo.manifest.lookup import get_weights

if TYPE_CHECKING:
    from isanet_zoo.inference.predictor import Predictor
    from isanet_zoo.network.isanet import ISANet


def add_names(parser: argparse.ArgumentParser) -> None:
    """Add names of weights, or `--all`."""
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("names", nargs="*", default=[], metavar="NAME", help="see `list`")
    either.add_argument("--all", action="store_true", help="all of them")


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Add `--weights`."""
    parser.add_argument("-w", "--weights", help="a tag of the model, or a file of your own")


def add_data(parser: argparse.ArgumentParser, split: str) -> None:
    """Add the options that choose pictures and masks."""
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="the data set")
    parser.add_argument(
        "--layout",
        choices=("voc", "ade20k", "cityscapes", "camvid", "folder"),
        help="how it lies on disk (default: folder if there is a classes.txt, else as the model's "
        "data set is distributed)",
    )
    parser.add_argument("--split", default=split, help=f"(default: {split})")


def add_prediction(parser: argparse.ArgumentParser) -> None:
    """Add the options of predict, which `predictor` reads."""
    add_device(parser, "cpu, cuda or mps")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "auto"),
        default="float32",
        help="type of the arithmetic; auto: bfloat16 where the hardware has it (default: float32)",
    )
    parser.add_argument("--batch-size", type=int, default=1, metavar="N")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], metavar="S")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored picture")
    parser.add_argument(
        "--tile",
        type=tile,
        metavar="SIDE|whole",
        help="slide a window of this side, or take pictures whole (default: as they were tested)",
    )
    parser.add_argument("--overlap", type=float, default=0.25, metavar="SHARE")
    parser.add_argument("--no-resize", action="store_true", help="keep the pictures' own size")


def add_device(parser: argparse.ArgumentParser, examples: str) -> None:
    """Add `--device`, with examples for its help."""
    parser.add_argument("--device", help=f"such as {examples} (default: cuda if there is one)")


def add_json(parser: argparse._ActionsContainer) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_manifest(parser: argparse.ArgumentParser) -> None:
    """Add `--manifest`."""
    parser.add_argument("--manifest", type=Path, help="the file to write (default: the one in use)")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Add `--dry-run`."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="write nothing: list the files with their sizes, and print the model card",
    )


def tile(text: str) -> int | str:
    """Return the side of a tile in pixels, or `whole`."""
    if text != "whole" and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a side in pixels, such as 512, or whole")
    return text if text == "whole" else int(text)


def size(text: str) -> tuple[int, int]:
    """Return height and width from text such as `512x1024`."""
    height, _, width = text.partition("x")
    return int(height), int(width)


def predictor(model: ISANet, options: argparse.Namespace, *, confidence: bool = False) -> Predictor:
    """Return a predictor with the options of `add_prediction`."""
    import torch

    from isanet_zoo.inference.predictor import Predictor

    return Predictor(
        model,
        device=device(options),
        dtype="auto" if options.dtype == "auto" else getattr(torch, options.dtype),
        batch_size=options.batch_size,
        scales=options.scales,
        flip=options.flip,
        tile=options.tile,
        overlap=options.overlap,
        resize=not options.no_resize,
        confidence=confidence,
    )


def device(options: argparse.Namespace) -> str:
    """Return the device of `--device`, or the default one."""
    import torch

    if options.device:
        return str(options.device)
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def layout(options: argparse.Namespace) -> str:
    """Return the layout of `--layout`, or the one that the files suggest."""
    if options.layout:
        return str(options.layout)
    return (
        "folder" if (options.data / "classes.txt").is_file() else get_weights(options.name).dataset
    )
