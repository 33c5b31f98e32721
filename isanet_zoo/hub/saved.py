"""Saved models: a folder, or a repository of the Hugging Face Hub, that describes itself.

A saved model is three files::

    config.json          the network, its classes, preprocessing and history, and the tensors' hash
    model.safetensors    the tensors, and the same description for `weights=FILE`
    README.md            the model card
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from pathlib import Path

from typing_extensions import Unpack

from isanet_zoo import records
from isanet_zoo.errors import CheckpointError, InputError, IntegrityError, printable
from isanet_zoo.files import check_target, open_regular, replace, temporary_file, to_path
from isanet_zoo.hub import card, transfer
from isanet_zoo.manifest.weights import ModelFacts
from isanet_zoo.weights.checkpoints import LoadReport, structure
from isanet_zoo.weights.containers import read_safetensors
from isanet_zoo.weights.description import Description, is_described
from isanet_zoo.weights.loading import Loaded, Model, load_network
from isanet_zoo.weights.saving import describe
from isanet_zoo.weights.tensors import check_values, plain_state, save_state, state_digest, widen

logger = logging.getLogger(__name__)

CONFIG, TENSORS, README = "config.json", "model.safetensors", "README.md"
CARD_HEAD = 1 << 16  # bytes of a model card that include its metadata


def from_pretrained(
    cls: type[Model],
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    progress: bool = True,
) -> Model:
    """Load a network of class `cls`; see `ISANet.from_pretrained`."""
    loaded = read_saved(source, cls=cls, revision=revision, token=token, progress=progress)
    model = load_network(cls, loaded)
    logger.info("%s: %s", printable(source, 500), model.load_report)
    return model


def read_saved(
    source: str | os.PathLike[str],
    *,
    cls: type[Model],
    revision: str | None = None,
    token: str | None = None,
    progress: bool = True,
) -> Loaded:
    """Read and check a saved model; see `ISANet.from_pretrained`."""
    folder, name, trust = _find(source, revision, token, progress)
    description = _read_config(folder / CONFIG, f"{name}: {CONFIG}")
    network, aux_head = description.network, description.aux_head
    try:
        expected = structure(network, aux_loss=aux_head, cls=cls)
    except InputError as error:  # the encoder is unknown or does not fit
        raise CheckpointError(f"{name}: {CONFIG}: {error}") from error
    tensors = f"{name}: {TENSORS}"
    stored = read_safetensors(folder / TENSORS, tensors, expected).tensors
    state = widen(stored)
    check_values(state, tensors)
    if (digest := state_digest(stored)) != description.state_digest:
        raise IntegrityError(
            f"{tensors} is damaged, or belongs to another {CONFIG}: its tensors have digest "
            f"{digest}, the config states {description.state_digest}"
        )
    return Loaded(state, description, LoadReport(folder / TENSORS, trust))


def read_config(source: str | os.PathLike[str], *, progress: bool = True) -> Description:
    """Return the description of a saved model, without reading its tensors."""
    folder, name, _ = _find(source, None, None, progress)
    return _read_config(folder / CONFIG, f"{name}: {CONFIG}")


def save_pretrained(
    model: Model,
    folder: str | os.PathLike[str],
    *,
    force: bool = False,
    **facts: Unpack[ModelFacts],
) -> Path:
    """Write a network into a folder; see `ISANet.save_pretrained`."""
    target = to_path(folder, "folder")
    for name, is_ours in WRITTEN.items():
        if (target / name).exists():
            check_target(target / name, is_ours=is_ours, force=force)
    write_folder(model, describe(model, **facts), target, name=target.resolve().name)
    return target


def push_to_hub(
    model: Model,
    repo: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload an ISANet",
    **facts: Unpack[ModelFacts],
) -> str:
    """Publish a network on the Hugging Face Hub; see `ISANet.push_to_hub`."""
    transfer.Address(repo)  # checks the name
    description = describe(model, **facts)
    with tempfile.TemporaryDirectory() as folder:
        files = write_folder(model, description, Path(folder), name=repo)
        paths = {file.name: file for file in files}
        return transfer.upload(repo, paths, message=commit_message, private=private, token=token)


def _is_config(path: Path) -> bool:
    with contextlib.suppress(CheckpointError):
        return bool(_read_config(path, str(path)))
    return False


def _is_card(path: Path) -> bool:
    """Return whether this library wrote a model card; it may have been edited since."""
    with open_regular(path) as file:
        return b"library_name: isanet_zoo" in file.read(CARD_HEAD)


WRITTEN = {README: _is_card, TENSORS: is_described, CONFIG: _is_config}


def write_folder(
    model: Model, description: Description, folder: Path, *, name: str
) -> tuple[Path, Path, Path]:
    """Write a network's three files, each under another name until all are complete.

    The config is renamed last. An interruption leaves the earlier model, or none, or a config and
    tensors whose digests differ, which loading detects.

    Args:
        model: the network.
        description: its description, as `describe` returns it.
        folder: created if it does not exist.
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
            parts[0].write_text(card.render(description, name), "utf-8")
            save_state(plain_state(model), parts[1], description=description.text())
            parts[2].write_text(f"{description.text(indent=2)}\n", "utf-8")
            for part, target in zip(parts, targets, strict=True):
                replace(part, target)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}") from error
    return targets


def _read_config(path: Path, name: str) -> Description:
    """Read a `config.json`.

    Raises:
        CheckpointError: it is missing, damaged or too long, or a field is missing or wrong.
    """
    try:
        with open_regular(path) as file:
            return Description.parse(file.read(records.LONGEST_JSON + 1), name)
    except FileNotFoundError as error:
        raise CheckpointError(f"{name} is missing; isanet_zoo did not save this model") from error
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error.strerror or error}") from error


def _find(
    source: str | os.PathLike[str], revision: str | None, token: str | None, progress: bool
) -> tuple[Path, str, str]:
    """Return the folder of a saved model, its name in error messages, and its trust."""
    if not isinstance(source, (str, os.PathLike)):
        raise InputError(
            f"source is a {type(source).__name__}; it must be a folder or a repository"
        )
    if str(source).startswith(transfer.PREFIX):
        address = transfer.parse(str(source))
        if address.revision and revision:
            raise InputError(f"{source!r} and revision={revision!r} both name a revision; pass one")
        address = transfer.Address(address.repo, address.revision or revision)
    elif os.path.isdir(source):  # noqa: PTH112 - False for names that cannot be paths
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
