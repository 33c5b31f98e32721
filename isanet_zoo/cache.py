"""Cache of converted weights, and of graphs made from networks, on this machine.

::

    <cache>/<name>/model.safetensors    the converted weights
    <cache>/<name>/model.json           the side file: source, sizes and hashes
    <cache>/<name>/<published name>     where a user may put a file downloaded by hand
    <cache>/graphs/<key>/model.onnx     an ONNX graph, with a side file as above

The side file is written last: an entry without one counts as damaged. It is also a pin: a later
download under this name must hold the same tensors.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from isanet_zoo import records
from isanet_zoo.errors import DownloadError, InputError, ManifestError, ZooError, printable
from isanet_zoo.files import (
    atomic_write,
    expand_user,
    hash_file,
    open_regular,
    remove_leftovers,
    replace as replace_file,
)
from isanet_zoo.version import __version__

logger = logging.getLogger(__name__)

SIDE_LIMIT = 1 << 16  # bytes of the largest side file that is read
QUIET_WAIT = 5.0  # seconds to wait for another process before a warning


@dataclass(frozen=True)
class SideFile:
    """Facts about one cached file."""

    name: str  # of the weights in the manifest
    source: str  # where the published file came from
    source_sha256: str  # of the published file
    source_size: int  # of the published file, in bytes
    sha256: str  # of `model.safetensors`
    size: int  # of `model.safetensors`, in bytes
    state_digest: str  # of the tensors alone, see `tensors.state_digest`

    def compare(self, size: int, sha256: str) -> str | None:
        """Return how a model file differs from the one that was stored, or None."""
        if size != self.size:
            return f"it has {size} bytes, {self.size} were stored"
        if sha256 != self.sha256:
            return f"its sha256 is {sha256}, {self.sha256} was stored"
        return None


@dataclass(frozen=True)
class GraphFile:
    """Facts about one cached ONNX graph."""

    model: str  # the zoo's model that the network started from; empty if none
    dtype: str  # of the arithmetic
    versions: str  # that made it, see `graph_versions`
    sha256: str  # of `model.onnx`
    size: int  # of `model.onnx`, in bytes


Side = TypeVar("Side", SideFile, GraphFile)


def cache_root() -> Path:
    """Return the cache folder: `ISANET_ZOO_CACHE`, else huggingface_hub's folder for assets.

    Raises:
        InputError: `ISANET_ZOO_CACHE` names the home folder of an unknown user.
    """
    if chosen := os.environ.get("ISANET_ZOO_CACHE"):
        return expand_user(chosen)
    from huggingface_hub.constants import HF_ASSETS_CACHE

    return expand_user(HF_ASSETS_CACHE) / "isanet_zoo" / "weights"


def offline() -> bool:
    """Return True if `ISANET_ZOO_OFFLINE` or `HF_HUB_OFFLINE` is set at the time of the call."""
    return is_set("ISANET_ZOO_OFFLINE") or is_set("HF_HUB_OFFLINE")


def is_set(name: str) -> bool:
    """Return True if an environment variable is ``1``, ``true``, ``yes`` or ``on``."""
    return os.environ.get(name, "").strip().lower() in {"1", "true", "yes", "on"}


@dataclass(frozen=True)
class _Entry(Generic[Side]):
    """A folder of the cache with one file and its side file."""

    name: str
    folder: Path

    file_name: ClassVar[str]
    side_type: ClassVar[Any]

    @property
    def model(self) -> Path:
        """The file."""
        return self.folder / self.file_name

    @property
    def side(self) -> Path:
        """The side file."""
        return self.folder / "model.json"

    def record(self) -> Side | None:
        """Return the side file, or None if it is missing or damaged.

        Raises:
            OSError: it exists and cannot be read.
        """
        try:
            with open_regular(self.side) as file:
                content = records.parse(file.read(SIDE_LIMIT), str(self.side))
            found: Side = records.read(self.side_type, content, str(self.side))
            return found
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ManifestError as error:
            logger.warning("%s", error)
            return None

    def place(self, model: Path, record: Side) -> None:
        """Move a complete file into the entry, then write its side file.

        If the process is killed in between, the entry counts as damaged.
        """
        replace_file(model, self.model)
        self.write_side(record)

    def write_side(self, record: Side) -> None:
        """Write the side file of a model file that is in place."""
        with atomic_write(self.side) as temporary:
            temporary.write_text(json.dumps(records.write(record), indent=2) + "\n", "utf-8")

    def set_aside(self) -> Path:
        """Rename a damaged model file; return its new path. The side file stays, as a pin."""
        return self.model.replace(self.model.with_suffix(".damaged"))

    def remove(self) -> list[Path]:
        """Delete the files that isanet_zoo wrote, and the folder if it is empty then.

        Returns:
            Other files of the folder, which are kept.
        """
        paths = [self.folder / ".lock"]
        if self.side.exists():
            paths += [self.model, self.side, self.model.with_suffix(".damaged")]
        for path in paths:
            path.unlink(missing_ok=True)
        remove_leftovers(self.folder)
        kept = sorted(self.folder.iterdir())
        if not kept:
            self.folder.rmdir()
        return kept

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Exclude other processes from filling the entry.

        The lock only avoids duplicate downloads; entries are written atomically.
        """
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / ".lock"
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(WeakFileLock(path, timeout=QUIET_WAIT))
            except TimeoutError:
                logger.warning("waiting for another process, which holds the lock %s", path)
                stack.enter_context(WeakFileLock(path))
            remove_leftovers(self.folder)
            yield


@dataclass(frozen=True)
class CacheEntry(_Entry[SideFile]):
    """The cached file of one published weight."""

    file_name = "model.safetensors"
    side_type = SideFile

    @classmethod
    def of(cls, name: str) -> CacheEntry:
        """Return the entry of the weights `name`, whether or not it is filled.

        Raises:
            InputError: the name could lead out of the cache folder.
        """
        if not re.fullmatch(r"\w[\w.-]{0,199}", name, re.ASCII):
            raise InputError(f"'{printable(name)}' is not a name of weights; see `isanet-zoo list`")
        return cls(name, cache_root() / name)


@dataclass(frozen=True)
class GraphEntry(_Entry[GraphFile]):
    """A cached ONNX graph; its name is a hash of everything that it was made from."""

    file_name = "model.onnx"
    side_type = GraphFile

    @classmethod
    def of(cls, key: str) -> GraphEntry:
        """Return the entry of a graph, whether or not it is filled."""
        return cls(key, cache_root() / "graphs" / key)

    def is_intact(self) -> bool:
        """Return True if the graph is there, with the bytes that were stored."""
        record = self.record()
        try:
            return record is not None and hash_file(self.model) == record.sha256
        except FileNotFoundError:
            return False

    def remove(self) -> list[Path]:
        """Delete the graph, also one without a side file, and its folder."""
        self.model.unlink(missing_ok=True)
        return super().remove()


def graph_versions() -> str:
    """Return the versions of everything that takes part in making a graph and running it."""
    found = [f"isanet_zoo {__version__}"]
    for package in ("torch", "timm", "onnx", "onnxscript", "onnxruntime"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # such as onnxruntime-openvino
            try:
                version = importlib.import_module(package).__version__
            except ImportError:
                version = "missing"
        found.append(f"{package} {version}")
    return ", ".join(found)


@contextlib.contextmanager
def usable_cache() -> Iterator[None]:
    """Convert `OSError` to `DownloadError` with a hint about ISANET_ZOO_CACHE."""
    try:
        yield
    except ZooError:
        raise
    except OSError as error:
        raise DownloadError(
            f"the cache folder {cache_root()} cannot be used ({error}); check its owner, "
            "permissions and free space, or name another folder in ISANET_ZOO_CACHE"
        ) from error


def entries() -> list[CacheEntry]:
    """Return every entry of the cache that has a model file, by name."""
    models = sorted(cache_root().glob("*/model.safetensors"))
    return [CacheEntry(model.parent.name, model.parent) for model in models]


def graph_entries() -> list[GraphEntry]:
    """Return every ONNX graph of the cache, by key."""
    graphs = sorted(cache_root().glob(f"graphs/*/{GraphEntry.file_name}"))
    return [GraphEntry(graph.parent.name, graph.parent) for graph in graphs]
