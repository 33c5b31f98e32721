"""Command `check`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from isanet_zoo.commands.arguments import add_json, to_path
from isanet_zoo.commands.data_arguments import add_masks, layout, mask_options
from isanet_zoo.commands.output import Bar, complain, print_json, print_note, print_table
from isanet_zoo.errors import InputError
from isanet_zoo.files import check_target
from isanet_zoo.manifest.recipe import Recipe

if TYPE_CHECKING:
    from isanet_zoo.learning.data import SegmentationDataset
    from isanet_zoo.learning.data_report import DataReport

LISTED = 20  # problems that are printed


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `check`."""
    parser.add_argument("data", type=to_path, metavar="DATA", help="the folder of the data set")
    parser.add_argument(
        "--splits",
        nargs="+",
        default=["train", "val"],
        metavar="SPLIT",
        help="(default: train val)",
    )
    add_masks(parser)
    parser.add_argument(
        "-o",
        "--out",
        type=to_path,
        default=Path("check.png"),
        metavar="FILE",
        help="contact sheet of the first split (default: check.png)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a file that isanet-zoo did not write"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Check a data set, print a report and draw a contact sheet; return 1 if it cannot be used."""
    from isanet_zoo.imaging.writing import LOSSLESS, is_marked
    from isanet_zoo.learning.data_report import report
    from isanet_zoo.learning.scan import scan

    check_target(options.out, is_ours=is_marked, force=options.force)
    if options.out.suffix.lower() not in LOSSLESS:
        raise InputError(f"--out {options.out}: write a name that ends in .png")
    datasets, problems = _open(options)
    with Bar("mask", shown=True) as bar:
        scanned = scan(datasets, progress=bar.show)
    found = report(datasets, scanned, problems)
    if options.json:
        print_json(dataclasses.asdict(found))
    else:
        _print(found)
    for problem in found.problems[:LISTED]:
        complain(problem)
    if len(found.problems) > LISTED:
        complain(f"and {len(found.problems) - LISTED} more; --json lists all")
    for suspicion in found.suspicions:
        print_note(f"perhaps a mistake: {suspicion}")
    usable = [data for data, split in zip(datasets, found.splits, strict=True) if split.usable]
    for dataset in usable[:1]:
        _draw(options.out, dataset)
    return 1 if found.problems else 0


def _open(options: argparse.Namespace) -> tuple[list[SegmentationDataset], list[str]]:
    """Return the data sets of the splits, as far as they can be opened, and the problems."""
    from isanet_zoo.learning.datasets import find_files, make_dataset

    name, masks = layout(options), mask_options(options)
    val_fraction = masks.pop("val_fraction")
    datasets, problems = [], []
    for split in options.splits:
        try:
            found = find_files(name, options.data, split, val_fraction=val_fraction)
            problems += [f"{image} has no mask" for image in found.images.values()]
            problems += [f"{mask} has no image" for mask in found.masks.values()]
            datasets.append(make_dataset(name, options.data, split, found, **masks))
        except InputError as error:
            problems.append(str(error))
    return datasets, list(dict.fromkeys(problems))


def _print(found: DataReport) -> None:
    """Print the sizes of images, and the pixels and images of each class."""
    for split in found.splits:
        sizes = [f"{size} ({count})" for size, count in split.sizes.items()]
        more = f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
        print(f"{split.name}: {split.images} images, {split.usable} masks can be used")
        print(f"  {', '.join(sizes[:3])}{more}" if sizes else "  none")
    header = ["id", "class"]
    for split in found.splits:
        header += [f"{split.name} pixels %", "images"]
    rows: dict[tuple[object, str], list[object]] = {}
    for number, split in enumerate(found.splits):
        for count in split.classes:
            row = rows.setdefault((count.id, count.name), ["-", "-"] * len(found.splits))
            fraction = f"{100 * count.pixels / max(split.pixels, 1):.2f}"
            row[2 * number : 2 * number + 2] = [fraction, count.images]
    if rows:
        print()
        print_table(
            [header, *(["" if k is None else k, name, *row] for (k, name), row in rows.items())]
        )


def _draw(path: Path, dataset: SegmentationDataset) -> None:
    """Write the contact sheet of a data set, with the augmentation of the default recipe."""
    from isanet_zoo.learning.contact_sheet import write_check_sheet
    from isanet_zoo.learning.transforms import Augment
    from isanet_zoo.manifest.config import Preprocess

    augment = Augment(Recipe(), Preprocess(), ignore_index=dataset.label_set.ignore_index)
    write_check_sheet(path, dataset, augment)
    print_note(f"{path} shows images of {dataset.name} with their masks")
