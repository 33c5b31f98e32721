"""Write `command_line.md` from the parser: `python docs/command_line.py`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from isanet_zoo.commands.main import make_parser

HEAD = """\
# Command line

Results are printed on stdout, the log and progress on stderr. The exit status is 0, 1 if something
failed, or 2 for wrong usage. `isanet-zoo COMMAND --help` prints what follows.
"""

BAR = r"\|"  # in a table


def render() -> str:
    """Return the page: a section for each command."""
    parser = make_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    sections = [
        "\n".join(
            [f"## {name}\n", f"{command.description}\n", *_arguments(command), *_epilog(command)]
        )
        for name, command in commands.choices.items()
    ]
    return "\n".join([HEAD, *sections])


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield "| argument | |"
    yield "|---|---|"
    for action in parser._actions:
        if action.dest != "help" and action.help != argparse.SUPPRESS:
            name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
            if action.option_strings and action.nargs != 0:
                values = action.metavar or (action.choices and "|".join(map(str, action.choices)))
                name += f" {values or action.dest.upper()}"
            cells = (f"`{name}`", action.help or "")
            yield f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"
    yield ""


def _epilog(parser: argparse.ArgumentParser) -> Iterator[str]:
    if parser.epilog:
        yield f"```console\n$ {parser.epilog.removeprefix('example: ')}\n```\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(render(), "utf-8")
