"""For maintainers: put converted weights on the hub, and their place there into the manifest.

A mirror repository holds ``<name>/model.safetensors`` for each of the weights, `SHA256SUMS` and a
model card. From the next release on it is asked before the publisher.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from isanet_zoo import records
from isanet_zoo.errors import InputError, IntegrityError
from isanet_zoo.files import hash_file
from isanet_zoo.hub import card, transfer
from isanet_zoo.manifest.lookup import find_weights, load_manifest
from isanet_zoo.manifest.weights import HubFile, Weights
from isanet_zoo.weights.acquire import acquire
from isanet_zoo.weights.containers import read_safetensors
from isanet_zoo.weights.integrity import difference
from isanet_zoo.weights.pinning import write_facts
from isanet_zoo.weights.tensors import state_digest

HEAD = """---
library_name: isanet_zoo
pipeline_tag: image-segmentation
license: other
license_name: see-below
tags:
- isanet
- semantic-segmentation
- timm
- pytorch
---

# Published ISANet weights, converted for isanet_zoo

The tensors are those that their publishers published, under isanet_zoo's names; nothing was trained
further. `isanet_zoo` asks this repository first and compares each file with the sha256 in its
manifest:

```python
import isanet_zoo

model = isanet_zoo.create_model("{name}", pretrained=True)
```

"""


class Twin(NamedTuple):
    """A converted file on this machine, to be mirrored."""

    weights: Weights
    sha256: str
    size: int

    @property
    def path(self) -> str:
        """Where it goes in the repository."""
        return f"{self.weights.name}/model.safetensors"


def mirror(
    names: Iterable[str],
    repo: str,
    manifest: Path,
    *,
    token: str | None = None,
    progress: bool = True,
) -> list[HubFile]:
    """Upload converted weights in one commit, and write where they are into `manifest`.

    Only pinned weights are mirrored: the manifest then says which published file each comes from,
    and that its tensors are that file's. What is in the repository already stays there.

    Args:
        names: of the weights.
        repo: the repository, ``"org/repo"``; it is made, in public, if need be.
        manifest: the file to change; only `hub` of these weights changes.
        token: of somebody who may write there; the one that is stored on this machine if None.
        progress: show a bar on stderr while bytes arrive.

    Returns:
        The files, as the manifest has them now.

    Raises:
        UnknownModelError: the manifest has no such weights.
        InputError: weights are not pinned, or come with this library.
        IntegrityError: this machine's copy does not have the pinned tensors.
        DownloadError: a copy is not here, and no source has one.
        UploadError: the hub refused, or cannot be reached; the manifest is as it was.
    """
    transfer.check_name(repo)
    twins = find_twins(names, manifest, progress=progress)
    with tempfile.TemporaryDirectory() as folder:
        files = {twin.path: twin.weights.path() for twin in twins}
        for name, text in write_texts(twins, repo, manifest).items():
            files[name] = Path(folder) / name
            files[name].write_text(text, "utf-8")
        message = f"Mirror {', '.join(twin.weights.name for twin in twins)}"
        commit = transfer.upload(repo, files, message=message, token=token)
    mirrored = {
        twin.weights: HubFile(repo, commit, twin.path, twin.sha256, twin.size) for twin in twins
    }
    write_facts(manifest, {w: {"hub": records.write(file)} for w, file in mirrored.items()})
    return list(mirrored.values())


def find_twins(names: Iterable[str], manifest: Path, *, progress: bool = True) -> list[Twin]:
    """Return the converted files of some weights, fetched where need be; see `mirror`."""
    load_manifest.cache_clear()  # what was pinned a moment ago counts
    known = load_manifest(manifest)
    return [_find_twin(find_weights(name, known), progress) for name in names]


def _find_twin(weights: Weights, progress: bool) -> Twin:
    if weights.packaged:
        raise InputError(f"{weights.name} comes with this library and needs no mirror")
    if None in (weights.sha256, weights.size, weights.state_digest):
        raise InputError(
            f"{weights.name} is not pinned, so nothing says what a mirror should hold; "
            f"`isanet-zoo pin {weights.name}` first"
        )
    path = acquire(weights, progress=progress)
    digest = state_digest(read_safetensors(path, str(path)).tensors)
    if mismatch := difference(weights, str(weights.sha256), int(weights.size or 0), digest):
        raise IntegrityError(f"{path}: {mismatch}; `isanet-zoo download {weights.name} --force`")
    return Twin(weights, hash_file(path), path.stat().st_size)


def write_texts(twins: Sequence[Twin], repo: str, manifest: Path) -> dict[str, str]:
    """Return the mirror's texts by name: the sums of all that it holds, and its card."""
    sums = {w.hub.path: w.hub.sha256 for w in _mirrored(repo, manifest) if w.hub}
    sums |= {twin.path: twin.sha256 for twin in twins}
    mirrored = {w.name: w for w in (*_mirrored(repo, manifest), *(t.weights for t in twins))}
    rows = [
        (f"`{w.name}`", w.sources[0] if w.sources else w.links.repository, f"`{w.sha256}`",
         w.licence.weights, w.licence.dataset)
        for _, w in sorted(mirrored.items())
    ]  # fmt: skip
    heading = ("weights", "published at", "sha256 of the published file", "terms", "trained on")
    return {
        "SHA256SUMS": "".join(f"{digits}  {path}\n" for path, digits in sorted(sums.items())),
        "README.md": HEAD.format(name=min(mirrored)) + card.table(heading, rows) + "\n",
    }


def _mirrored(repo: str, manifest: Path) -> list[Weights]:
    """Return what a repository holds already, as the manifest says."""
    return [w for w in load_manifest(manifest).values() if w.hub and w.hub.repo == repo]
