"""From a published weight's name to a checked file in the cache."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isanet_zoo.cache import CacheEntry, SideFile
from isanet_zoo.errors import (
    DownloadError,
    IntegrityError,
    UnknownModelError,
)
from isanet_zoo.files import hash_file
from isanet_zoo.manifest.lookup import get_weights
from isanet_zoo.manifest.weights import Weights
from isanet_zoo.weights import checkpoints
from isanet_zoo.weights.containers import read_state
from isanet_zoo.weights.fetch import Fetched, Patience, Progress, fetch, mirrored
from isanet_zoo.weights.tensors import save_state, state_digest

logger = logging.getLogger(__name__)


def download(name: str, *, force: bool = False, progress: bool = True) -> Path:
    """Return the checked weights of a published model, fetched and converted on first use.

    What is cached is read once, whole, and compared with its side file; if it is damaged it is set
    aside and fetched again. A cached file needs no network and takes no lock.

    Args:
        name: as `list_models` gives it.
        force: fetch again even if a good file is cached; accept other tensors than the first time.
        progress: show a bar on stderr while bytes arrive.

    Returns:
        The ``.safetensors`` file.

    Raises:
        UnknownModelError: no weights have this name.
        IntegrityError: weights that come with this library are not what the manifest says.
        OfflineError: not cached, and the network is switched off.
        DownloadError: no source has an acceptable file, or the cache cannot be written. Its `tried`
            says why each was refused: `SourceError`, `IntegrityError` or `CheckpointError`.
    """
    return acquire(get_weights(name), force=force, progress=progress)


def acquire(
    weights: Weights,
    *,
    force: bool = False,
    progress: bool = True,
    patience: Patience = Patience(),  # noqa: B008 - frozen
) -> Path:
    """Return the checked weights of one record; see `download`."""
    if weights.packaged:
        return _check_packaged(weights, weights.packaged)
    entry = CacheEntry.of(weights.name)
    if not force and _unfit(entry, weights) is None:
        return entry.model
    with _naming_the_cache(entry), entry.lock():
        # Another process may have filled the entry while this one waited.
        unfit = _unfit(entry, weights)
        if not force and unfit is None:
            return entry.model
        if unfit and entry.model.exists():
            with contextlib.suppress(FileNotFoundError):  # gone, where locks do not work
                logger.warning("%s: %s; fetching it again", entry.set_aside(), unfit)
        by_hand = entry.folder / weights.filename
        local = [str(by_hand)] if by_hand.is_file() else []
        with progress_bar(weights.filename, progress) as show:
            fetch(
                weights.filename,
                [*local, *mirrored(weights.filename), *_hub(weights), *weights.sources],
                entry.folder,
                functools.partial(_convert, weights, entry, force),
                by_hand=by_hand,
                page=weights.links.manual_mirror,
                progress=show,
                patience=patience,
            )
    return entry.model


def _check_packaged(weights: Weights, path: Path) -> Path:
    """Return the file that comes with this library, if it is what the manifest says."""
    try:
        mismatch = difference(weights, hash_file(path), path.stat().st_size)
    except OSError as error:
        mismatch = f"{path} cannot be read: {error.strerror}"
    if mismatch:
        raise IntegrityError(f"{mismatch}; reinstall isanet-zoo")
    return path


def _unfit(entry: CacheEntry, weights: Weights) -> str | None:
    """Say why the cache cannot serve these weights; None if it can."""
    try:
        damage = entry.damage()
    except (FileNotFoundError, NotADirectoryError):
        return "nothing is cached"
    record = entry.record()
    if damage is None and record is not None:
        return difference(weights, record.source_sha256, record.source_size)
    return damage


def _hub(weights: Weights) -> list[str]:
    return [weights.hub.url] if weights.hub else []


def difference(weights: Weights, sha256: str, size: int, digest: str | None = None) -> str | None:
    """Compare a published file, or its converted twin, with what the manifest knows of it.

    Args:
        weights: the manifest's record.
        sha256: the file's hash.
        size: its length in bytes.
        digest: the hash of its tensors, once they are read.

    Returns:
        Where they differ, or None.
    """
    twin = weights.hub if weights.hub and weights.hub.sha256 == sha256 else None
    expected = sha256 if twin else weights.sha256 or weights.sha256_prefix or ""
    facts = {
        "size": (size, twin.size if twin else weights.size),
        "sha256": (sha256[: len(expected)], expected),
        "state digest": (digest, weights.state_digest),
    }
    for fact, (found, known) in facts.items():
        if known and found not in (None, known):
            return f"{weights.filename} has {fact} {found}, the manifest says {known}"
    return None


@contextlib.contextmanager
def _naming_the_cache(entry: CacheEntry) -> Iterator[None]:
    """Turn what the disk refuses into the error that says what to do."""
    try:
        yield
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(
            f"the cache folder {entry.folder} cannot be written ({error}); make room, or "
            "name another one in ISANET_ZOO_CACHE"
        ) from error


def _convert(
    weights: Weights, entry: CacheEntry, force: bool, path: Path, fetched: Fetched
) -> None:
    """Check a published file and put its converted twin into the cache.

    Raises:
        IntegrityError: its bytes are not what the manifest says, or its tensors are not those of
            the first time on this machine.
        CheckpointError: its tensors are not the network's.
    """
    twin = weights.hub
    if twin and fetched.source == twin.url and fetched.sha256 != twin.sha256:
        raise IntegrityError(
            f"{twin.path} has sha256 {fetched.sha256}, the manifest says {twin.sha256}"
        )
    if mismatch := difference(weights, fetched.sha256, fetched.size):
        raise IntegrityError(mismatch)  # before anything of it is read
    state, _, layout = checkpoints.load_checkpoint(
        path, weights.network, exact=True, called=weights.filename
    )
    digest = state_digest(state)
    if mismatch := difference(weights, fetched.sha256, fetched.size, digest):
        raise IntegrityError(mismatch)
    pin = entry.record()
    if weights.trust == "pinned" and not force and pin and digest != pin.state_digest:
        raise IntegrityError(
            f"{weights.filename} holds other tensors than the first time on this machine (digest "
            f"{digest}, was {pin.state_digest}); if you know why, `isanet-zoo download "
            f"{weights.name} --force` accepts them"
        )
    entry.place(
        lambda model: save_state(state, model),
        lambda model: SideFile(
            name=weights.name,
            source=fetched.source,
            source_sha256=fetched.sha256,
            source_size=fetched.size,
            sha256=hash_file(model),
            size=model.stat().st_size,
            state_digest=digest,
        ),
    )
    logger.info("%s: %s weights from %s", weights.name, layout.family, fetched.source)


def verify(entry: CacheEntry) -> str | None:
    """Read a cached entry whole and compare it with its side file and the manifest.

    Returns:
        What is wrong, or None.
    """
    try:
        weights = get_weights(entry.name)
    except UnknownModelError:
        return "the manifest does not know it"
    if unfit := _unfit(entry, weights):
        return unfit
    record = entry.record()
    digest = state_digest(read_state(entry.model, str(entry.model)))
    if record is None or digest not in {record.state_digest, weights.state_digest or digest}:
        return f"its tensors have digest {digest}"
    return None


@contextlib.contextmanager
def progress_bar(title: str, wanted: bool) -> Iterator[Progress | None]:
    """Give something to tell of a transfer's bytes, drawn on stderr; None if it is not wanted."""
    if not wanted:
        yield None
        return
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    bars: list[Any] = []  # none before the first byte

    def show(done: int, total: int | None) -> None:
        if not bars:
            bar = tqdm(desc=title, total=total, unit="B", unit_scale=True)  # type: ignore[no-untyped-call]
            bars.append(bar)
        bars[0].total = total
        bars[0].update(done - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()
