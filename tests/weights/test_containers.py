"""Safetensors files: read in one pass, into memory of the tensors, or refused."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import assume, given, settings, strategies as st

from isanet_zoo.errors import CheckpointError
from isanet_zoo.files import hash_file
from isanet_zoo.weights.containers import read_safetensors, read_state
from isanet_zoo.weights.headers import DTYPES
from isanet_zoo.weights.tensors import Spec

SHAPES = st.lists(st.integers(0, 4), max_size=4)
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(path: Path, header: object, data: bytes, *, length: int | None = None) -> Path:
    """Write a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@given(
    state=st.dictionaries(st.text(), st.tuples(st.sampled_from(list(DTYPES.values())), SHAPES)),
    metadata=st.none() | st.dictionaries(st.text(), st.text(), min_size=1),
)
@settings(max_examples=100, deadline=None)
def test_read_safetensors_equals_the_library_and_hashes_the_file(
    state: dict[str, tuple[torch.dtype, list[int]]], metadata: dict[str, str] | None
) -> None:
    state.pop("__metadata__", None)
    assume(state or not metadata)  # safetensors 0.4.3 writes no valid header for metadata alone
    tensors = {key: torch.randint(0, 2, shape).to(dtype) for key, (dtype, shape) in state.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        safetensors.torch.save_file(tensors, path, metadata)
        found = read_safetensors(path, "x")
        assert (found.sha256, found.size) == (hash_file(path), path.stat().st_size)
    assert found.metadata == (metadata or {})
    assert found.tensors.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert found.tensors[key].dtype == tensor.dtype
        assert torch.equal(found.tensors[key], tensor)


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"a": ENTRY}, bytes(7), "its tensors"),
        ({"a": ENTRY}, bytes(9), "its size is not"),
        ({"a": ENTRY | {"data_offsets": [1, 9]}}, bytes(9), "leave gaps"),
        ({"a": ENTRY, "b": ENTRY}, bytes(8), "overlap"),
        ({"a": ENTRY | {"data_offsets": [0, 4]}}, bytes(4), "other sizes"),
        ({"a": ENTRY | {"shape": [-2]}}, bytes(8), "a shape is invalid"),
        ({"a": ENTRY | {"shape": [True, 2]}}, bytes(8), "a shape is invalid"),
        ({"a": ENTRY | {"shape": [2.0]}}, bytes(8), "a shape is invalid"),
        ({"a": ENTRY | {"shape": [1] * 1000}}, bytes(8), "a shape is invalid"),
        ({"a": ENTRY | {"shape": [0, 10**30]}}, b"", "a shape is invalid"),
        ({"a": ENTRY | {"dtype": "F4"}}, bytes(8), "its header is invalid"),
        ({"a": ENTRY | {"dtype": []}}, bytes(8), "its header is invalid"),
        ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), "its header is invalid"),
        ({"a": None}, b"", "its header is invalid"),
        ({"a": ENTRY | {"data_offsets": None}}, bytes(8), "leave gaps"),
        ({"__metadata__": {"a": 1}}, b"", "not text"),
        ({"__metadata__": 1}, b"", "not text"),
        (b'{"a": 1, "a": 1}', b"", "not valid JSON"),
        (b'{"a": ' + b"[" * 100_000, b"", "not valid JSON"),
        (b'{"a": ' + b"1" * 100_000 + b"}", b"", "truncated or damaged"),
        (b'{"\xff": {}}', b"", "truncated or damaged"),
        (b"{", b"", "truncated or damaged"),
    ],
)
def test_read_safetensors_with_wrong_header_is_refused(
    header: Any, data: bytes, words: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "x", header, data)
    with pytest.raises(CheckpointError, match=words):
        read_safetensors(path, "x")
    with pytest.raises((safetensors.SafetensorError, KeyError, ValueError, RuntimeError)):
        safetensors.torch.load_file(path)


def test_read_safetensors_compares_with_expected_tensors_before_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2).half(), "b": torch.ones(3)}, path)
    good = {"a": Spec("float32", (2,)), "b": Spec("float32", (3,))}
    assert read_safetensors(path, "x", good).tensors["a"].dtype == torch.float16
    monkeypatch.setattr("isanet_zoo.weights.containers.allocate", None)  # nothing is read below
    for other, words in (
        (good | {"b": Spec("float32", (4,))}, r"b \(float32 3, expected float32 4\)"),
        (good | {"c": Spec("float32", (4,))}, "missing: c"),
        ({"a": good["a"]}, "unknown: b"),
    ):
        with pytest.raises(CheckpointError, match=words):
            read_safetensors(path, "x", other)


@pytest.mark.parametrize("as_zip", [True, False])
def test_read_state_reads_one_dict_of_tensors_and_nothing_else(
    as_zip: bool, tmp_path: Path
) -> None:
    path, tensors = tmp_path / "state.pt", {"a": torch.arange(3), "b.c": torch.ones(2, 2)}

    def save(content: object) -> None:
        torch.save(content, path, _use_new_zipfile_serialization=as_zip)

    save(tensors)
    found = read_state(path, "state.pt")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
    for other in (tensors | {"c": 1}, tensors | {3: torch.ones(1)}, {"a": tensors}):
        save(other)
        with pytest.raises(CheckpointError, match=r"state\.pt has other content than tensors"):
            read_state(path, "state.pt")
    empties: list[object] = [{}, [torch.ones(1)], torch.ones(1)]
    for empty in empties:
        save(empty)
        with pytest.raises(CheckpointError, match=r"state\.pt has no dict of tensors"):
            read_state(path, "state.pt")


@pytest.mark.parametrize("length", [0, 1, 10**6, 10**9, 2**63, 2**64 - 1])
def test_read_safetensors_with_wrong_header_length_is_refused(length: int, tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"a": ENTRY}, bytes(8), length=length)
    with pytest.raises(CheckpointError, match="truncated"):
        read_safetensors(path, "x")
