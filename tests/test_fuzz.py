"""A short run of the fuzz script, in a process with limited memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests import processes

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")
@pytest.mark.parametrize("kind", ["images"])
def test_damaged_files_are_read_or_refused(kind: str) -> None:
    arguments = [kind, "--count", "400", "--json"]
    counts = json.loads(processes.call(processes.run_script, SCRIPT, arguments))
    assert sum(counts.values()) == 400
    assert [outcome for outcome in counts if "FAULT" in outcome] == []
    assert counts["read"] > 20
    assert counts["refused (InputError)"] > 100
