"""Faster ways to compute the same, which are compared with the plain operations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from isanet_zoo.cache import is_set

logger = logging.getLogger(__name__)

R = TypeVar("R")


def plain_only() -> bool:
    """Return True if `ISANET_ZOO_PLAIN` is set at the time of the call."""
    return is_set("ISANET_ZOO_PLAIN")


class FastPath(Generic[R]):
    """A faster way to compute something, used as long as it agrees with the plain operations.

    The first result of each kind of input is computed both ways and compared. If they disagree, or
    the faster way raises an error, one warning is logged, and the plain operations are used from
    then on.

    Args:
        name: for the log, such as "the fused kernel".
        compare: takes the faster and the plain result; describes how they disagree, or returns an
            empty string.
    """

    def __init__(self, name: str, compare: Callable[[R, R], str]) -> None:
        self._name, self._compare = name, compare
        self._agrees: set[Hashable] = set()
        self._failed = False

    def __call__(self, kind: Hashable, fast: Callable[[], R], plain: Callable[[], R]) -> R:
        """Return `fast()` or `plain()`.

        Args:
            kind: what the kernels depend on, such as shapes.
            fast: the faster way.
            plain: the plain operations.
        """
        if self._failed or plain_only():
            return plain()
        expected = None if kind in self._agrees else plain()
        try:
            found = fast()
            problem = "" if expected is None else self._compare(found, expected)
        except Exception as error:  # of a compiler, a driver or a GPU: of any type
            problem = f"{type(error).__name__}: {error}"
        if problem:
            self._give_up(problem)
            return plain() if expected is None else expected
        self._agrees.add(kind)
        return found

    def forget(self, kind: Hashable) -> None:
        """Compare the next result of a kind of input again."""
        self._agrees.discard(kind)

    def _give_up(self, problem: str) -> None:
        if not self._failed:  # of several threads, each may see the first failure
            self._failed = True
            logger.warning(
                "%s failed (%s). The plain, slower operations are used from now on, and results "
                "are correct. Please report this with the output of `isanet-zoo env`. "
                "ISANET_ZOO_PLAIN=1 uses the plain operations from the start.",
                self._name,
                problem,
            )
