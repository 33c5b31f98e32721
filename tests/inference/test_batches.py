"""Batches of images of one size, out of a stream of many sizes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, strategies as st

from isanet_zoo.imaging.reading import LoadedImage
from isanet_zoo.inference.batches import READ_AHEAD, make_batches

Sizes = list[tuple[int, int]]


def numbered(sizes: Sizes, read: list[int]) -> Iterator[tuple[int, LoadedImage]]:
    """Yield images with their numbers as keys; append those to `read`."""
    for number, (height, width) in enumerate(sizes):
        read.append(number)
        yield number, LoadedImage(torch.zeros(3, height, width, dtype=torch.uint8))


@given(
    st.lists(st.tuples(st.integers(1, 2), st.integers(1, 2)), max_size=60),
    st.integers(1, 5),
)
def test_batches_have_one_size_and_wait_for_a_bounded_time(sizes: Sizes, batch_size: int) -> None:
    read: list[int] = []
    yielded: set[int] = set()
    waited = 0
    for batch in make_batches(numbered(sizes, read), batch_size):
        positions = [position for position, _, _ in batch]
        assert positions == sorted(positions)
        assert [key for _, key, _ in batch] == positions
        assert {image.size for _, _, image in batch} == {sizes[positions[0]]}
        assert len(batch) <= batch_size
        yielded |= set(positions)
        if len(read) < len(sizes):
            waited = max(waited, len(read) - min({*range(len(read) + 1)} - yielded))
    assert yielded == set(range(len(sizes)))
    assert waited <= READ_AHEAD * batch_size


def test_full_batch_is_yielded_before_more_is_read() -> None:
    read: list[int] = []
    batches = make_batches(numbered([(1, 1), (2, 2), (1, 1), (3, 3)], read), 2)
    assert [position for position, _, _ in next(batches)] == [0, 2]
    assert read == [0, 1, 2]
    assert [[position for position, _, _ in batch] for batch in batches] == [[1], [3]]


def test_images_read_before_an_error_are_yielded_before_it() -> None:
    def failing() -> Iterator[tuple[int, LoadedImage]]:
        yield from numbered([(1, 1), (2, 2)], [])
        raise ValueError("third")

    batches = make_batches(failing(), 2)
    assert [len(next(batches)), len(next(batches))] == [1, 1]
    with pytest.raises(ValueError, match="third"):
        next(batches)
