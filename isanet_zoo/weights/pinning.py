"""For maintainers: write what a published file is into the manifest, so that it can be verified."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from isanet_zoo.errors import IntegrityError, UnknownModelError
from isanet_zoo.weights import checkpoints
from isanet_zoo.weights.acquire import progress_bar
from isanet_zoo.weights.cache import replace, temporary_file
from isanet_zoo.weights.fetch import Fetched, fetch
from isanet_zoo.weights.manifest import Weights, load_manifest


def pin(name: str, manifest: Path, *, progress: bool = True) -> Fetched:
    """Fetch a published file from its own sources and write its hashes into `manifest`.

    Mirrors and caches are not asked: what is pinned is what the publisher serves. The file passes
    the same checks as before any use.

    Args:
        name: the weights' name.
        manifest: the file to change; only this entry's sha256, size and state_digest change.
        progress: show a bar on stderr while bytes arrive.

    Raises:
        UnknownModelError: the manifest has no such weights.
        IntegrityError: another sha256 is written there already.
        DownloadError: no source gave an acceptable file.
    """
    load_manifest.cache_clear()
    records = load_manifest(manifest)
    if name not in records:
        raise UnknownModelError(f"{manifest} has no weights {name!r}; it has {', '.join(records)}")
    weights = records[name]
    with tempfile.TemporaryDirectory() as folder, progress_bar(weights.filename, progress) as show:
        fetched, digest = fetch(
            weights.filename,
            weights.sources,
            Path(folder),
            _examine(weights),
            by_hand=Path(folder) / weights.filename,
            progress=show,
        )
    if not fetched.sha256.startswith(known := weights.sha256 or weights.sha256_prefix or ""):
        raise IntegrityError(
            f"{fetched.source} has sha256 {fetched.sha256}, but {manifest} says {known}; find out "
            "why before you change it by hand"
        )
    document = json.loads(manifest.read_text("utf-8"))
    document["models"][weights.model]["weights"][weights.tag] |= {
        "sha256": fetched.sha256,
        "size": fetched.size,
        "state_digest": digest,
    }
    with temporary_file(manifest.parent, ".json") as temporary:
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
        replace(temporary, manifest)
    load_manifest.cache_clear()
    return fetched


def _examine(weights: Weights) -> Callable[[Path, Fetched], tuple[Fetched, str]]:
    def examine(path: Path, fetched: Fetched) -> tuple[Fetched, str]:
        checkpoint = checkpoints.load_checkpoint(
            path, weights.network, exact=True, called=weights.filename
        )
        return fetched, checkpoints.state_digest(checkpoint.state)

    return examine
