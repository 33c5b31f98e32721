"""Arguments that choose a data set, and the data set made from them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from isanet_zoo.commands.arguments import to_path
from isanet_zoo.errors import InputError

if TYPE_CHECKING:
    from isanet_zoo.learning.data import SegmentationDataset

LAYOUTS = (  # of `learning.layouts`, which imports torch
    "voc",
    "pascal_context",
    "ade20k",
    "cityscapes",
    "camvid",
    "coco",
    "labelme",
    "folder",
)


def add_data(parser: argparse.ArgumentParser, split: str) -> None:
    """Add the options that choose images and masks."""
    parser.add_argument("--data", type=to_path, required=True, metavar="ROOT", help="the data set")
    parser.add_argument("--split", default=split, help=f"(default: {split})")
    add_masks(parser)


def add_masks(parser: argparse.ArgumentParser) -> None:
    """Add the options that state how masks are stored."""
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="arrangement of its files (default: the one that its folders suggest)",
    )
    parser.add_argument(
        "--binary",
        action="store_true",
        help="masks contain 0 and 255, the two lines of classes.txt",
    )
    parser.add_argument(
        "--unlabelled",
        metavar="VALUE|COLOUR|CLASS",
        help="pixels without a class: a mask value beside 255, or a colour such as '#000000'. For "
        "polygons: the class of pixels outside all of them (default: background), or none",
    )
    parser.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="divide the images into train and val by their content, such as 0.2",
    )


def layout(options: argparse.Namespace, dataset: str | None = None) -> str:
    """Return the layout of `--layout`, or the one that the files or the model's data set suggest.

    Args:
        options: those of `add_masks`, and `data`.
        dataset: short name of the data set whose classes the model predicts, if there is a model.

    Raises:
        InputError: nothing suggests a layout.
    """
    from isanet_zoo.learning.layouts import guess_layout

    name = options.layout or guess_layout(options.data)
    if name is None and dataset in LAYOUTS:
        name = dataset
    if name is None:
        raise InputError(
            f"{options.data} has the files of no layout; pass one as --layout: {', '.join(LAYOUTS)}"
        )
    return str(name)


def mask_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_masks` that `open_dataset` has, too."""
    names = ("binary", "unlabelled", "val_fraction")
    return {name: getattr(options, name) for name in names}


def open_data(options: argparse.Namespace, split: str, dataset: str | None) -> SegmentationDataset:
    """Open a split of the data set that the options choose; see `layout`."""
    from isanet_zoo.learning.datasets import open_dataset

    on_disk = layout(options, dataset)
    return open_dataset(on_disk, options.data, split, **mask_options(options))
