"""JSON to dataclasses: what is not exactly right is an error with an address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from isanet_zoo import records
from isanet_zoo.errors import ManifestError


@dataclass(frozen=True)
class Inner:
    size: tuple[int, int]
    mode: Literal["a", "b"]


@dataclass(frozen=True)
class Outer:
    name: str
    share: float
    on: bool
    note: str | None
    parts: tuple[Inner, ...]


GOOD: dict[str, Any] = {
    "name": "n",
    "share": 1,
    "on": False,
    "note": None,
    "parts": [{"size": [1, 2], "mode": "a"}, {"size": [3, 4], "mode": "b"}],
}


def test_good_data_is_read_and_written_back() -> None:
    outer = records.read(Outer, GOOD, "top")
    assert outer == Outer("n", 1.0, False, None, (Inner((1, 2), "a"), Inner((3, 4), "b")))
    assert isinstance(outer.share, float)
    assert records.read(Outer, records.write(outer), "top") == outer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, r"top\.name: expected str, got 3"),
        ({"share": True}, r"top\.share: expected float, got True"),
        ({"on": 1}, r"top\.on: expected bool, got 1"),
        ({"note": 7}, r"top\.note: expected str, got 7"),
        ({"parts": "ab"}, r"top\.parts: expected a list"),
        (
            {"parts": [{"size": [1], "mode": "a"}]},
            r"top\.parts\[0\]\.size: expected 2 items, got 1",
        ),
        ({"parts": [{"size": [1, 2], "mode": "c"}]}, r"parts\[0\]\.mode: 'c' is none of a, b"),
        ({"parts": [{"size": [1, 2]}]}, r"top\.parts\[0\]: missing mode"),
        ({"parts": [3]}, r"top\.parts\[0\]: expected an object, got 3"),
        ({"extra": 1}, r"top: unknown extra"),
    ],
)
def test_wrong_data_is_refused_with_its_address(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        records.read(Outer, GOOD | change, "top")
