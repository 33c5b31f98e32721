"""From a published checkpoint to a checked state dict in this library's names.

A file is compared, tensor by tensor, with the network that it claims to be for, and then translated
to this library's names. Errors name keys as the file does.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from isanet_zoo.errors import CheckpointError
from isanet_zoo.manifest.config import NetworkConfig
from isanet_zoo.network import backbones
from isanet_zoo.network.isanet import ISANet
from isanet_zoo.weights.containers import State, list_keys, read_state
from isanet_zoo.weights.layouts import COUNTER, LAYOUTS, ZOO, Layout
from isanet_zoo.weights.tensors import Spec, check, spec_of, widen


class Checkpoint(NamedTuple):
    """A file that passed every check: its tensors under our names, and the network they are for."""

    state: State
    network: NetworkConfig
    layout: Layout


@dataclass(frozen=True)
class LoadReport:
    """What loading weights into a network did.

    Attributes:
        source: the file that was read.
        family: whose names the file's tensors have; ``"zoo"`` for this library's.
        trust: ``"verified"``, ``"pinned"`` or ``"unverified"`` (see SECURITY.md); or ``"local"``
            for a file or folder, and ``"hub"`` for a repository, that the user named.
        fresh: parameters that the file could not give, so that they start from scratch.
        adapted: parameters that were changed to fit other input channels.
        unused: tensors of the file that this network has no place for (the auxiliary head's).
    """

    source: Path
    trust: str
    family: str = "zoo"
    fresh: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        notes = [f"{self.source} ({self.trust}, {self.family})"]
        for word in ("fresh", "adapted", "unused"):
            if keys := getattr(self, word):
                notes.append(f"{word}: {', '.join(keys)}")
        return "; ".join(notes)


def load_checkpoint(
    path: str | os.PathLike[str],
    networks: NetworkConfig | Mapping[str, NetworkConfig],
    *,
    exact: bool = False,
    called: str | None = None,
) -> Checkpoint:
    """Read a weight file of any known layout, check all of it, and translate it.

    Files in this library's own layout may store 16-bit floats, which become float32.

    Args:
        path: a ``.safetensors`` file, or a checkpoint that torch or Paddle wrote.
        networks: the network that it is meant for; or that of each family it may be from.
        exact: insist on this very network with its auxiliary head, as for a published file.
            Otherwise the file may be for other class and channel counts (the returned network says
            which), and may lack the auxiliary head as a whole.
        called: what errors call the file; its path if None.

    Raises:
        CheckpointError: the file is damaged, is no checkpoint, is not safe to unpickle, is from a
            family without a network here, lacks or adds a tensor, or holds one of another type or
            shape, a value that is not finite, or a negative variance. The keys are named as the
            file names them.
    """
    called = called or str(path)
    with torch.device("cpu"):  # whatever torch's default device is at the moment
        state = read_state(Path(path), called)
    return check_state(state, networks, called, exact=exact)


def check_state(
    state: State,
    networks: NetworkConfig | Mapping[str, NetworkConfig],
    called: str,
    *,
    exact: bool = False,
) -> Checkpoint:
    """Check the tensors of a file and translate them; see `load_checkpoint`."""
    layout = _recognise(state, networks, called)
    if isinstance(networks, NetworkConfig):
        network = networks
    elif layout.family in networks:
        network = networks[layout.family]
    else:
        raise CheckpointError(
            f"{called} is a file of {layout.family}, which has published no such model; "
            f"it can be one of {', '.join(networks)}"
        )
    if layout is ZOO:  # may store less than it computes with
        state = widen(state)
    aux = True
    if not exact:
        network = _as_in_file(state, network, layout)
        aux = any(layout.ours(key).startswith("aux_head.") for key in state)
    expected = {
        layout.theirs(key): spec
        for key, spec in structure(network, aux_loss=aux).items()
        if layout.counts or not key.endswith(COUNTER)
    }
    check(state, expected, called)
    return Checkpoint(layout.translate(state), network, layout)


def load_encoder(model: ISANet, path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Start a network's encoder from a file with timm's names, such as ImageNet weights.

    Args:
        model: the network; its encoder is changed in place.
        path: a ``.safetensors`` file, or one that torch wrote.

    Returns:
        The file's tensors that the encoder has no place for, such as a classifier.

    Raises:
        CheckpointError: the file cannot be read safely, or lacks one of the encoder's tensors.
    """
    state = read_state(Path(path), str(path))
    expected = {key: spec_of(tensor) for key, tensor in model.backbone.state_dict().items()}
    known = {key: tensor for key, tensor in state.items() if key in expected}
    check(known, expected, str(path))
    model.backbone.load_state_dict(known)
    return tuple(key for key in state if key not in expected)


def _recognise(
    state: State, networks: NetworkConfig | Mapping[str, NetworkConfig], called: str
) -> Layout:
    """Return the layout of a file; of families that share names, one that has a network."""
    found = [o for o in LAYOUTS if any(key.startswith(o.marker) for key in state)]
    families = () if isinstance(networks, NetworkConfig) else networks
    for layout in (*(o for o in found if o.family in families), *found):
        return layout
    raise CheckpointError(
        f"{called} is no ISANet checkpoint of a known layout "
        f"({', '.join(layout.family for layout in LAYOUTS)}); it holds {list_keys(state)}"
    )


def _as_in_file(state: State, network: NetworkConfig, layout: Layout) -> NetworkConfig:
    """Return `network` with the class and channel counts, and the head, that the file shows."""
    classifier = state.get(layout.theirs("head.classifier.weight"))
    stem = state.get(layout.theirs(first_convolution(network)))
    if classifier is not None and classifier.ndim == 4 and classifier.numel():
        network = replace(network, num_classes=classifier.shape[0])
    if stem is not None and stem.ndim == 4 and stem.numel():
        network = replace(network, in_chans=stem.shape[1])
    head = replace(network.head, **dict(layout.head))  # type: ignore[arg-type]
    return replace(network, head=head)


@functools.cache
def _skeleton(network: NetworkConfig, aux_loss: bool) -> ISANet:
    with torch.device("meta"):  # names and shapes only: nothing is allocated or initialised
        skeleton = ISANet(
            network.backbone,
            network.num_classes,
            in_chans=network.in_chans,
            aux_loss=aux_loss,
            head=network.head,
        )
    return skeleton.float()  # whatever torch's default type is at the moment


def structure(network: NetworkConfig, *, aux_loss: bool) -> dict[str, Spec]:
    """Return the type and shape of every tensor in a network's state dict."""
    return {
        key: spec_of(tensor) for key, tensor in _skeleton(network, aux_loss).state_dict().items()
    }


def first_convolution(network: NetworkConfig) -> str:
    """Return the key of the parameter that sees the input."""
    return f"backbone.{backbones.first_convolution(_skeleton(network, False).backbone)}"


def structure_digest(network: NetworkConfig) -> str:
    """Return the sha256 over all tensors' (key, type, shape), with the auxiliary head, by key."""
    digest = hashlib.sha256()
    for key, spec in sorted(structure(network, aux_loss=True).items()):
        digest.update(f"{key}\t{spec.dtype}\t{spec.shape}\n".encode())
    return digest.hexdigest()
