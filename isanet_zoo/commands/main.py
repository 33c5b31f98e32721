"""Command line `isanet-zoo`: its parser, table of commands, log and exit status."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from isanet_zoo.commands import browse, files, learn, maintain, predict, share
from isanet_zoo.commands.output import complain
from isanet_zoo.errors import ZooError
from isanet_zoo.version import __version__

# What needs torch is imported inside the run functions: `list`, `info` and `--help` stay fast, and
# `env` works where torch is broken.
Command = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]
COMMANDS: dict[str, Command] = {  # name -> summary, arguments, run
    "list": ("List the published weights.", browse.list_arguments, browse.list_run),
    "info": ("Say everything about one published weight.", browse.info_arguments, browse.info_run),
    "download": (
        "Fetch, check and convert weights; print where they are.",
        files.download_arguments,
        files.download_run,
    ),
    "predict": (
        "Segment pictures: an index PNG and an overlay with legend for each.",
        predict.arguments,
        predict.run,
    ),
    "evaluate": (
        "Measure a model on a data set: IoU per class; run by torchrun, with all its processes.",
        learn.evaluate_arguments,
        learn.evaluate_run,
    ),
    "train": (
        "Train or fine-tune a model; run by torchrun, with all its processes.",
        learn.train_arguments,
        learn.train_run,
    ),
    "convert": (
        "Convert an upstream checkpoint of your own to safetensors.",
        files.convert_arguments,
        files.convert_run,
    ),
    "push": (
        "Publish a model on the Hugging Face hub, with its classes and a model card.",
        share.push_arguments,
        share.push_run,
    ),
    "export": (
        "Write a model as an ONNX file that was compared with it in onnxruntime.",
        share.export_arguments,
        share.export_run,
    ),
    "verify": (
        "Read everything that is cached and compare it with what was put there.",
        files.verify_arguments,
        files.verify_run,
    ),
    "cache": (
        "Show where weights are cached and how much they take, or delete some.",
        files.cache_arguments,
        files.cache_run,
    ),
    "env": (
        "Say what is installed and where things are, for a bug report.",
        browse.env_arguments,
        browse.env_run,
    ),
    "pin": (
        "Write sha256, size and state digest of published files into the manifest (maintainers).",
        maintain.pin_arguments,
        maintain.pin_run,
    ),
    "mirror": (
        "Put converted weights on the hub, and their place there into the manifest (maintainers).",
        maintain.mirror_arguments,
        maintain.mirror_run,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0, or 1 if it failed."""
    options = make_parser().parse_args(arguments)
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
        complain(error)
        return 1
    except ImportError as error:  # a broken torch, say
        complain(f"{error}; `isanet-zoo env` shows what is installed")
        return 1
    except BrokenPipeError:  # `isanet-zoo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="isanet-zoo",
        description="Every published ISANet weight, one line away.",
        epilog="Variables: ISANET_ZOO_CACHE (folder for weights), ISANET_ZOO_MIRROR (comma list of "
        "folders and URLs to ask first), ISANET_ZOO_OFFLINE=1 (no network).",
    )
    parser.add_argument("--version", action="version", version=f"isanet-zoo {__version__}")
    _add_verbose(parser, False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (summary, add_arguments, run) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        # Without a default, a `-v` before the command is kept.
        _add_verbose(command, argparse.SUPPRESS)
        add_arguments(command)
        command.set_defaults(run=run)
    return parser


def _add_verbose(parser: argparse.ArgumentParser, default: object) -> None:
    parser.add_argument(
        "-v", "--verbose", action="store_true", default=default, help="say more on stderr"
    )
