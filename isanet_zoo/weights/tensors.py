"""Named tensors: their types and shapes, their checks, their hash, and how they are written.

Nothing here knows the network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from isanet_zoo.errors import CheckpointError
from isanet_zoo.weights.containers import State, list_keys

CARD = "isanet_zoo"  # where in a file's metadata its card lies


class Spec(NamedTuple):
    """Type and shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {'x'.join(map(str, self.shape)) or 'scalar'}"


def spec_of(tensor: Tensor) -> Spec:
    """Return the type and shape of a tensor."""
    return Spec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def check(state: State, expected: Mapping[str, Spec], called: str) -> None:
    """Compare a file's tensors with the network's.

    Raises:
        CheckpointError: they differ; the message lists the first ten keys of each kind.
    """
    shared = [key for key in expected if key in state]
    found = {key: spec_of(state[key]) for key in shared}
    problems = {
        "missing": [key for key in expected if key not in state],
        "unknown": [key for key in state if key not in expected],
        "of another type or shape": [
            f"{key} ({found[key]}, expected {expected[key]})"
            for key in shared
            if found[key] != expected[key]
        ],
    }
    if not any(problems.values()):
        problems = {
            "not finite": [key for key in shared if not state[key].isfinite().all()],
            "negative variances": [
                key
                for key in shared
                if key.endswith(("running_var", "_variance")) and (state[key] < 0).any()
            ],
        }
    if any(problems.values()):
        details = "; ".join(f"{kind}: {list_keys(keys)}" for kind, keys in problems.items() if keys)
        raise CheckpointError(f"{called} does not hold this network's weights. {details}")


def widen(state: Mapping[str, Tensor]) -> State:
    """Return a state dict with its 16-bit floats as float32, which all networks compute with."""
    return {
        key: tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        for key, tensor in state.items()
    }


def save_state(state: Mapping[str, Tensor], path: Path, *, card: str | None = None) -> None:
    """Write a state dict as safetensors; equal tensors give equal files.

    Args:
        state: the tensors.
        path: the file.
        card: what the file says about itself, see `cards`.
    """
    owned = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in state.items()}
    # One entry only: safetensors writes several in an order of its own, another one each time.
    metadata = {"format": "pt"} if card is None else {CARD: card}
    try:
        path.touch()
        mode = path.stat().st_mode
        safetensors.torch.save_file(owned, path, metadata=metadata)
        path.chmod(mode)  # safetensors lets only the owner read what it writes
    except safetensors.SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 over all tensors' (key, type, shape, bytes), sorted by key.

    It depends on the tensors alone, not on the container: a published file and its converted twin
    have the same one. (safetensors has no checksum of its own.)
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        dtype, shape = spec_of(tensor)
        digest.update(f"{key}\t{dtype}\t{shape}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
