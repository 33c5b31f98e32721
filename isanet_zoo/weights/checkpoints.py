"""Published and users' checkpoints as checked state dicts under this library's names.

Types and shapes are compared with the network's before any tensor is read; then values are checked
and keys are translated. Errors name keys as the file does.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from isanet_zoo.errors import CheckpointError, printable
from isanet_zoo.manifest.config import NetworkConfig
from isanet_zoo.network import backbones
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.weights.containers import open_weights
from isanet_zoo.weights.layouts import COUNTER, LAYOUTS, MMSEG, ZOO, Layout
from isanet_zoo.weights.state_dicts import find_state
from isanet_zoo.weights.stored import State
from isanet_zoo.weights.tensors import (
    Spec,
    check_values,
    compare,
    list_keys,
    spec_of,
    widen,
    widen_spec,
)


class Checkpoint(NamedTuple):
    """Tensors that passed every check, under this library's names, and their network and layout."""

    state: State
    network: NetworkConfig
    layout: Layout


@dataclass(frozen=True)
class LoadReport:
    """Outcome of loading weights into a network.

    Attributes:
        source: the file that was read.
        family: whose names the file's tensors have; ``"zoo"`` for this library's.
        trust: ``"verified"``, ``"pinned"`` or ``"unverified"`` (see SECURITY.md); or ``"local"``
            for a file or folder, and ``"hub"`` for a repository, that the user named.
        fresh: parameters that are not in the file and were initialised.
        adapted: parameters that were changed to fit other input channels or classes.
        unused: tensors of the file that the network has no place for (the auxiliary head's).
        kept_classes, new_classes: with `classes`, those whose rows of the classifiers are the
            file's, and those whose rows were initialised.
        state_digest: hash of the network's tensors after loading, see `tensors.state_digest`.
    """

    source: Path
    trust: str
    family: str = "zoo"
    fresh: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    kept_classes: tuple[str, ...] = ()
    new_classes: tuple[str, ...] = ()
    state_digest: str = ""

    def __str__(self) -> str:
        notes = [f"{printable(self.source, 500)} ({self.trust}, {self.family})"]
        for word in ("fresh", "adapted", "unused", "kept_classes", "new_classes"):
            if names := getattr(self, word):
                notes.append(f"{word.replace('_', ' ')}: {', '.join(names)}")
        return "; ".join(notes)


def load_checkpoint(
    path: str | os.PathLike[str],
    networks: NetworkConfig | Mapping[str, NetworkConfig],
    *,
    exact: bool = False,
    name: str | None = None,
) -> Checkpoint:
    """Read a weight file of any known layout, check all of it, and translate it.

    Files in this library's layout may store 16-bit floats, which become float32. Types and shapes
    are compared before any tensor is read.

    Args:
        path: a ``.safetensors`` file, or a checkpoint of torch or Paddle.
        networks: the network that it is for; or that of each family that it may be from.
        exact: require this network with its auxiliary head, as for a published file. Otherwise
            the file may have other class and channel counts, which the returned network has, and
            may lack the auxiliary head as a whole.
        name: name of the file in error messages; its path if None.

    Returns:
        The tensors; each owns its memory.

    Raises:
        CheckpointError: the file is damaged, is not a checkpoint, is not safe to read, is from a
            family without a network here, lacks or adds a tensor, or has one of another type or
            shape, a value that is not finite, or a negative variance. Keys are those of the file.
    """
    name = name or str(path)
    with open_weights(Path(path), name) as file:
        stored = find_state(file, [layout.marker for layout in LAYOUTS])
        specs = {key: spec_of(tensor) for key, tensor in stored.items()}
        network, layout = _match(specs, networks, name, exact=exact)
        state = file.read(stored)
    return _finish(state, network, layout, name)


def check_state(
    state: State,
    networks: NetworkConfig | Mapping[str, NetworkConfig],
    name: str,
    *,
    exact: bool = False,
) -> Checkpoint:
    """Check the tensors of a file that was read, and translate them; see `load_checkpoint`."""
    specs = {key: spec_of(tensor) for key, tensor in state.items()}
    network, layout = _match(specs, networks, name, exact=exact)
    return _finish(state, network, layout, name)


def load_encoder(model: ISANet, path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Load a file of an encoder, such as ImageNet weights, into a network's encoder.

    The names are timm's; those of a stem may also be mmsegmentation's and sssegmentation's
    (``stem.0``). Counters of batch norms may be missing.

    Args:
        model: the network; its encoder is changed in place.
        path: a ``.safetensors`` file, or a checkpoint of torch.

    Returns:
        Keys of the file that the encoder has no place for, such as a classifier's.

    Raises:
        CheckpointError: the file cannot be read safely, or lacks one of the encoder's tensors.
    """
    own = {key: spec_of(tensor) for key, tensor in model.backbone.state_dict().items()}
    with open_weights(Path(path), str(path)) as file:
        found = find_state(file, [max((key for key in own if not key.endswith(COUNTER)), key=len)])
        stored = {_encoder_key(key): tensor for key, tensor in found.items()}
        known = {key: tensor for key, tensor in stored.items() if key in own}
        expected = {
            key: spec for key, spec in own.items() if key in known or not key.endswith(COUNTER)
        }
        compare({key: spec_of(tensor) for key, tensor in known.items()}, expected, str(path))
        state = file.read(known)
    check_values(state, str(path))
    model.backbone.load_state_dict(model.backbone.state_dict() | state)
    return tuple(key for key in found if _encoder_key(key) not in own)


def _encoder_key(key: str) -> str:
    """Return timm's name of an encoder's tensor, also from mmsegmentation's."""
    return MMSEG.ours(f"backbone.{key}").removeprefix("backbone.")


def _match(
    specs: Mapping[str, Spec],
    networks: NetworkConfig | Mapping[str, NetworkConfig],
    name: str,
    *,
    exact: bool,
) -> tuple[NetworkConfig, Layout]:
    """Return the network and the layout whose types and shapes these are."""
    layout = _recognise(specs, networks, name)
    if isinstance(networks, NetworkConfig):
        network = networks
    elif layout.family in networks:
        network = networks[layout.family]
    else:
        raise CheckpointError(
            f"{name} is a file of {layout.family}, which has published no such model; "
            f"it can be one of {', '.join(networks)}"
        )
    if layout is ZOO:  # may store less than it computes with
        specs = {key: widen_spec(spec) for key, spec in specs.items()}
    aux = True
    if not exact:
        network = _as_in_file(specs, network, layout)
        aux = any(layout.ours(key).startswith("aux_head.") for key in specs)
    expected = {
        layout.theirs(key): spec
        for key, spec in structure(network, aux_loss=aux).items()
        if layout.counts or not key.endswith(COUNTER)
    }
    compare(specs, expected, name)
    return network, layout


def _finish(state: State, network: NetworkConfig, layout: Layout, name: str) -> Checkpoint:
    """Check the values and translate the tensors."""
    if layout is ZOO:
        state = widen(state)
    check_values(state, name)
    return Checkpoint(layout.translate(state), network, layout)


def _recognise(
    keys: Iterable[str], networks: NetworkConfig | Mapping[str, NetworkConfig], name: str
) -> Layout:
    """Return the layout of a file; of families that share names, one that has a network."""
    found = [o for o in LAYOUTS if any(key.startswith(o.marker) for key in keys)]
    families = () if isinstance(networks, NetworkConfig) else networks
    for layout in (*(o for o in found if o.family in families), *found):
        return layout
    raise CheckpointError(
        f"{name} is not an ISANet checkpoint of a known layout "
        f"({', '.join(layout.family for layout in LAYOUTS)}); its keys are {list_keys(keys)}"
    )


def _as_in_file(specs: Mapping[str, Spec], network: NetworkConfig, layout: Layout) -> NetworkConfig:
    """Return `network` with the class and channel counts, and the head, of a file."""
    classifier = specs.get(layout.theirs("head.classifier.weight"))
    stem = specs.get(layout.theirs(first_convolution(network)))
    if classifier is not None and len(classifier.shape) == 4 and 0 not in classifier.shape:
        network = replace(network, num_classes=classifier.shape[0])
    if stem is not None and len(stem.shape) == 4 and 0 not in stem.shape:
        network = replace(network, in_chans=stem.shape[1])
    head = replace(network.head, **dict(layout.head))  # type: ignore[arg-type]
    return replace(network, head=head)


@functools.lru_cache(16)
def _skeleton(network: NetworkConfig, aux_loss: bool, cls: type[ISANet] = ISANet) -> ISANet:
    with torch.device("meta"):  # names and shapes only: nothing is allocated or initialised
        return cls.from_config(network, aux_loss=aux_loss).float()


def structure(
    network: NetworkConfig, *, aux_loss: bool, cls: type[ISANet] = ISANet
) -> dict[str, Spec]:
    """Return the type and shape of every tensor in the state dict of a network of class `cls`."""
    skeleton = _skeleton(network, aux_loss, cls)  # type: ignore[arg-type]
    return {key: spec_of(tensor) for key, tensor in skeleton.state_dict().items()}


def first_convolution(network: NetworkConfig) -> str:
    """Return the key of the weight of the first convolution."""
    return f"backbone.{backbones.first_convolution(_skeleton(network, False).backbone)}"


def structure_digest(network: NetworkConfig) -> str:
    """Return the sha256 over all tensors' (key, type, shape), with the auxiliary head, by key."""
    digest = hashlib.sha256()
    for key, spec in sorted(structure(network, aux_loss=True).items()):
        digest.update(f"{key}\t{spec.dtype}\t{spec.shape}\n".encode())
    return digest.hexdigest()
