"""Memory of training: its peak, and one error where it is too small."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch

from isanet_zoo.errors import InputError

# In messages of torch's RuntimeErrors on CPUs, MPS and in CUDA's libraries.
SIGNS = ("out of memory", "allocate memory", "ALLOC_FAILED")
GIB = 1 << 30


@contextlib.contextmanager
def enough_memory(device: torch.device, advice: str) -> Iterator[None]:
    """Convert torch's errors of too little memory within the block to one `InputError`.

    Args:
        device: where the block computes.
        advice: what was done, and what to lower; the end of the message.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and not any(sign in str(error) for sign in SIGNS):
            raise
        raise InputError(f"{device} is out of memory {advice}") from error


def peak_memory(device: torch.device) -> str:
    """Return the largest memory that this process has used, or "" where it is not known."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        used = torch.cuda.max_memory_reserved(device)
        return f"{used / GIB:.1f} of {total / GIB:.1f} GiB of GPU memory"
    if device.type == "mps":
        return f"{torch.mps.driver_allocated_memory() / GIB:.1f} GiB of GPU memory"
    try:
        import resource
    except ImportError:  # Windows
        return ""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{used * (1 if sys.platform == 'darwin' else 1024) / GIB:.1f} GiB of memory"
