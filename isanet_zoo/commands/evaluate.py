"""Command `evaluate`."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isanet_zoo.commands.arguments import (
    add_json,
    add_model,
    add_no_check,
    add_prediction,
    add_weights,
    load,
    prediction,
    to_path,
)
from isanet_zoo.commands.data_arguments import add_data, open_data
from isanet_zoo.commands.output import Bar, print_json
from isanet_zoo.errors import InputError
from isanet_zoo.files import atomic_write, check_target, open_regular

if TYPE_CHECKING:
    from isanet_zoo.learning.metrics import Scores

COLUMNS = ("image", "mIoU", "pixel accuracy")  # of a CSV, before those of the classes


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `evaluate`."""
    add_model(parser)
    add_weights(parser)
    add_data(parser, "val")
    add_prediction(parser)
    parser.add_argument(
        "--csv", type=to_path, metavar="FILE", help="write the scores of each image"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a CSV that isanet-zoo did not write"
    )
    add_no_check(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate a model on a data set; print IoU per class on the first process."""
    from isanet_zoo.engines.engine import create_engine, is_onnx
    from isanet_zoo.inference.predictor import Predictor
    from isanet_zoo.learning import distributed
    from isanet_zoo.learning.evaluation import evaluate
    from isanet_zoo.zoo import describe_model

    if options.csv:
        check_target(options.csv, is_ours=_is_scores, force=options.force)
    checked = prediction(options, options.name)
    if is_onnx(options.name):
        labels = create_engine(options.name).label_set
    else:
        labels = describe_model(options.name).label_set
    dataset = open_data(options, options.split, labels.name)
    model = load(options.name, options.weights, show_trust=os.environ.get("RANK", "0") == "0")
    rows: list[tuple[Path, Scores]] = []
    with distributed.process_group(checked["device"]):
        first = distributed.rank() == 0
        with Bar("mask", shown=first) as mask_bar, Bar("image", shown=first) as image_bar:
            scores = evaluate(
                Predictor(model, **checked),
                dataset,
                check=not options.no_check,
                check_progress=mask_bar.show,
                progress=image_bar.show,
                each=(lambda path, own: rows.append((path, own))) if options.csv else None,
            )
    if not first:
        return 0
    if options.json:
        print_json(_without_nan(dataclasses.asdict(scores)))
    else:
        print(scores.table())
    if options.csv:
        _write_csv(options.csv, rows)
    return 0


def _without_nan(value: Any) -> Any:
    """Return JSON values with None in place of NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _is_scores(path: Path) -> bool:
    """Return True for a file that `_write_csv` wrote."""
    start = ",".join(COLUMNS).encode()
    try:
        with open_regular(path) as file:
            return file.read(len(start)) == start
    except OSError:
        return False


def _write_csv(path: Path, rows: Sequence[tuple[Path, Scores]]) -> None:
    """Write one row per image, in UTF-8; leave the cells of absent classes empty."""

    def cell(value: float) -> object:
        return "" if math.isnan(value) else value

    try:
        with (
            atomic_write(path) as temporary,
            temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            table = csv.writer(file)
            table.writerow([*COLUMNS, *rows[0][1].iou])
            for image, scores in rows:
                values = (scores.miou, scores.pixel_accuracy, *scores.iou.values())
                table.writerow([image, *map(cell, values)])
    except OSError as error:
        raise InputError(f"--csv {path} cannot be written: {error.strerror}") from error
