"""The manifest: one record for every published weight, read from `weights_manifest.json`."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from isanet_zoo import records
from isanet_zoo.errors import InputError, ManifestError, UnknownModelError
from isanet_zoo.labels import LabelSet
from isanet_zoo.network.config import NetworkConfig, Preprocess
from isanet_zoo.recipe import Recipe
from isanet_zoo.weights.cache import CacheEntry

if TYPE_CHECKING:
    from isanet_zoo.inference.preprocess import Transforms

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
        known = (self, *load_manifest().values())
        for weights in known:
            if weights.model == self.model and weights.training is not None:
                return weights.training
        raise ManifestError(f"the recipe of {self.name} is not known")

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
        from isanet_zoo.inference.preprocess import Transforms  # needs torch; this module does not

        return Transforms(self.preprocess)


def manifest_path() -> Path:
    """Return the manifest: in the package (wheel), else one level up (checkout)."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package, package.parent):
        if (path := folder / "weights_manifest.json").is_file():
            return path
    raise ManifestError(
        f"weights_manifest.json is neither in {package} nor above it; reinstall isanet-zoo"
    )


@functools.cache
def load_manifest(path: Path | None = None) -> Mapping[str, Weights]:
    """Read a manifest into records by name, the default weights of each model first.

    Raises:
        ManifestError: it cannot be read, or an entry is wrong; the message says where.
    """
    label_sets = load_label_sets(path)
    return {
        record.name: record
        for model, entry in _keys(_document(path)["models"], "models").items()
        for record in _model(model, entry, label_sets)
    }


def load_label_sets(path: Path | None = None) -> Mapping[str, LabelSet]:
    """Read a manifest's label sets, by the short name of their data set.

    Raises:
        ManifestError: it cannot be read, or an entry is wrong; the message says where.
    """
    return {
        name: records.read(LabelSet, {"name": name, **_keys(entry, f"label_sets.{name}")}, name)
        for name, entry in _keys(_document(path)["label_sets"], "label_sets").items()
    }


def _document(path: Path | None) -> dict[str, Any]:
    path = path or manifest_path()
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error
    return _keys(data, str(path), "$schema", "label_sets", "models")


def _keys(value: object, where: str, *expected: str) -> dict[str, Any]:
    """Return a JSON object; with `expected`, one that has these keys and no others."""
    if not isinstance(value, dict):
        raise ManifestError(f"{where}: expected an object, got {value!r:.60}")
    if expected and (odd := value.keys() ^ set(expected)):
        raise ManifestError(f"{where}: missing or unknown {', '.join(sorted(odd))}")
    return value


def _model(model: str, entry: object, label_sets: Mapping[str, LabelSet]) -> list[Weights]:
    """Return the records of one model, its default first."""
    where = f"models.{model}"
    fields = _keys(entry, where, "default", "weights")
    default, tags = fields["default"], _keys(fields["weights"], f"{where}.weights")
    if default not in tags:
        raise ManifestError(f"{where}.default: {default!r} is none of {', '.join(tags)}")
    weights = []
    for tag in sorted(tags, key=lambda tag: tag != default):
        where = f"models.{model}.weights.{tag}"
        values = _keys(tags[tag], where)
        if (dataset := str(values.get("dataset"))) not in label_sets:
            raise ManifestError(f"{where}.dataset: {dataset!r} is none of {', '.join(label_sets)}")
        identity = {
            "name": model if tag == default else f"{model}.{tag}",
            "model": model,
            "tag": tag,
            "label_set": records.write(label_sets[dataset]),
        }
        record = records.read(Weights, identity | values, where)
        if record.num_classes != len(record.label_set):
            raise ManifestError(
                f"{where}.network.num_classes: {record.num_classes}, but {dataset} has "
                f"{len(record.label_set)}"
            )
        weights.append(record)
    return weights


def list_models(
    filter: str = "*",  # noqa: A002 - timm's and torchvision's word
    *,
    dataset: str | None = None,
    backbone: str | None = None,
) -> list[str]:
    """Return the names of all published weights, sorted; needs no torch.

    Args:
        filter: a pattern as of `fnmatch`, such as ``"*resnet101*"``.
        dataset: only these, such as ``"ade20k"``.
        backbone: only this timm encoder, such as ``"resnet50c"``.
    """
    return sorted(
        weights.name
        for weights in load_manifest().values()
        if fnmatch.fnmatchcase(weights.name, filter)
        and dataset in (None, weights.dataset)
        and backbone in (None, weights.network.backbone)
    )


def get_weights(name: str) -> Weights:
    """Return the record of a published weight; needs no torch.

    Args:
        name: as `list_models` gives it: ``"isanet_resnet50os8_voc"`` for a model's default weights,
            with a tag for the others. The default's tag may be given too.

    Raises:
        UnknownModelError: there is no such name; the message names close ones.
    """
    return find_weights(name, load_manifest())


def families(weights: Weights) -> dict[str, Weights]:
    """Return the closest weights of each family that published the same model; itself first."""
    same = [other for other in load_manifest().values() if other.model == weights.model]
    return {other.family: other for other in [*reversed(same), weights]}


def find_weights(name: str, manifest: Mapping[str, Weights]) -> Weights:
    """Return the record of a name, with or without the tag; see `get_weights`."""
    if name in manifest:
        return manifest[name]
    for weights in manifest.values():
        if name == f"{weights.model}.{weights.tag}":
            return weights
    close = difflib.get_close_matches(name, manifest, n=3)
    advice = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(manifest)}"
    raise UnknownModelError(f"no model is called {name!r}; {advice}")
