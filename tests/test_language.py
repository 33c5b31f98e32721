"""Words that the documentation, docstrings and messages avoid."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

import isanet_zoo
from isanet_zoo.commands.main import make_parser

PACKAGE = Path(isanet_zoo.__file__).parent
ROOT = PACKAGE.parent

AVOIDED = re.compile(  # word, and what to write
    r"""\b(
    pictures?                              # image
    | strips? | rims?                      # row block; border, halo
    | contenders?                          # candidate
    | brings?\ (along|back|\w+\ (along|back))  # include, load
    | lets?\ go\ of | works?\ off          # free, process
    | whatever | whoever | nobody          # any, no one
    | at\ the\ moment | as\ ever           # current, as usual
    | of\ (its|their|your|one's)\ own      # separate, custom
    | asked | asks                         # request, query
    | knows? | says? | said                # support, contain; return, print, state
    | vouch(es)? | riddles? | crumbles?
    | goes?\ on | gives                    # continue, return
    | the\ plain\ way                      # eager, unfused
    )\b""",
    re.VERBOSE | re.IGNORECASE,
)


def text_of(path: Path) -> str:
    """Return the comments and strings of a Python file, or the text of another file."""
    source = path.read_text("utf-8")
    if path.suffix != ".py":
        return source
    return "\n".join(
        token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type in (tokenize.COMMENT, tokenize.STRING)
        or tokenize.tok_name[token.type] == "FSTRING_MIDDLE"
    )


@pytest.mark.parametrize(
    "path",
    [
        *sorted(PACKAGE.rglob("*.py")),
        *sorted(PACKAGE.rglob("*.jinja")),
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md")),
    ],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_text_of_file_avoids_unclear_words(path: Path) -> None:
    assert sorted({match[0] for match in AVOIDED.finditer(text_of(path))}) == []


def test_help_of_every_command_avoids_unclear_words() -> None:
    parser = make_parser()
    texts = [parser.format_help()]
    for action in parser._subparsers._group_actions:  # type: ignore[union-attr]
        texts += [command.format_help() for command in action.choices.values()]  # type: ignore[union-attr]
    assert sorted({match[0] for text in texts for match in AVOIDED.finditer(text)}) == []
