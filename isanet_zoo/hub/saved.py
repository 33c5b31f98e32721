"""Saved models: a folder, or a repository of the Hugging Face Hub, that describes itself.

A saved model is three files::

    config.json          the network, its classes, preprocessing and history, and the tensors' hash
    model.safetensors    the tensors, and the same description for `weights=FILE`
    README.md            the model card
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from isanet_zoo.cache import CacheEntry
from isanet_zoo.errors import CheckpointError, InputError, IntegrityError, UnknownModelError
from isanet_zoo.files import replace, temporary_file
from isanet_zoo.hub import card, transfer
from isanet_zoo.manifest.config import NetworkConfig, Preprocess
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.lookup import get_weights
from isanet_zoo.manifest.recipe import Recipe
from isanet_zoo.manifest.weights import Metric, Weights
from isanet_zoo.weights.cards import Card, read_card
from isanet_zoo.weights.checkpoints import LoadReport
from isanet_zoo.weights.configs import Config, Provenance, read_config
from isanet_zoo.weights.containers import read_safetensors
from isanet_zoo.weights.tensors import Spec, check, save_state, spec_of, state_digest, widen

logger = logging.getLogger(__name__)

CONFIG, TENSORS, README = "config.json", "model.safetensors", "README.md"


class Network(Protocol):
    """The part of `ISANet` that saving and loading use."""

    config: NetworkConfig
    label_set: LabelSet
    preprocess: Preprocess
    weights: Any
    load_report: Any
    origin: Any

    @classmethod
    def from_config(
        cls: type[T],
        config: NetworkConfig,
        *,
        aux_loss: bool = False,
        label_set: LabelSet | None = None,
        preprocess: Preprocess | None = None,
    ) -> T:
        """Build the network that a record describes, with newly initialised parameters."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the tensors by key."""

    def load_state_dict(self, state_dict: Mapping[str, Any], *, assign: bool = False) -> object:
        """Load tensors; every key must match."""

    def eval(self) -> object:
        """Set evaluation mode."""

    def float(self) -> object:
        """Convert all parameters to float32."""


T = TypeVar("T", bound=Network)


def from_pretrained(
    cls: type[T],
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    progress: bool = True,
) -> T:
    """Load a network of class `cls`; see `ISANet.from_pretrained`."""
    folder, name, trust = _find(source, revision, token, progress)
    config = read_config(folder / CONFIG, f"{name}: {CONFIG}")
    tensors = f"{name}: {TENSORS}"
    state = read_safetensors(folder / TENSORS, tensors).tensors
    model = _skeleton(cls, config, f"{name}: {CONFIG}")
    check(widen(state), _structure(model), tensors)
    if (digest := state_digest(state)) != config.state_digest:
        raise IntegrityError(
            f"{tensors} is damaged, or belongs to another {CONFIG}: its tensors have digest "
            f"{digest}, the config states {config.state_digest}"
        )
    model.load_state_dict(widen(state), assign=True)
    model.origin = config
    model.weights = _record(config)
    model.load_report = LoadReport(folder / TENSORS, trust)
    logger.info("%s: %s", name, model.load_report)
    model.eval()
    return model


def save_pretrained(
    model: Network,
    folder: str | os.PathLike[str],
    *,
    dataset: str = "",
    recipe: Recipe | None = None,
    metrics: Iterable[Metric] = (),
    licence: str | None = None,
) -> Path:
    """Write a network into a folder; see `ISANet.save_pretrained`."""
    target = Path(folder)
    config = describe(model, dataset=dataset, recipe=recipe, metrics=metrics, licence=licence)
    write_folder(model, config, target, name=target.resolve().name)
    return target


def push_to_hub(
    model: Network,
    repo: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload an ISANet",
    dataset: str = "",
    recipe: Recipe | None = None,
    metrics: Iterable[Metric] = (),
    licence: str | None = None,
) -> str:
    """Publish a network on the Hugging Face Hub; see `ISANet.push_to_hub`."""
    transfer.check_name(repo)
    config = describe(model, dataset=dataset, recipe=recipe, metrics=metrics, licence=licence)
    with tempfile.TemporaryDirectory() as folder:
        files = write_folder(model, config, Path(folder), name=repo)
        return transfer.upload(
            repo,
            {file.name: file for file in files},
            message=commit_message,
            private=private,
            token=token,
        )


def describe(
    model: Network,
    *,
    dataset: str = "",
    recipe: Recipe | None = None,
    metrics: Iterable[Metric] = (),
    licence: str | None = None,
) -> Config:
    """Return what a network's `config.json` will say; see `ISANet.save_pretrained`.

    Raises:
        CheckpointError: the network could not be brought back.
    """
    state = model.state_dict()
    known = _recorded(model, state)
    provenance = _provenance(model, unchanged=known is not None)
    if licence is None and model.origin:
        licence = model.origin.licence
    elif licence is None and provenance:
        licence = card.licence_id(provenance.licence.weights)
    metrics = tuple(metrics)
    if known:
        dataset, metrics = dataset or known.dataset, metrics or known.metrics
        recipe = recipe or (known.training if isinstance(known, Weights) else known.recipe)
    config = Config(
        model=model.weights.model if model.weights else "",
        network=model.config,
        label_set=model.label_set,
        preprocess=model.preprocess,
        dataset=dataset,
        recipe=recipe,
        metrics=metrics,
        library_name="isanet_zoo",
        format=1,
        aux_head=any(key.startswith("aux_head.") for key in state),
        state_digest=state_digest(state),
        licence=licence,
        provenance=provenance,
    )
    # What is not the network's now would not be so when it is loaded.
    check(widen(state), _structure(_skeleton(type(model), config, CONFIG)), "the model to save")
    return config


def write_folder(
    model: Network, config: Config, folder: Path, *, name: str
) -> tuple[Path, Path, Path]:
    """Write a network's three files, each under another name until all are whole.

    The config comes last: whenever it stops before, what lies there is the earlier model, none, or
    one whose config and tensors do not fit, which loading says.

    Args:
        model: the network.
        config: its description, as `describe` gives it.
        folder: it is made if need be.
        name: the model's name in the model card.

    Returns:
        The files.

    Raises:
        InputError: they cannot be written.
    """
    targets = (folder / README, folder / TENSORS, folder / CONFIG)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            parts = [
                stack.enter_context(temporary_file(folder, target.suffix)) for target in targets
            ]
            parts[0].write_text(card.write(config, name), "utf-8")
            save_state(model.state_dict(), parts[1], card=config.card().text())
            parts[2].write_text(config.text(), "utf-8")
            for part, target in zip(parts, targets, strict=True):
                replace(part, target)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}") from error
    return targets


def _find(
    source: str | os.PathLike[str], revision: str | None, token: str | None, progress: bool
) -> tuple[Path, str, str]:
    """Return the folder that is meant, what errors call it, and how far it is trusted."""
    if str(source).startswith(transfer.PREFIX):
        address = transfer.parse(str(source))
        if address.revision and revision:
            raise InputError(f"{source!r} and revision={revision!r} both name a revision; give one")
        address = transfer.Address(address.repo, address.revision or revision)
    elif str(source) and Path(source).is_dir():
        if revision is not None:
            raise InputError(
                f"{str(source)!r} is a folder, which has no revision {revision!r}; if the "
                f"repository is meant, write 'hf-hub:{source}'"
            )
        return Path(source), str(source), "local"
    elif isinstance(source, str) and transfer.is_name(source):
        address = transfer.Address(source, revision)
    else:
        raise InputError(
            f"{str(source)!r} is neither a folder nor the name of a repository like 'org/repo'"
        )
    folder = transfer.snapshot(address, (CONFIG, TENSORS), token=token, progress=progress)
    return folder, str(address), "hub"


def _skeleton(cls: type[T], config: Config, called: str) -> T:
    """Build a network without allocating anything, whatever numbers the config holds."""
    try:
        with torch.device("meta"):
            model = cls.from_config(
                config.network,
                aux_loss=config.aux_head,
                label_set=config.label_set,
                preprocess=config.preprocess,
            )
    except InputError as error:
        raise CheckpointError(f"{called}: {error}") from error
    model.float()  # torch's default type may be another
    return model


def _structure(model: Network) -> dict[str, Spec]:
    return {key: spec_of(tensor) for key, tensor in model.state_dict().items()}


def _record(config: Config) -> Weights | None:
    """Return the manifest's record of the weights that a model started from, if it has one."""
    with contextlib.suppress(UnknownModelError):  # of a later version, say
        if config.provenance:
            return get_weights(config.provenance.weights)
    return None


def _recorded(model: Network, state: Mapping[str, Tensor]) -> Card | Weights | Config | None:
    """Return what is recorded of exactly these tensors; None if they were not loaded, or changed.

    A recipe and measurements belong to the tensors that they were made with, not to others that
    have started from them.
    """
    if model.load_report is None or not _are_in(model.load_report.source, state):
        return None
    if model.load_report.trust == "local":
        return model.origin or read_card(model.load_report.source)
    published: Weights | None = model.weights
    return model.origin or published


def _are_in(path: Path, state: Mapping[str, Tensor]) -> bool:
    """Say whether a file holds these tensors, bit by bit."""
    try:
        stored = widen(read_safetensors(path, str(path)).tensors)
    except CheckpointError:  # gone since, or in other names
        return False
    return all(
        key in stored and torch.equal(tensor.cpu(), stored[key]) for key, tensor in state.items()
    )


def _provenance(model: Network, *, unchanged: bool) -> Provenance | None:
    """Say where a network's weights come from; `unchanged` since they were loaded, or not."""
    if model.origin:
        known: Provenance | None = model.origin.provenance
        return known and dataclasses.replace(known, unchanged=known.unchanged and unchanged)
    weights: Weights | None = model.weights
    if weights is None:
        return None
    sha256, entry = weights.sha256, CacheEntry.of(weights.name).record()
    if sha256 is None and entry is not None:
        sha256 = entry.source_sha256
    return Provenance(
        weights=weights.name,
        unchanged=unchanged and model.load_report.trust != "local",
        dataset=weights.dataset,
        page=None if weights.packaged else weights.links.config or weights.links.repository,
        source=next(iter(weights.sources), weights.links.manual_mirror),
        source_sha256=sha256,
        licence=weights.licence,
    )
