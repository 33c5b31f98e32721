"""Tests of the choice between float32 and bfloat16 by a measurement."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from isanet_zoo.engines import speed
from isanet_zoo.engines.engine import create_engine
from isanet_zoo.engines.speed import Speeds, measure_speeds
from tests.engines.networks import make_network

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_measured", {})


def fake_clock(
    monkeypatch: pytest.MonkeyPatch, *, float32: float, bfloat16: float
) -> list[torch.dtype]:
    """Make convolutions take as long as stated; return the list of those that were run."""
    taken = {torch.float32: float32, torch.bfloat16: bfloat16}
    ran: list[torch.dtype] = []

    def now() -> float:
        return sum(taken[dtype] for dtype in ran)

    def convolve(x: torch.Tensor, weight: torch.Tensor, padding: int) -> None:
        assert x.dtype == weight.dtype
        ran.append(x.dtype)

    monkeypatch.setattr(time, "perf_counter", now)
    monkeypatch.setattr(torch.nn.functional, "conv2d", convolve)
    return ran


@pytest.mark.parametrize(
    ("bfloat16", "expected"),
    [(2.0, torch.float32), (1.0, torch.float32), (0.9, torch.float32), (0.5, torch.bfloat16)],
)
def test_auto_chooses_bfloat16_only_where_it_is_clearly_faster(
    bfloat16: float, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a processor that lists bfloat16 instructions."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    with monkeypatch.context() as faked:
        fake_clock(faked, float32=1e-3, bfloat16=bfloat16 * 1e-3)
        assert measure_speeds(CPU) == pytest.approx((1e-3, bfloat16 * 1e-3))
    assert create_engine(make_network(), dtype="auto").dtype == expected


def test_slow_runs_are_repeated_less(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = fake_clock(monkeypatch, float32=1e-3, bfloat16=10.0)
    measure_speeds(CPU)
    assert ran == 3 * [torch.float32, torch.bfloat16]


def test_real_measurement_takes_positive_times(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "isanet_zoo")
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        found = measure_speeds(CPU)
    assert 0 < found.float32 < math.inf
    assert found.bfloat16 > 0
    assert [record.getMessage() for record in caplog.records] == [f"dtype='auto' on cpu: {found}"]


def test_type_that_the_device_lacks_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def convolve(x: torch.Tensor, weight: torch.Tensor, padding: int) -> None:
        if x.dtype == torch.bfloat16:
            raise TypeError("BFloat16 is not supported on MPS")

    monkeypatch.setattr(torch.nn.functional, "conv2d", convolve)
    found = measure_speeds(CPU)
    assert (found.bfloat16, found.faster) == (math.inf, torch.float32)


def test_threads_share_one_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    together, calls = threading.Barrier(6), []

    def measure(device: torch.device) -> Speeds:
        calls.append(device)
        return Speeds(float(len(calls)), 1.0)

    def request(device: torch.device) -> Speeds:
        together.wait()
        return measure_speeds(device)

    monkeypatch.setattr(speed, "_measure", measure)
    devices: Iterator[torch.device] = iter(3 * [CPU, torch.device("cuda", 1)])
    with ThreadPoolExecutor(6) as pool:
        found = set(pool.map(request, devices))
    assert len(calls) == len(found) == 2
