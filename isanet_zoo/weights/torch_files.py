"""Files of `torch.save`: a pickle, and the storages that its tensors are views of.

Since torch 1.6 they are entries of a zip archive; before, they followed one another in the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

import torch

from isanet_zoo.errors import CheckpointError
from isanet_zoo.weights.archives import read_directory
from isanet_zoo.weights.pickles import Global, Inert, Reference, Span, read_pickle
from isanet_zoo.weights.stored import Stored, is_shape

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of the format before torch 1.6

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
PARAMETERS = {  # functions whose first argument is the tensor
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
}


class TorchFile(NamedTuple):
    """The pickle of a file, and the place of each storage."""

    name: str
    content: object
    storages: Mapping[str, Span]

    def find_tensor(self, value: object) -> Stored | None:
        """Return the dense tensor that a pickled value stands for; None for other values.

        Raises:
            CheckpointError: the tensor exceeds its storage.
        """
        for _ in range(2):  # a parameter, maybe with attributes
            match value:
                case Inert("torch._tensor._rebuild_from_type_v2", (Global(function), _, args, _)):
                    value = Inert(function, args)
                case Inert(function, (tensor, *_)) if function in PARAMETERS:
                    value = tensor
        match value:
            case Inert(
                function, (Reference(target), int(offset), tuple(shape), tuple(strides), *more)
            ):
                storage = _storage_of(target)
                if (
                    storage and function in TENSORS and not more[2:]
                ):  # neither conjugate nor negated
                    return self._find_view(storage, offset, shape, strides)
        return None

    def _find_view(
        self, storage: _Storage, offset: int, shape: tuple[object, ...], strides: tuple[object, ...]
    ) -> Stored:
        """Return the tensor of a part of a storage."""
        span = self.storages.get(storage.key)
        if span is None or span.length != storage.size * storage.dtype.itemsize:
            raise CheckpointError(f"{self.name} is damaged: a storage is missing or incomplete")
        if is_shape(shape) and is_shape(strides) and len(shape) == len(strides):
            start = span.position + offset * storage.dtype.itemsize
            tensor = Stored(storage.dtype, shape, span._replace(position=start), strides)
            if 0 <= offset <= storage.size - tensor.extent:
                return tensor
        raise CheckpointError(f"{self.name} is damaged: a tensor exceeds its storage")


class _Storage(NamedTuple):
    """What a persistent id refers to: type, key and number of elements of a storage."""

    dtype: torch.dtype
    key: str
    size: int


def _storage_of(target: object) -> _Storage | None:
    """Return the storage of numbers that a persistent id refers to; None for other ids."""
    match target:
        case ("storage", Global(name), str(key), str(), int(size), *more) if more in ([], [None]):
            package, _, kind = name.rpartition(".")
            if package in ("torch", "torch.cuda") and kind in STORAGES:
                return _Storage(STORAGES[kind], key, size)
    return None


def read_torch_file(file: BinaryIO, name: str) -> TorchFile:
    """Read the pickle of a file that `torch.save` wrote, but no tensor.

    Raises:
        CheckpointError: the file is damaged, or its pickle is not safe.
    """
    entries = read_directory(file, name)
    roots = [entry.removesuffix("data.pkl") for entry in entries if entry.endswith("/data.pkl")]
    if len(roots) != 1:
        raise CheckpointError(f"{name} is a zip archive, but not a checkpoint of torch")
    if (order := entries.get(f"{roots[0]}byteorder")) is not None:
        file.seek(order.position)
        if file.read(min(order.length, 6)) != b"little":
            raise CheckpointError(f"{name} has big-endian numbers, which are not read here")
    start = f"{roots[0]}data/"
    storages = {key.removeprefix(start): entries[key] for key in entries if key.startswith(start)}
    pickled = entries[f"{roots[0]}data.pkl"]
    file.seek(pickled.position)
    content, _ = read_pickle(file, pickled.position + pickled.length, name)
    return TorchFile(name, content, storages)


def read_legacy_file(file: BinaryIO, name: str) -> TorchFile:
    """Read the pickles of a file that `torch.save` wrote before torch 1.6, but no tensor.

    Raises:
        CheckpointError: the file is damaged, or its pickle is not safe.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    for _ in range(3):  # magic number, version, and the machine's sizes of types
        read_pickle(file, end, name)
    content, references = read_pickle(file, end, name)
    keys, _ = read_pickle(file, end, name)
    storages = {}
    try:
        found = [_storage_of(reference.target) for reference in references]
        known = {storage.key: storage for storage in found if storage}
        for key in keys:
            size, start = int.from_bytes(file.read(8), "little"), file.tell()
            length = size * known[key].dtype.itemsize
            if size != known[key].size or start + length > end:
                raise ValueError("its storages are incomplete")
            storages[key] = Span(start, length, is_text=False)
            file.seek(start + length)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{name} is truncated or damaged; fetch it again") from error
    return TorchFile(name, content, storages)
