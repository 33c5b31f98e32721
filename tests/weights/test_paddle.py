"""Paddle's pickles are read, and no other."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from isanet_zoo.errors import CheckpointError
from isanet_zoo.weights.containers import read_state


def write(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


class Runs:
    """What a malicious file would hold."""

    def __init__(self, call: Any, *arguments: object) -> None:
        self.call = call, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_arrays_become_tensors(protocol: int, dtype: Any, tmp_path: Path) -> None:
    arrays = {
        "a.weight": np.arange(24, dtype=dtype).reshape(2, 3, 4),
        "b.bias": np.asfortranarray(np.arange(6, dtype=dtype).reshape(2, 3)),
        "scalar": np.array(3, dtype),
    }
    extra = {"StructuredToParameterName@@": {"a.weight": "conv2d_0.w_0"}}
    state = read_state(write(tmp_path / "x", arrays | extra, protocol), "x")
    assert state.keys() == arrays.keys()
    for key, tensor in state.items():
        assert torch.equal(tensor, torch.from_numpy(arrays[key].copy()))


@pytest.mark.parametrize(
    ("content", "asked"),
    [
        (Runs(os.system, "touch {}"), "posix.system"),
        ({"a": Runs(os.system, "touch {}")}, "posix.system"),
        ({"a": Runs(eval, "open('{}', 'w')")}, "builtin(s|__).eval"),
        ({"a": np.array([Runs(os.system, "touch {}"), 1], dtype=object)}, "posix.system|type 'O8'"),
        ({"a": Runs(np.load, "{}")}, "numpy"),
        ({"a": Runs(np.dtype, "O")}, "numbers of type 'O'"),
        ({"a": Runs(bytes.fromhex, "00")}, "getattr"),
        ({"a": np.array(["text"])}, "numbers of type"),
        ({"a": torch.nn.Linear(2, 2)}, "torch"),
    ],
)
def test_whatever_else_is_asked_for_is_named_and_not_run(
    content: object, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"is not safe: its pickle asks for .*({asked})"):
        read_state(write(tmp_path / "x", content), "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_class_of_arrays_cannot_be_called(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_state(write(tmp_path / "x", {"a": Runs(np.ndarray, (10**12,))}), "x")


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 3}, {1: np.zeros(2)}, None])
def test_what_holds_no_arrays_is_said(content: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_state(write(tmp_path / "x", content), "x")


def test_truncated_files_are_said(tmp_path: Path) -> None:
    whole = write(tmp_path / "x", {"a": np.zeros(1000, np.float32)}).read_bytes()
    for length in (30, len(whole) // 2, len(whole) - 1):
        (tmp_path / "y").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            read_state(tmp_path / "y", "y")
