"""Frozen dataclasses with checked fields, and their JSON form.

The type of a field states everything that it accepts::

    @dataclass(frozen=True)
    class Crop(Record):
        side: Annotated[int, Range(1, 4096)]
        mode: Literal["whole", "slide"]
        note: Annotated[str, Text(80)] | None

A record is checked when it is built, from Python or from JSON. Numbers are finite, strings are
printable and bounded, whether or not the type states more.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
import numbers
import operator
import re
import sys
import types
from collections.abc import Mapping
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from isanet_zoo.errors import InputError, ManifestError, did_you_mean, printable

T = TypeVar("T")

MOST_CLASSES = 4096  # of a network and of its label set; `predict` supports up to 256
LONGEST_JSON = 1 << 20  # bytes
LONGEST_INTEGER = 20  # digits
FINITE = sys.float_info.max


class Range(NamedTuple):
    """Bounds of a number, or of the length of a tuple, both included."""

    low: float
    high: float

    def __str__(self) -> str:
        low, high = (n if isinstance(n, int) else f"{n:.16g}" for n in self)
        if self.high >= FINITE:
            return f", at least {low}" if self.low > -FINITE else ""
        return f" from {low} to {high}"


class Text(NamedTuple):
    """Bounds of a string's length, and a pattern for all of it; `words` describes the pattern."""

    longest: int = 1000
    shortest: int = 0
    pattern: str = ""
    words: str = ""

    def allows(self, text: str) -> bool:
        """Return whether the string is printable and within the bounds."""
        return (
            self.shortest <= len(text.strip()) <= len(text) <= self.longest
            and text.isprintable()
            and (not self.pattern or re.fullmatch(self.pattern, text) is not None)
        )

    def __str__(self) -> str:
        return self.words or f"printable text of {self.shortest} to {self.longest} characters"


Sha256 = Annotated[str, Text(64, pattern="[0-9a-f]{64}", words="a lower-case hex sha256")]


class Record:
    """Base class of frozen dataclasses that check their fields when they are built.

    Values of equivalent types are converted: lists to tuples, NumPy's numbers to Python's.

    Raises:
        InputError: a field has another type or is out of range; the message states both.
    """

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for name, hint in _hints(cls).items():
            object.__setattr__(self, name, _convert(hint, getattr(self, name), name))


def read(cls: type[T], data: object, where: str) -> T:
    """Build the dataclass `cls` from the JSON value `data`.

    Args:
        cls: a dataclass; its fields may be scalars, `Literal`s, optional values, tuples and
            dataclasses, with bounds as `Annotated`.
        data: the value that `parse` returned. Every field must be there, even one with a default,
            unless its metadata has the value that it has in files of earlier versions: ``absent``.
        where: the address of `data`, for error messages: ``models.isanet_resnet50os8_voc``.

    Raises:
        ManifestError: a key is missing or unknown, or a value has the wrong type or range.
    """
    try:
        return cast(T, _read(cls, data, where))
    except InputError as error:
        raise ManifestError(str(error)) from error


def write(record: object) -> dict[str, Any]:
    """Return the JSON object from which `read` builds `record`."""
    return dataclasses.asdict(cast(Any, record))


def parse(text: bytes | str, where: str, *, longest: int = LONGEST_JSON) -> object:
    """Parse JSON from an untrusted source.

    Args:
        text: the JSON; bytes are decoded as UTF-8.
        where: its address, for error messages.
        longest: bound of its length.

    Raises:
        ManifestError: it is too long or no JSON, or has a key twice, an integer of more than 20
            digits, or too many levels.
    """
    if len(text) > longest:
        raise ManifestError(f"{where} cannot be read: it has more than {longest} characters")
    try:
        return json.loads(
            text.decode("utf-8") if isinstance(text, bytes) else text,
            object_pairs_hook=_unique,
            parse_int=_integer,
        )
    except RecursionError as error:
        raise ManifestError(f"{where} cannot be read: it has too many levels") from error
    except ValueError as error:
        raise ManifestError(f"{where} cannot be read: {error}") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = collections.Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key '{printable(twice)}' occurs twice")
    return found


def _integer(text: str) -> int:
    if (digits := len(text.lstrip("-"))) > LONGEST_INTEGER:
        raise ValueError(f"an integer has {digits} digits")
    return int(text)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Return the types of the fields of a dataclass, with their bounds."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cast(Any, cls))}


def _read(cls: type, data: object, where: str) -> object:
    if not isinstance(data, Mapping):
        raise _refusal(where, data, "an object")
    hints, fields = _hints(cls), dataclasses.fields(cast(Any, cls))
    absent = {field.name: field.metadata["absent"] for field in fields if field.metadata}
    data = absent | dict(data)
    if missing := hints.keys() - data.keys():
        raise InputError(f"{where}: missing {', '.join(sorted(missing))}")
    if unknown := sorted(str(key) for key in data.keys() - hints.keys()):
        advice = did_you_mean(unknown[0], hints, "")
        raise InputError(f"{where}: unknown {', '.join(unknown)}{advice and '; '}{advice}")
    values = {name: _convert(hint, data[name], f"{where}.{name}") for name, hint in hints.items()}
    try:
        return cls(**values)
    except InputError as error:  # a rule that joins several fields
        raise InputError(f"{where}: {error}") from error


def _convert(hint: Any, value: object, where: str) -> Any:
    """Return `value` as the type `hint`."""
    rule: Any = None
    if get_origin(hint) is Annotated:
        hint, rule = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):  # only `X | None` is in use
        hint = next(argument for argument in get_args(hint) if argument is not type(None))
        return None if value is None else _convert(hint, value, where)
    if get_origin(hint) is Literal:
        return _choice(get_args(hint), value, where)
    if get_origin(hint) is tuple:
        return _items(get_args(hint), rule, value, where)
    if dataclasses.is_dataclass(hint):
        cls = cast(type, hint)
        return value if isinstance(value, cls) else _read(cls, value, where)
    if hint in (int, float):
        number, rule = _number(value, hint), rule or Range(-FINITE, FINITE)
        if not rule.low <= number <= rule.high:
            raise _refusal(where, value, f"a {'whole ' if hint is int else ''}number{rule}")
        return number
    if not isinstance(value, hint):
        raise _refusal(where, value, {str: "a string", bool: "true or false"}[hint])
    if hint is str and not (rule := rule or Text()).allows(value):
        raise _refusal(where, value, rule)
    return value


def _choice(choices: tuple[object, ...], value: object, where: str) -> object:
    if isinstance(value, (str, int)) and not isinstance(value, bool) and value in choices:
        return value
    raise _refusal(where, value, f"one of {', '.join(map(repr, choices))}")


def _items(
    hints: tuple[Any, ...], rule: Range | None, value: object, where: str
) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _refusal(where, value, "a list")
    if hints[-1] is Ellipsis:
        rule = rule or Range(0, 1000)
        if not rule.low <= len(value) <= rule.high:
            raise InputError(f"{where} has {len(value)} items; there must be{rule}")
        hints = hints[:1] * len(value)
    if len(hints) != len(value):
        raise InputError(f"{where} has {len(value)} items; there must be {len(hints)}")
    return tuple(
        _convert(hint, item, f"{where}[{index}]")
        for index, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _number(value: Any, kind: type) -> Any:
    """Return a number of any library as int or float; NaN for all else."""
    if isinstance(value, (bool, str, bytes)):
        return math.nan
    try:
        return operator.index(value) if kind is int else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _refusal(where: str, value: object, expected: object) -> InputError:
    return InputError(f"{where} is {_show(value)}; it must be {expected}")


def _show(value: object) -> str:
    """Return a value for a message: scalars as written, others by type."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return f"'{printable(value, 57)}'"
    if isinstance(value, numbers.Integral):
        return str(value) if abs(value) < 10**LONGEST_INTEGER else "a very large integer"
    return str(value) if isinstance(value, numbers.Real) else f"a {type(value).__name__}"


def whole_number(name: str, value: Any, *, at_least: int = 1, at_most: float = math.inf) -> int:
    """Return an option that is a whole number of any kind (NumPy's too) as an int.

    Raises:
        InputError: it is no whole number, a bool, or out of range.
    """
    number: int = _convert(Annotated[int, Range(at_least, at_most)], value, name)
    return number


def real_number(name: str, value: Any, allowed: str, low: float, high: float) -> float:
    """Return an option within low <= number < high as a float; `allowed` states that in words.

    Raises:
        InputError: it is no such number.
    """
    number: float = _number(value, float)
    if not low <= number < high:
        raise _refusal(name, value, allowed)
    return number
