"""Where converted weights lie on this machine, and whether they are still what was put there.

::

    <cache>/<name>/model.safetensors    the converted weights
    <cache>/<name>/model.json           the side file: what was downloaded, and the hashes of both
    <cache>/<name>/<published name>     where a user may put a file fetched by hand

The side file is written last, so that an entry without one is not an entry. Once written, it is
also a pin: what is fetched later under this name has to hold the same tensors.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from isanet_zoo import records
from isanet_zoo.errors import ManifestError
from isanet_zoo.files import hash_file, remove_leftovers, replace, temporary_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SideFile:
    """What the cache knows of one entry.

    Attributes:
        name: the weights' name in the manifest.
        source: where the published file came from.
        source_sha256: sha256 of the published file, as it came.
        source_size: its size in bytes.
        sha256: sha256 of `model.safetensors`.
        size: its size in bytes.
        state_digest: hash of the tensors alone, see `checkpoints.state_digest`.
    """

    name: str
    source: str
    source_sha256: str
    source_size: int
    sha256: str
    size: int
    state_digest: str


def cache_root() -> Path:
    """Return the cache folder: `ISANET_ZOO_CACHE`, or huggingface_hub's place for assets."""
    if chosen := os.environ.get("ISANET_ZOO_CACHE"):
        return Path(chosen).expanduser()
    from huggingface_hub.constants import HF_ASSETS_CACHE

    # As `cached_assets_path("isanet_zoo", "weights", name)`, which would also create the folder.
    return Path(HF_ASSETS_CACHE).expanduser() / "isanet_zoo" / "weights"


def offline() -> bool:
    """Say whether the user asked for no network, now: `ISANET_ZOO_OFFLINE` or `HF_HUB_OFFLINE`."""
    variables = (os.environ.get(name, "") for name in ("ISANET_ZOO_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value.strip().lower() in {"1", "true", "yes", "on"} for value in variables)


@dataclass(frozen=True)
class CacheEntry:
    """The cached file of one published weight."""

    name: str
    folder: Path

    @classmethod
    def of(cls, name: str) -> CacheEntry:
        """Return the entry of the weights called `name`, whether or not it is filled."""
        return cls(name, cache_root() / name)

    @property
    def model(self) -> Path:
        """The converted weights."""
        return self.folder / "model.safetensors"

    @property
    def side(self) -> Path:
        """The side file."""
        return self.folder / "model.json"

    def record(self) -> SideFile | None:
        """Return the side file, or None where there is none that can be read."""
        try:
            return records.read(SideFile, json.loads(self.side.read_text("utf-8")), str(self.side))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, ManifestError) as error:
            logger.warning("%s cannot be used: %s", self.side, error)
            return None

    def damage(self) -> str | None:
        """Read the cached file whole; return what is wrong with it, or None.

        Raises:
            FileNotFoundError: nothing is cached.
        """
        size = self.model.stat().st_size
        if (record := self.record()) is None:
            return "its side file is missing or damaged"
        if size != record.size:
            return f"it has {size} bytes, {record.size} were put there"
        if (sha256 := hash_file(self.model)) != record.sha256:
            return f"its sha256 is {sha256}, {record.sha256} was put there"
        return None

    def place(self, write: Callable[[Path], None], record: Callable[[Path], SideFile]) -> None:
        """Fill the entry: `write` makes the model file, `record` describes it.

        Both happen under another name first, and the side file appears last: whenever a process is
        stopped, the side file vouches for the model, or the model counts as damaged.
        """
        with temporary_file(self.folder, ".safetensors") as temporary:
            write(temporary)
            side = json.dumps(records.write(record(temporary)), indent=2) + "\n"
            replace(temporary, self.model)
        with temporary_file(self.folder, ".json") as temporary:
            temporary.write_text(side, "utf-8")
            replace(temporary, self.side)

    def set_aside(self) -> Path:
        """Move a damaged model file out of the way; return where it went.

        The side file stays: what is fetched next has to hold the same tensors.
        """
        return self.model.replace(self.model.with_suffix(".damaged"))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Let one process at a time fill the entry.

        Only politeness: entries are placed atomically, so a lock that does not work (some network
        file systems) costs a second download. What a killed process left lying is cleared away.
        """
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        self.folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(self.folder / ".lock"):
            remove_leftovers(self.folder)
            yield


def entries() -> list[CacheEntry]:
    """Return every entry of the cache that holds a model file, by name."""
    models = sorted(cache_root().glob("*/model.safetensors"))
    return [CacheEntry(model.parent.name, model.parent) for model in models]
