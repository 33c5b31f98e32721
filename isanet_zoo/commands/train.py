"""Command `train`."""

from __future__ import annotations

import argparse
import dataclasses
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isanet_zoo import records
from isanet_zoo.commands.arguments import add_device, add_model, add_no_check, device, to_path
from isanet_zoo.commands.data_arguments import add_data, open_data
from isanet_zoo.commands.output import Bar, print_lines
from isanet_zoo.commands.run_length import RunLength
from isanet_zoo.commands.start import build_model, build_on_encoder, describe
from isanet_zoo.errors import InputError, ManifestError, did_you_mean, printable
from isanet_zoo.manifest.recipe import Recipe

if TYPE_CHECKING:
    from isanet_zoo.learning.report import EpochResult
    from isanet_zoo.learning.run import RunProgress

PAIRS = ("crop", "base_size", "scale", "contrast", "saturation")  # one number is both of them


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `train`."""
    add_model(parser, "; or a timm encoder, such as resnet18d")
    add_data(parser, "train")
    parser.add_argument("--val-split", default="val", metavar="SPLIT", help="(default: val)")
    parser.add_argument("--no-val", action="store_true", help="train without validation")
    parser.add_argument(
        "--eval-every",
        type=int,
        default=1,
        metavar="EPOCHS",
        help="epochs from one validation to the next (default: 1)",
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument("-w", "--weights", help="start from a tag of the model, or a file")
    start.add_argument("--imagenet", action="store_true", help="start from timm's encoder")
    start.add_argument("--encoder", metavar="FILE", help="start from this encoder")
    start.add_argument("--scratch", action="store_true", help="train from scratch")
    parser.add_argument(
        "-o", "--out", type=to_path, default=Path("run"), help="folder of the run (default: run)"
    )
    parser.add_argument(
        "--recipe",
        metavar="FILE|NAME",
        help="a JSON file, such as recipe.json of a run, or a model, whose recipe `info` shows "
        "(default: a recipe for fine-tuning)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="change values of the recipe, such as lr=0.001 loss=ohem 'crop=[512, 512]'",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="resume the run in --out with its recipe; with more epochs, extend it",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all random numbers")
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
    add_no_check(parser)
    add_device(parser, "cpu or cuda")


def run(options: argparse.Namespace) -> int:
    """Train or fine-tune a model; print the best checkpoint on the first process."""
    import torch

    from isanet_zoo.learning import distributed
    from isanet_zoo.learning.report import next_steps
    from isanet_zoo.learning.run import RunOptions, train

    numbers = RunOptions(options.eval_every, options.seed, options.workers, options.accumulate)
    recipe = _change_recipe(_base_recipe(options), options.set)
    target, description = device(options), describe(options.name)
    known = description.label_set.name if description else None
    dataset = open_data(options, options.split, known)
    validation = None
    if not options.no_val:
        validation = open_data(options, options.val_split, known)
    build = build_model if description else build_on_encoder
    model = build(options, dataset.label_set, aux_loss=recipe.aux_weight > 0)
    with distributed.process_group(target):
        first = distributed.rank() == 0
        last: deque[EpochResult] = deque(maxlen=1)
        with Bar("mask", shown=first) as mask_bar, Bar("step", shown=first) as step_bar:
            length = RunLength(len(dataset), recipe, torch.device(target))

            def progress(moment: RunProgress) -> None:
                step_bar.show(moment.step, moment.steps, _text(moment))
                if text := length.describe(moment):
                    step_bar.note(text)

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
                progress=progress,
                validation_progress=lambda done, total: step_bar.annotate(
                    f"validating {done}/{total}"
                ),
                on_epoch=last.append,
                **dataclasses.asdict(numbers),
            )
    if first:
        print_lines(last[0].summary(), f"Next, see {options.out / 'report.md'}:")
        print_lines(*(f"  {step}" for step in next_steps(options.out)))
        print(best)
    return 0


def _text(moment: RunProgress) -> str:
    """Return loss, learning rate and last mIoU for a progress bar."""
    text = f"loss {moment.loss:.3f}, lr {moment.lr:.2g}"
    if moment.last and moment.last.miou is not None:
        text += f", mIoU {100 * moment.last.miou:.2f} ({moment.last.classes} classes)"
    return text


def _base_recipe(options: argparse.Namespace) -> Recipe:
    """Return the recipe of `--recipe`, that of a run to resume, or the one for fine-tuning.

    Raises:
        InputError: a file or model states no recipe.
    """
    from isanet_zoo.zoo import describe_model

    given, own = options.recipe, options.out / "recipe.json"
    if given is None:
        return Recipe.load(own) if options.resume and own.is_file() else Recipe()
    if given.endswith(".json"):
        return Recipe.load(given)
    description = describe_model(given)
    if description.recipe:
        return description.recipe
    if description.weights:
        return description.weights.recipe
    raise InputError(f"--recipe {printable(given)} does not state its recipe; pass a JSON file")


def _change_recipe(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """Change numbers of a recipe with the values of `--set`.

    Raises:
        InputError: a change is not like ``lr=0.001``, or a value is out of range.
    """
    values = records.write(recipe)
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or name not in values:
            advice = did_you_mean(name, values, f"NAME is one of {', '.join(values)}")
            raise InputError(f"--set {change}: write NAME=VALUE; {advice}")
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
