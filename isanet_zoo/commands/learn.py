"""Commands `evaluate` and `train`."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isanet_zoo import records
from isanet_zoo.commands.arguments import (
    add_data,
    add_device,
    add_json,
    add_prediction,
    add_weights,
    device,
    layout,
    prediction,
    to_path,
)
from isanet_zoo.commands.output import print_json, print_trust
from isanet_zoo.errors import InputError, ManifestError
from isanet_zoo.files import atomic_write, check_target, open_regular
from isanet_zoo.manifest.lookup import get_weights
from isanet_zoo.manifest.recipe import Recipe

if TYPE_CHECKING:
    from isanet_zoo.learning.metrics import Scores
    from isanet_zoo.learning.run import RunProgress
    from isanet_zoo.network.isanet import ISANet

COLUMNS = ("image", "mIoU", "pixel accuracy")  # of a CSV, before those of the classes
PAIRS = ("crop", "base_size", "scale", "contrast", "saturation")  # one number is both of them


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `evaluate`."""
    parser.add_argument("name", help="see `list`")
    add_weights(parser)
    add_data(parser, "val")
    add_prediction(parser)
    parser.add_argument(
        "--csv", type=to_path, metavar="FILE", help="write the scores of each image"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a CSV that isanet-zoo did not write"
    )
    _add_no_check(parser)
    add_json(parser)


def evaluate_run(options: argparse.Namespace) -> int:
    """Evaluate a model on a data set; print IoU per class on the first process."""
    from isanet_zoo.inference.predictor import Predictor
    from isanet_zoo.learning import distributed
    from isanet_zoo.learning.datasets import open_dataset
    from isanet_zoo.learning.evaluation import evaluate
    from isanet_zoo.zoo import create_model

    if options.csv:
        check_target(options.csv, is_ours=_is_scores, force=options.force)
    checked = prediction(options)
    dataset = open_dataset(layout(options), options.data, options.split)
    model = create_model(options.name, options.weights is None, weights=options.weights)
    rows: list[tuple[Path, Scores]] = []
    with distributed.process_group(device(options)):
        first = distributed.rank() == 0
        if first:
            print_trust(options.name, model.load_report.trust)
        with _Bar("mask", shown=first) as mask_bar, _Bar("image", shown=first) as image_bar:
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


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `train`."""
    parser.add_argument("name", help="see `list`")
    add_data(parser, "train")
    parser.add_argument("--val-split", default="val", metavar="SPLIT", help="(default: val)")
    parser.add_argument("--no-val", action="store_true", help="train without validation")
    parser.add_argument("--eval-every", type=int, default=1, metavar="EPOCHS")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("-w", "--weights", help="start from a tag of the model, or a file")
    start.add_argument("--imagenet", action="store_true", help="start from timm's encoder")
    start.add_argument("--encoder", metavar="FILE", help="start from this encoder")
    start.add_argument("--scratch", action="store_true", help="train from scratch")
    parser.add_argument(
        "-o", "--out", type=to_path, default=Path("run"), help="folder of the run (default: run)"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="change numbers of the recipe that `info` shows, such as lr=0.001 'crop=[512, 512]'",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="resume the run in --out; with more epochs, extend it",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="processes that read images"
    )
    parser.add_argument(
        "--accumulate",
        type=int,
        default=1,
        metavar="N",
        help="number of chunks per batch (gradient accumulation)",
    )
    _add_no_check(parser)
    add_device(parser, "cpu or cuda")


def train_run(options: argparse.Namespace) -> int:
    """Train or fine-tune a model; print the best checkpoint on the first process."""
    from isanet_zoo.learning import distributed
    from isanet_zoo.learning.datasets import open_dataset
    from isanet_zoo.learning.run import RunOptions, train

    numbers = RunOptions(options.eval_every, options.seed, options.workers, options.accumulate)
    recipe = _change_recipe(get_weights(options.name).recipe, options.set)
    on_disk, target = layout(options), device(options)
    dataset = open_dataset(on_disk, options.data, options.split)
    validation = None
    if not options.no_val:
        validation = open_dataset(on_disk, options.data, options.val_split)
    model = _initial_model(options, len(dataset.label_set), aux_loss=recipe.aux_weight > 0)
    model.label_set = dataset.label_set
    with distributed.process_group(target):
        first = distributed.rank() == 0
        with _Bar("mask", shown=first) as mask_bar, _Bar("step", shown=first) as step_bar:
            best = train(
                model,
                dataset,
                recipe,
                options.out,
                validation=validation,
                resume=options.resume,
                device=target,
                check=not options.no_check,
                check_progress=mask_bar.show,
                progress=lambda moment: step_bar.show(moment.step, moment.steps, _text(moment)),
                **dataclasses.asdict(numbers),
            )
    if first:
        print(best)
    return 0


def _initial_model(options: argparse.Namespace, num_classes: int, *, aux_loss: bool) -> ISANet:
    """Return the model that a run starts from."""
    import torch

    from isanet_zoo.weights.checkpoints import load_encoder
    from isanet_zoo.zoo import create_model

    torch.manual_seed(options.seed)  # of newly initialised parameters
    model = create_model(
        options.name,
        not (options.weights or options.imagenet or options.encoder or options.scratch),
        weights=options.weights,
        num_classes=num_classes,
        aux_loss=aux_loss,
        pretrained_backbone=options.imagenet,
    )
    if options.encoder:
        load_encoder(model, options.encoder)
    return model


def _add_no_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-check", action="store_true", help="do not read all masks before the start"
    )


class _Bar:
    """A progress bar on stderr that appears with its first update."""

    def __init__(self, unit: str, *, shown: bool) -> None:
        self.unit, self.shown = unit, shown
        self.bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, done: int, total: int | None, text: str = "") -> None:
        """Show that `done` of `total` are done."""
        from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

        if self.bar is None:
            self.bar = tqdm(total=total, unit=self.unit, disable=not self.shown)  # type: ignore[no-untyped-call]
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(done - self.bar.n)
        if done == total:
            self.bar.close()


def _text(moment: RunProgress) -> str:
    """Return loss, learning rate and last mIoU for a progress bar."""
    text = f"loss {moment.loss:.3f}, lr {moment.lr:.2g}"
    if moment.last and moment.last.miou is not None:
        text += f", mIoU {100 * moment.last.miou:.2f} ({moment.last.classes} classes)"
    return text


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


def _change_recipe(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """Change numbers of a recipe with the values of `--set`.

    Raises:
        InputError: a change is not like ``lr=0.001``, or a value is out of range.
    """
    values = records.write(recipe)
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or name not in values:
            raise InputError(f"--set {change}: write NAME=VALUE, NAME one of {', '.join(values)}")
        try:
            value = records.parse(text, name)
        except ManifestError:
            value = text  # a word without quotes
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        values[name] = [value, value] if number and name in PAIRS else value
    try:
        return records.read(Recipe, values, "--set")
    except ManifestError as error:
        raise InputError(
            f"{error}; write values as JSON, such as lr=0.001 'crop=[512, 512]' base_size=null"
        ) from error
