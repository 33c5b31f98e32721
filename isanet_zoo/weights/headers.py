"""Headers of safetensors files: metadata, and type, shape and place of each tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import torch

from isanet_zoo.weights.pickles import Span
from isanet_zoo.weights.stored import Stored, is_shape

DTYPES = {
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


def parse_header(text: bytes, start: int, end: int) -> tuple[dict[str, Stored], dict[str, str]]:
    """Return the tensors, in the order of their positions, and the metadata.

    Args:
        text: the header.
        start: position of the first tensor in the file.
        end: size of the file.

    Raises:
        ValueError: the header is invalid, or the tensors are not exactly the rest of the file.
    """
    try:
        entries = json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise ValueError("its header is not valid JSON") from error
    try:
        metadata = entries.pop("__metadata__", None) or {}
        tensors = dict(_tensors(entries, start, end))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("its header is invalid") from error
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata is not text")
    return tensors, metadata


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict; raise ValueError if a key occurs twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _tensors(
    entries: dict[str, dict[str, Any]], start: int, end: int
) -> Iterator[tuple[str, Stored]]:
    """Yield the tensors in the order of their positions."""
    position = start
    for key, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        if not is_shape(shape):
            raise ValueError("a shape is invalid")
        length = math.prod(shape) * dtype.itemsize
        if entry["data_offsets"] != [position - start, position - start + length]:
            raise ValueError("its tensors overlap, leave gaps or have other sizes")
        yield key, Stored(dtype, shape, Span(position, length, is_text=False))
        position += length
    if position != end:
        raise ValueError("its size is not that of its tensors")
