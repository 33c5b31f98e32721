"""Comparison of weight files with the manifest and with the side files of the cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from isanet_zoo.cache import CacheEntry
from isanet_zoo.errors import CheckpointError, IntegrityError
from isanet_zoo.files import hash_file
from isanet_zoo.manifest.weights import Weights
from isanet_zoo.weights.fetch import Fetched

if TYPE_CHECKING:  # it imports torch, which a hash does not need
    from isanet_zoo.weights.containers import SafetensorsFile
    from isanet_zoo.weights.stored import State


def difference(weights: Weights, sha256: str, size: int, digest: str | None = None) -> str | None:
    """Compare a published file, or its converted copy on the hub, with the manifest.

    Args:
        weights: the manifest's record.
        sha256: the file's hash.
        size: its size in bytes.
        digest: the hash of its tensors, once they are read.

    Returns:
        Where they differ, or None.
    """
    copy = weights.hub if weights.hub and weights.hub.sha256 == sha256 else None
    digits = sha256 if copy else weights.sha256 or weights.sha256_prefix or ""
    facts = {
        "size": (size, copy.size if copy else weights.size),
        "sha256": (sha256[: len(digits)], digits),
        "state digest": (digest, weights.state_digest),
    }
    for fact, (found, expected) in facts.items():
        if expected and found not in (None, expected):
            return f"{weights.filename} has {fact} {found}, the manifest has {expected}"
    return None


def read_published(weights: Weights, path: Path, fetched: Fetched) -> tuple[State, str]:
    """Read a published file; return its tensors and their digest, both checked.

    Raises:
        IntegrityError: the bytes or tensors differ from the manifest.
        CheckpointError: the tensors are not the network's.
    """
    from isanet_zoo.weights.checkpoints import load_checkpoint
    from isanet_zoo.weights.tensors import state_digest

    copy = weights.hub
    if copy and fetched.source == copy.url and fetched.sha256 != copy.sha256:
        raise IntegrityError(
            f"{copy.path} has sha256 {fetched.sha256}, the manifest has {copy.sha256}"
        )
    if mismatch := difference(weights, fetched.sha256, fetched.size):
        raise IntegrityError(mismatch)  # before any of it is parsed
    state = load_checkpoint(path, weights.network, exact=True, name=weights.filename).state
    digest = state_digest(state)
    if mismatch := difference(weights, fetched.sha256, fetched.size, digest):
        raise IntegrityError(mismatch)
    return state, digest


def find_damage(weights: Weights, path: Path) -> str | None:
    """Hash a cached or packaged file; return why it cannot be used, or None."""
    try:
        return compare(weights, path.stat().st_size, hash_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file"


def compare(weights: Weights, size: int, sha256: str) -> str | None:
    """Compare a cached or packaged file with its side file and the manifest."""
    if weights.packaged:
        return difference(weights, sha256, size)
    entry = CacheEntry.of(weights.name)
    if (record := entry.record()) is None:
        return "its side file is missing or damaged"
    return record.compare(size, sha256) or difference(
        weights, record.source_sha256, record.source_size
    )


def read_undamaged(weights: Weights, path: Path) -> SafetensorsFile | None:
    """Read a cached or packaged file; return None if it cannot be used."""
    from isanet_zoo.weights.containers import read_safetensors

    try:
        file = read_safetensors(path, str(path))
    except CheckpointError:
        return None
    return None if compare(weights, file.size, file.sha256) else file


def verify(weights: Weights) -> str | None:
    """Read a cached file and compare it with its side file and the manifest.

    Returns:
        What is wrong, or None.
    """
    from isanet_zoo.weights.containers import read_safetensors
    from isanet_zoo.weights.tensors import state_digest

    entry = CacheEntry.of(weights.name)
    try:
        file = read_safetensors(entry.model, str(entry.model))
    except CheckpointError as error:
        return str(error)
    if damage := compare(weights, file.size, file.sha256):
        return damage
    record, digest = entry.record(), state_digest(file.tensors)
    if record is None or digest not in {record.state_digest, weights.state_digest or digest}:
        return f"its tensors have digest {digest}"
    return None
