"""Output of the commands: JSON, tables and trees on stdout, errors and notes on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from isanet_zoo.errors import ZooError


def print_text(text: str, end: str = "\n") -> None:
    """Print text on stdout, whatever its encoding; discard it when the reader is gone."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, flush=True)
    except BrokenPipeError:  # `isanet-zoo predict images | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    print_text(json.dumps(value, indent=2))


def print_table(rows: Iterable[Sequence[object]]) -> None:
    """Print rows in aligned columns, numbers to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    numeric = [all(_is_number(cell) for cell in column[1:]) for column in zip(*texts, strict=True)]
    for row in texts:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        print_text("  ".join(cells).rstrip())


def print_markdown(rows: Sequence[Sequence[object]]) -> None:
    """Print rows as a Markdown table; the first row is the header."""
    for number, row in enumerate(rows):
        print_text(f"| {' | '.join(map(str, row))} |")
        if number == 0:
            print_text("|" + "---|" * len(row))


def print_tree(tree: dict[str, Any], indent: str = "") -> None:
    """Print nested values, one `key: value` a line."""
    for key, value in tree.items():
        items = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(item, dict) for item in items):
            for item in items:
                print_text(f"{indent}{key}:")
                print_tree(item, indent + "  ")
        else:
            text = ", ".join("not known" if item is None else str(item) for item in items)
            print_text(f"{indent}{key}: {text}")


def print_dry(files: Iterable[Sequence[object]], card: str) -> None:
    """Print the files of an upload that was not made, and their model card."""
    print_table(files)
    print_text(f"\n{card}", end="")
    print("isanet-zoo: a dry run; nothing was uploaded", file=sys.stderr)


def print_trust(name: str, trust: str) -> None:
    """Print the trust of weights on stderr."""
    print(f"isanet-zoo: {name}: {trust} weights", file=sys.stderr)


def print_note(text: str) -> None:
    """Print a note on stderr."""
    print(f"isanet-zoo: {text}", file=sys.stderr)


def complain(error: object) -> None:
    """Print an error on stderr."""
    print(f"isanet-zoo: error: {error}", file=sys.stderr)


def run_each(names: Iterable[str], act: Callable[[str], object]) -> int:
    """Call a function for each name, past failures; return 1 if there were any."""
    status = 0
    for name in names:
        try:
            act(name)
        except ZooError as error:
            complain(error)
            status = 1
    return status


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()
