"""Conversion of users' own checkpoints."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from isanet_zoo.errors import CheckpointError, InputError
from isanet_zoo.files import replace, temporary_file
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.lookup import families, get_weights
from isanet_zoo.manifest.weights import Weights
from isanet_zoo.weights.cards import Card, read_card
from isanet_zoo.weights.checkpoints import Checkpoint, load_checkpoint
from isanet_zoo.weights.tensors import save_state

logger = logging.getLogger(__name__)


def load_own(path: Path, weights: Weights) -> tuple[Checkpoint, Card | Weights]:
    """Read a file of the user's own, of any family that published the same model.

    Args:
        path: the file.
        weights: the published weights that were named as the closest.

    Returns:
        What is in it; and what describes it: its own card, or the closest weights of its family.

    Raises:
        CheckpointError: it cannot be read safely, is for another model, or its tensors are not the
            network's.
    """
    card = read_card(path)
    if card and card.model not in ("", weights.model):
        raise CheckpointError(f"{path} was made from {card.model}, not from {weights.model}")
    known = families(weights)
    networks = {family: other.network for family, other in known.items()}
    networks["zoo"] = card.network if card else weights.network
    checkpoint = load_checkpoint(path, networks)
    family = checkpoint.layout.family
    closest = known.get(family, weights)
    logger.info(
        "%s: a file of %s for %d classes, like %s",
        *(path, family, checkpoint.network.num_classes, closest.name),
    )
    return checkpoint, card or closest


def _describe(checkpoint: Checkpoint, weights: Weights) -> Card:
    """Return the card of a converted file that had none."""
    num_classes = checkpoint.network.num_classes
    known = num_classes == weights.num_classes
    return Card(
        model=weights.model,
        network=checkpoint.network,
        label_set=weights.label_set if known else LabelSet.generic(num_classes),
        preprocess=weights.preprocess,
        dataset="",
        recipe=None,
        metrics=(),
    )


def convert_checkpoint(
    src: str | os.PathLike[str], dst: str | os.PathLike[str], name: str, *, half: bool = False
) -> Path:
    """Convert an upstream checkpoint of the user's own to safetensors.

    The new file describes itself: ``create_model(name, weights=dst)`` needs no tag then.

    Args:
        src: the checkpoint; one fine-tuned to other classes or channels is fine.
        dst: the ``.safetensors`` file to write; it appears, or is replaced, once all is checked.
        name: the zoo's model that it was made from. The family is recognised; where it published
            several weights of this model that differ in how pictures are prepared, give the tag of
            the closest.
        half: store float16 instead of float32: half the size, at a loss of precision.

    Returns:
        `dst`, which ``create_model(name, weights=dst)`` loads.

    Raises:
        UnknownModelError: no model has this name.
        InputError: `dst` cannot be written under that name.
        CheckpointError: the file cannot be read safely, or its tensors are not the network's.
    """
    target = Path(dst)
    if target.suffix != ".safetensors":
        raise InputError(
            f"{target} would not be recognised later; let its name end in .safetensors"
        )
    if not target.parent.is_dir() or target.is_dir():
        raise InputError(f"{target} cannot be written: it is, or is not in, a folder")
    weights = get_weights(name)
    checkpoint, described = load_own(Path(src), weights)
    state = checkpoint.state
    if half:
        state = {
            key: tensor.half() if tensor.is_floating_point() else tensor
            for key, tensor in state.items()
        }
    card = described if isinstance(described, Card) else _describe(checkpoint, described)
    try:
        with temporary_file(target.parent, ".safetensors") as temporary:
            save_state(state, temporary, card=card.text())
            replace(temporary, target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error}") from error
    return target
