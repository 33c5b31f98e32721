"""A short run of the fuzz script over weight files."""

from __future__ import annotations

import random
import runpy
from collections import Counter
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks/fuzz.py"


def test_damaged_weight_files_load_or_are_refused() -> None:
    script = runpy.run_path(str(SCRIPT))
    cases, read = script["KINDS"]["weights"]
    counts: Counter[str] = Counter()
    for _, case in zip(range(300), cases(random.Random(0)), strict=False):
        counts[script["outcome"](read, case).removeprefix("SLOW: ")] += 1  # on a busy machine
    assert counts.keys() == {"read", "refused (CheckpointError)"}
    assert min(counts.values()) > 10
