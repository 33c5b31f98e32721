"""Hostile weight files are refused in bounded time and memory, with a bounded message."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import processes
from tests.weights import hostile


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS, /proc and FIFOs")
def test_hostile_files_are_refused_in_bounded_time_and_memory(tmp_path: Path) -> None:
    outcomes = processes.call(hostile.read_all, tmp_path)
    assert len(outcomes) > 200
    accepted = {
        name: outcome[:200]
        for name, outcome in outcomes.items()
        if not outcome.startswith("CheckpointError: ")
    }
    assert accepted == {}
    reasons = [outcome for name, outcome in outcomes.items() if name.startswith("tensors: ")]
    assert not any("its pickle is invalid" in reason for reason in reasons)
    assert max(map(len, outcomes.values())) < 5000
    assert all(outcome.isprintable() for outcome in outcomes.values())
