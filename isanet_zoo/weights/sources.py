"""Sources of a published file: where to look, and the error if no source has it."""

from __future__ import annotations

import contextlib
import os
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from isanet_zoo.cache import offline
from isanet_zoo.errors import DownloadError, OfflineError, SourceError, printable
from isanet_zoo.files import expand_user
from isanet_zoo.manifest.weights import Weights
from isanet_zoo.weights.fetch import Progress
from isanet_zoo.weights.http import is_remote

_unreachable: set[str] = set()  # hosts that failed in this process

LARGEST_TEACHER = 1 << 28  # bytes; files from distillation may include the teacher
OVERHEAD = 4  # a checkpoint has at most so many float32 numbers per parameter (optimiser states)


def find_sources(weights: Weights, by_hand: Path) -> list[str]:
    """Return URLs and paths that may have a published file, in order of preference.

    Servers that failed before in this process come last.

    Args:
        weights: the manifest's record.
        by_hand: where a user may have put the file.

    Raises:
        InputError: `ISANET_ZOO_MIRROR` names the home folder of an unknown user.
    """
    local = [str(by_hand)] if by_hand.is_file() else []
    hub = [weights.hub.url] if weights.hub else []
    found = [*local, *mirrors(weights.filename), *hub, *weights.sources]
    return sorted(found, key=lambda source: _host(source) in _unreachable)


def note_failure(source: str, error: Exception) -> None:
    """Remember a server that could not be reached or broke off, for `find_sources`."""
    if is_remote(source) and isinstance(error, SourceError) and error.tries != 1:
        _unreachable.add(_host(source))


def _host(source: str) -> str:
    return source.split("/")[2].lower() if is_remote(source) else ""


def mirrors(filename: str) -> list[str]:
    """Return the URLs and paths of a file in the folders that `ISANET_ZOO_MIRROR` lists."""
    found = []
    for item in os.environ.get("ISANET_ZOO_MIRROR", "").split(","):
        if "://" in (mirror := item.strip()):
            found.append(f"{mirror.rstrip('/')}/{urllib.parse.quote(filename)}")
        elif mirror:
            found.append(str(expand_user(mirror) / filename))
    return found


def largest_size(weights: Weights) -> int:
    """Return the most bytes that a published file, or its converted copy, can have."""
    if weights.size is None:
        teacher = LARGEST_TEACHER if weights.teacher else 0
        return OVERHEAD * 4 * weights.parameters.with_aux + teacher
    return max(weights.size, weights.hub.size if weights.hub else 0)


def check_online(source: str) -> None:
    """Raise OfflineError for a server in offline mode."""
    if offline() and is_remote(source):
        raise OfflineError("skipped (offline mode)")


def not_fetched(
    weights: Weights, tried: Sequence[tuple[str, Exception]], by_hand: Path | None = None
) -> DownloadError:
    """Return the error that lists each source with its error, and the ways out.

    Args:
        weights: the manifest's record.
        tried: sources and their errors.
        by_hand: where a user may put the file; None if that would not help.
    """
    report = "".join(f"\n  {source}: {printable(error, 1000)}" for source, error in tried)
    report = f"Sources tried:{report or ' none'}"
    kind = OfflineError if offline() else DownloadError
    if by_hand is None:
        return kind(f"{weights.filename} could not be downloaded. {report}", tried)
    pages = [*weights.sources[:1], *filter(None, [weights.links.manual_mirror])]
    page = " or ".join(pages) or weights.links.repository
    if not offline():
        return kind(
            f"{weights.filename} could not be downloaded. Download it by hand from {page}, and "
            f"put it at {by_hand}; or name a folder or URL that has it in ISANET_ZOO_MIRROR. "
            f"{report}",
            tried,
        )
    missing = all(
        isinstance(error, OfflineError) or isinstance(error.__cause__, FileNotFoundError)
        for _, error in tried
    )
    return kind(
        f"{weights.filename} {'is not on this machine' if missing else 'was refused (see below)'}, "
        "and offline mode is on. Unset ISANET_ZOO_OFFLINE and HF_HUB_OFFLINE; or put the file "
        f"({page}) at {by_hand}; or name a folder that has it in ISANET_ZOO_MIRROR. {report}",
        tried,
    )


@contextlib.contextmanager
def progress_bar(title: str, wanted: bool) -> Iterator[Progress | None]:
    """Yield a function that draws a transfer's progress on stderr, from the first byte on."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    bars: list[Any] = []  # none before the first byte

    def show(done: int, total: int | None) -> None:
        if not bars:
            bar = tqdm(desc=title, total=total, unit="B", unit_scale=True)  # type: ignore[no-untyped-call]
            bars.append(bar)
        bars[0].total = total
        bars[0].update(done - bars[0].n)

    try:
        yield show if wanted else None
    finally:
        for bar in bars:
            bar.close()
