"""Tests of faster paths that disagree, raise errors or are switched off."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from isanet_zoo.engines.fast_path import FastPath


def compare(found: int, expected: int) -> str:
    return "" if found == expected else f"{found} is not {expected}"


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "isanet_zoo")
    return lambda: [record.getMessage() for record in caplog.records]


class Counted:
    """A function that counts its calls, and returns or raises what it is told."""

    def __init__(self, result: int | Exception) -> None:
        self.result, self.calls = result, 0

    def __call__(self) -> int:
        self.calls += 1
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_agreeing_path_is_compared_once_for_each_kind(warnings: Callable[[], list[str]]) -> None:
    path, fast, plain = FastPath("The path", compare), Counted(5), Counted(5)
    for kind, plain_calls in (("a", 1), ("a", 1), ("b", 2), ("a", 2), ("b", 2)):
        assert path(kind, fast, plain) == 5
        assert plain.calls == plain_calls
    path.forget("a")
    path("a", fast, plain)
    assert (fast.calls, plain.calls) == (6, 3)
    assert warnings() == []


@pytest.mark.parametrize(
    ("fast", "reason"),
    [(Counted(4), "4 is not 5"), (Counted(OSError("no compiler")), "OSError: no compiler")],
)
def test_failing_path_is_replaced_by_the_plain_one_with_one_warning(
    fast: Counted, reason: str, warnings: Callable[[], list[str]]
) -> None:
    path, plain = FastPath("The path", compare), Counted(5)
    assert [path(kind, fast, plain) for kind in ("a", "a", "b")] == [5, 5, 5]
    assert (fast.calls, plain.calls) == (1, 3)
    (message,) = warnings()
    assert message.startswith(f"The path failed ({reason}). ")
    assert "Please report this with the output of `isanet-zoo env`" in message


def test_path_that_raises_after_it_agreed_is_replaced(warnings: Callable[[], list[str]]) -> None:
    path, fast, plain = FastPath("The path", compare), Counted(5), Counted(5)
    path("a", fast, plain)
    fast.result = RuntimeError("CUDA out of memory")
    assert [path("a", fast, plain) for _ in range(3)] == [5, 5, 5]
    assert fast.calls == 2
    assert len(warnings()) == 1


def test_error_of_the_plain_path_is_raised_and_not_reported(
    warnings: Callable[[], list[str]],
) -> None:
    path = FastPath("The path", compare)
    with pytest.raises(MemoryError):
        path("a", Counted(5), Counted(MemoryError()))
    assert path("a", Counted(5), Counted(5)) == 5
    assert warnings() == []


def test_variable_switches_the_faster_path_off(monkeypatch: pytest.MonkeyPatch) -> None:
    path, fast = FastPath("The path", compare), Counted(5)
    monkeypatch.setenv("ISANET_ZOO_PLAIN", "1")
    assert path("a", fast, Counted(6)) == 6
    monkeypatch.delenv("ISANET_ZOO_PLAIN")
    assert path("a", fast, Counted(5)) == 5
    assert fast.calls == 1
