"""From a file to tensors, whatever container it is, and without running its pickle.

Nothing here knows the network; `checkpoints` compares what is read with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from isanet_zoo.errors import CheckpointError
from isanet_zoo.files import HEAD, foreign_content, open_regular
from isanet_zoo.weights.paddle import read_arrays

State = dict[str, Tensor]

TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's container from before 1.6

DTYPES = {  # safetensors' names
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

BLOCK = 1 << 20  # bytes read and hashed at once

MAX_HEADER = 1 << 22  # bytes; enough for some 20,000 tensors

NAMED = 10  # how many keys of each kind an error lists


class SafetensorsFile(NamedTuple):
    """Content of a safetensors file: its tensors, its metadata, and the hash of its bytes."""

    tensors: State
    metadata: dict[str, str]
    sha256: str
    size: int


def read_state(path: Path, called: str) -> State:
    """Read the tensors of a weight file under the file's own keys, unchecked.

    Every container that upstream wrote is understood: safetensors; a state dict of torch's, one
    inside ``"model"`` or ``"state_dict"`` beside an epoch or optimiser state, keys behind
    ``module.``, and torch's container from before 1.6; and Paddle's pickled arrays. The bytes
    decide which it is, not the file's name.

    Args:
        path: the file.
        called: what errors call it.

    Raises:
        CheckpointError: the file is missing, damaged, foreign, or not safe to unpickle.
    """
    with open_file(path, called) as file:
        head = _read_head(file, called)
    if head[8:9] == b"{":  # after the length of its header
        return read_safetensors(path, called).tensors
    if head.startswith(b"PK") and not _has_contents(path):
        raise CheckpointError(
            f"{called} is truncated: its table of contents is missing; fetch it again"
        )
    if head.startswith((b"PK", TORCH_MAGIC)):
        return _find_state(_unpickle(path, called), called)
    if head.startswith(b"\x80"):  # a pickle of protocol 2 or later
        return read_arrays(path, called)
    raise CheckpointError(
        f"{called} is no weight file: it is neither safetensors nor what torch or Paddle saves"
    )


def read_safetensors(path: Path, name: str) -> SafetensorsFile:
    """Read a safetensors file in one pass, hashing its bytes while they are read.

    The tensors own their memory, so changes to the file have no effect on them.

    Args:
        path: the file.
        name: name of the file in error messages.

    Raises:
        CheckpointError: the file is missing or damaged, or is another container.
    """
    with open_file(path, name) as file:
        if _read_head(file, name)[8:9] != b"{":
            raise CheckpointError(f"{name} is not a safetensors file; only these are read here")
        digest = hashlib.sha256()
        header = _read_header(file, name, digest)
        tensors = {}
        for key, (dtype, shape) in header.specs.items():
            tensors[key] = torch.empty(shape, dtype=dtype, device="cpu")
            fill(tensors[key], file, name, digest)
        if file.read(1):
            raise CheckpointError(f"{name} grew while it was read; try again")
        return SafetensorsFile(tensors, header.metadata, digest.hexdigest(), file.tell())


@contextlib.contextmanager
def open_file(path: Path, name: str) -> Iterator[BinaryIO]:
    """Open a weight file for reading.

    Raises:
        CheckpointError: the file cannot be opened or read, or is not a regular file.
    """
    try:
        with open_regular(path) as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error.strerror or error}") from error


def fill(tensor: Tensor, file: BinaryIO, name: str, digest: hashlib._Hash | None = None) -> None:
    """Read the next bytes of a file into a contiguous tensor.

    Raises:
        CheckpointError: the file ends too early.
    """
    content = tensor.reshape(-1).view(torch.uint8).numpy().data
    for start in range(0, len(content), BLOCK):
        block = content[start : start + BLOCK]
        if file.readinto(block) != len(block):  # type: ignore[attr-defined]
            raise CheckpointError(f"{name} is truncated; fetch it again")
        if digest is not None:
            digest.update(block)


class _Header(NamedTuple):
    """Header of a safetensors file; the tensors in the order of their bytes."""

    specs: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    metadata: dict[str, str]


def _read_header(file: BinaryIO, name: str, digest: hashlib._Hash) -> _Header:
    """Read the header and check that its tensors are exactly the rest of the file."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    text = file.read(length) if length <= min(MAX_HEADER, size - 8) else b""
    if not text.startswith(b"{"):
        raise CheckpointError(f"{name} is truncated, or is not a safetensors file")
    digest.update(start + text)
    try:
        entries = dict(json.loads(text, object_pairs_hook=_distinct))
        metadata = dict(entries.pop("__metadata__", None) or {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata is not text")
        specs = dict(_in_order(entries, size - 8 - length))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else "its header is invalid"
        raise CheckpointError(f"{name} is truncated or damaged: {reason}; fetch it again") from (
            error
        )
    return _Header(specs, metadata)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header has the same key twice")
    return found


def _in_order(
    entries: dict[str, dict[str, Any]], size: int
) -> Iterator[tuple[str, tuple[torch.dtype, tuple[int, ...]]]]:
    """Yield the type and shape of each tensor; together they must have `size` bytes."""
    position = 0
    for key, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        if len(shape) > 16 or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("a shape is invalid")
        if math.prod(side or 1 for side in shape) >= 1 << 60:  # torch computes strides in int64
            raise ValueError("a shape is invalid")
        end = position + math.prod(shape) * dtype.itemsize
        if entry["data_offsets"] != [position, end]:
            raise ValueError("its tensors overlap, leave gaps or have other sizes")
        position = end
        yield key, (dtype, shape)
    if position != size:
        raise ValueError("its size is not that of its tensors")


def _read_head(file: BinaryIO, name: str) -> bytes:
    """Return the first bytes of a file, and go back to its start."""
    head = file.read(HEAD)
    file.seek(0)
    if kind := foreign_content(head):
        raise CheckpointError(f"{name} is {kind}, not a checkpoint; fetch the file itself")
    return head


def list_keys(keys: Iterable[object]) -> str:
    """Return the first few keys for a message, and how many more there are."""
    keys = list(keys)
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(map(str, keys[:NAMED])) + more


def _has_contents(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # such as one part of several
        return False


def _unpickle(path: Path, called: str) -> object:
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
        return content
    except pickle.UnpicklingError as error:
        if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{called} is not safe: its pickle asks for {match[1]}, and weights need no code; "
                "nothing of it was run. Do not load it with other tools either"
            ) from error
        raise CheckpointError(f"{called} is damaged, or not a checkpoint of torch's") from error
    except Exception as error:  # the bytes of a damaged file can make the unpickler raise anything
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        raise CheckpointError(
            f"{called} is truncated or damaged: {reason}; fetch it again"
        ) from error


def _find_state(content: object, called: str) -> State:
    """Find the state dict in what a training script saved."""
    if isinstance(content, Mapping):
        for wrapper in ("model", "state_dict"):
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    if not isinstance(content, Mapping) or not content:
        kind = "an empty dict" if content == {} else f"a {type(content).__name__}"
        raise CheckpointError(f"{called} holds no state dict but {kind}")
    strange = [
        key for key, value in content.items() if not (isinstance(key, str) and _is_plain(value))
    ]
    if strange:
        raise CheckpointError(
            f"{called} holds no state dict: {list_keys(strange)} are no (plain) tensors"
        )
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): tensor for key, tensor in content.items()}


def _is_plain(value: object) -> bool:
    """Say whether a value is a dense tensor with values; a pickle may also hold other kinds."""
    return (
        isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    )
