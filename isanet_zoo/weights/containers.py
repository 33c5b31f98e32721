"""From a file to tensors, whatever container it is, and without running its pickle.

Nothing here knows the network; `checkpoints` compares what is read with it.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from isanet_zoo.errors import CheckpointError
from isanet_zoo.files import HEAD, foreign_content
from isanet_zoo.weights.paddle import read_arrays

State = dict[str, Tensor]

TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's container from before 1.6

NAMED = 10  # how many keys of each kind an error lists


def read_state(path: Path, called: str) -> State:
    """Read the tensors of a weight file under the file's own keys, unchecked.

    Every container that upstream wrote is understood: safetensors; a state dict of torch's, one
    inside ``"model"`` or ``"state_dict"`` beside an epoch or optimiser state, keys behind
    ``module.``, and torch's container from before 1.6; and Paddle's pickled arrays. The bytes
    decide which it is, not the file's name.

    Args:
        path: the file.
        called: what errors call it.

    Raises:
        CheckpointError: the file is missing, damaged, foreign, or not safe to unpickle.
    """
    head = _read_head(path, called)
    if head[8:9] == b"{":  # after the length of its header
        return _read_safetensors(path, called)
    if head.startswith(b"PK") and not _has_contents(path):
        raise CheckpointError(
            f"{called} is truncated: its table of contents is missing; fetch it again"
        )
    if head.startswith((b"PK", TORCH_MAGIC)):
        return _find_state(_unpickle(path, called), called)
    if head.startswith(b"\x80"):  # a pickle of protocol 2 or later
        return read_arrays(path, called)
    raise CheckpointError(
        f"{called} is no weight file: it is neither safetensors nor what torch or Paddle saves"
    )


def read_safetensors(path: Path, called: str) -> State:
    """Read the tensors of a safetensors file, unchecked; other containers are refused unread.

    Raises:
        CheckpointError: the file is missing or damaged, or is another container.
    """
    if _read_head(path, called)[8:9] != b"{":
        raise CheckpointError(f"{called} is no safetensors file, the only kind that is read here")
    return _read_safetensors(path, called)


def _read_head(path: Path, called: str) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise CheckpointError(f"{called} cannot be read: {error.strerror or error}") from error
    if kind := foreign_content(head):
        raise CheckpointError(f"{called} is {kind}, not a checkpoint; fetch the file itself")
    return head


def list_keys(keys: Iterable[object]) -> str:
    """Return the first few keys for a message, and how many more there are."""
    keys = list(keys)
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(map(str, keys[:NAMED])) + more


def _has_contents(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # such as one part of several
        return False


def _read_safetensors(path: Path, called: str) -> State:
    try:
        return dict(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(
            f"{called} is truncated or damaged: {error}; fetch it again"
        ) from error


def _unpickle(path: Path, called: str) -> object:
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
        return content
    except pickle.UnpicklingError as error:
        if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{called} is not safe: its pickle asks for {match[1]}, and weights need no code; "
                "nothing of it was run. Do not load it with other tools either"
            ) from error
        raise CheckpointError(f"{called} is damaged, or not a checkpoint of torch's") from error
    except Exception as error:  # the bytes of a damaged file can make the unpickler raise anything
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        raise CheckpointError(
            f"{called} is truncated or damaged: {reason}; fetch it again"
        ) from error


def _find_state(content: object, called: str) -> State:
    """Find the state dict in what a training script saved."""
    if isinstance(content, Mapping):
        for wrapper in ("model", "state_dict"):
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    if not isinstance(content, Mapping) or not content:
        kind = "an empty dict" if content == {} else f"a {type(content).__name__}"
        raise CheckpointError(f"{called} holds no state dict but {kind}")
    strange = [
        key for key, value in content.items() if not (isinstance(key, str) and _is_plain(value))
    ]
    if strange:
        raise CheckpointError(
            f"{called} holds no state dict: {list_keys(strange)} are no (plain) tensors"
        )
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): tensor for key, tensor in content.items()}


def _is_plain(value: object) -> bool:
    """Say whether a value is a dense tensor with values; a pickle may also hold other kinds."""
    return (
        isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    )
