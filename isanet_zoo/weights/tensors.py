"""Named tensors: types and shapes, comparison with a network's, hash, and saving."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from isanet_zoo.errors import CheckpointError, printable
from isanet_zoo.weights.stored import State, Stored, bytes_of

DESCRIPTION = "isanet_zoo"  # key of the description in the metadata of a file

LISTED = 10  # keys of each kind in an error message

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # in torch's keys


class Spec(NamedTuple):
    """Type and shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {'x'.join(map(str, self.shape)) or 'scalar'}"


def spec_of(tensor: Tensor | Stored) -> Spec:
    """Return the type and shape of a tensor."""
    return Spec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def compare(found: Mapping[str, Spec], expected: Mapping[str, Spec], name: str) -> None:
    """Compare types and shapes in a file with those of a network.

    Raises:
        CheckpointError: they differ; the message lists the first ten keys of each kind.
    """
    problems = {
        "missing": [key for key in expected if key not in found],
        "unknown": [key for key in found if key not in expected],
        "of another type or shape": [
            f"{key} ({found[key]}, expected {expected[key]})"
            for key in expected
            if key in found and found[key] != expected[key]
        ],
    }
    _report(problems, name)


def check_values(state: State, name: str) -> None:
    """Check that all values are finite, and that no variance is negative.

    Raises:
        CheckpointError: some are not; the message lists the first ten keys of each kind.
    """
    variances = [key for key in state if key.endswith(("running_var", "_variance"))]
    problems = {
        "not finite": [key for key, tensor in state.items() if not tensor.isfinite().all()],
        "negative variances": [key for key in variances if (state[key] < 0).any()],
    }
    _report(problems, name)


def check(state: State, expected: Mapping[str, Spec], name: str) -> None:
    """Compare tensors with a network's, and check their values.

    Raises:
        CheckpointError: they differ, or values are not usable.
    """
    compare({key: spec_of(tensor) for key, tensor in state.items()}, expected, name)
    check_values(state, name)


def _report(problems: Mapping[str, list[str]], name: str) -> None:
    details = "; ".join(f"{kind}: {list_keys(keys)}" for kind, keys in problems.items() if keys)
    if details:
        raise CheckpointError(f"{name} does not hold this network's weights. {details}")


def list_keys(keys: Iterable[object]) -> str:
    """Return the first few keys for a message, and how many more there are."""
    keys = list(keys)
    more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
    return ", ".join(printable(key) for key in keys[:LISTED]) + more


def plain_key(key: str) -> str:
    """Return a key without the parts that torch's wrappers of modules insert."""
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    return key


def plain_state(module: nn.Module) -> State:
    """Return a module's state dict, with the keys that it has without torch's wrappers of parts."""
    return {plain_key(key): tensor for key, tensor in module.state_dict().items()}


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside compiled, averaged and parallel ones."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
    while True:
        if isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        elif isinstance(module, wrappers):
            module = module.module
        else:
            return module


def widen(state: Mapping[str, Tensor]) -> State:
    """Return a state dict with its 16-bit floats as float32, in which all networks compute."""
    return {
        key: tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        for key, tensor in state.items()
    }


def widen_spec(spec: Spec) -> Spec:
    """Return the type and shape of a tensor after `widen`."""
    return Spec("float32", spec.shape) if spec.dtype in ("float16", "bfloat16") else spec


def save_state(state: Mapping[str, Tensor], path: Path, *, description: str | None = None) -> None:
    """Write a state dict as safetensors; equal tensors result in equal files.

    Args:
        state: the tensors.
        path: the file.
        description: of the network, as JSON.

    Raises:
        OSError: the file cannot be written.
    """
    owned = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in state.items()}
    # One entry only: safetensors writes several in random order.
    metadata = {"format": "pt"} if description is None else {DESCRIPTION: description}
    try:
        path.touch()
        mode = path.stat().st_mode
        safetensors.torch.save_file(owned, path, metadata=metadata)
        path.chmod(mode)  # safetensors makes files that only their owner can read
    except safetensors.SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 over the (key, type, shape, bytes) of all tensors, sorted by key.

    It depends on the tensors alone, so it is the same for a published file and the converted one.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        dtype, shape = spec_of(tensor)
        digest.update(f"{key}\t{dtype}\t{shape}\n".encode())
        digest.update(bytes_of(tensor.cpu().contiguous()))
    return digest.hexdigest()
