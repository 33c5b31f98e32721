"""Classes of a data set: `classes.txt`, and the class of pixels outside all annotations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from isanet_zoo.errors import InputError, printable
from isanet_zoo.files import open_regular
from isanet_zoo.manifest.labels import LabelSet

MAX_CLASSES = 255  # 255 remains for pixels without a class
MAX_TEXT = 1 << 24  # bytes of a list of names
COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


def read_classes(path: Path) -> LabelSet:
    """Read the names of classes, one per line in the order of their ids, and their colours.

    A line is a name, or a name and a colour: ``road #804080``. Either all lines have a colour, or
    none.

    Raises:
        InputError: there is no such file, it is not a text, it is empty, it contains too many
            names or a name or colour twice, or a colour cannot be read.
    """
    try:
        lines = read_lines(path)
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist; write the names of the classes into it, one per line in the "
            "order of their ids"
        ) from None
    names, colours = zip(*map(_split, lines), strict=True) if lines else ((), ())
    _check_once(path, names, "class", "name")
    if any(colours):
        if not all(colours):
            raise InputError(
                f"{path} has a colour for {names[_first(colours, True)]!r}, but none for "
                f"{names[_first(colours, False)]!r}; write one for each class, such as "
                "road #804080, or for none"
            )
        if wrong := [colour for colour in colours if not COLOUR.fullmatch(colour)]:
            raise InputError(f"{path} has the colour {wrong[0]!r}; write it like #804080")
        colours = tuple(colour.lower() for colour in colours)
        _check_once(path, colours, "colour", "colour")
    try:
        return make_label_set(names, path.parent, colours if any(colours) else ())
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _split(line: str) -> tuple[str, str]:
    """Return the name and the colour in a line; the colour is empty if there is none."""
    name, _, last = line.rpartition(" ")
    return (name.strip(), last) if name.strip() and last.startswith("#") else (line, "")


def _first(colours: Sequence[str], present: bool) -> int:
    return [bool(colour) for colour in colours].index(present)


def _check_once(path: Path, items: Sequence[str], what: str, kind: str) -> None:
    if len(items) > MAX_CLASSES:
        raise InputError(f"{path} has {len(items)} names; 8-bit masks allow {MAX_CLASSES} classes")
    if not items or len(set(items)) != len(items):
        twice = ", ".join(sorted({item for item in items if items.count(item) > 1}))
        raise InputError(
            f"{path} must contain each {what} once, one per line; found {twice or f'no {kind}'}"
        )


def make_label_set(names: Sequence[str], root: Path, colours: Sequence[str] = ()) -> LabelSet:
    """Return the label set of a folder: ids from 0, the folder's name, VOC's colours by default.

    Raises:
        InputError: a name is too long or occurs twice.
    """
    folder = printable(root.resolve().name, 90) or "folder"
    generic = LabelSet.generic(len(names))
    palette = tuple(colours) or generic.palette
    return replace(generic, name=folder, title=folder, names=tuple(names), palette=palette)


def add_background(label_set: LabelSet, name: str | None) -> tuple[LabelSet, int]:
    """Return the classes and the id of pixels outside all annotations.

    Args:
        label_set: the classes that are annotated.
        name: the class of other pixels, which is added as the first if it is not among them; None
            for ``"background"``, and ``"none"`` for no class.

    Raises:
        InputError: there are too many classes.
    """
    if name == "none":
        return label_set, label_set.ignore_index
    candidates = (name,) if name else ("background", "_background_", "__background__")
    for candidate in candidates:
        if candidate in label_set.names:
            return label_set, label_set.names.index(candidate)
    if len(label_set) >= MAX_CLASSES:
        raise InputError(f"{len(label_set)} classes and {candidates[0]!r} are more than 255")
    colours = label_set.palette
    if colours == LabelSet.generic(len(label_set)).palette:
        colours = LabelSet.generic(len(label_set) + 1).palette[1:]
    first = "#000000" if "#000000" not in colours else "#ffffff"
    ids = tuple(range(len(label_set) + 1))
    names = (candidates[0], *label_set.names)
    return replace(label_set, names=names, palette=(first, *colours), official_ids=ids), 0


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file without blank ones.

    Raises:
        InputError: it is too long, or not a text in UTF-8.
        OSError: it cannot be opened.
    """
    with open_regular(path) as file:
        content = file.read(MAX_TEXT + 1)
    try:
        lines = content.decode("utf-8-sig").splitlines()  # some editors write a byte order mark
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text in UTF-8: {error}") from error
    if len(content) > MAX_TEXT:
        raise InputError(f"{path} is longer than {MAX_TEXT} bytes; it must be a list of names")
    return [line.strip() for line in lines if line.strip()]
