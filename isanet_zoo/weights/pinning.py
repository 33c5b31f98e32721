"""Hashes of published files, written into the manifest; for maintainers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from isanet_zoo.errors import CheckpointError, IntegrityError, OfflineError, SourceError
from isanet_zoo.files import atomic_write
from isanet_zoo.manifest.lookup import find_weights, load_manifest
from isanet_zoo.manifest.weights import Weights
from isanet_zoo.weights.fetch import Fetched, transfer
from isanet_zoo.weights.integrity import read_published
from isanet_zoo.weights.sources import check_online, largest_size, not_fetched, progress_bar


def pin(name: str, manifest: Path, *, progress: bool = True) -> Fetched:
    """Fetch a published file from its own sources and write its hashes into `manifest`.

    Mirrors and caches are skipped: what is pinned is what the publisher serves. The file passes the
    same checks as before any use.

    Args:
        name: the weights' name.
        manifest: the file to change; only this entry's sha256, size and state_digest change.
        progress: show a bar on stderr while bytes arrive.

    Raises:
        UnknownModelError: the manifest has no such weights.
        IntegrityError: the manifest has another hash or size already.
        DownloadError: no source returned an acceptable file.
    """
    load_manifest.cache_clear()
    weights = find_weights(name, load_manifest(manifest))
    tried: list[tuple[str, Exception]] = []
    for source in [str(weights.packaged)] if weights.packaged else weights.sources:
        try:
            check_online(source)
            with (
                tempfile.TemporaryDirectory() as folder,
                progress_bar(weights.filename, progress) as show,
            ):
                part = Path(folder) / "download"
                fetched = transfer(source, part, limit=largest_size(weights), show=show)
                _, digest = read_published(weights, part, fetched)
            facts = {"sha256": fetched.sha256, "size": fetched.size, "state_digest": digest}
            write_facts(manifest, {weights: facts})
            return fetched
        except (SourceError, OfflineError, CheckpointError) as error:
            tried.append((source, error))
        except IntegrityError as error:
            raise IntegrityError(
                f"{source}: {error} ({manifest}); find out why before you change it by hand"
            ) from error
    raise not_fetched(weights, tried)


def write_facts(manifest: Path, facts: Mapping[Weights, Mapping[str, object]]) -> None:
    """Write fields of some weights into a manifest, and nothing else."""
    document = json.loads(manifest.read_text("utf-8"))
    for weights, values in facts.items():
        document["models"][weights.model]["weights"][weights.tag] |= values
    with atomic_write(manifest) as temporary:
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
    load_manifest.cache_clear()
