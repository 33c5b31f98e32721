"""The record of one published weight file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from isanet_zoo.cache import CacheEntry
from isanet_zoo.errors import InputError, ManifestError
from isanet_zoo.manifest.config import NetworkConfig, Preprocess
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.recipe import Recipe

if TYPE_CHECKING:
    from isanet_zoo.imaging.preprocess import Transforms

PACKAGE = "package:"  # how a source starts that comes with this library

Trust = Literal["unverified", "pinned", "verified"]


@dataclass(frozen=True)
class Parameters:
    """How many numbers the network has, with and without its auxiliary head."""

    with_aux: int
    without_aux: int


@dataclass(frozen=True)
class Protocol:
    """How the publisher tested: the picture whole or in tiles, at which scales, flipped or not."""

    mode: Literal["whole", "slide"]
    scales: tuple[float, ...]
    flip: bool


@dataclass(frozen=True)
class Metric:
    """A published figure. `reproduced` is None until somebody measured it with this library."""

    name: str
    value: float
    split: str
    scales: tuple[float, ...]
    flip: bool
    protocol: str
    reported_by: str
    reproduced: float | None


@dataclass(frozen=True)
class Licence:
    """The terms of the weights, as their publisher states them, and of the data behind them."""

    weights: str
    dataset: str


@dataclass(frozen=True)
class Links:
    """Where to read more."""

    paper: str
    repository: str
    config: str | None
    log: str | None
    former_url: str | None
    manual_mirror: str | None


@dataclass(frozen=True)
class HubFile:
    """The converted twin of a published file, where this project's maintainers mirror it.

    Attributes:
        repo: a repository of the Hugging Face hub.
        revision: the commit of it; a branch could change.
        path: the file in it.
        sha256: of the converted file.
        size: of it, in bytes.
    """

    repo: str
    revision: str
    path: str
    sha256: str
    size: int

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise InputError(f"revision {self.revision!r} is no commit")
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise InputError(f"sha256 {self.sha256!r} is no lower-case hex sha256")

    @property
    def url(self) -> str:
        """Where it is; `HF_ENDPOINT` may name another hub."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, self.path, revision=self.revision)


@dataclass(frozen=True)
class Weights:
    """One published weight file: where it is, what it is, and what was said about it.

    Attributes:
        name: the name in the zoo, with a tag unless it is its model's default.
        model: the factory that builds the network.
        tag: which of the model's weights this is.
        family: the project that published it.
        dataset: short name of the data set.
        label_set: its classes.
        network: the numbers of the network.
        preprocess: how pictures become input.
        protocol: how the publisher tested.
        filename: the published file's name.
        sources: where to fetch it, in order; ``package:FILE`` comes with this library.
        sha256: of the published file; None where nobody has published or pinned one.
        sha256_prefix: the first digits of it, where that is all that was published.
        size: of the published file in bytes; None where unknown.
        state_digest: hash of the tensors (`checkpoints.state_digest`); None until pinned.
        hub: its converted twin on this project's mirror, which is asked before `sources`; None
            where it is not mirrored.
        structure_digest: hash of the names, types and shapes of all tensors.
        parameters: their count.
        metrics: published figures.
        crop: (height, width) of what the network saw of each picture in training.
        schedule: how long it was trained.
        training: the recipe, where all of it is known.
        licence: terms of weights and data.
        links: where to read more.
    """

    name: str
    model: str
    tag: str
    family: Literal["ssseg", "mmseg", "paddle", "openseg", "zoo"]
    dataset: str
    label_set: LabelSet
    network: NetworkConfig
    preprocess: Preprocess
    protocol: Protocol
    filename: str
    sources: tuple[str, ...]
    sha256: str | None
    sha256_prefix: str | None
    size: int | None
    state_digest: str | None
    hub: HubFile | None
    structure_digest: str
    parameters: Parameters
    metrics: tuple[Metric, ...]
    crop: tuple[int, int]
    schedule: str
    training: Recipe | None
    licence: Licence
    links: Links

    def __post_init__(self) -> None:
        for field in ("sha256", "sha256_prefix", "state_digest", "structure_digest"):
            digits = getattr(self, field)
            if digits is not None and not re.fullmatch("[0-9a-f]{8,64}", digits):
                raise ManifestError(f"{self.name}: {field} {digits!r} is no lower-case hex digest")
        if self.hub and None in (self.sha256, self.size, self.state_digest):
            raise ManifestError(f"{self.name}: hub is given, but sha256, size or state_digest not")

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self.network.num_classes

    @property
    def recipe(self) -> Recipe:
        """How to train such a model: as these weights were, or as its default ones where unknown.

        Raises:
            ManifestError: neither is known.
        """
        from isanet_zoo.manifest.lookup import recipe_of  # lookup builds these records

        return recipe_of(self)

    @property
    def miou(self) -> float | None:
        """The reported mIoU at a single scale, in per cent; None where there is none."""
        return self._reported(several=False)

    @property
    def miou_multi_scale(self) -> float | None:
        """The reported mIoU over several scales and mirroring, in per cent; None without one."""
        return self._reported(several=True)

    def _reported(self, *, several: bool) -> float | None:
        for metric in self.metrics:
            if metric.flip == several and (len(metric.scales) > 1) == several:
                return metric.value
        return None

    @property
    def trust(self) -> Trust:
        """How far this machine's copy can be trusted, or a first download could be.

        ``"verified"``: its hash is compared with one in the manifest. ``"pinned"``: it has to be
        the same bytes as the first time on this machine. ``"unverified"``: first use; the structure
        and the values are all that can be checked.
        """
        if self.sha256 or self.sha256_prefix:
            return "verified"
        return "pinned" if CacheEntry.of(self.name).record() else "unverified"

    @property
    def packaged(self) -> Path | None:
        """The weights' file inside this package, for those that come with it."""
        for source in self.sources:
            if source.startswith(PACKAGE):
                folder = Path(__file__).resolve().parents[1] / "embedded"
                return folder / source.removeprefix(PACKAGE)
        return None

    def path(self) -> Path:
        """Return where the weights lie, or will lie once they are converted, on this machine."""
        return self.packaged or CacheEntry.of(self.name).model

    def transforms(self) -> Transforms:
        """Return the preprocessing: from a picture to a (1, 3, h, w) float32 tensor."""
        from isanet_zoo.imaging.preprocess import Transforms  # needs torch; this module does not

        return Transforms(self.preprocess)
