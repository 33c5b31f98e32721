"""A short run of the fuzz script, in a process with limited memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"
LIMIT = 300  # seconds, on a busy machine


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")
@pytest.mark.parametrize("kind", ["images"])
def test_damaged_files_are_read_or_refused(kind: str) -> None:
    run = [sys.executable, str(SCRIPT), kind, "--count", "400", "--json"]
    counts = json.loads(subprocess.run(run, capture_output=True, check=True, timeout=LIMIT).stdout)
    assert sum(counts.values()) == 400
    assert [outcome for outcome in counts if "FAULT" in outcome] == []
    assert counts["read"] > 20
    assert counts["refused (InputError)"] > 100
