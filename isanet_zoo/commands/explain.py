"""Command `explain`."""

from __future__ import annotations

import argparse
from pathlib import Path

from isanet_zoo.commands.arguments import add_device, add_json, add_weights, device, to_path
from isanet_zoo.commands.output import print_json, print_note, print_trust
from isanet_zoo.commands.predict import BUILT_IN
from isanet_zoo.errors import InputError, printable
from isanet_zoo.files import check_target


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `explain`."""
    parser.add_argument("image", metavar="IMAGE", help="an image")
    parser.add_argument("--at", type=point, required=True, metavar="X,Y", help="its pixel")
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
    add_device(parser, "cpu, cuda:0 or mps")
    parser.add_argument(
        "--tile", choices=("whole",), help="the image as a whole, for weights that use tiles"
    )
    parser.add_argument("--no-resize", action="store_true", help="keep the size of the image")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Write heat maps of the attention of a pixel; print the files written."""
    from isanet_zoo.imaging.writing import is_marked, write_image
    from isanet_zoo.inference.explain import HOPS
    from isanet_zoo.inference.predictor import Predictor
    from isanet_zoo.zoo import create_model

    stem = Path(options.image).stem
    files = {hop: options.out / f"{stem}.{hop}.png" for hop in HOPS}
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"--out {options.out} cannot be a folder: {reason}") from error
    for file in files.values():
        check_target(file, is_ours=is_marked)
    name = BUILT_IN if options.model is None else options.model
    where = device(options)
    model = create_model(name, options.weights is None, weights=options.weights)
    print_trust(name, model.load_report.trust)
    predictor = Predictor(model, device=where, tile=options.tile, resize=not options.no_resize)
    explanation = predictor.explain(options.image, options.at)
    for hop, file in files.items():
        write_image(explanation.overlay(hop), file)
    if options.json:
        print_json(explanation.to_dict() | {"files": {hop: str(f) for hop, f in files.items()}})
        return 0
    print_note(str(explanation))
    print("\n".join(printable(file, 5000) for file in files.values()))
    return 0


def point(text: str) -> tuple[int, int]:
    """Return (x, y) from text such as `320,200`."""
    x, _, y = text.partition(",")
    if not (x.strip().isdecimal() and y.strip().isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a pixel such as 320,200")
    return int(x), int(y)
