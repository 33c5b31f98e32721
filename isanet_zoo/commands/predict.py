"""Command `predict`."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isanet_zoo.commands.arguments import (
    add_json,
    add_prediction,
    add_weights,
    load,
    prediction,
    to_path,
)
from isanet_zoo.commands.output import complain, print_note
from isanet_zoo.commands.report import line_of, progress_bar
from isanet_zoo.commands.sharding import shard, torchrun_process, wait_for_others
from isanet_zoo.errors import InputError

if TYPE_CHECKING:
    from isanet_zoo.inference.outputs import Outputs
    from isanet_zoo.inference.predictor import Predictor

BUILT_IN = "isanet_efficientnet_lite0os8_camvid"
BUILT_IN_NOTE = (
    f"using {BUILT_IN}, the built-in model. It segments streets seen from a car "
    "(CamVid's 11 classes); for personal and research use (CC BY-NC 4.0). `isanet-zoo list` shows "
    "larger models; choose one with -m."
)
MOST_ERRORS = 100  # listed at the end; `--resume` tries all of them again


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `predict`."""
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE|DIR|URL|LIST.txt|-",
        help="images, folders, URLs; a text file, or - for standard input, with a path or URL per "
        "line",
    )
    parser.add_argument(
        "-m", "--model", metavar="NAME|PATH", help="see `list` (default: the built-in)"
    )
    add_weights(parser)
    _add_outputs(parser)
    parser.add_argument(
        "-r",
        "--recursive",
        action="store_true",
        help="search the folders below, too; results keep the folders of their images",
    )
    parser.add_argument(
        "--shard",
        type=shard,
        default=(0, 1),
        metavar="I/N",
        help="every N-th image from the I-th on, counted from 0, such as $SLURM_ARRAY_TASK_ID/100; "
        "under torchrun, each process takes its part of them",
    )
    add_prediction(parser)
    add_json(parser, "print a line of JSON for each image, as it is done")


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    """Add the options about result files."""
    parser.add_argument(
        "-o",
        "--out",
        type=to_path,
        default=Path("out"),
        help="folder for the results (default: out)",
    )
    for name, what in (
        ("labels", "the label map, as a PNG whose values are class ids and that shows colours"),
        ("overlay", "the image under the colours of its classes, with a legend"),
        ("confidence", "the probability of each label, as a grey PNG"),
        ("raw", "the label map, as a grey PNG, for programs that replace ids by their colours"),
        ("none", "nothing, only print"),
    ):
        text = f"write {what}" + (" (default: labels and overlay)" if name == "labels" else "")
        parser.add_argument(f"--{name}", action="store_true", help=text)
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="skip images whose results exist already"
    )
    existing.add_argument(
        "--overwrite",
        action="store_true",
        help="replace results that exist already; files that isanet-zoo did not write are kept",
    )


def run(options: argparse.Namespace) -> int:
    """Segment images and print what was found; return 1 if an image failed."""
    from isanet_zoo.inference.outputs import make_folders, pending

    outputs = _outputs(options)
    rank, processes = torchrun_process()
    planned = _shard(_plan(options, processes), options.shard, (rank, processes))
    todo = pending(planned, outputs, resume=options.resume, overwrite=options.overwrite)
    skipped = len(planned) - len(todo)
    if skipped:
        print_note(f"{skipped} images are skipped, whose results exist")
    status = 0
    if todo:
        name = BUILT_IN if options.model is None else options.model
        checked = prediction(options, name) | {"confidence": "confidence" in outputs.parts}
        if outputs.parts:
            make_folders(todo, outputs)
        predictor = _load(name, options, checked, quiet=rank > 0)
        with progress_bar(len(todo), skipped, show=rank == 0) as bar:
            status = _segment_all(predictor, todo, outputs, bar, as_json=options.json)
    if processes > 1:
        wait_for_others(processes)
    return status


def _load(
    name: str, options: argparse.Namespace, checked: dict[str, Any], *, quiet: bool
) -> Predictor:
    """Return the predictor of the options, and print which model it is unless `quiet`."""
    from isanet_zoo.inference.predictor import Predictor

    if options.model is None and not quiet:
        print_note(BUILT_IN_NOTE)
    model = load(name, options.weights, show_trust=not quiet)
    return Predictor(model, **checked)


def _outputs(options: argparse.Namespace) -> Outputs:
    """Return what is written, as the options choose it."""
    from isanet_zoo.inference.outputs import PARTS, Outputs

    parts = tuple(part for part in PARTS if getattr(options, part))
    if options.raw and "labels" not in parts:
        parts = ("labels", *parts)
    if options.none:
        if parts or options.resume or options.overwrite:
            raise InputError("--none writes no files; drop it, or the other options about files")
        return Outputs(options.out, ())
    return Outputs(options.out, parts or ("labels", "overlay"), options.raw)


def _plan(options: argparse.Namespace, processes: int) -> dict[str, str]:
    """Return all images, with the names of their results."""
    from isanet_zoo.inference.inputs import find_inputs
    from isanet_zoo.inference.outputs import plan

    stdin: Iterable[bytes] = ()
    if "-" in options.images:
        if processes > 1:
            raise InputError(
                "the processes of torchrun share one standard input; write the list to a text file"
            )
        stdin = sys.stdin.buffer
    return plan(
        find_inputs(options.images, stdin=stdin, recursive=options.recursive, out=options.out)
    )


def _shard(planned: dict[str, str], *shards: tuple[int, int]) -> dict[str, str]:
    """Return a shard of a shard of the images, whose files exist."""
    from isanet_zoo.inference.inputs import check_files

    for index, count in shards:
        planned = dict(itertools.islice(planned.items(), index, None, count))
    check_files(planned)
    return planned


def _segment_all(
    predictor: Predictor, todo: dict[str, str], outputs: Outputs, bar: Any, *, as_json: bool
) -> int:
    """Segment images and print a line for each; list the errors at the end, also of a failure."""
    from isanet_zoo.inference.folders import segment_files

    errors: list[str] = []
    done = 0
    began = time.perf_counter()
    try:
        for result in segment_files(predictor, todo, outputs):
            ended = time.perf_counter()
            bar.update()
            if result.error is None:
                done += 1
            elif len(errors) < MOST_ERRORS:
                errors.append(str(result.error))
            if line := line_of(result, ended - began, as_json):
                bar.write(line, file=sys.stdout)
                sys.stdout.flush()
            began = ended
    finally:
        bar.close()
        if missing := len(todo) - done:
            complain(f"{missing} of {len(todo)} images could not be segmented:")
            print("".join(f"  {line}\n" for line in errors), end="", file=sys.stderr)
            if len(errors) == MOST_ERRORS < missing:
                print(f"  and {missing - MOST_ERRORS} more", file=sys.stderr)
    return 1 if missing else 0
