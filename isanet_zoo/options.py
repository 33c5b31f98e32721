"""Checks of the numbers that a user passes."""

from __future__ import annotations

import operator
from typing import Any, Literal, get_args, get_origin, get_type_hints

from isanet_zoo.errors import InputError


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
