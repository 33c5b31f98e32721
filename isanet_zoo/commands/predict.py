"""Command `predict`."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isanet_zoo.commands.arguments import add_json, add_prediction, add_weights, prediction, to_path
from isanet_zoo.commands.output import complain, print_note, print_trust
from isanet_zoo.errors import InputError, printable

if TYPE_CHECKING:
    from isanet_zoo.imaging.segmentation import Segmentation
    from isanet_zoo.inference.folders import Result
    from isanet_zoo.inference.outputs import Outputs
    from isanet_zoo.inference.predictor import Predictor

BUILT_IN = "isanet_efficientnet_lite0os8_camvid"
BUILT_IN_NOTE = (
    f"using {BUILT_IN}, the built-in model. It segments streets seen from a car "
    "(CamVid's 11 classes); for personal and research use (CC BY-NC 4.0). `isanet-zoo list` shows "
    "larger models; choose one with -m."
)
MOST_ERRORS = 100  # listed at the end; `--resume` tries all of them again
SHOWN_CLASSES = 3  # on the line of an image
SECONDS_BETWEEN_BARS = 30.0  # in log files


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


def shard(text: str) -> tuple[int, int]:
    """Return (index, count) from text such as `3/100`."""
    match = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    index, count = map(int, match.groups()) if match else (0, 0)
    if index >= count:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a shard such as 0/4, the first of four; the last one is 3/4"
        )
    return index, count


def run(options: argparse.Namespace) -> int:
    """Segment images and print what was found; return 1 if an image failed."""
    from isanet_zoo.inference.outputs import make_folders, pending
    from isanet_zoo.inference.predictor import Predictor
    from isanet_zoo.zoo import create_model

    outputs = _outputs(options)
    rank, processes = _process()
    planned = _shard(_plan(options, processes), options.shard, (rank, processes))
    todo = pending(planned, outputs, resume=options.resume, overwrite=options.overwrite)
    checked = prediction(options)
    if outputs.parts:
        make_folders(todo, outputs)
    name = BUILT_IN if options.model is None else options.model
    if options.model is None and rank == 0:
        print_note(BUILT_IN_NOTE)
    model = create_model(name, options.weights is None, weights=options.weights)
    if rank == 0:
        print_trust(name, model.load_report.trust)
    predictor = Predictor(model, **checked, confidence="confidence" in outputs.parts)
    status = _segment_all(
        predictor,
        todo,
        outputs,
        as_json=options.json,
        skipped=len(planned) - len(todo),
        show_bar=rank == 0,
    )
    if processes > 1:
        _wait_for_others()
    return status


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


def _process() -> tuple[int, int]:
    """Return this process's number and the number of processes under `torchrun`."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


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


def _wait_for_others() -> None:
    """Wait for the other processes: `torchrun` ends all once one exits with an error."""
    import datetime

    from isanet_zoo.learning.distributed import gather, process_group

    with process_group("cpu", timeout=datetime.timedelta(days=30)):
        gather(None)


def _segment_all(
    predictor: Predictor,
    todo: dict[str, str],
    outputs: Outputs,
    *,
    as_json: bool,
    skipped: int,
    show_bar: bool,
) -> int:
    """Segment images and print a line for each; list the errors at the end, also of a failure."""
    from isanet_zoo.inference.folders import segment_files

    errors: list[str] = []
    done, total = 0, len(todo)
    began = time.perf_counter()
    try:
        with _progress(total, skipped, show_bar) as bar:
            for result in segment_files(predictor, todo, outputs):
                ended = time.perf_counter()
                bar.update()
                if result.error:
                    errors += [str(result.error)] if len(errors) < MOST_ERRORS else []
                done += result.error is None
                if line := _line(result, ended - began, as_json):
                    bar.write(line, file=sys.stdout)
                    sys.stdout.flush()
                began = ended
    finally:
        if missing := total - done:
            complain(f"{missing} of {total} images could not be segmented:")
            print("".join(f"  {line}\n" for line in errors), end="", file=sys.stderr)
            if len(errors) == MOST_ERRORS < missing:
                print(f"  and {missing - len(errors)} more", file=sys.stderr)
    if skipped:
        print_note(f"{skipped} images were skipped, whose results exist")
    return 1 if total > done else 0


def _progress(total: int, skipped: int, show: bool) -> Any:
    """Return a progress bar on stderr, with images per second and the time left."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    interval = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_BARS
    return tqdm(  # type: ignore[no-untyped-call]
        total=total + skipped,
        initial=skipped,
        unit=" images",
        mininterval=interval,
        maxinterval=max(interval, 10.0),
        disable=total <= 1 or not show,
    )


def _line(result: Result, seconds: float, as_json: bool) -> str:
    """Return what is printed on stdout for an image: JSON, classes for people, or its files."""
    if as_json:
        return json.dumps(_record(result, seconds))
    if result.segmentation is None:
        return ""
    if sys.stdout.isatty() or not result.files:
        return _describe(result.source, result.segmentation, seconds)
    return "\n".join(printable(file, 5000) for file in result.files)


def _describe(source: str, segmentation: Segmentation, seconds: float) -> str:
    """Return a line about an image: name, size, largest classes, time."""
    height, width = segmentation.labels.shape
    classes = ", ".join(
        f"{segmentation.label_set.short_name(index)} {100 * fraction:.1f} %"
        for index, _, fraction in segmentation.present()[:SHOWN_CLASSES]
    )
    return f"{printable(source, 5000)}  {width}x{height}  {classes}  {seconds:.2f} s"


def _record(result: Result, seconds: float) -> dict[str, Any]:
    """Return a result as JSON."""
    if result.segmentation is None:
        return {"image": result.source, "error": str(result.error)}
    height, width = result.segmentation.labels.shape
    classes = [
        {"id": index, "name": name, "fraction": fraction}
        for index, name, fraction in result.segmentation.present()
    ]
    return {
        "image": result.source,
        "width": width,
        "height": height,
        "classes": classes,
        "files": [*map(str, result.files)],
        "seconds": round(seconds, 4),
    }
