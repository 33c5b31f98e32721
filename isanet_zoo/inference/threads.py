"""Threads beside the network, which read ahead of it and write behind it, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS = min(os.cpu_count() or 1, 8)  # useful, as Pillow and NumPy release the GIL
AHEAD = 2 * THREADS  # items that are held at most


def in_order(function: Callable[[T], R], items: Iterable[T], *, early: bool = False) -> Iterator[R]:
    """Map in threads; yield results, or raise errors, in the order of the items.

    At most `AHEAD` items are in work or wait to be taken. The caller's thread iterates over
    `items`.

    Args:
        function: what to do with an item.
        items: the items.
        early: yield a result once it is there, instead of taking more items first.
    """
    with ThreadPoolExecutor(THREADS, "isanet-zoo") as pool:
        futures = (pool.submit(function, item) for item in items)
        try:
            for future in delayed(futures, AHEAD - 1, Future.done if early else None):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def delayed(
    items: Iterable[T], count: int, is_ready: Callable[[T], bool] | None = None
) -> Iterator[T]:
    """Yield items up to `count` steps late, so that background work can finish.

    On an error, yield the pending items first, then raise.

    Args:
        items: the items.
        count: the most items that wait.
        is_ready: return True for an item that need not wait any longer.
    """
    held: deque[T] = deque()
    try:
        for item in items:
            held.append(item)
            while len(held) > count or (held and is_ready and is_ready(held[0])):
                yield held.popleft()
    except Exception:
        yield from held
        raise
    yield from held
