"""Descriptions of saved networks, as JSON.

The same JSON is stored in `config.json`, in the metadata of a safetensors file and in the metadata
of an ONNX file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from isanet_zoo import records
from isanet_zoo.cache import CacheEntry
from isanet_zoo.errors import CheckpointError, InputError, ManifestError, UnknownModelError
from isanet_zoo.files import open_regular
from isanet_zoo.manifest.config import OUTPUT_STRIDE, NetworkConfig, Preprocess
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.lookup import get_weights
from isanet_zoo.manifest.recipe import Recipe
from isanet_zoo.manifest.weights import Licence, Metric, Weights
from isanet_zoo.records import Range, Record, Sha256, Text
from isanet_zoo.weights.tensors import DESCRIPTION

LONGEST_HEADER = 1 << 22  # bytes, of a safetensors file

MOST_AFFINITIES = 1 << 26  # of pairs of positions, that attention within one image computes

# The Hugging Face Hub's abbreviations of licences, by the beginning of their name in the manifest.
LICENCES = {"Apache-2.0": "apache-2.0", "CC BY-NC 4.0": "cc-by-nc-4.0"}


@dataclass(frozen=True)
class Provenance(Record):
    """The published weights that a network started from."""

    weights: Annotated[str, Text(200, 1)]  # their name, as `list_models` returns it
    unchanged: bool  # the tensors are the published ones; otherwise they were trained further
    dataset: str  # short name of the data set that the published weights were trained on
    page: str | None  # the publisher's; None for weights that are installed
    source: str | None  # URL of the published file
    source_sha256: Sha256 | None  # of the published file; None where it is not known
    licence: Licence  # of the published weights

    @classmethod
    def of(cls, weights: Weights, *, unchanged: bool) -> Provenance:
        """Return the provenance of a network that starts from published weights."""
        entry = CacheEntry.of(weights.name).record()
        return cls(
            weights=weights.name,
            unchanged=unchanged,
            dataset=weights.dataset,
            page=None if weights.packaged else weights.links.config or weights.links.repository,
            source=next(iter(weights.sources), weights.links.manual_mirror),
            source_sha256=weights.sha256 or (entry.source_sha256 if entry else None),
            licence=weights.licence,
        )


@dataclass(frozen=True)
class Description(Record):
    """Everything about a saved network but its tensors.

    Raises:
        InputError: a field is out of range, or two contradict each other.
    """

    model: Annotated[str, Text(200)]  # the zoo's model that it started from; empty if none
    network: NetworkConfig
    label_set: LabelSet
    preprocess: Preprocess
    dataset: str  # that it was trained on
    recipe: Recipe | None  # of its training; None if it was not stated
    metrics: Annotated[tuple[Metric, ...], Range(0, 100)]
    # Weight files of version 0.1.0 do not have the fields below.
    library_name: Literal["isanet_zoo"] = "isanet_zoo"
    format: Literal[1] = 1  # version of these fields
    aux_head: bool = False  # whether the tensors include the auxiliary head
    state_digest: Sha256 | None = None  # of the tensors, see `tensors.state_digest`
    licence: Annotated[str, Text(100)] | None = None  # the Hub's abbreviation; None if not stated
    provenance: Provenance | None = None  # None if it did not start from published weights

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.label_set) != self.network.num_classes:
            raise InputError(
                f"network.num_classes is {self.network.num_classes}, but label_set has "
                f"{len(self.label_set)}"
            )
        size = self.preprocess.largest_size
        _, (side_h, side_w) = self.preprocess.tiles(size)
        positions = (side_h // OUTPUT_STRIDE) * (side_w // OUTPUT_STRIDE)
        partition = self.network.head.partition
        groups = math.prod(partition)  # of long-range attention, each in memory at once
        largest = 2 * (positions // groups) ** 2
        if max(positions**2 // groups, largest) > MOST_AFFINITIES:
            raise InputError(
                f"preprocess: images of {size} pixels are too large for attention with partition "
                f"{partition}"
            )

    @classmethod
    def parse(cls, text: bytes | str, where: str) -> Description:
        """Read the JSON of a description, also that of version 0.1.0.

        Args:
            text: the JSON.
            where: its address, for error messages.

        Raises:
            CheckpointError: it is no JSON, or a field is missing, unknown or out of range.
        """
        try:
            data = records.parse(text, where)
            added = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not MISSING}
            if isinstance(data, dict) and not added.keys() & data.keys():
                data |= added
            return records.read(cls, data, where)
        except ManifestError as error:
            raise CheckpointError(str(error)) from error

    def text(self, indent: int | None = None) -> str:
        """Return the JSON that `parse` reads."""
        return json.dumps(records.write(self), indent=indent, ensure_ascii=False)

    @property
    def weights(self) -> Weights | None:
        """The manifest's record of the weights that it started from, if the manifest has it."""
        with contextlib.suppress(UnknownModelError):
            return get_weights(self.provenance.weights) if self.provenance else None
        return None


def read_description(path: str | os.PathLike[str]) -> Description | None:
    """Return the description in a safetensors file; None for a file without one.

    Raises:
        CheckpointError: the description is no JSON, or a field is missing or wrong.
    """
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if length <= LONGEST_HEADER else b""
        document: Any = records.parse(header, "its header", longest=LONGEST_HEADER)
        text = document["__metadata__"][DESCRIPTION]
    except (OSError, ManifestError, KeyError, TypeError):
        return None  # reading its tensors finds what is wrong
    return Description.parse(text, f"{path}: description") if isinstance(text, str) else None


def is_described(path: Path) -> bool:
    """Return whether this library wrote a safetensors file with a description."""
    with contextlib.suppress(CheckpointError):
        return read_description(path) is not None
    return False


def describe_published(weights: Weights) -> Description:
    """Return the description of published weights."""
    return Description(
        model=weights.model,
        network=weights.network,
        label_set=weights.label_set,
        preprocess=weights.preprocess,
        dataset=weights.dataset,
        recipe=weights.training,
        metrics=weights.metrics,
        aux_head=True,
        licence=licence_id(weights.licence.weights),
        provenance=Provenance.of(weights, unchanged=True),
    )


def describe_own(weights: Weights, network: NetworkConfig, *, aux_head: bool) -> Description:
    """Return the description of a user's checkpoint, from the published weights closest to it."""
    num_classes = network.num_classes
    same = num_classes == weights.num_classes
    return replace(
        describe_published(weights),
        network=network,
        label_set=weights.label_set if same else LabelSet.generic(num_classes),
        dataset="",
        recipe=None,
        metrics=(),
        aux_head=aux_head,
        provenance=Provenance.of(weights, unchanged=False),
    )


def licence_id(terms: str) -> str:
    """Return the Hub's abbreviation of a licence of the manifest; ``"other"`` if it has none.

    Example:
        >>> licence_id("CC BY-NC 4.0, for personal and research use")
        'cc-by-nc-4.0'
    """
    return next((short for long, short in LICENCES.items() if terms.startswith(long)), "other")
