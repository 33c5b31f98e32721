"""Save a network as a folder that describes itself, publish it, and get the same network back.

Nothing here knows the network: it inherits `Publishable`. A saved model is three files::

    config.json          the network, its classes, its preprocessing, its history, and a hash
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
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

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
from isanet_zoo.weights.configs import Config, Provenance, read_config
from isanet_zoo.weights.containers import read_safetensors
from isanet_zoo.weights.reports import LoadReport
from isanet_zoo.weights.tensors import Spec, check, save_state, spec_of, state_digest, widen

logger = logging.getLogger(__name__)

T = TypeVar("T", bound="Publishable")

CONFIG, TENSORS, README = "config.json", "model.safetensors", "README.md"


class Publishable(nn.Module):
    """A network that can be saved, published and brought back.

    Attributes:
        config: the numbers that it was built from.
        label_set: its classes.
        preprocess: how pictures become input.
        weights: the manifest's record of the weights that it started from, or None.
        load_report: what loading did, None for fresh weights.
        origin: the `config.json` that it was loaded with, or None.
    """

    config: NetworkConfig
    label_set: LabelSet
    preprocess: Preprocess
    weights: Any = None
    load_report: Any = None
    origin: Config | None = None

    @classmethod
    def from_config(
        cls: type[T],
        config: NetworkConfig,
        *,
        aux_loss: bool = False,
        label_set: LabelSet | None = None,
        preprocess: Preprocess | None = None,
    ) -> T:
        """Build the network that a record describes, with fresh parameters."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls: type[T],
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
        progress: bool = True,
    ) -> T:
        """Bring back a network that was saved or published, exactly, in `eval()` mode.

        Only `config.json` and `model.safetensors` are read; neither can hold code.

        Args:
            source: a folder, or a repository on the Hugging Face hub: ``"org/repo"``, or, if there
                is a folder of that name, ``"hf-hub:org/repo"``.
            revision: a branch, tag or commit of the repository; its main branch if None.
            token: for a private repository; the one that is stored on this machine if None.
            progress: show bars on stderr while bytes arrive.

        Returns:
            The network, with its classes, its preprocessing, and its auxiliary head if it had one.

        Raises:
            InputError: there is no such folder, and it can be no repository either.
            DownloadError: the hub does not have it, does not give it, or cannot be reached.
            CheckpointError: a file or field is missing or wrong, or the tensors are not the
                network's.
            IntegrityError: the tensors are not those that the config belongs to.
        """
        folder, called, trust = _find(source, revision, token, progress)
        config = read_config(folder / CONFIG, f"{called}: {CONFIG}")
        tensors = f"{called}: {TENSORS}"
        state = read_safetensors(folder / TENSORS, tensors)
        model = _skeleton(cls, config, f"{called}: {CONFIG}")
        check(widen(state), _structure(model), tensors)
        if (digest := state_digest(state)) != config.state_digest:
            raise IntegrityError(
                f"{tensors} is damaged, or belongs to another {CONFIG}: its tensors have digest "
                f"{digest}, the config says {config.state_digest}"
            )
        model.load_state_dict(widen(state), assign=True)
        model.origin = config
        model.weights = _record(config)
        model.load_report = LoadReport(folder / TENSORS, trust)
        logger.info("%s: %s", called, model.load_report)
        return model.eval()

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        dataset: str = "",
        recipe: Recipe | None = None,
        metrics: Iterable[Metric] = (),
        licence: str | None = None,
    ) -> Path:
        """Write the network into a folder that `from_pretrained` brings back.

        Its `model.safetensors` also works alone, as ``create_model(name, weights=FILE)``.

        Args:
            folder: it is made if need be. Files of an earlier save in it are replaced, each once
                the new one is whole.
            dataset: what the network was trained on.
            recipe: how.
            metrics: what was measured. Published weights that were not trained further bring their
                own data set, recipe and metrics.
            licence: of the weights, as the Hugging Face hub abbreviates it (``"apache-2.0"``); that
                of the published weights it started from if None.

        Returns:
            The folder.

        Raises:
            InputError: the folder cannot be written.
            CheckpointError: the network could not be brought back: a part of it was exchanged, or a
                parameter is not finite.
        """
        target = Path(folder)
        config = describe(self, dataset=dataset, recipe=recipe, metrics=metrics, licence=licence)
        write_folder(self, config, target, called=target.resolve().name)
        return target

    def push_to_hub(
        self,
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
        """Publish the network on the Hugging Face hub, in one commit.

        Args:
            repo: the repository, ``"org/repo"``; it is made if need be.
            private: make it so that only its owners see it.
            token: of somebody who may write there; the one that is stored on this machine if None.
            commit_message: what the commit says.
            dataset: what the network was trained on.
            recipe: how.
            metrics: what was measured.
            licence: of the weights; for these four see `save_pretrained`.

        Returns:
            The commit, which `from_pretrained` takes as `revision`.

        Raises:
            InputError: that can be no repository.
            UploadError: the hub refused, or cannot be reached.
            CheckpointError: the network could not be brought back, see `save_pretrained`.
        """
        transfer.check_name(repo)
        config = describe(self, dataset=dataset, recipe=recipe, metrics=metrics, licence=licence)
        with tempfile.TemporaryDirectory() as folder:
            files = write_folder(self, config, Path(folder), called=repo)
            return transfer.upload(
                repo,
                {file.name: file for file in files},
                message=commit_message,
                private=private,
                token=token,
            )


def describe(
    model: Publishable,
    *,
    dataset: str = "",
    recipe: Recipe | None = None,
    metrics: Iterable[Metric] = (),
    licence: str | None = None,
) -> Config:
    """Return what a network's `config.json` will say; see `Publishable.save_pretrained`.

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
    model: Publishable, config: Config, folder: Path, *, called: str
) -> tuple[Path, Path, Path]:
    """Write a network's three files, each under another name until all are whole.

    The config comes last: whenever it stops before, what lies there is the earlier model, none, or
    one whose config and tensors do not fit, which loading says.

    Args:
        model: the network.
        config: its description, as `describe` gives it.
        folder: it is made if need be.
        called: what the model card calls the model.

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
            parts[0].write_text(card.write(config, called), "utf-8")
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
    return model.float()  # whatever torch's default type is at the moment


def _structure(model: nn.Module) -> dict[str, Spec]:
    return {key: spec_of(tensor) for key, tensor in model.state_dict().items()}


def _record(config: Config) -> Weights | None:
    """Return the manifest's record of the weights that a model started from, if it has one."""
    with contextlib.suppress(UnknownModelError):  # of a later version, say
        if config.provenance:
            return get_weights(config.provenance.weights)
    return None


def _recorded(model: Publishable, state: Mapping[str, Tensor]) -> Card | Weights | Config | None:
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
        stored = widen(read_safetensors(path, str(path)))
    except CheckpointError:  # gone since, or in other names
        return False
    return all(
        key in stored and torch.equal(tensor.cpu(), stored[key]) for key, tensor in state.items()
    )


def _provenance(model: Publishable, *, unchanged: bool) -> Provenance | None:
    """Say where a network's weights come from; `unchanged` since they were loaded, or not."""
    if model.origin:
        known = model.origin.provenance
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
