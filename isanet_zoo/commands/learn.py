"""Commands `evaluate` and `train`."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isanet_zoo import records
from isanet_zoo.commands.arguments import (
    add_data,
    add_device,
    add_json,
    add_prediction,
    add_weights,
    device,
    layout,
    predictor,
)
from isanet_zoo.commands.output import print_json, print_trust
from isanet_zoo.errors import InputError, ManifestError
from isanet_zoo.manifest.lookup import get_weights
from isanet_zoo.manifest.recipe import Recipe

if TYPE_CHECKING:
    from isanet_zoo.learning.metrics import Scores


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `evaluate`."""
    parser.add_argument("name", help="see `list`")
    add_weights(parser)
    add_data(parser, "val")
    add_prediction(parser)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write each picture's scores")
    add_json(parser)


def evaluate_run(options: argparse.Namespace) -> int:
    """Evaluate a model on a data set; print IoU per class on the first process."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    from isanet_zoo.learning import distributed
    from isanet_zoo.learning.datasets import open_dataset
    from isanet_zoo.learning.evaluation import evaluate
    from isanet_zoo.zoo import create_model

    model = create_model(options.name, options.weights is None, weights=options.weights)
    dataset = open_dataset(layout(options), options.data, options.split)
    rows: list[tuple[Path, Scores]] = []
    with distributed.process_group(device(options)):
        first = distributed.rank() == 0
        if first:
            print_trust(options.name, model.load_report.trust)
        with tqdm(unit="picture", disable=not first) as bar:  # type: ignore[no-untyped-call]

            def show(done: int, total: int | None) -> None:
                bar.total = total
                bar.update()

            scores = evaluate(
                predictor(model, options),
                dataset,
                progress=show,
                each=(lambda path, scores: rows.append((path, scores))) if options.csv else None,
            )
    if not first:
        return 0
    if options.csv:
        _write_csv(options.csv, rows)
    if options.json:
        print_json(dataclasses.asdict(scores))
    else:
        print(scores.table())
    return 0


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `train`."""
    parser.add_argument("name", help="see `list`")
    add_data(parser, "train")
    parser.add_argument("--val-split", default="val", metavar="SPLIT", help="(default: val)")
    parser.add_argument("--no-val", action="store_true", help="train without looking at any")
    parser.add_argument("--eval-every", type=int, default=1, metavar="EPOCHS")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("-w", "--weights", help="start from a tag of the model, or a file")
    start.add_argument("--imagenet", action="store_true", help="start from timm's encoder")
    start.add_argument("--encoder", metavar="FILE", help="start from this encoder, in timm's names")
    start.add_argument("--scratch", action="store_true", help="start from nothing")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("run"), help="folder of the run (default: run)"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="change numbers of the recipe that `info` shows, such as lr=0.001 'crop=[512, 512]'",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes that read")
    parser.add_argument(
        "--accumulate", type=int, default=1, metavar="N", help="work off each batch in N parts"
    )
    add_device(parser, "cpu or cuda")


def train_run(options: argparse.Namespace) -> int:
    """Train or fine-tune a model; print the best checkpoint on the first process."""
    import torch
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    from isanet_zoo.learning import distributed
    from isanet_zoo.learning.datasets import open_dataset
    from isanet_zoo.learning.run import RunProgress, train
    from isanet_zoo.weights.checkpoints import load_encoder
    from isanet_zoo.zoo import create_model

    weights = get_weights(options.name)
    recipe = _change_recipe(weights.recipe, options.set)
    on_disk = layout(options)
    dataset = open_dataset(on_disk, options.data, options.split)
    validation = None
    if not options.no_val:
        validation = open_dataset(on_disk, options.data, options.val_split)
    torch.manual_seed(options.seed)  # of parameters that start from nothing
    model = create_model(
        options.name,
        not (options.weights or options.imagenet or options.encoder or options.scratch),
        weights=options.weights,
        num_classes=len(dataset.label_set),
        aux_loss=recipe.aux_weight > 0,
        pretrained_backbone=options.imagenet,
    )
    model.label_set = dataset.label_set
    if options.encoder:
        load_encoder(model, options.encoder)
    with distributed.process_group(device(options)):
        first = distributed.rank() == 0
        with tqdm(unit="step", disable=not first) as bar:  # type: ignore[no-untyped-call]

            def show(moment: RunProgress) -> None:
                bar.total, bar.n = moment.steps, moment.step
                text = f"loss {moment.loss:.3f}, lr {moment.lr:.2g}"
                if moment.last and moment.last.miou is not None:
                    text += f", mIoU {100 * moment.last.miou:.2f}"
                bar.set_postfix_str(text)

            best = train(
                model,
                dataset,
                recipe,
                options.out,
                validation=validation,
                evaluate_every=options.eval_every,
                resume=options.resume,
                seed=options.seed,
                device=device(options),
                workers=options.workers,
                accumulate=options.accumulate,
                progress=show,
            )
    if first:
        print(best)
    return 0


def _write_csv(path: Path, rows: Sequence[tuple[Path, Scores]]) -> None:
    """Write one row per picture; leave the cells of absent classes empty."""

    def cell(value: float) -> object:
        return "" if value != value else value

    try:
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["image", "mIoU", "pixel accuracy", *rows[0][1].iou])
            for image, scores in rows:
                values = (scores.miou, scores.pixel_accuracy, *scores.iou.values())
                table.writerow([image, *map(cell, values)])
    except OSError as error:
        raise InputError(f"--csv {path} cannot be written: {error}") from error


def _change_recipe(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """Change numbers of a recipe as `--set` says.

    Raises:
        InputError: a change is not like ``lr=0.001``, or makes no sense.
    """
    values = records.write(recipe)
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or name not in values:
            raise InputError(f"--set {change}: give NAME=VALUE, NAME one of {', '.join(values)}")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text  # a bare word
    try:
        return records.read(Recipe, values, "--set")
    except ManifestError as error:
        raise InputError(str(error)) from error
