"""Commands `push` and `export`."""

from __future__ import annotations

import argparse
import functools
import tempfile
from pathlib import Path

from isanet_zoo.commands.arguments import (
    add_classes,
    add_dry_run,
    add_model,
    add_weights,
    own_classes,
    size,
    to_path,
)
from isanet_zoo.commands.output import print_dry, print_trust
from isanet_zoo.errors import InputError


def push_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `push`."""
    add_model(parser)
    parser.add_argument(
        "repo", metavar="REPO", help="a repository of the Hugging Face Hub: ORG/NAME"
    )
    add_weights(parser)
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--licence", metavar="ID", help="of the weights, such as apache-2.0")
    add_dry_run(parser)


def push_run(options: argparse.Namespace) -> int:
    """Publish a model on the Hugging Face Hub; print its repository and commit."""
    from isanet_zoo.hub.saved import write_folder
    from isanet_zoo.hub.transfer import PREFIX, Address
    from isanet_zoo.weights.saving import describe
    from isanet_zoo.zoo import create_model

    repo = Address(options.repo).repo
    pretrained = options.weights is None
    load = functools.partial(create_model, options.name, pretrained, weights=options.weights)
    model = load()
    if model.load_report.unused:  # the auxiliary head, which is needed for fine-tuning
        model = load(aux_loss=True)
    print_trust(options.name, model.load_report.trust)
    if options.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            description = describe(model, licence=options.licence)
            files = write_folder(model, description, Path(folder), name=repo)
            rows = [(f"{file.stat().st_size / 1e6:.3f}", "MB", file.name) for file in files]
            print_dry(rows, files[0].read_text("utf-8"))
        return 0
    commit = model.push_to_hub(repo, private=options.private, licence=options.licence)
    print(f"{PREFIX}{repo}@{commit}")
    return 0


def export_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    add_model(parser)
    parser.add_argument("out", type=to_path, metavar="OUT.onnx", help="the file to write")
    add_weights(parser)
    parser.add_argument("--labels", action="store_true", help="return class ids instead of logits")
    parser.add_argument(
        "--preprocess", action="store_true", help="include normalisation; the input is uint8 RGB"
    )
    parser.add_argument(
        "--static", type=size, metavar="HxW", help="support one image of this size only"
    )
    add_classes(parser)
    small = parser.add_mutually_exclusive_group()
    small.add_argument("--half", action="store_true", help="compute in float16")
    small.add_argument("--int8", action="store_true", help="quantise for CPUs; needs --calibrate")
    parser.add_argument(
        "--calibrate",
        type=to_path,
        metavar="DIR",
        help="images for --int8; not those of a test",
    )
    parser.add_argument("--no-check", action="store_true", help="do not compare with the network")
    parser.add_argument(
        "--force", action="store_true", help="replace OUT.onnx even if isanet-zoo did not write it"
    )
    parser.set_defaults(verbose=True)  # log the comparison


def export_run(options: argparse.Namespace) -> int:
    """Write a model as an ONNX file; print the path."""
    import torch

    from isanet_zoo.export.onnx_file import export_onnx, require
    from isanet_zoo.export.options import check_onnx_target
    from isanet_zoo.zoo import create_model

    if options.int8 != (options.calibrate is not None):
        raise InputError("--int8 needs --calibrate DIR, and --calibrate needs --int8")
    check_onnx_target(options.out, force=options.force)
    merged = own_classes(options)
    require("onnx", "onnxscript", "onnxruntime")
    model = create_model(options.name, options.weights is None, weights=options.weights)
    print_trust(options.name, model.load_report.trust)
    path = export_onnx(
        model,
        options.out,
        dynamic=options.static is None,
        size=options.static,
        dtype=torch.float16 if options.half else torch.float32,
        output="labels" if options.labels else "logits",
        preprocess=options.preprocess,
        **merged,
        calibrate=options.calibrate,
        check=not options.no_check,
        force=options.force,
    )
    print(path)
    return 0
