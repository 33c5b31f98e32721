"""From a published checkpoint to a checked state dict in this library's names.

No pickle runs here: torch's restricted unpickler refuses everything but tensors and plain
containers. What it gives is compared, tensor by tensor, with the network that it claims to be for.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from isanet_zoo.errors import CheckpointError
from isanet_zoo.network import backbones
from isanet_zoo.network.config import NetworkConfig
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.weights.fetch import foreign_content

State = dict[str, Tensor]
HEAD = "head.classifier"
AUX_HEAD = "aux_head.classifier"
NAMED = 10  # how many keys of each kind an error lists


class Spec(NamedTuple):
    """Type and shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {'x'.join(map(str, self.shape)) or 'scalar'}"


@dataclass(frozen=True)
class Layout:
    """How a family names its tensors.

    Attributes:
        family: who writes such files.
        marker: a prefix that only this family has.
        prefixes: (theirs, ours), one to one; the longest that fits counts.
    """

    family: str
    marker: str
    prefixes: tuple[tuple[str, str], ...] = ()

    def ours(self, key: str) -> str:
        """Translate a key of the file to this library's name."""
        return _exchange(key, dict(self.prefixes))

    def theirs(self, key: str) -> str:
        """Translate this library's name to the file's key."""
        return _exchange(key, {ours: theirs for theirs, ours in self.prefixes})


def _exchange(key: str, prefixes: Mapping[str, str]) -> str:
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:length])) in prefixes:
            return ".".join([prefixes[prefix], *parts[length:]])
    return key


ZOO = Layout("isanet_zoo", marker="head.attention.")

SSSEG = Layout(
    "ssseg",
    marker="backbone_net.",
    prefixes=(
        ("backbone_net", "backbone"),
        ("backbone_net.stem", "backbone.conv1"),
        ("backbone_net.stem.7", "backbone.bn1"),
        ("in_conv.0", "head.reduce.conv"),
        ("in_conv.1", "head.reduce.norm"),
        *(
            (f"{theirs}_relation.{their_part}", f"head.attention.{ours}.{our_part}")
            for theirs, ours in (("global", "long_range"), ("local", "short_range"))
            for their_part, our_part in (
                ("query_project.0.0", "query.0.conv"),
                ("query_project.0.1", "query.0.norm"),
                ("query_project.1.0", "query.1.conv"),
                ("query_project.1.1", "query.1.norm"),
                ("key_project.0.0", "key.0.conv"),
                ("key_project.0.1", "key.0.norm"),
                ("key_project.1.0", "key.1.conv"),
                ("key_project.1.1", "key.1.norm"),
                ("value_project", "value"),
                ("output_project.0", "project.conv"),
                ("output_project.1", "project.norm"),
            )
        ),
        ("out_conv.0", "head.fuse.conv"),
        ("out_conv.1", "head.fuse.norm"),
        ("decoder.1", "head.classifier"),
        ("auxiliary_decoder.0", "aux_head.reduce.conv"),
        ("auxiliary_decoder.1", "aux_head.reduce.norm"),
        ("auxiliary_decoder.4", "aux_head.classifier"),
    ),
)

LAYOUTS = (ZOO, SSSEG)


class Checkpoint(NamedTuple):
    """A file that passed every check: its tensors under our names, and the network they are for."""

    state: State
    network: NetworkConfig
    layout: Layout


def load_checkpoint(
    path: str | os.PathLike[str], network: NetworkConfig, *, exact: bool = False
) -> Checkpoint:
    """Read a weight file of any known layout, check all of it, and translate its keys.

    Args:
        path: a ``.safetensors`` file or a checkpoint that torch wrote.
        network: the network that it is meant for.
        exact: insist on this very network with its auxiliary head, as for a published file.
            Otherwise the file may be for other class and channel counts (the returned network says
            which), and may lack the auxiliary head as a whole.

    Raises:
        CheckpointError: the file is damaged, is no checkpoint, is not safe to unpickle, lacks or
            adds a tensor, or holds one of another type or shape, a value that is not finite, or a
            negative variance. The keys are named as the file names them.
    """
    path = Path(path)
    state = read_state(path)
    layout = _recognise(state, path)
    aux = True
    if not exact:
        network = _as_in_file(state, network, layout)
        aux = any(layout.ours(key).startswith("aux_head.") for key in state)
    expected = {layout.theirs(key): spec for key, spec in structure(network, aux_loss=aux).items()}
    _check(state, expected, path)
    return Checkpoint({layout.ours(key): tensor for key, tensor in state.items()}, network, layout)


def save_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict as safetensors; equal tensors give equal files."""
    owned = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in state.items()}
    safetensors.torch.save_file(owned, path, metadata={"format": "pt"})


def read_state(path: Path) -> State:
    """Read the tensors of a safetensors or torch file under the file's own keys, unchecked.

    Every container that upstream wrote is understood: a state dict, one inside ``"model"`` or
    ``"state_dict"`` beside an epoch or optimiser state, keys behind ``module.``, and torch's
    container from before 1.6.

    Raises:
        CheckpointError: the file is missing, damaged, foreign, or not safe to unpickle.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if kind := foreign_content(head):
        raise CheckpointError(f"{path} is {kind}, not a checkpoint; fetch the file itself")
    if path.suffix == ".safetensors":
        try:
            return dict(safetensors.torch.load_file(path))
        except (safetensors.SafetensorError, OSError, KeyError) as error:
            raise CheckpointError(
                f"{path} is truncated or no safetensors file: {error}; fetch it again"
            ) from error
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path} is truncated: its table of contents is missing; fetch it again"
        )
    return _unwrap(_unpickle(path), path)


def _unpickle(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            # About pickle protocols that torch does not write; it refuses what it cannot read.
            warnings.simplefilter("ignore", UserWarning)
            content: object = torch.load(path, map_location="cpu", weights_only=True)
            return content
    except pickle.UnpicklingError as error:
        if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} is not safe: its pickle asks for {match[1]}, and weights need no code; "
                "nothing of it was run. Do not load it with other tools either"
            ) from error
        raise CheckpointError(f"{path} is not a checkpoint that torch wrote") from error
    except Exception as error:  # the bytes of a damaged file can make the unpickler raise anything
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        raise CheckpointError(
            f"{path} is truncated or damaged: {reason}; fetch it again"
        ) from error


def _unwrap(content: object, path: Path) -> State:
    """Find the state dict in what a training script saved."""
    if isinstance(content, Mapping):
        for wrapper in ("model", "state_dict"):
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no state dict but {_kind(content)}")
    if strange := [key for key, value in content.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{path} holds no state dict: {_list(strange)} are no tensors")
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): tensor for key, tensor in content.items()}


def _kind(content: object) -> str:
    return "an empty dict" if content == {} else f"a {type(content).__name__}"


def _recognise(state: State, path: Path) -> Layout:
    for layout in LAYOUTS:
        if any(key.startswith(layout.marker) for key in state):
            return layout
    raise CheckpointError(
        f"{path} is no ISANet checkpoint of a known layout "
        f"({', '.join(layout.family for layout in LAYOUTS)}); it holds {_list(state)}"
    )


def _as_in_file(state: State, network: NetworkConfig, layout: Layout) -> NetworkConfig:
    """Return `network` with the class and channel counts that the file shows."""
    classifier = state.get(layout.theirs(f"{HEAD}.weight"))
    stem = state.get(layout.theirs(first_convolution(network)))
    if classifier is not None and classifier.ndim == 4:
        network = replace(network, num_classes=classifier.shape[0])
    if stem is not None and stem.ndim == 4:
        network = replace(network, in_chans=stem.shape[1])
    return network


def _check(state: State, expected: Mapping[str, Spec], path: Path) -> None:
    """Compare a file's tensors with the network's.

    Raises:
        CheckpointError: they differ; the message lists the first ten keys of each kind.
    """
    shared = [key for key in expected if key in state]
    found = {key: _spec(state[key]) for key in shared}
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
                key for key in shared if key.endswith("running_var") and (state[key] < 0).any()
            ],
        }
    if any(problems.values()):
        details = "; ".join(f"{kind}: {_list(keys)}" for kind, keys in problems.items() if keys)
        raise CheckpointError(f"{path} does not hold this network's weights. {details}")


def _list(keys: Iterable[str]) -> str:
    keys = list(map(str, keys))
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + more


def _spec(tensor: Tensor) -> Spec:
    return Spec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


@functools.cache
def _skeleton(network: NetworkConfig, aux_loss: bool) -> ISANet:
    with torch.device("meta"):  # names and shapes only: nothing is allocated or initialised
        return ISANet(
            network.backbone,
            network.num_classes,
            in_chans=network.in_chans,
            aux_loss=aux_loss,
            head=network.head,
        )


def structure(network: NetworkConfig, *, aux_loss: bool) -> dict[str, Spec]:
    """Return the type and shape of every tensor in a network's state dict."""
    return {key: _spec(tensor) for key, tensor in _skeleton(network, aux_loss).state_dict().items()}


def first_convolution(network: NetworkConfig) -> str:
    """Return the key of the parameter that sees the input."""
    return f"backbone.{backbones.first_convolution(_skeleton(network, False).backbone)}"


def structure_digest(network: NetworkConfig) -> str:
    """Return the sha256 over all tensors' (key, type, shape), with the auxiliary head, by key."""
    digest = hashlib.sha256()
    for key, spec in sorted(structure(network, aux_loss=True).items()):
        digest.update(f"{key}\t{spec.dtype}\t{spec.shape}\n".encode())
    return digest.hexdigest()


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 over all tensors' (key, type, shape, bytes), sorted by key.

    It depends on the tensors alone, not on the container: a published file and its converted twin
    have the same one. (safetensors has no checksum of its own.)
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(state.items()):
        dtype, shape = _spec(tensor)
        digest.update(f"{key}\t{dtype}\t{shape}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
