"""Work beside the network: threads that read ahead of it and write behind it, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS = min(os.cpu_count() or 1, 8)  # Pillow and NumPy let go of the interpreter while they work
AHEAD = 2 * THREADS  # pictures that are held at most


def in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Map in threads: results, and errors, come in the order of the items.

    At most `AHEAD` items are worked on or wait to be taken; `items` is read by the caller's thread.
    """
    with ThreadPoolExecutor(THREADS, "isanet-zoo") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) == AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def delayed(items: Iterable[T], count: int) -> Iterator[T]:
    """Give each item when `count` more were made; if making one fails, first those that were made.

    What was started in the background gets that much time until somebody waits for it.
    """
    held: deque[T] = deque()
    try:
        for item in items:
            held.append(item)
            if len(held) > count:
                yield held.popleft()
    except Exception:
        yield from held
        raise
    yield from held
