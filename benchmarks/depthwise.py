"""Benchmark of depthwise convolutions: a training step of EfficientNet-Lite0 on a CPU.

    python benchmarks/depthwise.py [--quick] [--json]

Steps with torch's convolutions and with those of `engines/depthwise.py` alternate in one process;
medians are printed. A step is a forward and a backward pass of the whole network.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time

import torch
import torch.nn.functional as F

from isanet_zoo import HeadConfig, ISANet
from isanet_zoo.engines.depthwise import speed_up_depthwise

SMALL_HEAD = HeadConfig(channels=128, key_channels=64, aux_channels=64)


def step(network: ISANet, images: torch.Tensor, target: torch.Tensor, dtype: torch.dtype) -> float:
    """Return the seconds of one forward and backward pass."""
    start = time.perf_counter()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        output = network(images)
    loss = F.cross_entropy(output.float(), target)
    loss.backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - start


def compare(dtype: torch.dtype, batch: int, side: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of both and their ratio."""
    torch.manual_seed(0)
    plain = ISANet("tf_efficientnet_lite0", 11, head=SMALL_HEAD).train()
    plain.to(memory_format=torch.channels_last)
    fast = copy.deepcopy(plain)
    speed_up_depthwise(fast)
    images = torch.randn(batch, 3, side, side).to(memory_format=torch.channels_last)
    target = torch.randint(0, 11, (batch, side, side))
    times: dict[str, list[float]] = {"plain": [], "fast": []}
    for turn in range(rounds + 1):
        for name, network in (("plain", plain), ("fast", fast)):
            seconds = step(network, images, target, dtype)
            if turn:  # the first one is a warm-up
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return medians | {"ratio": medians["fast"] / medians["plain"]}


def main() -> None:
    """Run both types and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small images, one round")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    batch, side, rounds = (1, 64, 1) if options.quick else (8, 224, 7)
    results = {
        str(dtype).removeprefix("torch."): compare(dtype, batch, side, rounds)
        for dtype in (torch.float32, torch.bfloat16)
    }
    if options.json:
        print(json.dumps({"torch": torch.__version__, "results": results}, indent=2))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor()}")
    for dtype, result in results.items():
        print(
            f"{dtype}: plain {result['plain']:.3f} s, fast {result['fast']:.3f} s, "
            f"ratio {result['ratio']:.2f}"
        )


if __name__ == "__main__":
    main()
