"""Mirrors of converted weights on the Hugging Face Hub; for maintainers.

A mirror holds ``<name>/model.safetensors`` for each of its weights, `SHA256SUMS` and a model card.
Its files are tried before the publisher's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from isanet_zoo import records
from isanet_zoo.errors import InputError, IntegrityError
from isanet_zoo.hub import card, transfer
from isanet_zoo.manifest.lookup import find_weights, load_manifest
from isanet_zoo.manifest.weights import HubFile, Weights
from isanet_zoo.weights.acquire import acquire
from isanet_zoo.weights.containers import read_safetensors
from isanet_zoo.weights.integrity import difference
from isanet_zoo.weights.pinning import write_facts
from isanet_zoo.weights.tensors import state_digest


class Converted(NamedTuple):
    """A converted file in this machine's cache."""

    weights: Weights
    path: str  # in the mirror
    sha256: str
    size: int  # bytes


def mirror(
    names: Iterable[str],
    repo: str,
    manifest: Path,
    *,
    token: str | None = None,
    progress: bool = True,
) -> list[HubFile]:
    """Upload converted weights in one commit, and write their place into `manifest`.

    Only pinned weights are mirrored: the manifest has the hash of their published file and of its
    tensors. Other files of the repository stay.

    Args:
        names: names of weights.
        repo: the repository, ``"org/repo"``; a public one is created if it does not exist.
        manifest: the file to change; only `hub` of these weights changes.
        token: with write access; the one that is stored on this machine if None.
        progress: show a progress bar on stderr while files are downloaded.

    Returns:
        The files, as they are now in the manifest.

    Raises:
        UnknownModelError: the manifest has no such weights.
        InputError: weights are not pinned, or are in a distribution.
        IntegrityError: this machine's copy does not have the pinned tensors.
        DownloadError: a copy is not cached, and no source has one.
        UploadError: the Hub refused or cannot be reached; the manifest did not change.
    """
    transfer.Address(repo)  # checks the name
    files = find_files(names, manifest, progress=progress)
    message = f"Mirror {', '.join(file.weights.name for file in files)}"
    with tempfile.TemporaryDirectory() as folder:
        paths = {file.path: file.weights.path() for file in files}
        for name, text in render_texts(files, repo, manifest).items():
            paths[name] = Path(folder) / name
            paths[name].write_text(text, "utf-8")
        commit = transfer.upload(repo, paths, message=message, token=token)
    places = {file.weights: HubFile(repo, commit, *file[1:]) for file in files}
    write_facts(manifest, {w: {"hub": records.write(place)} for w, place in places.items()})
    return list(places.values())


def find_files(names: Iterable[str], manifest: Path, *, progress: bool = True) -> list[Converted]:
    """Return the converted files of some weights, downloaded if necessary; see `mirror`."""
    load_manifest.cache_clear()  # `pin` may just have changed it
    known = load_manifest(manifest)
    return [_find_file(find_weights(name, known), progress) for name in names]


def _find_file(weights: Weights, progress: bool) -> Converted:
    if weights.packaged:
        raise InputError(f"{weights.name} is in a distribution on its own and needs no mirror")
    if weights.sha256 is None or weights.size is None or weights.state_digest is None:
        raise InputError(f"{weights.name} is not pinned; run `isanet-zoo pin {weights.name}` first")
    path = acquire(weights, progress=progress)
    file = read_safetensors(path, str(path))
    if mismatch := difference(weights, weights.sha256, weights.size, state_digest(file.tensors)):
        raise IntegrityError(
            f"{path}: {mismatch}; run `isanet-zoo download {weights.name} --force`"
        )
    return Converted(weights, f"{weights.name}/model.safetensors", file.sha256, file.size)


def render_texts(files: Sequence[Converted], repo: str, manifest: Path) -> dict[str, str]:
    """Return the text files of a mirror with these and its earlier files: hashes and model card."""
    earlier = [w for w in load_manifest(manifest).values() if w.hub and w.hub.repo == repo]
    sums = {w.hub.path: w.hub.sha256 for w in earlier if w.hub}
    sums |= {file.path: file.sha256 for file in files}
    weights = {w.name: w for w in (*earlier, *(file.weights for file in files))}
    return {
        "SHA256SUMS": "".join(f"{digits}  {path}\n" for path, digits in sorted(sums.items())),
        "README.md": card.render_mirror([w for _, w in sorted(weights.items())]),
    }
