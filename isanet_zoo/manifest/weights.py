"""Records of published weight files."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

from isanet_zoo.cache import CacheEntry
from isanet_zoo.errors import InputError
from isanet_zoo.manifest.config import NetworkConfig, Preprocess
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.recipe import Recipe
from isanet_zoo.records import Range, Record, Sha256, Text

if TYPE_CHECKING:
    from isanet_zoo.imaging.preprocess import Transforms

logger = logging.getLogger(__name__)

PACKAGE = "package:"  # prefix of a source <package>/<file> in another distribution

Trust = Literal["unverified", "pinned", "verified"]

Bytes = Annotated[int, Range(1, 1 << 40)]
Count = Annotated[int, Range(1, 1 << 40)]
Figure = Annotated[float, Range(-1_000_000, 1_000_000)]
Scale = Annotated[float, Range(0.01, 100)]


@dataclass(frozen=True)
class Parameters(Record):
    """Number of parameters of a network, with and without its auxiliary head."""

    with_aux: Count
    without_aux: Count


@dataclass(frozen=True)
class Protocol(Record):
    """The publisher's test protocol."""

    mode: Literal["whole", "slide"]  # whole images or sliding windows
    scales: tuple[Scale, ...]
    flip: bool


@dataclass(frozen=True)
class Metric(Record):
    """A published figure."""

    name: str
    value: Figure
    split: str
    scales: tuple[Scale, ...]
    flip: bool
    protocol: str
    reported_by: str
    reproduced: Figure | None  # as measured with this library; None before that


class ModelFacts(TypedDict, total=False):
    """Facts about a network that its author states when it is saved."""

    dataset: str  # the data set that it was trained on
    recipe: Recipe | None  # the hyper-parameters of that training
    metrics: Iterable[Metric]  # measured figures
    licence: str | None  # of the weights, as the Hugging Face Hub abbreviates it: "apache-2.0"


@dataclass(frozen=True)
class Licence(Record):
    """Terms of the weights, as their publisher states them, and of their training data."""

    weights: str
    dataset: str


@dataclass(frozen=True)
class Links(Record):
    """URLs about the weights."""

    paper: str
    repository: str
    code: str | None  # the publisher's implementation of the network
    config: str | None
    log: str | None
    former_url: str | None
    manual_mirror: str | None


@dataclass(frozen=True)
class HubFile(Record):
    """The converted copy of a published file, in a mirror on the Hugging Face Hub."""

    repo: Annotated[str, Text(200, 1)]
    revision: Annotated[str, Text(40, pattern="[0-9a-f]{40}", words="a commit")]
    path: Annotated[str, Text(500, 1)]  # in the repository
    sha256: Sha256  # of the converted file
    size: Bytes

    @property
    def url(self) -> str:
        """Where it is; `HF_ENDPOINT` may name another hub."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, self.path, revision=self.revision)


@dataclass(frozen=True)
class Weights(Record):
    """A published weight file."""

    name: str  # in the zoo: with a tag unless it is its model's default
    model: str  # the factory that builds the network
    tag: str
    # the project that published it
    family: Literal["ssseg", "mmseg", "paddle", "openseg", "bpkd", "zoo"]
    dataset: str  # short name of the data set
    label_set: LabelSet
    network: NetworkConfig
    preprocess: Preprocess
    protocol: Protocol
    filename: str  # of the published file
    sources: tuple[str, ...]  # URLs of the published file, in the order in which they are tried
    sha256: Sha256 | None  # of the published file; None where it was neither published nor pinned
    # first digits of the sha256, where only these were published
    sha256_prefix: Annotated[str, Text(64, pattern="[0-9a-f]{8,64}", words="hex digits")] | None
    size: Bytes | None  # of the published file; None where it is not known
    state_digest: Sha256 | None  # of the tensors, see `tensors.state_digest`
    hub: HubFile | None  # the converted copy, where there is a mirror
    structure_digest: Sha256  # of the keys, types and shapes of all tensors
    parameters: Parameters
    metrics: tuple[Metric, ...]  # published figures
    crop: tuple[int, int]  # (height, width) of the network's input in training
    schedule: str  # length of the training
    training: Recipe | None  # None where it is not known as a whole
    pretraining: str | None  # of the encoder; None where it is not known
    method: Literal["plain", "SKDS", "IFVD", "CIRKD", "CWD", "BPKD"]  # plain: not distilled
    teacher: str | None  # the weights that these were distilled from
    licence: Licence
    commercial_use: bool  # whether the licence of the weights permits it
    links: Links

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hub and None in (self.sha256, self.size, self.state_digest):
            raise InputError(f"{self.name}: hub is given, but sha256, size or state_digest not")
        if (self.method == "plain") != (self.teacher is None):
            raise InputError(f"{self.name}: method is {self.method}, teacher is {self.teacher}")

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self.network.num_classes

    @property
    def recipe(self) -> Recipe:
        """The recipe of these weights, or that of the closest ones where it is not known.

        Raises:
            ManifestError: no recipe is known.
        """
        from isanet_zoo.manifest.lookup import recipe_of  # lookup builds these records

        return recipe_of(self)

    @property
    def miou(self) -> float | None:
        """The reported mIoU at a single scale, in per cent; None if none was reported."""
        return self._reported(several=False)

    @property
    def miou_multi_scale(self) -> float | None:
        """The reported mIoU over several scales and flips, in per cent; None if none was."""
        return self._reported(several=True)

    def _reported(self, *, several: bool) -> float | None:
        for metric in self.metrics:
            if metric.flip == several and (len(metric.scales) > 1) == several:
                return metric.value
        return None

    @property
    def trust(self) -> Trust:
        """Level of trust in this machine's copy, or in a first download.

        ``"verified"``: the manifest has a hash to compare with. ``"pinned"``: the bytes must be
        those of the first download on this machine. ``"unverified"``: first use; only the structure
        and the values can be checked.
        """
        if self.sha256 or self.sha256_prefix:
            return "verified"
        try:
            return "pinned" if CacheEntry.of(self.name).record() else "unverified"
        except OSError:  # such as the cache of another user
            return "unverified"

    @property
    def packaged(self) -> Path | None:
        """The file in a distribution of weights, installed or not; None if it is downloaded."""
        for source in self.sources:
            if source.startswith(PACKAGE):
                package, _, file = source.removeprefix(PACKAGE).partition("/")
                return _package_folder(package) / file
        return None

    def path(self) -> Path:
        """Return the path of the converted weights on this machine, whether or not they exist."""
        return self.packaged or CacheEntry.of(self.name).model

    def transforms(self) -> Transforms:
        """Return the preprocessing, which maps an image to a (1, 3, h, w) float32 tensor."""
        from isanet_zoo.imaging.preprocess import Transforms  # needs torch; this module does not

        return Transforms(self.preprocess)

    def log_terms(self) -> None:
        """Log the licence of weights that are not for commercial use, once per process.

        For weights that are installed, the notice in their distribution has the terms.
        """
        if not self.commercial_use and not self.packaged:
            _log_once(f"{self.name}: no commercial use; licence: {self.licence.weights}")


def _package_folder(package: str) -> Path:
    """Return the folder of an installed package of weights, or its place in a checkout."""
    spec = importlib.util.find_spec(package)
    if spec and spec.origin:
        return Path(spec.origin).parent
    checkout = Path(__file__).resolve().parents[2]
    return checkout / package.removeprefix("isanet_zoo_") / package


@functools.cache
def _log_once(message: str) -> None:
    logger.warning(message)
