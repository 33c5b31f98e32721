"""Reading of JSON into records, and the checks of their fields."""

from __future__ import annotations

import contextlib
import json
import math
import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given, strategies as st

from isanet_zoo import records
from isanet_zoo.errors import InputError, ManifestError
from isanet_zoo.records import Range, Record, Text, real_number, whole_number


@dataclass(frozen=True)
class Inner(Record):
    size: tuple[int, int]
    mode: Literal["a", "b"]


@dataclass(frozen=True)
class Outer(Record):
    name: Annotated[str, Text(8, 1)]
    fraction: Annotated[float, Range(0, 1)]
    on: bool
    note: str | None
    parts: Annotated[tuple[Inner, ...], Range(1, 3)]
    count: Annotated[int, Range(1, 9)]
    code: Annotated[str, Text(3, pattern="[a-z]+", words="letters")]


GOOD: dict[str, Any] = {
    "name": "n",
    "fraction": 1,
    "on": False,
    "note": None,
    "parts": [{"size": [1, 2], "mode": "a"}, {"size": [3, 4], "mode": "b"}],
    "count": 9,
    "code": "abc",
}
OUTER = Outer("n", 1.0, False, None, (Inner((1, 2), "a"), Inner((3, 4), "b")), 9, "abc")


def test_read_inverts_write() -> None:
    outer = records.read(Outer, GOOD, "top")
    assert outer == OUTER
    assert isinstance(outer.fraction, float)
    assert records.read(Outer, json.loads(json.dumps(records.write(outer))), "top") == outer


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": 3}, "name is 3; it must be a string"),
    ({"name": ""}, "name is ''; it must be printable text of 1 to 8 characters"),
    ({"name": "   "}, "name is '   '; it must be printable text"),
    ({"name": "ninechars"}, "name is 'ninechars'; it must be printable text"),
    ({"name": "a\x1b[2J"}, r"name is .*x1b\[2J.*; it must be printable text"),
    ({"name": "a\nb"}, "name is .*; it must be printable text"),
    ({"name": "\ud800"}, r"name is .*ud800.*; it must be printable text"),
    ({"name": "a\u202eb"}, r"name is .*u202e.*; it must be printable text"),
    ({"note": "x" * 1001}, "note is 'x+...'; it must be printable text of 0 to 1000 characters"),
    ({"fraction": True}, "fraction is True; it must be a number from 0 to 1"),
    ({"fraction": "1"}, "fraction is '1'; it must be a number from 0 to 1"),
    ({"fraction": 1.001}, "fraction is 1.001; it must be a number from 0 to 1"),
    ({"fraction": math.nan}, "fraction is nan; it must be a number from 0 to 1"),
    ({"fraction": math.inf}, "fraction is inf; it must be a number from 0 to 1"),
    ({"fraction": 10**400}, "fraction is a very large integer; it must be a number from 0 to 1"),
    ({"on": 1}, "on is 1; it must be true or false"),
    ({"note": 7}, "note is 7; it must be a string"),
    ({"count": 0}, "count is 0; it must be a whole number from 1 to 9"),
    ({"count": 1.0}, "count is 1.0; it must be a whole number from 1 to 9"),
    ({"count": None}, "count is None; it must be a whole number from 1 to 9"),
    ({"code": "ABC"}, "code is 'ABC'; it must be letters"),
    ({"code": "ab\n"}, "code is 'ab.*n'; it must be letters"),
    ({"parts": "ab"}, "parts is 'ab'; it must be a list"),
    ({"parts": []}, "parts has 0 items; there must be from 1 to 3"),
    ({"parts": GOOD["parts"] * 2}, "parts has 4 items; there must be from 1 to 3"),
    ({"parts": [{"size": [1], "mode": "a"}]}, r"parts\[0\].size has 1 items; there must be 2"),
    (
        {"parts": [{"size": [1, 2], "mode": "c"}]},
        r"parts\[0\].mode is 'c'; it must be one of 'a', 'b'",
    ),
    ({"parts": [{"size": [1, 2], "mode": ["a"]}]}, r"parts\[0\].mode is a list; it must be one of"),
    ({"parts": [{"size": [1, 2]}]}, r"parts\[0\]: missing mode"),
    ({"parts": [3]}, r"parts\[0\] is 3; it must be an object"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_read_wrong_value_names_address_value_and_range(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ManifestError, match=rf"^top\.{message}"):
        records.read(Outer, GOOD | change, "top")


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_constructor_wrong_value_names_field_value_and_range(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=rf"^{message}"):
        replace(OUTER, **change)


def test_read_missing_and_unknown_keys_are_named() -> None:
    with pytest.raises(ManifestError, match=r"^top: unknown extra$"):
        records.read(Outer, GOOD | {"extra": 1}, "top")
    with pytest.raises(ManifestError, match=r"^top: missing count$"):
        records.read(Outer, {key: GOOD[key] for key in GOOD if key != "count"}, "top")


def test_constructor_converts_equivalent_types() -> None:
    inner = Inner([np.int64(1), 2], "a")  # type: ignore[arg-type]
    assert inner == Inner((1, 2), "a")
    assert type(inner.size[0]) is int
    half: Any = np.float32(0.5)
    assert type(replace(OUTER, fraction=half).fraction) is float


ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
JSON = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner)
)


@given(change=st.dictionaries(st.sampled_from(list(GOOD)), JSON, min_size=1))
def test_read_any_json_builds_a_record_within_range_or_raises(change: dict[str, Any]) -> None:
    refused = None
    try:
        outer = records.read(Outer, GOOD | change, "top")
    except ManifestError as error:
        refused = str(error)
    if refused is not None:
        assert refused.isprintable()
        assert len(refused) < 500
    else:
        assert 1 <= len(outer.name.strip()) <= len(outer.name) <= 8
        assert outer.name.isprintable()
        assert 0 <= outer.fraction <= 1
        assert 1 <= outer.count <= 9
        assert 1 <= len(outer.parts) <= 3
        assert records.read(Outer, records.write(outer), "top") == outer


# Parsing


@given(JSON)
def test_parse_inverts_dumps(value: Any) -> None:
    text = json.dumps(value)
    if re.search(r"\d{21}", text):
        with contextlib.suppress(ManifestError):
            records.parse(text, "it")
    else:
        assert json.dumps(records.parse(text, "it")) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it cannot be read: Expecting"),
        ("[" * 100_000, "it cannot be read: it has too many levels"),
        ('{"a": ' * 50_000, "it cannot be read: it has too many levels"),
        ("1" * 5000, "it cannot be read: an integer has 5000 digits"),
        ('{"a": 1, "a": 2}', "it cannot be read: the key 'a' occurs twice"),
        (b'"\xff"', "it cannot be read: .*utf-8"),
        (" " * (records.LONGEST_JSON + 1), "it cannot be read: it has more than 1048576"),
    ],
)
def test_parse_hostile_text_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        records.parse(text, "it")


def test_parse_many_keys_and_one_twice_is_refused_at_once() -> None:
    keys = ",".join(f'"{index}":0' for index in range(90_000))
    with pytest.raises(ManifestError, match="'7' occurs twice"):
        records.parse(f'{{{keys},"7":0}}', "it")


# Options


@pytest.mark.parametrize("value", [1, np.int64(1), np.uint8(1)])
def test_whole_number_of_any_library_is_an_int(value: Any) -> None:
    assert type(whole_number("n", value)) is int


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "1", None, math.nan])
def test_whole_number_refuses_other_values(value: Any) -> None:
    with pytest.raises(InputError, match=r"n is .*; it must be a whole number, at least 1$"):
        whole_number("n", value)


def test_whole_number_shows_a_wrong_number_of_any_library() -> None:
    for value, shown in ((np.int64(0), "0"), (np.float32(1.5), "1.5"), (1 + 2j, "a complex")):
        with pytest.raises(InputError, match=f"n is {shown}; it must be a whole number"):
            whole_number("n", value)


def test_whole_number_above_its_bound_is_refused_with_the_range() -> None:
    with pytest.raises(InputError, match=r"n is 9; it must be a whole number from 0 to 8$"):
        whole_number("n", 9, at_least=0, at_most=8)
    with pytest.raises(InputError, match=r"from 1 to 9223372036854775807$"):
        whole_number("n", -1, at_most=2**63 - 1)


def test_refused_text_is_escaped_once() -> None:
    with pytest.raises(InputError, match=r"^n is 'a\\x1bb'; it must be a whole number"):
        whole_number("n", "a\x1bb")


@pytest.mark.parametrize("value", [-1, 1, math.nan, True, "0.5", None, 10**400])
def test_real_number_outside_its_range_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"n is .*; it must be within 0\.\.1$"):
        real_number("n", value, "within 0..1", 0, 1)
