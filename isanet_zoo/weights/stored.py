"""Tensors in an open file: type, shape and place of each, read on demand into own memory."""

from __future__ import annotations

import codecs
import hashlib
import math
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, TypeGuard

import torch
from torch import Tensor

from isanet_zoo.errors import CheckpointError
from isanet_zoo.weights.pickles import Span

State = dict[str, Tensor]

BLOCK = 1 << 20  # bytes read and hashed at once
LIMIT = 1 << 60  # of sizes and strides, which torch computes in 64 bits


class Stored(NamedTuple):
    """A tensor that is not read yet.

    Attributes:
        dtype: its type.
        shape: its shape.
        source: its elements, from the first to the last; as text, one Latin-1 letter per byte.
        strides: distance of its elements along each axis, in elements; None if it is contiguous.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    source: bytes | Span
    strides: tuple[int, ...] | None = None

    @property
    def extent(self) -> int:
        """Number of elements from the first to the last."""
        if self.strides is None or 0 in self.shape:
            return math.prod(self.shape)
        pairs = zip(self.shape, self.strides, strict=True)
        return 1 + sum((side - 1) * stride for side, stride in pairs)

    @property
    def size(self) -> int:
        """Bytes that are needed to read it."""
        return max(self.extent, math.prod(self.shape)) * self.dtype.itemsize


def read_tensor(stored: Stored, file: BinaryIO, name: str) -> Tensor:
    """Read a tensor into memory that it shares with no other, contiguous.

    Raises:
        CheckpointError: the file ends too early, or its text is invalid.
    """
    flat = allocate(stored.extent, stored.dtype, name)
    if isinstance(stored.source, bytes):
        bytes_of(flat)[:] = stored.source
    elif stored.source.is_text:
        _fill_from_text(flat, stored.source, file, name)
    else:
        file.seek(stored.source.position)
        fill(flat, file, name)
    if stored.strides is None:
        return flat.view(stored.shape)
    tensor = flat.as_strided(stored.shape, stored.strides).contiguous()
    return tensor.view(-1).view(stored.shape)  # with the usual strides of axes of length 1


def allocate(count: int, dtype: torch.dtype, name: str) -> Tensor:
    """Return an uninitialised tensor (count,) on the CPU.

    Raises:
        CheckpointError: there is not enough memory.
    """
    try:
        return torch.empty(count, dtype=dtype, device="cpu")
    except RuntimeError as error:
        raise CheckpointError(
            f"{name} has a tensor of {count * dtype.itemsize:,} bytes, for which there is no memory"
        ) from error


def is_shape(shape: tuple[object, ...]) -> TypeGuard[tuple[int, ...]]:
    """Return True if these can be sides of a tensor, of at most 16 axes."""
    sides = [side for side in shape if type(side) is int and 0 <= side < LIMIT]
    return len(sides) == len(shape) <= 16 and math.prod(side or 1 for side in sides) < LIMIT


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the CPU."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def fill(tensor: Tensor, file: BinaryIO, name: str, digest: hashlib._Hash | None = None) -> None:
    """Read the next bytes of a file into a contiguous tensor.

    Raises:
        CheckpointError: the file ends too early.
    """
    content = bytes_of(tensor)
    for start in range(0, len(content), BLOCK):
        block = content[start : start + BLOCK]
        if file.readinto(block) != len(block):  # type: ignore[attr-defined]
            raise CheckpointError(f"{name} is truncated; fetch it again")
        if digest is not None:
            digest.update(block)


def _fill_from_text(tensor: Tensor, span: Span, file: BinaryIO, name: str) -> None:
    content, position = bytes_of(tensor), 0
    try:
        for block in _decode(span, file):
            content[position : position + len(block)] = block
            position += len(block)
        if position != len(content):
            raise ValueError("the text is too short")
    except ValueError as error:  # also of the text's encoding, or of a text that is too long
        raise CheckpointError(f"{name} is truncated or damaged; fetch it again") from error


def _decode(span: Span, file: BinaryIO) -> Iterator[bytes]:
    """Yield the bytes that a text in UTF-8 stands for, one per letter."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    file.seek(span.position)
    for start in range(0, span.length, BLOCK):
        block = file.read(min(BLOCK, span.length - start))
        yield decoder.decode(block, final=start + BLOCK >= span.length).encode("latin-1")
