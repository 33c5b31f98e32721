"""Processes of `torchrun` that wait for each other at the end."""

from __future__ import annotations

import concurrent.futures
import datetime

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from isanet_zoo.commands import sharding


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """A store as `torchrun` provides it."""
    timeout = datetime.timedelta(seconds=20)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timeout)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setattr(sharding, "SECONDS_BETWEEN_CHECKS", 0.01)
    return store


def test_processes_end_once_all_have_finished(store: TCPStore) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = [pool.submit(sharding.wait_for_others, 3) for _ in range(2)]
        assert not concurrent.futures.wait(waiting, timeout=0.2).done
        sharding.wait_for_others(3)
        for future in waiting:
            future.result(timeout=20)


def test_restarted_processes_wait_anew(store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    sharding.wait_for_others(1)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(sharding.wait_for_others, 2)
        assert not concurrent.futures.wait([waiting], timeout=0.2).done
        sharding.wait_for_others(2)
        waiting.result(timeout=20)


def test_process_ends_if_torchrun_has(store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "SECONDS_TO_CONNECT", 0.5)
    monkeypatch.setenv("MASTER_PORT", "1")  # no server listens there
    sharding.wait_for_others(2)
