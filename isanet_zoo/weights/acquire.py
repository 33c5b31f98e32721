"""Published weights on this machine: downloaded, checked, converted and cached."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from isanet_zoo.cache import CacheEntry, SideFile, usable_cache
from isanet_zoo.errors import (
    CheckpointError,
    EnvironmentProblem,
    IntegrityError,
    OfflineError,
    SourceError,
    ZooError,
    printable,
)
from isanet_zoo.files import hash_file, temporary_file
from isanet_zoo.manifest.lookup import get_weights
from isanet_zoo.manifest.weights import Trust, Weights
from isanet_zoo.weights.fetch import Fetched, transfer
from isanet_zoo.weights.http import Patience, without_password
from isanet_zoo.weights.integrity import find_damage, read_published, read_undamaged
from isanet_zoo.weights.sources import (
    check_online,
    find_sources,
    largest_size,
    not_fetched,
    note_failure,
    progress_bar,
)

if TYPE_CHECKING:  # these import torch; a cached or missing file needs none
    from isanet_zoo.weights.checkpoints import Checkpoint
    from isanet_zoo.weights.stored import State

logger = logging.getLogger(__name__)


def download(name: str, *, force: bool = False, progress: bool = True) -> Path:
    """Return the checked weights of a published model, downloaded and converted on first use.

    A cached file is hashed and compared with its side file; a damaged one is set aside and
    downloaded again. A cached file needs no network and takes no lock.

    Args:
        name: a name as `list_models` returns it.
        force: download even if a good file is cached, and accept other tensors than the first time.
        progress: show a bar on stderr while bytes arrive.

    Returns:
        The ``.safetensors`` file.

    Raises:
        UnknownModelError: no weights have this name.
        EnvironmentProblem: the weights are in a distribution that is not installed.
        IntegrityError: an installed file differs from the manifest.
        OfflineError: the file is not cached and offline mode is on.
        DownloadError: no source has an acceptable file, or the cache cannot be used. Its `tried`
            lists each source with its `SourceError`, `IntegrityError` or `CheckpointError`.
    """
    weights = get_weights(name)
    weights.log_terms()
    return acquire(weights, force=force, progress=progress)


def acquire(
    weights: Weights,
    *,
    force: bool = False,
    progress: bool = True,
    patience: Patience = Patience(),  # noqa: B008 - frozen
) -> Path:
    """Return the checked weights of one record; see `download`."""
    path = weights.path()
    with usable_cache():
        damage = find_damage(weights, path)
        if weights.packaged and damage:
            raise _not_installed(weights.name, path, damage)
        if weights.packaged or (damage is None and not force):
            return path
        entry = CacheEntry.of(weights.name)
        with entry.lock():
            damage = find_damage(weights, path)  # another process may have filled the entry
            if damage is None and not force:
                return path
            if damage and path.exists():
                with contextlib.suppress(FileNotFoundError):  # gone, if locks do not work
                    logger.warning("%s: %s; downloading again", entry.set_aside(), damage)
            _fill(entry, weights, force, progress, patience)
    return path


def load_published(weights: Weights, *, progress: bool = True) -> tuple[Checkpoint, Path, Trust]:
    """Load published weights, downloaded on first use; a cached file is read once.

    Returns:
        The checked tensors; the file; and its trust, which is "unverified" on first use.

    Raises:
        ZooError: as `download`.
    """
    from isanet_zoo.weights.checkpoints import check_state

    path, trust = weights.path(), weights.trust
    with usable_cache():
        file = read_undamaged(weights, path)
        if file is None:
            acquire(weights, progress=progress)
            file = read_undamaged(weights, path)
    if file is None:
        raise IntegrityError(f"{path} changed while it was read; try again")
    return check_state(file.tensors, weights.network, str(path), exact=True), path, trust


def _not_installed(name: str, path: Path, damage: str) -> ZooError:
    """Return the error for the file of a distribution of weights that cannot be used."""
    distribution = path.parent.name.replace("_", "-")
    if path.exists():
        return IntegrityError(f"{path}: {damage}; reinstall {distribution}")
    return EnvironmentProblem(
        f"{name} is in {distribution}, which is not installed: `pip install {distribution}` (in a "
        f"clone `./{path.parents[1].name}`), or name another model (`isanet-zoo list` shows all)"
    )


def _fill(
    entry: CacheEntry, weights: Weights, force: bool, progress: bool, patience: Patience
) -> None:
    """Fill a cache entry from the first source that has an acceptable file."""
    by_hand = entry.folder / weights.filename
    tried: list[tuple[str, Exception]] = []
    with progress_bar(weights.filename, progress) as show:
        for source in find_sources(weights, by_hand):
            try:
                check_online(source)
                with temporary_file(entry.folder, ".download") as part:
                    limit = largest_size(weights)
                    fetched = transfer(source, part, limit=limit, show=show, patience=patience)
                    state, digest = read_published(weights, part, fetched)
                if not force:
                    _check_pin(entry, weights, digest)
                _place(entry, state, digest, fetched)
                for failed, reason in tried:
                    logger.warning("%s: %s", printable(failed), reason)
                logger.info("%s: %s weights from %s", entry.name, weights.family, fetched.source)
                return
            except (SourceError, OfflineError, CheckpointError, IntegrityError) as error:
                tried.append((without_password(source), error))
                note_failure(source, error)
    raise not_fetched(weights, tried, by_hand)


def _check_pin(entry: CacheEntry, weights: Weights, digest: str) -> None:
    """Raise IntegrityError for other tensors than the first time on this machine."""
    pin = entry.record()
    if weights.trust == "pinned" and pin and digest != pin.state_digest:
        raise IntegrityError(
            f"{weights.filename} has other tensors than the first time on this machine (digest "
            f"{digest}, was {pin.state_digest}); if this is expected, accept them with `isanet-zoo "
            f"download {weights.name} --force`"
        )


def _place(entry: CacheEntry, state: State, digest: str, fetched: Fetched) -> None:
    """Write converted tensors and their side file into the cache."""
    from isanet_zoo.weights.tensors import save_state

    with temporary_file(entry.folder, ".safetensors") as model:
        save_state(state, model)
        record = SideFile(
            name=entry.name,
            source=fetched.source,
            source_sha256=fetched.sha256,
            source_size=fetched.size,
            sha256=hash_file(model),
            size=model.stat().st_size,
            state_digest=digest,
        )
        entry.place(model, record)
