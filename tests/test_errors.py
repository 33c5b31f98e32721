"""Messages of errors, whose parts may come from strangers."""

from __future__ import annotations

import pytest

from isanet_zoo.errors import LONGEST_MESSAGE, ZooError


@pytest.mark.parametrize("letter", ["x", "\x1b", "\n", "\U0001f600", "\ud800"])
def test_longest_message_includes_the_mark_of_the_cut(letter: str) -> None:
    message = str(ZooError(letter * (LONGEST_MESSAGE + 1)))
    assert len(message) == LONGEST_MESSAGE
    assert message.endswith("...")


def test_message_of_the_longest_length_is_not_cut() -> None:
    message = "x" * LONGEST_MESSAGE
    assert str(ZooError(message)) == message
