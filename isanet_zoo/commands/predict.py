"""Command `predict`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from isanet_zoo.commands.arguments import add_json, add_prediction, add_weights, predictor
from isanet_zoo.commands.output import complain, print_json, print_trust
from isanet_zoo.errors import InputError

BUILT_IN = "isanet_efficientnet_lite0os8_camvid"
BUILT_IN_NOTE = (
    f"isanet-zoo: using {BUILT_IN}, a small model that is built in. It knows streets seen from a "
    "car (CamVid's 11 classes) and is for personal and research use (CC BY-NC 4.0). "
    "`isanet-zoo list` shows the large models; choose one with -m."
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `predict`."""
    parser.add_argument("images", nargs="+", metavar="IMAGE|DIR", help="pictures, or one folder")
    parser.add_argument(
        "-m", "--model", metavar="NAME", help="see `list` (default: the one that is built in)"
    )
    add_weights(parser)
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("out"), help="folder for the results (default: out)"
    )
    add_prediction(parser)
    parser.add_argument("--confidence", action="store_true", help="also write confidence maps")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Segment pictures and print the files written; return 1 if a picture failed."""
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
    print_trust(name, model.load_report.trust)
    prepared = predictor(model, options, confidence=options.confidence)
    results: list[dict[str, Any]] = []
    errors: list[str] = []
    one = len(stems) == 1
    with tqdm(total=len(stems), unit="picture", disable=one) as bar:  # type: ignore[no-untyped-call]
        for result in segment_files(prepared, stems):
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
        print_json({"results": results, "errors": errors})
    if errors:
        complain(f"{len(errors)} of {len(stems)} pictures could not be used:")
        print("".join(f"  {line}\n" for line in errors), end="", file=sys.stderr)
    return 1 if errors else 0
