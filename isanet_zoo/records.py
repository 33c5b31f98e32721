"""From JSON to frozen dataclasses: a stray key or a wrong type is an error with an address."""

from __future__ import annotations

import dataclasses
import operator
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from isanet_zoo.errors import InputError, ManifestError, printable

T = TypeVar("T")


def read(cls: type[T], data: object, where: str) -> T:
    """Build the dataclass `cls` from the JSON value `data`.

    Args:
        cls: a dataclass; its fields may be scalars, `Literal`s, optional values, tuples, string
            mappings and dataclasses.
        data: what `json.load` gave. Every field must be there, even where it has a default.
        where: the address of `data`, for error messages: ``models.isanet_resnet50os8_voc``.

    Raises:
        ManifestError: a key is missing or unknown, or a value has the wrong type.
    """
    if not isinstance(data, Mapping):
        raise ManifestError(f"{where}: expected an object, got {_show(data)}")
    hints = get_type_hints(cls)
    names = {field.name for field in dataclasses.fields(cast(Any, cls)) if field.init}
    if missing := names - data.keys():
        raise ManifestError(f"{where}: missing {', '.join(sorted(missing))}")
    if unknown := data.keys() - names:
        raise ManifestError(f"{where}: unknown {', '.join(sorted(map(str, unknown)))}")
    values = {name: _value(hints[name], data[name], f"{where}.{name}") for name in names}
    try:
        return cls(**values)
    except InputError as error:  # the dataclass has rules of its own
        raise ManifestError(f"{where}: {error}") from error


def write(record: object) -> dict[str, Any]:
    """Return the JSON object that `read` turns back into `record`."""
    return dataclasses.asdict(cast(Any, record))


def _value(hint: Any, value: object, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # only `X | None` is in use
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _value(inner, value, where)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise ManifestError(
                f"{where}: {_show(value)} is none of {', '.join(map(str, arguments))}"
            )
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ManifestError(f"{where}: expected a list, got {_show(value)}")
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        if len(arguments) != len(value):
            raise ManifestError(f"{where}: expected {len(arguments)} items, got {len(value)}")
        return tuple(
            _value(argument, item, f"{where}[{index}]")
            for index, (argument, item) in enumerate(zip(arguments, value, strict=True))
        )
    if dataclasses.is_dataclass(hint):
        return read(cast(type[Any], hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ManifestError(f"{where}: expected {hint.__name__}, got {_show(value)}")
    return value


def _show(value: object) -> str:
    """Return a JSON value for a message: scalars as written, containers by type."""
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, str):
        return repr(printable(value, 57))
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else f"an integer of {value.bit_length()} bits"
    return f"a {type(value).__name__}"


def check_choices(record: object) -> None:
    """Check that each field of a dataclass whose type is a `Literal` is one of its values.

    Raises:
        InputError: one is not.
    """
    for name, hint in get_type_hints(type(record)).items():
        value = getattr(record, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            choices = ", ".join(map(repr, get_args(hint)))
            raise InputError(f"{name} is {value!r}; choose one of {choices}")


def whole_number(name: str, value: Any, *, at_least: int = 1) -> int:
    """Return a whole number of any kind (NumPy's too) as an int.

    Raises:
        InputError: it is no whole number, a bool, or too small.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = at_least - 1
    if isinstance(value, bool) or number < at_least:
        raise InputError(f"{name} is {value!r}; it must be a whole number, at least {at_least}")
    return number


def real_number(name: str, value: Any, allowed: str, low: float, high: float) -> float:
    """Return a number within low <= number < high as a float; `allowed` says that in words.

    Raises:
        InputError: it is no such number.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, (bool, str)) or not low <= number < high:
        raise InputError(f"{name} is {value!r}; it must be {allowed}")
    return number
