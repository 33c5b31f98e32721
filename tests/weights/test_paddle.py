"""Paddle's files: pickled arrays become tensors, of which nothing runs."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isanet_zoo.errors import CheckpointError
from isanet_zoo.weights.containers import open_weights
from isanet_zoo.weights.paddle import DTYPES


def write(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def read_state(path: Path, name: str) -> dict[str, torch.Tensor]:
    """Read all arrays of a file."""
    with open_weights(path, name) as file:
        assert isinstance(file.content, dict)
        found = {key: file.find_tensor(value) for key, value in file.content.items()}
        return file.read({key: stored for key, stored in found.items() if stored is not None})


class Runs:
    """Unpickled the ordinary way, it calls a function."""

    def __init__(self, call: Any, *arguments: object) -> None:
        self.call = call, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_arrays_equal_numpy_s_and_own_their_memory(
    protocol: int, dtype: str, tmp_path: Path
) -> None:
    numbers = np.arange(40_000) % 251
    shared = (numbers % 2 if dtype == "b1" else numbers).astype(dtype)
    arrays = {
        "a.weight": shared[:24].reshape(2, 3, 4),
        "b.bias": np.asfortranarray(shared[:24].reshape(4, 3, 2)),
        "large": shared.reshape(200, 200),
        "same": shared.reshape(200, 200),
        "scalar": shared[3],
    }
    arrays = {key: np.asarray(array) for key, array in arrays.items()}
    extra = {"StructuredToParameterName@@": {"a.weight": "conv2d_0.w_0"}}
    state = read_state(write(tmp_path / "x", arrays | extra, protocol), "x")
    assert state.keys() == arrays.keys()
    for key, tensor in state.items():
        assert torch.equal(tensor, torch.from_numpy(arrays[key].copy()))
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize(
    "content",
    [
        np.array([1, "a"], dtype=object),
        np.array(["text"]),
        np.array([1 + 2j]),
        np.zeros(2, ">f4"),
        np.zeros(2, [("a", "f4")]),
        Runs(np.dtype, "f4"),
        Runs(np.ndarray, (10**12,)),
        Runs(bytes.fromhex, "00"),
        torch.nn.Linear(2, 2),
        3,
        None,
    ],
)
def test_other_objects_are_not_found(content: object, tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"a": content, "b": np.zeros(2, "f4")})
    assert list(read_state(path, "x")) == ["b"]


@pytest.mark.parametrize(
    ("shape", "dtype", "data"),
    [
        ((3,), "f4", bytes(8)),
        ((1,), "f4", bytes(8)),
        ((1 << 62, 1 << 62, 0), "f4", b""),
        ((-2,), "f4", bytes(8)),
        ((2.0,), "f4", bytes(8)),
        ((2,), "f4", "\u0100" * 8),
        ([2], "f4", bytes(8)),
        ((70_000,), "f4", bytes(70_000)),
    ],
)
def test_array_with_inconsistent_size_is_not_found(
    shape: object, dtype: str, data: object, tmp_path: Path
) -> None:
    class Array:
        def __reduce__(self) -> Any:
            make = np.zeros(1).__reduce__()[0]
            return make, (np.ndarray, (0,), b"b"), (1, shape, np.dtype(dtype), False, data)

    path = write(tmp_path / "x", {"a": Array(), "b": np.zeros(2, "f4")}, 4)
    assert list(read_state(path, "x")) == ["b"]


def test_text_that_is_not_latin_1_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"a": np.full(100_000, 200, np.uint8)})
    content = path.read_bytes()
    letter = "\xc8".encode()
    assert content.count(letter) >= 100_000
    path.write_bytes(content.replace(letter * 9, "\u0100".encode() * 9, 1))
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_state(path, "x")


@pytest.mark.parametrize(
    "content", [Runs(os.system, "touch {}"), {"a": Runs(eval, "open('{}', 'w')")}]
)
def test_file_with_function_that_runs_code_is_refused(
    content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"x is not safe: .* refers to .*(system|eval)"):
        read_state(write(tmp_path / "x", content), "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "x", {"a": np.zeros(1000, np.float32)}).read_bytes()
    for length in (30, len(whole) // 2, len(whole) - 1):
        (tmp_path / "y").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            read_state(tmp_path / "y", "y")
