"""Comparison of what a library could change for others in its process.

Importing this module imports nothing of isanet_zoo.
"""

from __future__ import annotations

import builtins
import gc
import locale
import logging
import math
import multiprocessing
import os
import random
import signal
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import nn


def attributes(owner: object) -> dict[str, object]:
    """Return the attributes of a class or module, but for the cache of `copyreg`."""
    return {name: value for name, value in vars(owner).items() if name != "__slotnames__"}


def global_state() -> dict[str, Any]:
    """Return what a library could change for others in this process, by name."""
    backends = torch.backends
    state: dict[str, Any] = {
        "torch.get_default_dtype": torch.get_default_dtype(),
        "torch.get_default_device": torch.get_default_device(),
        "torch.get_num_threads": torch.get_num_threads(),
        "torch.get_num_interop_threads": torch.get_num_interop_threads(),
        "torch.is_grad_enabled": torch.is_grad_enabled(),
        "torch.is_inference_mode_enabled": torch.is_inference_mode_enabled(),
        "torch.is_autocast_enabled": torch.is_autocast_enabled("cpu"),
        "torch.is_anomaly_enabled": torch.is_anomaly_enabled(),
        "torch.are_deterministic_algorithms_enabled": torch.are_deterministic_algorithms_enabled(),
        "torch.get_float32_matmul_precision": torch.get_float32_matmul_precision(),
        "torch.backends.cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark),
        "torch.backends.cudnn.allow_tf32": backends.cudnn.allow_tf32,
        "torch.backends.cuda.matmul.allow_tf32": backends.cuda.matmul.allow_tf32,
        "torch.backends.mkldnn.enabled": backends.mkldnn.enabled,
        "torch.get_rng_state": torch.get_rng_state().numpy().tobytes(),
        "torch.Tensor": attributes(torch.Tensor),
        "torch.nn.Module": attributes(nn.Module),
        "torch.nn.functional": attributes(nn.functional),
        "torch.multiprocessing": torch.multiprocessing.get_sharing_strategy(),  # type: ignore[no-untyped-call]
        "builtins": attributes(builtins),
        "math": attributes(math),
        "numpy.random": np.random.get_state()[1].tobytes(),  # type: ignore[index]
        "numpy.geterr": np.geterr(),
        "numpy.printoptions": str(np.get_printoptions()),
        "random": random.getstate(),
        "PIL": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK),
        "warnings.filters": list(warnings.filters),
        "warnings.showwarning": warnings.showwarning,
        "locale": locale.setlocale(locale.LC_ALL),
        "os.environ": dict(os.environ),
        "working folder": Path.cwd(),
        "socket.getdefaulttimeout": socket.getdefaulttimeout(),
        "multiprocessing": multiprocessing.get_start_method(allow_none=True),
        "gc": (gc.isenabled(), gc.get_threshold()),
        "sys": (sys.getrecursionlimit(), sys.excepthook, sys.stdout, sys.stderr, list(sys.path)),
    }
    state["umask"] = os.umask(0o022)
    os.umask(state["umask"])
    state |= {f"signal {number}": signal.getsignal(number) for number in signal.valid_signals()}
    for name in (None, "isanet_zoo", "torch", "timm", "PIL", "huggingface_hub"):
        logger = logging.getLogger(name)
        state[f"logger {name}"] = (logger.level, list(logger.handlers), logger.propagate)
    return state


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]
