"""What a saved model says about itself in its `config.json`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from isanet_zoo import records
from isanet_zoo.errors import CheckpointError, InputError, ManifestError
from isanet_zoo.manifest.weights import Licence
from isanet_zoo.weights.cards import Card


@dataclass(frozen=True)
class Provenance:
    """Where a model's weights come from.

    Attributes:
        weights: the published weights that it started from, as `list_models` gives them.
        unchanged: its tensors are those of the published file; otherwise it was trained further.
        dataset: short name of what the published weights were trained on.
        page: the publisher's; None for those that come with this library.
        source: where the published file is.
        source_sha256: its sha256; None where it is not known.
        licence: the terms of the published weights.
    """

    weights: str
    unchanged: bool
    dataset: str
    page: str | None
    source: str | None
    source_sha256: str | None
    licence: Licence


@dataclass(frozen=True)
class Config(Card):
    """All of a saved model but its tensors: what a weight file's card says, and more.

    Attributes:
        library_name: who can read it.
        format: the version of this description.
        aux_head: whether the auxiliary head was saved, too.
        state_digest: hash of the tensors beside it, see `tensors.state_digest`.
        licence: as the Hugging Face hub abbreviates it; None where nobody said.
        provenance: where the weights come from; None for a network that started from nothing.
    """

    library_name: Literal["isanet_zoo"]
    format: Literal[1]
    aux_head: bool
    state_digest: str
    licence: str | None
    provenance: Provenance | None

    def __post_init__(self) -> None:
        if len(self.label_set) != self.network.num_classes:
            raise InputError(
                f"network.num_classes is {self.network.num_classes}, but label_set has "
                f"{len(self.label_set)}"
            )
        if not re.fullmatch("[0-9a-f]{64}", self.state_digest):
            raise InputError(f"state_digest {self.state_digest!r} is no lower-case hex sha256")

    def card(self) -> Card:
        """Return the part that a weight file holds."""
        return Card(
            model=self.model,
            network=self.network,
            label_set=self.label_set,
            preprocess=self.preprocess,
            dataset=self.dataset,
            recipe=self.recipe,
            metrics=self.metrics,
        )

    def text(self) -> str:
        """Return the contents of `config.json`."""
        return json.dumps(records.write(self), indent=2, ensure_ascii=False) + "\n"


def read_config(path: Path, called: str) -> Config:
    """Read a `config.json`.

    Args:
        path: the file.
        called: what errors call it.

    Raises:
        CheckpointError: it is missing or damaged, or lacks or adds a field; the message says which.
    """
    try:
        return records.read(Config, json.loads(path.read_text("utf-8")), called)
    except FileNotFoundError as error:
        raise CheckpointError(f"{called} is missing; this is no model that isanet_zoo saved") from (
            error
        )
    except ManifestError as error:
        raise CheckpointError(str(error)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{called} cannot be read: {error}") from error
