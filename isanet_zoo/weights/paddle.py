"""Paddle's weight files: a pickled dict of NumPy arrays, read without running anything.

A pickle is a program; the unpickler here admits the four callables that a NumPy array is written
with, and of these only what plain numbers need.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isanet_zoo.errors import CheckpointError

NAMES = "StructuredToParameterName@@"  # Paddle's own names of the parameters, of no use here

ARRAY = "ndarray"  # stands for the class, which must not be called


class _ForeignError(Exception):
    """A pickle asks for something that numbers do not need."""


def _reconstruct(kind: object, shape: object, code: object) -> np.ndarray[Any, Any]:
    if kind is not ARRAY:
        raise _ForeignError(f"an array of type {kind!r}")
    return np.empty(0, np.float32)  # its state follows, with type, shape and bytes


def _dtype(code: object, *_: object) -> np.dtype[Any]:
    text = code.decode("ascii", "replace") if isinstance(code, bytes) else str(code)
    if text.lstrip("<>|=") not in {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}:
        raise _ForeignError(f"numbers of type {text!r}")
    return np.dtype(text)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise _ForeignError(f"the encoding {encoding!r}")
    return text.encode("latin1")


ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): ARRAY,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise _ForeignError(f"{module}.{name}")
        return ADMITTED[module, name]

    def persistent_load(self, pid: object) -> Any:
        raise _ForeignError(f"the object {pid!r} from elsewhere")


def read_arrays(path: Path, called: str) -> dict[str, Tensor]:
    """Read a pickled dict of arrays as tensors.

    Args:
        path: the file.
        called: what errors call it.

    Raises:
        CheckpointError: the pickle asks for anything but arrays (nothing of it is run then), is
            damaged, or holds something else.
    """
    try:
        content = _Unpickler(io.BytesIO(path.read_bytes())).load()
    except _ForeignError as error:
        raise CheckpointError(
            f"{called} is not safe: its pickle asks for {error}, and weights need no code; "
            "nothing of it was run. Do not load it with other tools either"
        ) from error
    except Exception as error:  # the bytes of a damaged file can make the unpickler raise anything
        raise CheckpointError(
            f"{called} is truncated or damaged: {error}; fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{called} holds no state dict but a {type(content).__name__}")
    content.pop(NAMES, None)
    strange = [k for k, v in content.items() if not (isinstance(k, str) and _is_array(v))]
    if strange or not content:
        names = ", ".join(map(repr, strange[:10])) or "nothing"
        raise CheckpointError(f"{called} holds no state dict: {names} in it is no array of numbers")
    return {key: torch.from_numpy(array.copy()) for key, array in content.items()}


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.dtype.isnative
