"""Own classes: unions of a model's classes, and classes that keep their row of a classifier."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypedDict

from isanet_zoo import records
from isanet_zoo.errors import InputError, ManifestError, printable
from isanet_zoo.files import open_regular
from isanet_zoo.manifest.labels import LabelSet


class OwnClass(TypedDict, total=False):
    """A class of the user's: the model's classes that it consists of, and its colour."""

    classes: str | int | Sequence[str | int]  # by name, first synonym or id
    colour: str  # "#rrggbb"; by default that of the first of `classes`


OwnClasses: TypeAlias = Mapping[str, str | int | Sequence[str | int] | OwnClass]
"""Name of each own class -> the model's classes that it consists of, or an `OwnClass`."""


@dataclass(frozen=True)
class ClassGroups:
    """Own classes in place of a model's; each is the union of some of these.

    Attributes:
        label_set: the own classes.
        groups: ids of the model's classes, for each own class; each id occurs once.
    """

    label_set: LabelSet
    groups: tuple[tuple[int, ...], ...]

    @property
    def table(self) -> list[int]:
        """The own class of each value of a label map, 0..255."""
        own = [self.label_set.ignore_index] * 256
        for index, group in enumerate(self.groups):
            for label in group:
                own[label] = index
        return own


def merge_classes(
    label_set: LabelSet, classes: OwnClasses | None, rest: str | None = None
) -> ClassGroups:
    """Return own classes that consist of the classes of a label set.

    Args:
        label_set: the model's classes.
        classes: name of each own class -> names or ids of the classes that it consists of, or an
            `OwnClass` with its colour. None for the label set itself.
        rest: name of an own class of all classes that `classes` does not contain; if None, these
            follow as they are.

    Raises:
        UnknownModelError: the label set has no such class; the message names close ones.
        InputError: a class occurs twice, an own class has none, or a name or colour is not valid.

    Example:
        >>> from isanet_zoo import get_weights
        >>> voc = get_weights("isanet_resnet50os8_voc").label_set
        >>> merge_classes(voc, {"vehicle": ["car", "bus"]}, rest="other").label_set.names
        ('vehicle', 'other')
    """
    if classes is None:
        if rest is not None:
            raise InputError(f"rest is {rest!r}, but there are no own classes; pass classes, too")
        return ClassGroups(label_set, tuple((index,) for index in range(len(label_set))))
    if not isinstance(classes, Mapping):
        raise InputError(
            f"classes is a {type(classes).__name__}; pass a dict of names and lists of names, such "
            'as {"vehicle": ["car", "bus"]}'
        )
    names: list[str] = []
    groups: list[tuple[int, ...]] = []
    palette: list[str] = []

    def add(name: str, ids: Iterable[int], colour: str | None = None) -> None:
        names.append(name)
        groups.append(tuple(ids))
        palette.append(label_set.palette[groups[-1][0]] if colour is None else colour)

    for name, value in classes.items():
        members, colour = _read_class(name, value)
        add(name, map(label_set.index, members), colour)
    used = [index for group in groups for index in group]
    for index in used:
        if used.count(index) > 1:
            owners = ", ".join(repr(n) for n, g in zip(names, groups, strict=True) if index in g)
            raise InputError(f"the class {label_set.names[index]!r} occurs twice, in {owners}")
    left = [index for index in range(len(label_set)) if index not in used]
    if left and rest is not None:
        add(rest, left)
    elif left:
        for index in left:
            add(label_set.names[index], [index])
    own = LabelSet(
        name="own",
        title=f"own classes from {label_set.title}"[:200],
        names=tuple(names),
        palette=tuple(palette),
        official_ids=tuple(range(len(names))),
        ignore_index=label_set.ignore_index,
    )
    return ClassGroups(own, tuple(groups))


def read_own_classes(path: str | os.PathLike[str]) -> OwnClasses:
    """Read own classes from a JSON file, for `merge_classes`.

    Raises:
        InputError: the file cannot be read, or is not an object of names and lists of names.
    """
    try:
        with open_regular(path) as file:
            classes = records.parse(file.read(records.LONGEST_JSON + 1), printable(path))
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be read: {error.strerror or error}") from error
    except ManifestError as error:
        raise InputError(str(error)) from error
    if not isinstance(classes, dict):
        raise InputError(
            f"{printable(path)} is not an object of names and lists of names, such as "
            '{"vehicle": ["car", "bus"]}'
        )
    for name, value in classes.items():
        _read_class(name, value)
    return classes


def _read_class(name: object, value: object) -> tuple[Sequence[Any], str | None]:
    """Return the members of an own class, and its colour if it has one."""
    members, colour = value, None
    if isinstance(value, Mapping):
        members, colour = value.get("classes"), value.get("colour")
        if unknown := value.keys() - {"classes", "colour"}:
            raise InputError(
                f"class {printable(name)!r} has {printable(min(unknown, key=str))!r}; it must have "
                "'classes', and may have a 'colour'"
            )
    if isinstance(members, (str, int)):
        members = [members]
    if not isinstance(members, (list, tuple)) or not members:
        raise InputError(
            f"class {printable(name)!r} must be a list of at least one name of the model's classes"
        )
    return members, colour


def name_classes(names: Sequence[str] | LabelSet, theirs: LabelSet) -> LabelSet:
    """Return a label set of these names; classes that the weights have, too, keep their colours.

    Raises:
        InputError: a name is empty or no string, or two are the same class.
    """
    if isinstance(names, LabelSet):
        return names
    if not isinstance(names, (list, tuple)):
        raise InputError(
            f"classes is a {type(names).__name__}; pass a list of names, or a LabelSet"
        )
    plain = LabelSet.generic(len(names))
    own = replace(plain, name="own", title="own classes", names=tuple(names))
    rows = match_classes(own, theirs)
    kept = [None if row is None else theirs.palette[row] for row in rows]
    free = iter([colour for colour in plain.palette if colour not in kept])
    return replace(own, palette=tuple(colour or next(free) for colour in kept))


def match_classes(own: LabelSet, theirs: LabelSet) -> tuple[int | None, ...]:
    """Return the id of each of a network's classes in the label set of its weights, if it has one.

    Names are compared without regard to case, with underscores and hyphens as spaces; a first
    synonym is enough. Weights whose classes have no names are compared by their number.

    Raises:
        InputError: two names are the same class of the weights.
    """
    if theirs.name == "generic":
        count = len(theirs) if len(theirs) == len(own) else 0
        return tuple(index if index < count else None for index in range(len(own)))
    short = {_plain(theirs.short_name(index)): index for index in reversed(range(len(theirs)))}
    known = short | {_plain(name): index for index, name in enumerate(theirs.names)}
    rows = tuple(known.get(_plain(name)) for name in own.names)
    for row in rows:
        if row is not None and rows.count(row) > 1:
            twice = " and ".join(repr(n) for n, r in zip(own.names, rows, strict=True) if r == row)
            raise InputError(f"classes: {twice} are both {theirs.names[row]!r} of {theirs.title}")
    return rows


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
