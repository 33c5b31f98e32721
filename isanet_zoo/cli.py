"""The command `isanet-zoo`: data on stdout, log and progress on stderr; exit 0, 1 failed, 2 usage.

What needs torch is imported by the commands that need it, so that `list`, `info` and `--help`
answer at once, and `env` answers where torch is broken.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isanet_zoo import records
from isanet_zoo.cache import CacheEntry, cache_root, entries
from isanet_zoo.errors import InputError, ManifestError, ZooError
from isanet_zoo.manifest.lookup import get_weights, list_models, load_manifest, manifest_path
from isanet_zoo.manifest.recipe import Recipe
from isanet_zoo.manifest.weights import Weights
from isanet_zoo.version import __version__

if TYPE_CHECKING:
    from isanet_zoo.learning.metrics import Scores
    from isanet_zoo.network.isanet import ISANet
    from isanet_zoo.zoo import Predictor

BUILT_IN = "isanet_efficientnet_lite0os8_camvid"
BUILT_IN_NOTE = (
    f"isanet-zoo: using {BUILT_IN}, a small model that is built in. It knows streets seen from a "
    "car (CamVid's 11 classes) and is for personal and research use (CC BY-NC 4.0). "
    "`isanet-zoo list` shows the large models; choose one with -m."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    options = _parser().parse_args(arguments)
    logger = logging.getLogger("isanet_zoo")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("isanet-zoo: %(message)s"))
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO if options.verbose else logging.WARNING)
    try:
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except ZooError as error:
        _complain(error)
        return 1
    except ImportError as error:  # a broken torch, say
        _complain(f"{error}; `isanet-zoo env` shows what is installed")
        return 1
    except BrokenPipeError:  # `isanet-zoo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="isanet-zoo",
        description="Every published ISANet weight, one line away.",
        epilog="Variables: ISANET_ZOO_CACHE (folder for weights), ISANET_ZOO_MIRROR (comma list of "
        "folders and URLs to ask first), ISANET_ZOO_OFFLINE=1 (no network).",
    )
    parser.add_argument("--version", action="version", version=f"isanet-zoo {__version__}")
    # Before the command or after it; there it must not undo what was said before.
    shared = argparse.ArgumentParser(add_help=False)
    for place, default in ((parser, False), (shared, argparse.SUPPRESS)):
        place.add_argument(
            "-v", "--verbose", action="store_true", default=default, help="say more on stderr"
        )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], int], name: str) -> argparse.ArgumentParser:
        summary = (run.__doc__ or "").splitlines()[0]
        added = commands.add_parser(name, parents=[shared], help=summary, description=summary)
        added.set_defaults(run=run)
        return added

    listing = command(_list, "list")
    listing.add_argument("filter", nargs="?", default="*", help="a pattern, such as '*resnet101*'")
    listing.add_argument("--dataset", help="only weights for this data set")
    listing.add_argument("--backbone", help="only weights on this encoder")
    form = listing.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print a table in Markdown")
    _json(form)

    info = command(_info, "info")
    info.add_argument("name")
    _json(info)

    download = command(_download, "download")
    _names(download)
    download.add_argument("--force", action="store_true", help="fetch again what is cached")

    predict = command(_predict, "predict")
    predict.add_argument("images", nargs="+", metavar="IMAGE|DIR", help="pictures, or one folder")
    predict.add_argument(
        "-m", "--model", metavar="NAME", help="see `list` (default: the one that is built in)"
    )
    predict.add_argument("-w", "--weights", help="a tag of the model, or a file of your own")
    predict.add_argument(
        "-o", "--out", type=Path, default=Path("out"), help="folder for the results (default: out)"
    )
    _ways(predict)
    predict.add_argument("--confidence", action="store_true", help="also write confidence maps")
    _json(predict)

    evaluate = command(_evaluate, "evaluate")
    evaluate.add_argument("name", help="see `list`")
    evaluate.add_argument("-w", "--weights", help="a tag of the model, or a file of your own")
    _data(evaluate, "val")
    _ways(evaluate)
    evaluate.add_argument("--csv", type=Path, metavar="FILE", help="write each picture's scores")
    _json(evaluate)

    train = command(_train, "train")
    train.add_argument("name", help="see `list`")
    _data(train, "train")
    train.add_argument("--val-split", default="val", metavar="SPLIT", help="(default: val)")
    train.add_argument("--no-val", action="store_true", help="train without looking at any")
    train.add_argument("--eval-every", type=int, default=1, metavar="EPOCHS")
    start = train.add_mutually_exclusive_group()
    start.add_argument("-w", "--weights", help="start from a tag of the model, or a file")
    start.add_argument("--imagenet", action="store_true", help="start from timm's encoder")
    start.add_argument("--encoder", metavar="FILE", help="start from this encoder, in timm's names")
    start.add_argument("--scratch", action="store_true", help="start from nothing")
    train.add_argument(
        "-o", "--out", type=Path, default=Path("run"), help="folder of the run (default: run)"
    )
    train.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="change numbers of the recipe that `info` shows, such as lr=0.001 'crop=[512, 512]'",
    )
    train.add_argument("--resume", action="store_true", help="go on with the run in --out")
    train.add_argument("--seed", type=int, default=0, metavar="N")
    train.add_argument("--workers", type=int, default=2, metavar="N", help="processes that read")
    train.add_argument(
        "--accumulate", type=int, default=1, metavar="N", help="work off each batch in N parts"
    )
    train.add_argument("--device", help="such as cpu or cuda (default: cuda if there is one)")

    convert = command(_convert, "convert")
    convert.add_argument("src", metavar="FILE", help="an upstream checkpoint")
    convert.add_argument("dst", metavar="OUT", help="the .safetensors file to write")
    convert.add_argument(
        "-m", "--model", required=True, metavar="NAME", help="what it was made from"
    )
    convert.set_defaults(verbose=True)  # say what was recognised
    convert.add_argument("--half", action="store_true", help="store float16: half the size")

    push = command(_push, "push")
    push.add_argument("name", help="see `list`")
    push.add_argument("repo", metavar="REPO", help="a repository of the Hugging Face hub: ORG/NAME")
    push.add_argument("-w", "--weights", help="a tag of the model, or a file of your own")
    push.add_argument("--private", action="store_true", help="make a repository that is private")
    push.add_argument("--licence", metavar="ID", help="of the weights, such as apache-2.0")
    _dry(push)

    export = command(_export, "export")
    export.add_argument("name", help="see `list`")
    export.add_argument("out", type=Path, metavar="OUT.onnx", help="the file to write")
    export.add_argument("-w", "--weights", help="a tag of the model, or a file of your own")
    export.add_argument("--labels", action="store_true", help="give class ids, not logits")
    export.add_argument(
        "--preprocess", action="store_true", help="take uint8 RGB, normalise inside"
    )
    export.add_argument(
        "--static", type=_size, metavar="HxW", help="take one picture of this size, not any"
    )
    small = export.add_mutually_exclusive_group()
    small.add_argument("--half", action="store_true", help="compute in float16")
    small.add_argument("--int8", action="store_true", help="quantise for CPUs; needs --calibrate")
    export.add_argument(
        "--calibrate", type=Path, metavar="DIR", help="pictures for --int8, not those of a test"
    )
    export.add_argument("--no-check", action="store_true", help="do not compare with the network")
    export.set_defaults(verbose=True)  # say what was compared

    _json(command(_verify, "verify"))

    cache = command(_cache, "cache")
    cache.add_argument(
        "--remove", nargs="+", metavar="NAME", default=[], help="delete these weights"
    )
    _json(cache)

    _json(command(_env, "env"))

    pin = command(_pin, "pin")
    _names(pin)
    _manifest(pin)

    mirror = command(_mirror, "mirror")
    mirror.add_argument("repo", metavar="REPO", help="a repository of the Hugging Face hub")
    _names(mirror)
    _manifest(mirror)
    _dry(mirror)
    return parser


def _json(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _dry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="write nothing: list the files with their sizes, and print the model card",
    )


def _manifest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--manifest", type=Path, help="the file to write (default: the one in use)")


def _ways(parser: argparse.ArgumentParser) -> None:
    """Add how pictures are segmented."""
    parser.add_argument("--device", help="such as cpu, cuda or mps (default: cuda if there is one)")
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
        type=_tile,
        metavar="SIDE|whole",
        help="slide a window of this side, or take pictures whole (default: as they were tested)",
    )
    parser.add_argument("--overlap", type=float, default=0.25, metavar="SHARE")
    parser.add_argument("--no-resize", action="store_true", help="keep the pictures' own size")


def _tile(text: str) -> int | str:
    return text if text == "whole" else int(text)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width)


def _data(parser: argparse.ArgumentParser, split: str) -> None:
    """Add which pictures and masks are meant."""
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="the data set")
    parser.add_argument(
        "--layout",
        choices=("voc", "ade20k", "cityscapes", "camvid", "folder"),
        help="how it lies on disk (default: folder if there is a classes.txt, else as the model's "
        "data set is distributed)",
    )
    parser.add_argument("--split", default=split, help=f"(default: {split})")


def _names(parser: argparse.ArgumentParser) -> None:
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("names", nargs="*", default=[], metavar="NAME", help="see `list`")
    either.add_argument("--all", action="store_true", help="all of them")


def _complain(error: object) -> None:
    print(f"isanet-zoo: error: {error}", file=sys.stderr)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(rows: Iterable[Sequence[object]]) -> None:
    """Print rows in aligned columns, numbers to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    numeric = [all(_is_number(cell) for cell in column[1:]) for column in zip(*texts, strict=True)]
    for row in texts:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        print("  ".join(cells).rstrip())


def _print_markdown(rows: Sequence[Sequence[object]]) -> None:
    for number, row in enumerate(rows):
        print(f"| {' | '.join(map(str, row))} |")
        if number == 0:
            print("|" + "---|" * len(row))


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def _list(options: argparse.Namespace) -> int:
    """List the published weights."""
    names = list_models(options.filter, dataset=options.dataset, backbone=options.backbone)
    if options.json:
        _print_json([_summary(name) for name in names])
        return 0
    rows: list[Sequence[object]] = [
        ("name", "by", "classes", "params M", "crop", "schedule", "mIoU", "ms+flip", "trust")
    ]
    for name in sorted(names, key=lambda name: (get_weights(name).model, name)):
        weights = get_weights(name)
        rows.append(
            (
                name,
                weights.family,
                weights.num_classes,
                f"{weights.parameters.without_aux / 1e6:.1f}",
                "x".join(map(str, weights.crop)),
                weights.schedule,
                _two_places(weights.miou),
                _two_places(weights.miou_multi_scale),
                _trust(weights),
            )
        )
    if options.markdown:
        _print_markdown(rows)
    else:
        _print_table(rows)
    return 0


def _two_places(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _trust(weights: Weights) -> str:
    """Say how far weights can be trusted, and if only the start of their hash is known."""
    if weights.trust == "verified" and weights.sha256_prefix and not weights.sha256:
        return f"verified (prefix of {len(weights.sha256_prefix)})"
    return weights.trust


def _summary(name: str) -> dict[str, Any]:
    weights = get_weights(name)
    return dataclasses.asdict(weights) | {"trust": weights.trust, "path": str(weights.path())}


def _info(options: argparse.Namespace) -> int:
    """Say everything about one published weight."""
    summary = _summary(options.name)
    if options.json:
        _print_json(summary)
        return 0
    labels = summary.pop("label_set")
    summary["classes"] = ", ".join(name.split(",")[0] for name in labels["names"])
    _print_tree(summary)
    return 0


def _print_tree(tree: dict[str, Any], indent: str = "") -> None:
    for key, value in tree.items():
        items = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(item, dict) for item in items):
            for item in items:
                print(f"{indent}{key}:")
                _print_tree(item, indent + "  ")
        else:
            text = ", ".join("not known" if item is None else str(item) for item in items)
            print(f"{indent}{key}: {text}")


def _each(names: Iterable[str], act: Callable[[str], object]) -> int:
    """Do something for each name; go on past failures, and return 1 if there were any."""
    status = 0
    for name in names:
        try:
            act(name)
        except ZooError as error:
            _complain(error)
            status = 1
    return status


def _download(options: argparse.Namespace) -> int:
    """Fetch, check and convert weights; print where they are."""
    from isanet_zoo.weights.acquire import download

    def fetch(name: str) -> None:
        trust = get_weights(name).trust  # before: "unverified" is a first use
        print(download(name, force=options.force))
        _say_trust(name, trust)

    return _each(list_models() if options.all else options.names, fetch)


def _predict(options: argparse.Namespace) -> int:
    """Segment pictures: an index PNG and an overlay with legend for each."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    from isanet_zoo.inference.folders import plan, segment_files
    from isanet_zoo.zoo import create_model

    stems = plan(map(Path, options.images), options.out)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {options.out} cannot be a folder: {error}") from error
    name = options.model or BUILT_IN
    if not options.model:
        print(BUILT_IN_NOTE, file=sys.stderr)
    model = create_model(name, options.weights is None, weights=options.weights)
    _say_trust(name, model.load_report.trust)
    predictor = _predictor(model, options, confidence=options.confidence)
    results: list[dict[str, Any]] = []
    errors: list[str] = []
    one = len(stems) == 1
    with tqdm(total=len(stems), unit="picture", disable=one) as bar:  # type: ignore[no-untyped-call]
        for result in segment_files(predictor, stems):
            bar.update()
            if result.segmentation is None:
                errors.append(str(result.error))
                continue
            files = [str(file) for file in result.files]
            classes = [
                {"id": index, "name": name, "fraction": fraction}
                for index, name, fraction in result.segmentation.present()
            ]
            results.append({"image": str(result.path), "files": files, "classes": classes})
            if not options.json:
                bar.write("\n".join(files), file=sys.stdout)
    if options.json:
        _print_json({"results": results, "errors": errors})
    if errors:
        _complain(f"{len(errors)} of {len(stems)} pictures could not be used:")
        print("".join(f"  {line}\n" for line in errors), end="", file=sys.stderr)
    return 1 if errors else 0


def _say_trust(name: str, trust: str) -> None:
    print(f"isanet-zoo: {name}: {trust} weights", file=sys.stderr)


def _predictor(
    model: ISANet, options: argparse.Namespace, *, confidence: bool = False
) -> Predictor:
    """Prepare a network as `_ways` was answered."""
    import torch

    from isanet_zoo.zoo import Predictor

    return Predictor(
        model,
        device=_device(options),
        dtype="auto" if options.dtype == "auto" else getattr(torch, options.dtype),
        batch_size=options.batch_size,
        scales=options.scales,
        flip=options.flip,
        tile=options.tile,
        overlap=options.overlap,
        resize=not options.no_resize,
        confidence=confidence,
    )


def _device(options: argparse.Namespace) -> str:
    """Return the device that was asked for, or the best there is."""
    import torch

    if options.device:
        return str(options.device)
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def _evaluate(options: argparse.Namespace) -> int:
    """Measure a model on a data set: IoU per class; run by torchrun, with all its processes."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    from isanet_zoo.learning import distributed
    from isanet_zoo.learning.data import open_dataset
    from isanet_zoo.learning.evaluation import evaluate
    from isanet_zoo.zoo import create_model

    model = create_model(options.name, options.weights is None, weights=options.weights)
    dataset = open_dataset(_layout(options), options.data, options.split)
    rows: list[tuple[Path, Scores]] = []
    with distributed.process_group(_device(options)):
        first = distributed.rank() == 0
        if first:
            _say_trust(options.name, model.load_report.trust)
        with tqdm(unit="picture", disable=not first) as bar:  # type: ignore[no-untyped-call]

            def show(done: int, total: int | None) -> None:
                bar.total = total
                bar.update()

            scores = evaluate(
                _predictor(model, options),
                dataset,
                progress=show,
                each=(lambda path, scores: rows.append((path, scores))) if options.csv else None,
            )
    if not first:
        return 0
    if options.csv:
        _write_csv(options.csv, rows)
    if options.json:
        _print_json(dataclasses.asdict(scores))
    else:
        print(scores.table())
    return 0


def _layout(options: argparse.Namespace) -> str:
    """Return how the data set lies on disk: as was said, or as it looks."""
    if options.layout:
        return str(options.layout)
    return (
        "folder" if (options.data / "classes.txt").is_file() else get_weights(options.name).dataset
    )


def _write_csv(path: Path, rows: Sequence[tuple[Path, Scores]]) -> None:
    """Write one row per picture; what is not in a picture stays empty."""

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


def _train(options: argparse.Namespace) -> int:
    """Train or fine-tune a model; run by torchrun, with all its processes."""
    import torch
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    from isanet_zoo.learning import distributed
    from isanet_zoo.learning.data import open_dataset
    from isanet_zoo.learning.training import Moment, train
    from isanet_zoo.weights.checkpoints import load_encoder
    from isanet_zoo.zoo import create_model

    weights = get_weights(options.name)
    recipe = _recipe(weights.recipe, options.set)
    layout = _layout(options)
    dataset = open_dataset(layout, options.data, options.split)
    validation = None
    if not options.no_val:
        validation = open_dataset(layout, options.data, options.val_split)
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
    with distributed.process_group(_device(options)):
        first = distributed.rank() == 0
        with tqdm(unit="step", disable=not first) as bar:  # type: ignore[no-untyped-call]

            def show(moment: Moment) -> None:
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
                device=_device(options),
                workers=options.workers,
                accumulate=options.accumulate,
                progress=show,
            )
    if first:
        print(best)
    return 0


def _recipe(recipe: Recipe, changes: Sequence[str]) -> Recipe:
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


def _convert(options: argparse.Namespace) -> int:
    """Convert an upstream checkpoint of your own to safetensors."""
    from isanet_zoo.weights.acquire import convert_checkpoint

    print(convert_checkpoint(options.src, options.dst, options.model, half=options.half))
    return 0


def _push(options: argparse.Namespace) -> int:
    """Publish a model on the Hugging Face hub, with its classes and a model card."""
    from isanet_zoo.hub.saved import describe, write_folder
    from isanet_zoo.hub.transfer import PREFIX, check_name
    from isanet_zoo.zoo import create_model

    repo = check_name(options.repo)
    model = create_model(options.name, options.weights is None, weights=options.weights)
    if model.load_report.unused:  # the auxiliary head, for whoever trains it further
        model = create_model(
            options.name, options.weights is None, weights=options.weights, aux_loss=True
        )
    _say_trust(options.name, model.load_report.trust)
    if options.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            config = describe(model, licence=options.licence)
            files = write_folder(model, config, Path(folder), called=repo)
            _print_dry({file.name: file for file in files}, files[0].read_text("utf-8"))
        return 0
    commit = model.push_to_hub(repo, private=options.private, licence=options.licence)
    print(f"{PREFIX}{repo}@{commit}")
    return 0


def _print_dry(files: Mapping[str, Path], card: str) -> None:
    """Show what would be uploaded."""
    _print_table((f"{file.stat().st_size / 1e6:.3f}", "MB", name) for name, file in files.items())
    print(f"\n{card}", end="")
    print("isanet-zoo: a dry run; nothing was uploaded", file=sys.stderr)


def _export(options: argparse.Namespace) -> int:
    """Write a model as an ONNX file that was compared with it in onnxruntime."""
    import torch

    from isanet_zoo.export.onnx_file import export_onnx
    from isanet_zoo.zoo import create_model

    if options.int8 != (options.calibrate is not None):
        raise InputError("--int8 and --calibrate DIR go together")
    model = create_model(options.name, options.weights is None, weights=options.weights)
    _say_trust(options.name, model.load_report.trust)
    path = export_onnx(
        model,
        options.out,
        dynamic=options.static is None,
        size=options.static,
        dtype=torch.float16 if options.half else torch.float32,
        output="labels" if options.labels else "logits",
        preprocess=options.preprocess,
        calibrate=options.calibrate,
        check=not options.no_check,
    )
    print(path)
    return 0


def _verify(options: argparse.Namespace) -> int:
    """Read everything that is cached and compare it with what was put there."""
    from isanet_zoo.weights.acquire import verify

    problems = {entry.name: verify(entry) for entry in entries()}
    if options.json:
        _print_json(problems)
    elif problems:
        _print_table((name, problem or "ok") for name, problem in problems.items())
    else:
        print(f"nothing is cached in {cache_root()}", file=sys.stderr)
    return 1 if any(problems.values()) else 0


def _cache(options: argparse.Namespace) -> int:
    """Show where weights are cached and how much they take, or delete some."""
    if options.remove:
        return _each(options.remove, _remove)
    sizes = {entry.name: entry.model.stat().st_size for entry in entries()}
    if options.json:
        _print_json({"folder": str(cache_root()), "bytes": sizes})
        return 0
    print(cache_root())
    if sizes:
        _print_table((name, f"{size / 1e6:.1f}", "MB") for name, size in sizes.items())
    return 0


def _remove(name: str) -> None:
    entry = CacheEntry.of(name)
    if entry not in entries():
        raise InputError(f"{name} is not cached in {cache_root()}")
    shutil.rmtree(entry.folder)


def _env(options: argparse.Namespace) -> int:
    """Say what is installed and where things are, for a bug report."""
    report: dict[str, str] = {"isanet_zoo": __version__, "python": platform.python_version()}
    for package in ("torch", "torchvision", "timm", "huggingface_hub", "safetensors", "numpy"):
        try:
            report[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            report[package] = "not installed"
    report |= {"platform": platform.platform(), "cache": str(cache_root())}
    report |= {"manifest": str(manifest_path())}
    for variable in (
        "ISANET_ZOO_CACHE",
        "ISANET_ZOO_MIRROR",
        "ISANET_ZOO_OFFLINE",
        "HF_HUB_OFFLINE",
    ):
        report[variable] = os.environ.get(variable, "not set")
    healthy = True
    try:
        torch = importlib.import_module("torch")
        report["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        importlib.import_module("isanet_zoo.network.backbones")
    except (ImportError, OSError, RuntimeError) as error:  # whatever a broken installation raises
        report["problem"] = str(error)
        healthy = False
    if options.json:
        _print_json(report)
    else:
        _print_tree(report)
    return 0 if healthy else 1


def _pin(options: argparse.Namespace) -> int:
    """Write sha256, size and state digest of published files into the manifest (maintainers)."""
    from isanet_zoo.weights.pinning import pin

    manifest = options.manifest or manifest_path()
    names = list_models() if options.all else options.names
    return _each(names, lambda name: print(name, pin(name, manifest).sha256))


def _mirror(options: argparse.Namespace) -> int:
    """Put converted weights on the hub, and their place there into the manifest (maintainers)."""
    from isanet_zoo.hub.mirror import find_twins, mirror, write_texts

    manifest = options.manifest or manifest_path()
    known = load_manifest(manifest)
    names = options.names or [name for name in known if not known[name].packaged]
    if options.dry_run:
        twins = find_twins(names, manifest)
        _print_table((f"{twin.size / 1e6:.3f}", "MB", twin.sha256, twin.path) for twin in twins)
        print(f"\n{write_texts(twins, options.repo, manifest)['README.md']}", end="")
        print("isanet-zoo: a dry run; nothing was uploaded", file=sys.stderr)
        return 0
    for file in mirror(names, options.repo, manifest):
        print(file.sha256, file.url)
    return 0
