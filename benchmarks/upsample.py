"""Labels from 1/8 logits: the bounded way against `interpolate(...).argmax(1)`.

    python benchmarks/upsample.py [--quick] [--json]

Both ways take turns in one process; of their times the medians are given. The peak of memory beyond
the logits is measured in a fresh process for each way.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from isanet_zoo.inference import upsample

Way = Callable[[Tensor, tuple[int, int]], Tensor]  # logits (1, K, h, w), (H, W) -> (1, H, W)

CASES = (  # classes, height, width
    (21, 512, 683),
    (150, 512, 683),
    (19, 1024, 2048),
    (150, 2160, 3840),
)


@dataclass(frozen=True)
class Result:
    """One case: seconds, and MiB beyond the logits."""

    classes: int
    height: int
    width: int
    same_labels: bool
    plain_seconds: float
    bounded_seconds: float
    plain_mib: float
    bounded_mib: float


def resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (1, K, h, w) to (1, K, *size)."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def plain(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize all classes, then take the maximum."""
    return resize(logits, size).argmax(1)


def bounded(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize one class after the other and keep a running maximum."""
    return upsample.decide(upsample.whole(logits, size, "half_pixel")).labels


WAYS: dict[str, Way] = {"plain": plain, "bounded": bounded}


def make_logits(classes: int, height: int, width: int) -> Tensor:
    """Return logits (1, K, h, w) at 1/8 of a picture's size."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn((1, classes, -(-height // 8), -(-width // 8)), generator=generator)


def peak_mib() -> float:
    """Return the most memory that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


@torch.inference_mode()
def extra_memory(way: str, classes: int, height: int, width: int) -> float:
    """Return by how many MiB one run raises this process's peak."""
    logits = make_logits(classes, height, width)
    WAYS[way](logits, (64, 96))  # whatever torch allocates once
    before = peak_mib()
    WAYS[way](logits, (height, width))
    return peak_mib() - before


def extra_memory_in_new_process(way: str, *case: int) -> float:
    """Return `extra_memory` as a new process sees it."""
    command = [sys.executable, __file__, "--memory-of", way, *map(str, case)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@torch.inference_mode()
def median_times(case: tuple[int, int, int], rounds: int) -> tuple[dict[str, float], bool]:
    """Return each way's median seconds, and whether their labels are the same."""
    logits, size = make_logits(*case), case[1:]
    same = torch.equal(plain(logits, size), bounded(logits, size).long())
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            start = time.perf_counter()
            way(logits, size)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}, same


def main() -> None:
    """Measure all cases and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the two small cases, three rounds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        way, *case = args.memory_of
        print(extra_memory(way, *map(int, case)))
        return

    cases, rounds = (CASES[:2], 3) if args.quick else (CASES, 5)
    # Memory before times: a new process's peak starts at that of the process which starts it.
    memory = {
        case: {way: extra_memory_in_new_process(way, *case) for way in WAYS} for case in cases
    }
    results = []
    for case in cases:
        times, same = median_times(case, rounds)
        results.append(
            Result(
                *case,
                same,
                times["plain"],
                times["bounded"],
                memory[case]["plain"],
                memory[case]["bounded"],
            )
        )
    machine = {
        "machine": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
    }
    if args.json:
        print(json.dumps(machine | {"results": [asdict(result) for result in results]}, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print("                     |      seconds, median     |       MiB, peak extra      | same")
    print("classes  picture     |   plain  bounded  ratio  |    plain   bounded   ratio | labels")
    for r in results:
        print(
            f"{r.classes:7}  {r.height:4} x {r.width:4} "
            f"| {r.plain_seconds:7.3f}  {r.bounded_seconds:7.3f}  "
            f"{r.bounded_seconds / r.plain_seconds:5.2f}  "
            f"| {r.plain_mib:8.1f}  {r.bounded_mib:8.1f}  {r.bounded_mib / r.plain_mib:6.3f} "
            f"| {'yes' if r.same_labels else 'no'}"
        )


if __name__ == "__main__":
    main()
