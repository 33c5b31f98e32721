"""Output of the commands: results on stdout; errors, notes and progress bars on stderr."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO, cast

from isanet_zoo.errors import ZooError


class _Stream:
    """A text stream that accepts every character, and discards text if its reader is gone."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or io.StringIO()  # None without a console

    def write(self, text: str) -> int:
        """Write text; characters that the encoding lacks are escaped."""
        encoding = self._stream.encoding or "utf-8"
        with self._or_discard():
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with self._or_discard():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _or_discard(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())  # so that the interpreter can flush at its exit
            os.close(null)
            if not isinstance(error, BrokenPipeError):  # `isanet-zoo predict images | head -1`
                raise


@contextlib.contextmanager
def robust_streams() -> Iterator[None]:
    """Make stdout and stderr accept every character and outlive their readers."""
    robust = [_Stream(stream) for stream in (sys.stdout, sys.stderr)]
    out, err = (cast(TextIO, stream) for stream in robust)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield
        finally:
            for stream in robust:
                with contextlib.suppress(OSError):
                    stream.flush()


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(value, indent=2))


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
        print("  ".join(cells).rstrip())


def print_markdown(rows: Sequence[Sequence[object]]) -> None:
    """Print rows as a Markdown table; the first row is the header."""
    for number, row in enumerate(rows):
        print(f"| {' | '.join(map(str, row))} |")
        if number == 0:
            print("|" + "---|" * len(row))


def print_tree(tree: dict[str, Any], indent: str = "") -> None:
    """Print nested values, one `key: value` a line."""
    for key, value in tree.items():
        items = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(item, dict) for item in items):
            for item in items:
                print(f"{indent}{key}:")
                print_tree(item, indent + "  ")
        else:
            text = ", ".join("not known" if item is None else str(item) for item in items)
            print(f"{indent}{key}: {text}")


def print_dry(files: Iterable[Sequence[object]], card: str) -> None:
    """Print the files of an upload that was not made, and their model card."""
    print_table(files)
    print(f"\n{card}", end="")
    print_note("a dry run; nothing was uploaded")


def print_trust(name: str, trust: str) -> None:
    """Print the trust of weights on stderr."""
    print_note(f"{name}: {trust} weights")


def print_lines(*lines: str) -> None:
    """Print lines on stderr."""
    print(*lines, sep="\n", file=sys.stderr)


def print_note(text: str) -> None:
    """Print a line on stderr."""
    print(f"isanet-zoo: {text}", file=sys.stderr)


def complain(error: object) -> None:
    """Print an error on stderr."""
    print_note(f"error: {error}")


class Bar:
    """A progress bar on stderr that appears with its first update."""

    def __init__(self, unit: str, *, shown: bool) -> None:
        self.unit, self.shown = unit, shown
        self.bar: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, done: int, total: int | None, text: str = "") -> None:
        """Show that `done` of `total` are done."""
        from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

        if self.bar is None:
            self.bar = tqdm(total=total, unit=self.unit, disable=not self.shown)  # type: ignore[no-untyped-call]
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(done - self.bar.n)
        if done == total:
            self.bar.close()

    def note(self, text: str) -> None:
        """Print a line above the bar, if it is shown."""
        if self.shown and self.bar is not None:
            self.bar.write(f"isanet-zoo: {text}", file=sys.stderr)

    def annotate(self, text: str) -> None:
        """Replace the text of a bar that is shown."""
        if self.bar is not None:
            self.bar.set_postfix_str(text)


def run_each(names: Iterable[str], act: Callable[[str], object]) -> int:
    """Call a function for each name, also after failures; return 1 if there were any."""
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
