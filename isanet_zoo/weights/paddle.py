"""Arrays of Paddle's weight files, which are pickled dicts of NumPy arrays."""

from __future__ import annotations

import itertools
import math

import torch

from isanet_zoo.weights.pickles import Inert, Span
from isanet_zoo.weights.stored import Stored, is_shape

RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")

DTYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "b1": torch.bool,
}


def find_array(value: object) -> Stored | None:
    """Return the array of numbers that a pickled value stands for; None for other values."""
    if not isinstance(value, Inert) or value.function not in RECONSTRUCT:
        return None
    match value.state:
        case (int(), tuple(shape), Inert() as kind, bool(fortran), content):
            dtype, source = _dtype(kind), _source(content)
        case _:
            return None
    if dtype is None or source is None or not is_shape(shape):
        return None
    length = source.length if isinstance(source, Span) else len(source)
    longest = 2 if isinstance(source, Span) and source.is_text else 1  # bytes per letter in UTF-8
    size = math.prod(shape) * dtype.itemsize
    if not size <= length <= longest * size:
        return None
    steps = itertools.accumulate(shape[:-1], int.__mul__, initial=1)
    return Stored(dtype, shape, source, tuple(steps)[: len(shape)] if fortran else None)


def _dtype(kind: Inert) -> torch.dtype | None:
    """Return the type of a pickled `numpy.dtype` with the byte order of PCs."""
    match kind.args, kind.state:
        case (str(text), *_), (_, "<" | "|" | "=", *_) if kind.function == "numpy.dtype":
            return DTYPES.get(text.lstrip("<|="))
    return None


def _source(content: object) -> bytes | Span | None:
    """Return the bytes of an array: as they are, or as text, which protocol 2 needs."""
    if isinstance(content, Inert) and content.function == "_codecs.encode":
        content = content.args[0] if content.args else None
        if isinstance(content, Span):
            return content
    elif isinstance(content, Span) and content.is_text:
        return None
    if isinstance(content, str):
        return content.encode("latin-1") if max(content, default="") < "\u0100" else None
    return content if isinstance(content, (bytes, Span)) else None
