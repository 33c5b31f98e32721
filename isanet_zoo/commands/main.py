"""Command line `isanet-zoo`: its parser, table of commands, log and exit status."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from isanet_zoo.commands import (
    browse,
    check,
    evaluate,
    explain,
    files,
    maintain,
    predict,
    share,
    train,
)
from isanet_zoo.commands.output import complain, robust_streams
from isanet_zoo.errors import LONGEST_MESSAGE, ZooError, printable
from isanet_zoo.version import __version__

# Run functions import torch themselves: `list`, `info` and `--help` stay fast, and `env` works if
# torch is broken.
Command = tuple[
    str, str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]
]
COMMANDS: dict[str, Command] = {  # name -> summary, example, arguments, run
    "list": (
        "List the published weights.",
        "list '*resnet101*' --dataset voc",
        browse.list_arguments,
        browse.list_run,
    ),
    "info": (
        "Show all facts about one published weight.",
        "info isanet_resnet50os8_voc",
        browse.info_arguments,
        browse.info_run,
    ),
    "download": (
        "Download, check and convert weights; print their paths.",
        "download isanet_resnet50os8_voc isanet_resnet50os8_ade20k",
        files.download_arguments,
        files.download_run,
    ),
    "predict": (
        "Segment images: an index PNG and an overlay with legend for each.",
        "predict examples/street.jpg -o out",
        predict.arguments,
        predict.run,
    ),
    "explain": (
        "Show which positions of an image reach a pixel through attention.",
        "explain examples/street.jpg --at 120,330 -o out",
        explain.arguments,
        explain.run,
    ),
    "evaluate": (
        "Evaluate a model on a data set: IoU per class; runs under torchrun, too.",
        "evaluate isanet_resnet50os8_voc --data VOCdevkit/VOC2012",
        evaluate.arguments,
        evaluate.run,
    ),
    "check": (
        "Check a data set for training: sizes, classes, mistakes, a contact sheet.",
        "check DATA",
        check.arguments,
        check.run,
    ),
    "train": (
        "Train or fine-tune a model; runs under torchrun, too.",
        "train isanet_resnet50os8_voc --data DATA -o run",
        train.arguments,
        train.run,
    ),
    "convert": (
        "Convert an upstream checkpoint to safetensors.",
        "convert epoch_60.pth mine.safetensors -m isanet_resnet50os8_voc",
        files.convert_arguments,
        files.convert_run,
    ),
    "push": (
        "Upload a model to the Hugging Face Hub, with its classes and a model card.",
        "push isanet_resnet50os8_voc someone/streets --private --dry-run",
        share.push_arguments,
        share.push_run,
    ),
    "export": (
        "Export a model to an ONNX file, which is verified with onnxruntime.",
        "export isanet_resnet50os8_voc voc.onnx --labels --preprocess",
        share.export_arguments,
        share.export_run,
    ),
    "verify": (
        "Compare all cached weights with their recorded hashes.",
        "verify",
        files.verify_arguments,
        files.verify_run,
    ),
    "cache": (
        "Show the cache folder and the sizes of cached weights, or delete some.",
        "cache",
        files.cache_arguments,
        files.cache_run,
    ),
    "env": (
        "Print versions, folders and variables, for a bug report.",
        "env",
        browse.env_arguments,
        browse.env_run,
    ),
}
MAINTAIN: dict[str, Command] = {  # commands for maintainers of the manifest
    "pin": (
        "Write sha256, size and state digest of published files into the manifest.",
        "pin isanet_resnet50os8_voc",
        maintain.pin_arguments,
        maintain.pin_run,
    ),
    "mirror": (
        "Upload converted weights to the Hub and record them in the manifest.",
        "mirror someone/isanet isanet_resnet50os8_voc --dry-run",
        maintain.mirror_arguments,
        maintain.mirror_run,
    ),
}
VARIABLES = """\
variables:
  ISANET_ZOO_CACHE    folder for weights
  ISANET_ZOO_MIRROR   folders and URLs to try first, separated by commas
  ISANET_ZOO_OFFLINE  1 for no network access"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0, or 1 if it failed."""
    with robust_streams():
        try:
            options = make_parser().parse_args(arguments)
            run: Callable[[argparse.Namespace], int] = options.run
            with _log_to_stderr(logging.INFO if options.verbose else logging.WARNING):
                status = run(options)
            print(end="", flush=True)
            return status
        except (ZooError, OSError) as error:
            complain(error)
        except ImportError as error:  # such as a broken torch
            complain(f"{error}; `isanet-zoo env` shows what is installed")
        except KeyboardInterrupt:
            return 130
        return 1


class _Formatter(logging.Formatter):
    """Escape control characters, which names of files may contain."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(
            printable(line, LONGEST_MESSAGE) for line in super().format(record).split("\n")
        )


@contextlib.contextmanager
def _log_to_stderr(level: int) -> Iterator[None]:
    """Print log records of this level and above."""
    logger = logging.getLogger("isanet_zoo")
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("isanet-zoo: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


class _Parser(argparse.ArgumentParser):
    """A parser, also of each command, whose errors are safe for terminals."""

    def error(self, message: str) -> NoReturn:
        """Print an error, in which arguments may be names of a stranger's files, and exit."""
        super().error(printable(message, LONGEST_MESSAGE - 3))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    maintain = "\n".join(f"  {name:<10}{entry[0]}" for name, entry in MAINTAIN.items())
    parser = _Parser(
        prog="isanet-zoo",
        description="Every published ISANet weight, one line away.",
        epilog=f"{VARIABLES}\n\ncommands for maintainers:\n{maintain}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"isanet-zoo {__version__}")
    _add_verbose(parser, False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (summary, example, add_arguments, run) in (COMMANDS | MAINTAIN).items():
        listed: dict[str, Any] = {"help": summary} if name in COMMANDS else {}
        example = f"example: isanet-zoo {example}"
        command = commands.add_parser(name, **listed, description=summary, epilog=example)
        # Without a default, a `-v` before the command is kept.
        _add_verbose(command, argparse.SUPPRESS)
        add_arguments(command)
        command.set_defaults(run=run)
    return parser


def _add_verbose(parser: argparse.ArgumentParser, default: object) -> None:
    parser.add_argument(
        "-v", "--verbose", action="store_true", default=default, help="print more on stderr"
    )
