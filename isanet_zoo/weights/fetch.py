"""Transfer of one file from a URL or path: complete, bounded and hashed."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from isanet_zoo.errors import DownloadError, IntegrityError, SourceError, ZooError
from isanet_zoo.files import HEAD, foreign_content, open_regular
from isanet_zoo.weights.http import (
    Patience,
    check_success,
    find_validator,
    is_remote,
    open_url,
    read_number,
    scheme,
    without_password,
)

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all if the source states it

BLOCK = 1 << 18  # bytes that are read from a local file at once


class Fetched(NamedTuple):
    """A complete file: its source, sha256 and size in bytes."""

    source: str
    sha256: str
    size: int


def transfer(
    source: str,
    path: Path,
    *,
    limit: int | None = None,
    show: Progress | None = None,
    patience: Patience = Patience(),  # noqa: B008 - frozen
    kind: str = "a checkpoint",
) -> Fetched:
    """Copy a source to a file.

    Args:
        source: an http(s) or ``file:`` URL, or a path.
        path: the file to write.
        limit: most bytes to accept.
        show: called after each block.
        patience: how long to try a server.
        kind: what is expected, for the error about a web page.

    Raises:
        SourceError: the source does not return the file, after all attempts.
        IntegrityError: the source has more than `limit` bytes.
        DownloadError: `path` cannot be written.
    """
    with path.open("wb", buffering=0) as file:  # unbuffered, so that closing cannot fail
        received = _Received(file, limit, show, kind)
        if is_remote(source):
            _download(source, received, patience)
        else:
            _copy(source, received)
        received.check_head()
        return Fetched(without_password(source), received.digest.hexdigest(), received.done)


class _Received:
    """The part of a file that has arrived: written, hashed and counted."""

    def __init__(self, file: FileIO, limit: int | None, show: Progress | None, kind: str) -> None:
        self.file, self.limit, self.show, self.kind = file, limit, show, kind
        self.validator: str | None = None  # what identifies the server's version of the file
        self.restart()

    def restart(self) -> None:
        """Discard what has arrived."""
        self.file.seek(0)
        self.file.truncate()
        self.digest = hashlib.sha256()
        self.head = b""
        self.done = 0
        self.total: int | None = None  # bytes in all, if the source states it

    def add(self, block: bytes) -> None:
        """Write the next bytes."""
        try:
            rest = memoryview(block)
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            raise DownloadError(f"{self.file.name} cannot be written: {error}") from error
        self.digest.update(block)
        self.done += len(block)
        self.check_size(self.done)
        if len(self.head) < HEAD:
            self.head += block[: HEAD - len(self.head)]
            if len(self.head) == HEAD:
                self.check_head()
        if self.show:
            self.show(self.done, self.total)

    def check_size(self, size: int) -> None:
        """Raise IntegrityError for more bytes than the limit."""
        if self.limit is not None and size > self.limit:
            raise IntegrityError(f"has {size} bytes or more; at most {self.limit} are expected")

    def check_head(self) -> None:
        """Raise SourceError for a web page or similar."""
        if found := foreign_content(self.head):
            raise SourceError(f"returned {found} instead of {self.kind}", tries=1)


def _copy(source: str, received: _Received) -> None:
    """Copy a local file."""
    try:
        path = source
        if scheme(source) == "file":
            _, host, path, *_ = urllib.parse.urlsplit(source)
            host = host.removeprefix("localhost")
            path = urllib.request.url2pathname(f"//{host}{path}" if host else path)
        elif "://" in source:
            raise SourceError("is neither an http(s) or file URL nor a path", tries=1)
        with open_regular(path) as file:
            received.total = os.fstat(file.fileno()).st_size
            received.check_size(received.total)
            while block := file.read(BLOCK):
                received.add(block)
    except ZooError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SourceError(reason, tries=1) from error


def _download(url: str, received: _Received, patience: Patience) -> None:
    """Fetch a URL; each further attempt resumes where the last one ended, if the server can."""
    for attempt in itertools.count(1):
        try:
            _attempt(url, received, patience)
            return
        except SourceError as error:
            if attempt >= min(patience.tries, error.tries or patience.tries):
                raise
            pause = max(error.wait, patience.backoff * 2 ** (attempt - 1))
            pause = min(pause, patience.longest_wait)
            logger.warning("%s: %s; next attempt in %.0f s", without_password(url), error, pause)
            time.sleep(pause)


def _attempt(url: str, received: _Received, patience: Patience) -> None:
    """Request a file, or the rest of it; raise SourceError unless it arrives complete."""
    # Always the original URL: the signed ones that release pages redirect to expire.
    headers = {}
    if received.done and received.validator:
        headers["Range"] = f"bytes={received.done}-"
        headers["If-Range"] = received.validator  # the whole file if it has changed
    with open_url(url, headers, patience) as response:
        _begin(response, received)
        for block in response.iter_raw():
            received.add(block)
    if received.total is not None and received.done != received.total:
        raise SourceError(f"broke off after {received.done} of {received.total} bytes")


def _begin(response: Any, received: _Received) -> None:
    """Check the status and headers of a response, and whether it resumes or starts again."""
    headers = response.headers
    if response.status_code == 416:  # range not satisfiable
        received.restart()
        raise SourceError("no longer has the missing part")
    check_success(response)
    if response.status_code != 206:  # the whole file
        received.restart()
        received.total = read_number(headers.get("Content-Length"))
        received.validator = find_validator(headers)
    else:
        span = re.fullmatch(
            r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", headers.get("Content-Range", "")
        )
        if (
            span is None
            or int(span[1]) != received.done
            or received.total not in (None, int(span[2]))
            or received.validator != find_validator(headers)  # some servers ignore If-Range
        ):
            received.restart()
            raise SourceError("sent another part than the requested one")
        received.total = int(span[2])
    received.check_size(received.total or 0)
