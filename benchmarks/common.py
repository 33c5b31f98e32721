"""Helpers of the benchmarks: alternating runs in one process, memory in separate ones."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isanet_zoo.network.isanet import ISANet


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--rounds", type=int, default=5, help="runs of each implementation (default: 5)"
    )
    made.add_argument("--device", default="cpu", help="such as cpu or cuda (default: cpu)")
    made.add_argument("--json", action="store_true", help="print JSON")
    made.add_argument("--memory-of", help=argparse.SUPPRESS)
    return made


def medians(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Run implementations alternately, once as a warm-up; return their median seconds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def extra_memory(run: Callable[[], object]) -> float:
    """Return the increase of peak memory by a run in MiB, of the GPU if there is one.

    It is the second run, as the first one loads code and fills caches. Without a GPU, it is the
    memory of the process, on Linux only, where the peak can be reset.
    """
    run()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        if peak := torch.cuda.max_memory_allocated() - before:
            return peak / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    at_rest = resident()
    run()
    return _status("VmHWM") - at_rest


def resident() -> float:
    """Return the resident memory of this process, in MiB."""
    return _status("VmRSS")


def _status(name: str) -> float:
    """Return an entry of the status of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def in_new_process(way: str, *arguments: object) -> float:
    """Run this script with ``--memory-of way`` in a new process; return the number it prints."""
    command = [sys.executable, sys.argv[0], *map(str, arguments), "--memory-of", way]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def make_model(backbone: str = "resnet50c", num_classes: int = 150) -> ISANet:
    """Return a network whose norms have random statistics, like a trained one."""
    torch.manual_seed(0)
    model = ISANet(backbone, num_classes)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
    return model.eval()


def report(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print the machine and a table, or JSON."""
    machine = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if as_json:
        print(json.dumps(machine | {"results": list(rows)}, indent=2))
        return
    print("; ".join(f"{name}: {value}" for name, value in machine.items()))
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = [names, *([_text(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for number, cells in enumerate(table):
        print("| " + " | ".join(map(str.rjust, cells, widths)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
