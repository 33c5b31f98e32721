"""Users' own checkpoints: reading and conversion."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from isanet_zoo.errors import CheckpointError, InputError, printable
from isanet_zoo.files import atomic_write, check_target, is_same_file, to_path
from isanet_zoo.manifest.config import NetworkConfig
from isanet_zoo.manifest.lookup import families, get_weights
from isanet_zoo.manifest.weights import Weights
from isanet_zoo.weights.checkpoints import Checkpoint, load_checkpoint
from isanet_zoo.weights.description import (
    Description,
    Provenance,
    describe_own,
    is_described,
    read_description,
)
from isanet_zoo.weights.stored import State
from isanet_zoo.weights.tensors import save_state, state_digest

logger = logging.getLogger(__name__)


def load_own(path: Path, weights: Weights) -> tuple[Checkpoint, Description]:
    """Read a user's file, of any family that published the same model.

    Args:
        path: the file.
        weights: the published weights that were named as the closest.

    Returns:
        The tensors; and the file's own description, or one from the closest weights of its family.

    Raises:
        CheckpointError: the file cannot be read safely, is for another model, or its tensors are
            not those of the network.
    """
    own = read_description(path)
    if own and own.model not in ("", weights.model):
        raise CheckpointError(f"{path} was made from {own.model}, not from {weights.model}")
    if own and own.network.backbone != weights.network.backbone:
        raise CheckpointError(
            f"{path} is for the encoder {own.network.backbone}, {weights.model} has "
            f"{weights.network.backbone}; pass the file alone, without the name of a model"
        )
    known = families(weights)
    networks = {family: other.network for family, other in known.items()}
    networks["zoo"] = own.network if own else weights.network
    checkpoint = load_matching(path, networks, own)
    network, family = checkpoint.network, checkpoint.layout.family
    closest = known.get(family, weights)
    aux_head = any(key.startswith("aux_head.") for key in checkpoint.state)
    logger.info(
        "%s: a file of %s for %d classes, like %s",
        *(printable(path, 500), family, network.num_classes, closest.name),
    )
    if own is None:
        return checkpoint, describe_own(closest, network, aux_head=aux_head)
    if own.model and not own.provenance:  # of version 0.1.0
        own = replace(own, provenance=Provenance.of(weights, unchanged=False))
    return checkpoint, replace(own, aux_head=aux_head)


def load_matching(
    path: Path, networks: Mapping[str, NetworkConfig], own: Description | None
) -> Checkpoint:
    """Read a user's file and compare its tensors with its own description.

    Raises:
        CheckpointError: the file cannot be read safely, or its tensors are not those of the network
            or of the description.
    """
    try:
        checkpoint = load_checkpoint(path, networks)
    except InputError as error:  # its encoder is unknown, or it has too many classes
        raise CheckpointError(f"{path}: {error}") from error
    found = checkpoint.network
    if own is not None and own.network != found:
        raise CheckpointError(
            f"{path} has tensors for {found.num_classes} classes and {found.in_chans} input "
            f"channels, but its description has {own.network.num_classes} and "
            f"{own.network.in_chans}"
        )
    return checkpoint


def convert_checkpoint(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    name: str,
    *,
    half: bool = False,
    force: bool = False,
) -> Path:
    """Convert an upstream checkpoint of the user's own to safetensors.

    The new file has a description, so that ``create_model(name, weights=dst)`` needs no tag.

    Args:
        src: the checkpoint; it may be fine-tuned to other classes or channels.
        dst: the ``.safetensors`` file to write; it is replaced once the new file is complete.
        name: the zoo's model that it was made from. The family is recognised; if it published
            several weights of this model that differ in preprocessing, give the tag of the closest.
        half: store float16 instead of float32, in half the size, at a loss of precision.
        force: replace a file that this library did not write, or `src` itself.

    Returns:
        `dst`, which ``create_model(name, weights=dst)`` loads.

    Raises:
        UnknownModelError: no model has this name.
        InputError: `dst` cannot be written under that name, another file has it, or float16 cannot
            store a value.
        CheckpointError: the file cannot be read safely, or its tensors are not the network's.
    """
    source, target = to_path(src, "src"), to_path(dst, "dst")
    if target.suffix != ".safetensors":
        raise InputError(f"{target} must end in .safetensors, to be recognised when it is loaded")
    check_target(target, is_ours=is_described, force=force)
    if not force and is_same_file(source, target):
        raise InputError(
            f"{target} is the checkpoint itself; choose another name, or replace it with --force "
            "(in Python: force=True)"
        )
    weights = get_weights(name)
    checkpoint, description = load_own(source, weights)
    weights.log_terms()
    state = _halve(checkpoint.state, str(source)) if half else checkpoint.state
    description = replace(description, state_digest=state_digest(state))
    try:
        with atomic_write(target) as temporary:
            save_state(state, temporary, description=description.text())
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error}") from error
    return target


def _halve(state: State, name: str) -> State:
    """Return a state dict with its floats as float16.

    Raises:
        InputError: a value is too large for float16.
    """
    halves = {key: t.half() if t.is_floating_point() else t for key, t in state.items()}
    for key, tensor in halves.items():
        if not tensor.isfinite().all():
            raise InputError(
                f"{name}: {key} has values of up to {state[key].abs().max():g}, but float16 ends "
                "at 65504; convert it as float32, without half"
            )
    return halves
