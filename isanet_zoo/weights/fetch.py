"""Get one file from the first source that has it: complete, or not at all."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import Message
from io import FileIO
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from isanet_zoo.cache import offline
from isanet_zoo.errors import (
    CheckpointError,
    DownloadError,
    IntegrityError,
    OfflineError,
    SourceError,
)
from isanet_zoo.files import HEAD, foreign_content, temporary_file
from isanet_zoo.version import __version__

logger = logging.getLogger(__name__)

T = TypeVar("T")
Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all where the source said

BLOCK = 1 << 18
PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP answers that may be different next time


@dataclass(frozen=True)
class Patience:
    """How long to try one source.

    Attributes:
        tries: attempts per source.
        backoff: seconds before the second attempt; doubled each time.
        timeout: seconds without a single byte before an attempt is given up.
        longest_wait: most seconds to wait between two attempts, whatever the server asks for.
    """

    tries: int = 5
    backoff: float = 1.0
    timeout: float = 30.0
    longest_wait: float = 60.0


class Fetched(NamedTuple):
    """A complete file: where it came from, and what it is."""

    source: str
    sha256: str
    size: int


def mirrored(filename: str) -> list[str]:
    """Return where `ISANET_ZOO_MIRROR` says that a file may be: URLs and paths, in order."""
    mirrors = [item.strip() for item in os.environ.get("ISANET_ZOO_MIRROR", "").split(",")]
    return [
        f"{mirror.rstrip('/')}/{urllib.parse.quote(filename)}"
        if _is_url(mirror)
        else str(Path(mirror).expanduser() / filename)
        for mirror in mirrors
        if mirror
    ]


def fetch(
    filename: str,
    sources: Sequence[str],
    folder: Path,
    accept: Callable[[Path, Fetched], T],
    *,
    by_hand: Path | None = None,
    page: str | None = None,
    progress: Progress | None = None,
    patience: Patience = Patience(),
) -> T:
    """Fetch a file from the first source whose copy is accepted.

    Args:
        filename: its name, for messages.
        sources: http(s) and file URLs and paths, in order of preference.
        folder: where the transfer may lie meanwhile, under a name of its own.
        accept: is given the complete file and what is known of it; its result is returned. It
            refuses a copy by raising `CheckpointError` or `IntegrityError`, and the next source is
            asked. The file is gone when it returns.
        by_hand: where a user may put the file, for messages; None where that would not help.
        page: where a person can get it, for messages.
        progress: told of every block.
        patience: how long to try each source.

    Raises:
        OfflineError: the user asked for no network, and no local source has the file.
        DownloadError: no source gave an acceptable file; `tried` has each with its error.
    """
    tried: list[tuple[str, Exception]] = []
    for source in sources:
        if offline() and _is_remote(source):
            tried.append((source, OfflineError("not asked: offline")))
            continue
        try:
            with temporary_file(folder, ".download") as path:
                fetched = _transfer(source, path, progress, patience)
                return accept(path, fetched)
        except (SourceError, CheckpointError, IntegrityError) as error:
            logger.warning("%s: %s", source, error)
            tried.append((source, error))
    raise _failure(filename, tried, by_hand, page)


def _failure(
    filename: str,
    tried: list[tuple[str, Exception]],
    by_hand: Path | None,
    page: str | None,
) -> DownloadError:
    """Return the error that says what was tried, and what a user can do."""
    report = "".join(f"\n  {source}: {error}" for source, error in tried) or "\n  there are none"
    kind = OfflineError if offline() else DownloadError
    place = f" ({page})" if page else ""
    if by_hand is None:
        return kind(f"{filename} could not be fetched. Sources tried:{report}", tried)
    if not offline():
        return kind(
            f"{filename} could not be fetched. Fetch it by hand{place} and put it at {by_hand}, or "
            f"name a folder or URL that has it in ISANET_ZOO_MIRROR. Sources tried:{report}",
            tried,
        )
    refused = any(
        not isinstance(error, OfflineError) and not isinstance(error.__cause__, FileNotFoundError)
        for _, error in tried
    )
    state = "was refused (see below)" if refused else "is not on this machine"
    return kind(
        f"{filename} {state}, and the network is switched off. Three ways out: "
        "unset ISANET_ZOO_OFFLINE and HF_HUB_OFFLINE; "
        f"or put the file{place} at {by_hand}; "
        f"or name a folder that holds it in ISANET_ZOO_MIRROR. Sources:{report}",
        tried,
    )


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://", "file://"))


def _is_remote(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _transfer(source: str, path: Path, progress: Progress | None, patience: Patience) -> Fetched:
    """Copy one source into `path`.

    Raises:
        SourceError: it does not give the file, for good or after all attempts.
        DownloadError: the disk does not take it.
    """
    with path.open("wb", buffering=0) as file:  # so that closing cannot fail
        received = _Received(file, progress)
        if _is_remote(source):
            _download(source, received, patience)
        else:
            _copy(source, received)
        received.check_head()
        return Fetched(source, received.digest.hexdigest(), received.done)


class _Received:
    """The part of a file that has arrived: written, hashed and counted."""

    def __init__(self, file: FileIO, progress: Progress | None) -> None:
        self.file = file
        self.progress = progress
        self.total: int | None = None  # bytes in all, where the source said
        self.validator: str | None = None  # what tells a server's version of the file from another
        self.restart()

    def restart(self) -> None:
        """Forget what has arrived."""
        self.file.seek(0)
        self.file.truncate()
        self.digest = hashlib.sha256()
        self.head = b""
        self.done = 0

    def add(self, block: bytes) -> None:
        """Take the next bytes."""
        try:
            rest = memoryview(block)
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            raise DownloadError(f"{self.file.name} cannot be written: {error}") from error
        self.digest.update(block)
        if len(self.head) < HEAD:
            self.head += block[: HEAD - len(self.head)]
            if len(self.head) == HEAD:
                self.check_head()
        self.done += len(block)
        if self.progress:
            self.progress(self.done, self.total)

    def check_head(self) -> None:
        """Stop at once when a web page comes in the file's place."""
        if kind := foreign_content(self.head):
            raise SourceError(f"gave {kind}, not a checkpoint", again=False)


def _copy(source: str, received: _Received) -> None:
    path = source
    if _is_url(source):
        path = urllib.request.url2pathname(urllib.parse.urlsplit(source).path)
    try:
        with Path(path).open("rb") as file:
            received.total = os.fstat(file.fileno()).st_size
            while block := file.read(BLOCK):
                received.add(block)
    except (SourceError, DownloadError):
        raise
    except OSError as error:
        raise SourceError(error.strerror or str(error), again=False) from error


def _download(url: str, received: _Received, patience: Patience) -> None:
    """Fetch a URL, going on where the last attempt broke off if the server can."""
    for attempt in range(1, patience.tries + 1):
        try:
            _attempt(url, received, patience.timeout)
            return
        except SourceError as error:
            if not error.again or attempt == patience.tries:
                raise
            pause = max(error.wait, patience.backoff * 2 ** (attempt - 1))
            logger.info("%s: %s; trying again", url, error)
            time.sleep(min(pause, patience.longest_wait))


def _attempt(url: str, received: _Received, timeout: float) -> None:
    """Ask a server for (the rest of) a file.

    Raises:
        SourceError: it did not arrive whole.
        DownloadError: the disk does not take it.
    """
    # Always from the first URL: the signed one that a release page redirects to expires.
    headers = {"Accept-Encoding": "identity", "User-Agent": f"isanet-zoo/{__version__}"}
    if received.done and received.validator:
        headers["Range"] = f"bytes={received.done}-"
        headers["If-Range"] = received.validator  # the whole file if it has changed
    try:
        request = urllib.request.Request(url, headers=headers)
        opener = urllib.request.build_opener(_SecureRedirects)
        with opener.open(request, timeout=timeout) as response:
            _begin(response, received)
            while block := response.read1(BLOCK):
                received.add(block)
    except (SourceError, DownloadError):
        raise
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            received.restart()
            raise SourceError("no longer has the part that is missing") from error
        raise SourceError(
            f"answered {error.code} {error.reason}",
            again=error.code in PASSING,
            wait=_seconds(error.headers.get("Retry-After")),
        ) from error
    except (ValueError, http.client.InvalidURL) as error:
        raise SourceError(f"is no URL: {error}", again=False) from error
    except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
        reason = getattr(error, "reason", None) or error
        raise SourceError(f"broke off after {received.done} bytes: {reason}") from error
    if received.total is not None and received.done != received.total:
        raise SourceError(f"broke off after {received.done} of {received.total} bytes")


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses to leave HTTPS at any hop: whoever answers in plain HTTP would choose the file."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the request to go on with."""
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            fp.close()
            raise SourceError(f"redirects to the unencrypted {newurl}", again=False)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _begin(response: http.client.HTTPResponse, received: _Received) -> None:
    """Read an answer's headers: does it go on, or start afresh, and how long will the file be?"""
    headers = response.headers
    if (encoding := headers.get("Content-Encoding", "identity")) != "identity":
        raise SourceError(f"sends the file encoded as {encoding}", again=False)
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        if (
            span is None
            or int(span[1]) != received.done
            or received.total not in (None, int(span[2]))
            or received.validator != _validator(headers)  # not every server knows If-Range
        ):
            received.restart()
            raise SourceError("sent another part than it was asked for")
        received.total = int(span[2])
        return
    received.restart()
    length = headers.get("Content-Length", "")
    received.total = int(length) if length.isdecimal() else None
    received.validator = _validator(headers)


def _validator(headers: Message) -> str | None:
    """Return what tells a server's version of a file from another."""
    etag = headers.get("ETag", "")
    # A weak ETag does not promise equal bytes.
    return etag if etag.startswith('"') else headers.get("Last-Modified")


def _seconds(retry_after: str | None) -> float:
    """Return the seconds of a Retry-After header; 0 for none, or for a date."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else 0.0
