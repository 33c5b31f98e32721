"""Tests of the choice of an engine, a device and a type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from isanet_zoo.engines import engine
from isanet_zoo.engines.engine import best_device, create_engine, resolve_device, resolve_dtype
from isanet_zoo.engines.speed import Speeds
from isanet_zoo.errors import InputError
from tests.engines.networks import make_network

CPU = torch.device("cpu")
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


@pytest.mark.parametrize("device", ["cpu", CPU])
def test_resolve_device_accepts_names_and_devices(device: Any) -> None:
    assert resolve_device(device, "meta") == CPU
    assert resolve_device(None, device) == CPU


@pytest.mark.parametrize(
    "device", ["gpu", "meta", "xla", "hpu", "", "cuda:4096", 4096, -1, True, False, 0.0, [], "\x1b"]
)
def test_resolve_device_without_such_a_device_lists_the_available_ones(device: Any) -> None:
    with pytest.raises(InputError, match=r"is not available; torch .* can compute on .*cpu") as one:
        resolve_device(device, CPU)
    assert "\n" not in str(one.value)


@no_cuda
@pytest.mark.parametrize("device", ["cuda", "cuda:0", 0, np.int64(0), torch.device("cuda", 0), 7])
def test_resolve_device_never_replaces_cuda_by_the_cpu(device: Any) -> None:
    with pytest.raises(InputError, match=r"is not available; torch .* can compute on cpu"):
        resolve_device(device, CPU)


def test_resolve_device_with_an_index_requests_that_cuda_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requested = []

    def empty(size: int, *, device: Any) -> torch.Tensor:
        requested.append(torch.device(device))
        return torch.zeros(size)

    monkeypatch.setattr(torch, "empty", empty)
    resolve_device(0, CPU)
    resolve_device(3, CPU)
    assert requested == [torch.device("cuda", 0), torch.device("cuda", 3)]


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(2, True, "cuda:0"), (0, True, "mps"), (0, False, "cpu")]
)
def test_best_device_prefers_cuda_then_mps(
    cuda: int, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert best_device() == torch.device(expected)


def test_resolve_dtype_defaults_to_float32_and_measures_auto(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert resolve_dtype(None, CPU) == torch.float32
    assert resolve_dtype(torch.float16, CPU) == torch.float16
    for bfloat16, expected in ((0.5, torch.bfloat16), (2.0, torch.float32)):
        monkeypatch.setattr(engine, "measure_speeds", lambda _, t=bfloat16: Speeds(1.0, t))
        assert resolve_dtype("auto", CPU) == expected


@pytest.mark.parametrize("dtype", ["float32", torch.float64, torch.int8, 16])
def test_resolve_dtype_of_another_type_is_refused(dtype: Any) -> None:
    with pytest.raises(InputError, match=r"choose one of torch\.float32"):
        resolve_dtype(dtype, CPU)


def test_create_engine_with_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="engine is 'tensorrt'; choose one of torch"):
        create_engine(make_network(), name="tensorrt")


def test_create_engine_by_default_uses_torch() -> None:
    assert create_engine(make_network()).name == "torch"
    for options in ({"calibrate": "images"}, {"dtype": "int8"}):
        with pytest.raises(InputError, match="does not compute in int8; use engine='onnxruntime'"):
            create_engine(make_network(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.bfloat16}, r"dtype is torch\.bfloat16; engine='onnxruntime' computes in"),
        ({"dtype": np.array([1, 2])}, "dtype is array"),
        ({"dtype": "int8"}, "dtype='int8' and calibrate belong together"),
        ({"calibrate": "images"}, "dtype='int8' and calibrate belong together"),
        ({"device": "meta"}, "device 'meta' is not available"),
        ({"compile": True}, "compile=True is for engine='torch'"),
    ],
    ids=str,
)
def test_onnxruntime_refuses_options_before_the_export(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        create_engine(make_network(), name="onnxruntime", **options)


def test_exported_file_has_its_engine_and_type() -> None:
    with pytest.raises(InputError, match=r"x\.onnx is an ONNX file, which needs engine='onnx"):
        create_engine("x.onnx", name="torch")
    for options in ({"dtype": torch.float32}, {"calibrate": "images"}):
        with pytest.raises(InputError, match=r"x\.onnx has a type of arithmetic; drop dtype"):
            create_engine("x.onnx", **options)
