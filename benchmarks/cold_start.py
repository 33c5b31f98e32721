"""Time of `isanet-zoo predict` for one image, beyond importing torch and timm.

python benchmarks/cold_start.py [--rounds 5] [--json]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import common

IMAGE = Path(__file__).parents[1] / "examples" / "street.jpg"


def main() -> None:
    """Start new processes alternately and print their times."""
    args = common.parser(__doc__).parse_args()
    run = partial(subprocess.run, check=True, capture_output=True)
    with tempfile.TemporaryDirectory() as out:
        predict = [sys.executable, "-m", "isanet_zoo", "predict", str(IMAGE), "-o", out]
        times = common.medians(
            {
                "import torch, timm": lambda: run([sys.executable, "-c", "import torch, timm"]),
                "predict": lambda: run([*predict, "--device", args.device]),
            },
            args.rounds,
        )
    imports, whole = times.values()
    row = {"import torch, timm": imports, "predict": whole, "beyond the imports": whole - imports}
    common.report([row], as_json=args.json)


if __name__ == "__main__":
    main()
