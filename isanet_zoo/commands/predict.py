"""Command `predict`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isanet_zoo.commands.arguments import add_json, add_prediction, add_weights, prediction, to_path
from isanet_zoo.commands.output import complain, print_json, print_trust
from isanet_zoo.errors import InputError, printable

if TYPE_CHECKING:
    from isanet_zoo.inference.folders import Result
    from isanet_zoo.inference.predictor import Predictor

BUILT_IN = "isanet_efficientnet_lite0os8_camvid"
BUILT_IN_NOTE = (
    f"isanet-zoo: using {BUILT_IN}, the built-in model. It segments streets seen from a car "
    "(CamVid's 11 classes); for personal and research use (CC BY-NC 4.0). `isanet-zoo list` shows "
    "larger models; choose one with -m."
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `predict`."""
    parser.add_argument("images", nargs="+", metavar="IMAGE|DIR", help="images, or folders of some")
    parser.add_argument(
        "-m", "--model", metavar="NAME|PATH", help="see `list` (default: the built-in)"
    )
    add_weights(parser)
    parser.add_argument(
        "-o",
        "--out",
        type=to_path,
        default=Path("out"),
        help="folder for the results (default: out)",
    )
    add_prediction(parser)
    parser.add_argument("--confidence", action="store_true", help="also write confidence maps")
    parser.add_argument(
        "--force", action="store_true", help="replace files that isanet-zoo did not write"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Segment images and print the files written; return 1 if an image failed."""
    from isanet_zoo.inference.outputs import plan
    from isanet_zoo.inference.predictor import Predictor
    from isanet_zoo.zoo import create_model

    planned = plan(options.images, options.out)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"--out {options.out} cannot be a folder: {reason}") from error
    checked = prediction(options)
    name = BUILT_IN if options.model is None else options.model
    if options.model is None:
        print(BUILT_IN_NOTE, file=sys.stderr)
    model = create_model(name, options.weights is None, weights=options.weights)
    print_trust(name, model.load_report.trust)
    predictor = Predictor(model, **checked, confidence=options.confidence)
    return _segment_all(predictor, planned, options)


def _segment_all(
    predictor: Predictor, planned: dict[Path, tuple[Path, ...]], options: argparse.Namespace
) -> int:
    """Segment images and print the files written; print all errors at the end or on a failure."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    from isanet_zoo.inference.folders import segment_files

    done: list[dict[str, Any]] = []
    errors: list[str] = []
    total = len(planned)
    try:
        with tqdm(total=total, unit="image", disable=total == 1) as bar:  # type: ignore[no-untyped-call]
            for result in segment_files(predictor, planned, force=options.force):
                bar.update()
                if result.error:
                    errors.append(str(result.error))
                    continue
                done.append(_record(result))
                if not options.json:
                    files = "\n".join(printable(file, 5000) for file in result.files)
                    bar.write(files, file=sys.stdout)
    finally:
        if options.json:
            print_json({"results": done, "errors": errors})
        if missing := total - len(done):
            complain(f"{missing} of {total} images could not be segmented:")
            print("".join(f"  {line}\n" for line in errors), end="", file=sys.stderr)
    return 1 if errors else 0


def _record(result: Result) -> dict[str, Any]:
    """Return a result as JSON."""
    assert result.segmentation is not None
    classes = [
        {"id": index, "name": name, "fraction": fraction}
        for index, name, fraction in result.segmentation.present()
    ]
    return {"image": str(result.path), "files": [*map(str, result.files)], "classes": classes}
