"""Lookup of records in `weights_manifest.json`."""

from __future__ import annotations

import fnmatch
import functools
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from isanet_zoo import records
from isanet_zoo.errors import InputError, ManifestError, UnknownModelError, did_you_mean
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.recipe import Recipe
from isanet_zoo.manifest.weights import Weights

logger = logging.getLogger(__name__)


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
        ManifestError: it cannot be read, or an entry is wrong; the message names the place.
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
        ManifestError: it cannot be read, or an entry is wrong; the message names the place.
    """
    return {
        name: records.read(LabelSet, {"name": name, **_keys(entry, f"label_sets.{name}")}, name)
        for name, entry in _keys(_document(path)["label_sets"], "label_sets").items()
    }


def _document(path: Path | None) -> dict[str, Any]:
    path = path or manifest_path()
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error
    return _keys(records.parse(text, str(path)), str(path), "label_sets", "models")


def _keys(value: object, where: str, *expected: str) -> dict[str, Any]:
    """Return a JSON object; with `expected`, one that has these keys and no others."""
    if not isinstance(value, dict):
        raise ManifestError(f"{where} is a {type(value).__name__}; it must be an object")
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
            "label_set": label_sets[dataset],
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

    Raises:
        InputError: `filter` is not a string.
    """
    if not isinstance(filter, str):
        raise InputError(
            f"filter is a {type(filter).__name__}; pass a string such as '*resnet101*'"
        )
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
        name: as `list_models` returns it: ``"isanet_resnet50os8_voc"`` for a model's default
            weights, with a tag for others. The default's tag is optional.

    Raises:
        UnknownModelError: there is no such name; the message names close ones.
        InputError: `name` is no string.
    """
    return find_weights(name, load_manifest())


def recipe_of(weights: Weights) -> Recipe:
    """Return the recipe of some weights, or that of the closest ones where it is not known.

    The closest are those of the same model, then of the same data set, then the first.

    Raises:
        ManifestError: no recipe is known.
    """
    known = [other for other in (weights, *load_manifest().values()) if other.training]
    if not known:
        raise ManifestError(f"the recipe of {weights.name} is not known")
    closest = min(known, key=lambda o: (o.model != weights.model, o.dataset != weights.dataset))
    assert closest.training is not None
    if closest.model == weights.model:
        return closest.training
    logger.warning("%s has no published recipe; using that of %s", weights.name, closest.name)
    return replace(closest.training, initialisation=weights.pretraining or "not known")


def families(weights: Weights) -> dict[str, Weights]:
    """Return the closest weights of each family that published the same model; itself first."""
    same = [other for other in load_manifest().values() if other.model == weights.model]
    return {other.family: other for other in [*reversed(same), weights]}


def find_weights(name: str, manifest: Mapping[str, Weights]) -> Weights:
    """Return the record of a name, with or without the tag; see `get_weights`."""
    if not isinstance(name, str):
        raise InputError(f"name is a {type(name).__name__}; it must be a string, see list_models")
    if name in manifest:
        return manifest[name]
    for weights in manifest.values():
        if name == f"{weights.model}.{weights.tag}":
            return weights
    advice = did_you_mean(name, manifest, f"there are {', '.join(manifest)}")
    raise UnknownModelError(f"no model is called {name!r}; {advice}")
