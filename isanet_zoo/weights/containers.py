"""Weight files of every container: safetensors, torch's two formats, and Paddle's pickles.

Nothing of a pickle is run, and every tensor is read into separate memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from isanet_zoo.errors import CheckpointError
from isanet_zoo.files import HEAD, foreign_content, open_regular
from isanet_zoo.weights.headers import parse_header
from isanet_zoo.weights.paddle import find_array
from isanet_zoo.weights.pickles import read_pickle
from isanet_zoo.weights.stored import State, Stored, allocate, fill, read_tensor
from isanet_zoo.weights.tensors import Spec, compare, spec_of, widen_spec
from isanet_zoo.weights.torch_files import LEGACY_MAGIC, read_legacy_file, read_torch_file

MAX_HEADER = 1 << 22  # bytes; enough for some 20,000 tensors
MAX_REPEATS = 4  # how often the bytes of a file may occur in its tensors


class SafetensorsFile(NamedTuple):
    """Content of a safetensors file: its tensors, its metadata, and the hash of its bytes."""

    tensors: State
    metadata: dict[str, str]
    sha256: str
    size: int


class WeightFile(NamedTuple):
    """An open weight file.

    Attributes:
        file: the file.
        name: its name in error messages.
        content: its nested dicts and lists.
        find_tensor: returns the tensor that a value in `content` stands for, or None.
    """

    file: BinaryIO
    name: str
    content: object
    find_tensor: Callable[[object], Stored | None]

    def read(self, tensors: Mapping[str, Stored]) -> State:
        """Read tensors into memory that none shares with another.

        Raises:
            CheckpointError: the file is truncated, or repeats its bytes too often.
        """
        total = sum(tensor.size for tensor in tensors.values())
        if total > MAX_REPEATS * _size(self.file):
            raise CheckpointError(
                f"{self.name} is not safe: its tensors are views of the same bytes, and have "
                f"{total:,} bytes in all"
            )
        return {key: read_tensor(tensor, self.file, self.name) for key, tensor in tensors.items()}


@contextlib.contextmanager
def open_weights(path: Path, name: str) -> Iterator[WeightFile]:
    """Open a weight file of any container, recognised by its bytes.

    Args:
        path: the file.
        name: name of the file in error messages.

    Raises:
        CheckpointError: the file is missing, damaged or not a weight file, or its pickle is not
            safe to read.
    """
    with _open(path, name) as (file, head):
        if head[8:9] == b"{":  # after the length of the header
            tensors, _ = _read_header(file, name, hashlib.sha256())
            yield WeightFile(file, name, tensors, _identity)
        elif head.startswith(b"PK"):
            archive = read_torch_file(file, name)
            yield WeightFile(file, name, archive.content, archive.find_tensor)
        elif head.startswith(LEGACY_MAGIC):
            legacy = read_legacy_file(file, name)
            yield WeightFile(file, name, legacy.content, legacy.find_tensor)
        elif head.startswith(b"\x80"):  # a pickle of protocol 2 or later
            content, _ = read_pickle(file, _size(file), name)
            yield WeightFile(file, name, content, find_array)
        else:
            raise CheckpointError(
                f"{name} is not a weight file: neither safetensors nor a file of torch or Paddle"
            )


def read_state(path: Path, name: str) -> State:
    """Read a file that has nothing but one dict of dense tensors, such as a training state.

    Args:
        path: the file, of any container.
        name: name of the file in error messages.

    Raises:
        CheckpointError: the file is missing, damaged or not safe to read, or has other content.
    """
    with open_weights(path, name) as file:
        content = file.content if isinstance(file.content, dict) else {}
        tensors = {}
        for key, value in content.items():
            stored = file.find_tensor(value)
            if stored is None or not isinstance(key, str):
                raise CheckpointError(f"{name} has other content than tensors")
            tensors[key] = stored
        if not tensors:
            raise CheckpointError(f"{name} has no dict of tensors")
        return file.read(tensors)


def read_safetensors(
    path: Path, name: str, expected: Mapping[str, Spec] | None = None
) -> SafetensorsFile:
    """Read a safetensors file in one pass, hashing its bytes while they are read.

    The tensors own their memory, so changes to the file have no effect on them.

    Args:
        path: the file.
        name: name of the file in error messages.
        expected: types and shapes that its tensors must have, which are compared before any is
            read; 16-bit floats count as float32.

    Raises:
        CheckpointError: the file is missing or damaged, is another container, or has other tensors.
    """
    with _open(path, name) as (file, head):
        if head[8:9] != b"{":
            raise CheckpointError(f"{name} is not a safetensors file; only these are read here")
        digest = hashlib.sha256()
        header, metadata = _read_header(file, name, digest)
        if expected is not None:
            compare({k: widen_spec(spec_of(t)) for k, t in header.items()}, expected, name)
        tensors = {}
        for key, stored in header.items():
            flat = allocate(stored.extent, stored.dtype, name)
            fill(flat, file, name, digest)
            tensors[key] = flat.view(stored.shape)
        if file.read(1):
            raise CheckpointError(f"{name} grew while it was read; try again")
        return SafetensorsFile(tensors, metadata, digest.hexdigest(), file.tell())


@contextlib.contextmanager
def _open(path: Path, name: str) -> Iterator[tuple[BinaryIO, bytes]]:
    """Open a file at its start, with its first bytes; refuse web pages and the like."""
    try:
        with open_regular(path) as file:
            head = file.read(HEAD)
            if kind := foreign_content(head):
                raise CheckpointError(f"{name} is {kind}, not a checkpoint; fetch the file itself")
            file.seek(0)
            yield file, head
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error.strerror or error}") from error


def _read_header(
    file: BinaryIO, name: str, digest: hashlib._Hash
) -> tuple[dict[str, Stored], dict[str, str]]:
    """Read the header of a safetensors file."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    text = file.read(length) if length <= min(MAX_HEADER, _size(file) - 8) else b""
    digest.update(start + text)
    try:
        return parse_header(text, 8 + length, _size(file))
    except ValueError as error:
        raise CheckpointError(f"{name} is truncated or damaged: {error}; fetch it again") from error


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _identity(value: object) -> Stored | None:
    return value if isinstance(value, Stored) else None
