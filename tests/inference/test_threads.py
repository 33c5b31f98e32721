"""Threads beside the network: order, number of held items, errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from isanet_zoo.inference.threads import AHEAD, delayed, in_order


def numbers(count: int, taken: list[int]) -> Iterator[int]:
    for number in range(count):
        taken.append(number)
        yield number


def test_results_have_the_order_of_the_items() -> None:
    def slow_first(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return -number

    assert list(in_order(slow_first, range(40))) == [-number for number in range(40)]


def test_work_runs_in_other_threads_on_a_bounded_number_of_items() -> None:
    taken: list[int] = []
    seen: set[str] = set()

    def work(number: int) -> int:
        seen.add(threading.current_thread().name)
        return number

    results = in_order(work, numbers(100, taken))
    assert taken == []
    for number in range(5):
        assert next(results) == number
        assert len(taken) <= number + AHEAD
    results.close()  # type: ignore[attr-defined]
    assert threading.current_thread().name not in seen
    assert not any(thread.name.startswith("isanet-zoo") for thread in threading.enumerate())


def test_error_is_raised_in_the_order_of_the_items() -> None:
    def inverse(number: int) -> float:
        return 1 / (3 - number)

    results = in_order(inverse, range(6))
    assert [next(results) for _ in range(3)] == [1 / 3, 1 / 2, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_in_order_yields_results_before_the_error_of_a_later_item() -> None:
    def broken() -> Iterator[int]:
        yield from range(2)
        raise OSError("no more items")

    results = in_order(lambda number: -number, broken())
    assert [next(results) for _ in range(2)] == [0, -1]
    with pytest.raises(OSError, match="no more items"):
        next(results)


def test_early_results_do_not_wait_for_more_items() -> None:
    """Release each item's work once the next item is taken."""
    released = [threading.Event() for _ in range(8)]
    taken: list[int] = []

    def work(number: int) -> int:
        assert released[number].wait(5)
        return number

    def items() -> Iterator[int]:
        for number in range(8):
            taken.append(number)
            yield number
            released[number].set()
            time.sleep(0.02)

    for number in in_order(work, items(), early=True):
        assert len(taken) <= min(number + 4, 8)  # some slack for busy machines
    assert number == 7


@pytest.mark.parametrize("count", [0, 1, 3])
def test_delayed_items_are_yielded_late(count: int) -> None:
    taken: list[int] = []
    for number, item in enumerate(delayed(numbers(10, taken), count)):
        assert item == number
        assert len(taken) == min(number + 1 + count, 10)


def test_delayed_items_are_yielded_before_an_error() -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("three")

    items = delayed(failing(), 5)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(ValueError, match="three"):
        next(items)
