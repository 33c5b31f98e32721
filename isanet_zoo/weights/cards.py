"""What a weight file that was trained here says about itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors
from torch import Tensor

from isanet_zoo import records
from isanet_zoo.errors import CheckpointError, InputError, ManifestError
from isanet_zoo.files import replace, temporary_file
from isanet_zoo.manifest.config import NetworkConfig, Preprocess
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.recipe import Recipe
from isanet_zoo.manifest.weights import Metric
from isanet_zoo.weights.tensors import CARD, save_state


class Described(Protocol):
    """A network that knows what it is for; this module needs to know no more of it."""

    weights: Any
    config: NetworkConfig
    label_set: LabelSet
    preprocess: Preprocess

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return its tensors."""


@dataclass(frozen=True)
class Card:
    """A file's own description.

    Attributes:
        model: the zoo's model that it started from; empty if there is none.
        network: the numbers of the network.
        label_set: its classes.
        preprocess: how pictures become input.
        dataset: what it was trained on.
        recipe: how; None if nobody said.
        metrics: what was measured.
    """

    model: str
    network: NetworkConfig
    label_set: LabelSet
    preprocess: Preprocess
    dataset: str
    recipe: Recipe | None
    metrics: tuple[Metric, ...]

    def text(self) -> str:
        """Return the card as it is written into a file."""
        return json.dumps(records.write(self), ensure_ascii=False)


def save_model(
    model: Described,
    path: str | os.PathLike[str],
    *,
    dataset: str = "",
    recipe: Recipe | None = None,
    metrics: Iterable[Metric] = (),
) -> None:
    """Write a network's weights with a card; ``create_model(name, weights=path)`` brings both back.

    Args:
        model: the network, with its label set and preprocessing.
        path: the ``.safetensors`` file; it appears, or is replaced, once it is whole.
        dataset: what the network was trained on.
        recipe: how.
        metrics: what was measured.

    Raises:
        InputError: the file cannot be written under that name.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise InputError(
            f"{target} would not be recognised later; let its name end in .safetensors"
        )
    card = Card(
        model=model.weights.model if model.weights else "",
        network=model.config,
        label_set=model.label_set,
        preprocess=model.preprocess,
        dataset=dataset,
        recipe=recipe,
        metrics=tuple(metrics),
    )
    try:
        with temporary_file(target.parent, target.suffix) as temporary:
            save_state(model.state_dict(), temporary, card=card.text())
            replace(temporary, target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error}") from error


def read_card(path: str | os.PathLike[str]) -> Card | None:
    """Return the card of a safetensors file; None for a file without one.

    Raises:
        CheckpointError: there is a card, but it cannot be understood.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(CARD)
    except (safetensors.SafetensorError, OSError):
        return None  # another container, or a damaged one, which reading its tensors will tell
    try:
        return None if text is None else records.read(Card, json.loads(text), "its card")
    except (ManifestError, ValueError) as error:
        raise CheckpointError(f"{path} describes itself wrongly: {error}") from error
