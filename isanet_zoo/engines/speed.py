"""Speed of float32 and bfloat16 on a device, measured with a convolution.

The instructions that a processor lists do not decide: some have bfloat16 at half the speed of
float32.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F

logger = logging.getLogger(__name__)

ROUNDS = 5  # of both types in turns; the fastest one counts
PATIENCE = 0.05  # seconds after which no round is started
MARGIN = 0.8  # of the time of float32: more is within the noise of a measurement
# (B, C, h, w) of a 3 x 3 convolution. On a CPU a few milliseconds; GPUs need more to be busy.
CPU_SHAPE, GPU_SHAPE = (1, 128, 32, 32), (8, 256, 64, 64)


class Speeds(NamedTuple):
    """Seconds that a convolution takes in each type; infinite if the device does not support it."""

    float32: float
    bfloat16: float

    @property
    def faster(self) -> torch.dtype:
        """The type to compute in: bfloat16 only if it is clearly faster."""
        return torch.bfloat16 if self.bfloat16 < MARGIN * self.float32 else torch.float32

    def __str__(self) -> str:
        times = f"float32 {1e3 * self.float32:.3g} ms, bfloat16 {1e3 * self.bfloat16:.3g} ms"
        return f"{str(self.faster).removeprefix('torch.')} (a convolution: {times})"


_measured: dict[torch.device, Speeds] = {}
_lock = threading.Lock()


def measure_speeds(device: torch.device) -> Speeds:
    """Return the speeds of both types on a device, measured once per process."""
    with _lock:  # two measurements at once would disturb each other
        if device not in _measured:
            _measured[device] = _measure(device)
            logger.info("dtype='auto' on %s: %s", device, _measured[device])
        return _measured[device]


def _measure(device: torch.device) -> Speeds:
    types = (torch.float32, torch.bfloat16)
    for dtype in types:
        _seconds(device, dtype)  # the first runs load code
    rounds = [[_seconds(device, dtype) for dtype in types]]
    start = time.perf_counter()
    while len(rounds) < ROUNDS and time.perf_counter() - start < PATIENCE:
        rounds.append([_seconds(device, dtype) for dtype in types])
    return Speeds(*map(min, zip(*rounds, strict=True)))


@torch.inference_mode()
def _seconds(device: torch.device, dtype: torch.dtype) -> float:
    """Return how long a convolution takes; infinity if the device cannot compute it."""
    batch, channels, height, width = CPU_SHAPE if device.type == "cpu" else GPU_SHAPE
    synchronize = torch.get_device_module(device).synchronize
    try:
        x = torch.ones(batch, channels, height, width, dtype=dtype, device=device)
        weight = torch.ones(channels, channels, 3, 3, dtype=dtype, device=device)
        x, weight = (part.contiguous(memory_format=torch.channels_last) for part in (x, weight))
        synchronize()
        start = time.perf_counter()
        with torch.autocast(device.type, enabled=False):
            F.conv2d(x, weight, padding=1)
        synchronize()
        return time.perf_counter() - start
    except (RuntimeError, TypeError):  # bfloat16 on MPS before macOS 14
        return math.inf
