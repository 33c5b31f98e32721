"""HTTP requests through huggingface_hub's session: bounded in time, with errors that explain."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from isanet_zoo.errors import SourceError, ZooError, connection_error, printable
from isanet_zoo.version import __version__

REDIRECTS = 10  # most redirects of one request
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # statuses that may be different next time


@dataclass(frozen=True)
class Patience:
    """How long to try one source.

    Attributes:
        tries: attempts per source.
        backoff: seconds before the second attempt; doubled each time.
        longest_wait: most seconds between two attempts, also if the server requests more.
        timeout: seconds without a single byte after which an attempt ends.
        window: seconds over which the speed is measured.
        slowest: bytes per second; an attempt that is slower over a window ends.
    """

    tries: int = 5
    backoff: float = 1.0
    longest_wait: float = 60.0
    timeout: float = 30.0
    window: float = 60.0
    slowest: int = 1024


def is_remote(source: str) -> bool:
    """Return True for the URL of a server, False for a path or ``file:`` URL."""
    return scheme(source) in ("http", "https")


def scheme(source: str) -> str:
    """Return the part before ``://`` in lower case."""
    return source.partition("://")[0].lower()


def without_password(source: str) -> str:
    """Return a source without user name and password, for messages and records."""
    return re.sub(r"(?<=://)[^/]*@", "", source) if is_remote(source) else source


@contextlib.contextmanager
def open_url(url: str, headers: Mapping[str, str], patience: Patience) -> Iterator[Any]:
    """Request a URL, following redirects, and yield httpx's response, whose body is not read yet.

    Raises:
        SourceError: the server cannot be reached, breaks off or is too slow; also from the block.
    """
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    headers = {
        "Accept-Encoding": "identity",
        "Connection": "close",  # `_SpeedLimit` sees new connections only
        "User-Agent": f"isanet-zoo/{__version__}",
        **headers,
    }
    with _SpeedLimit(patience) as limit:
        try:
            for _ in range(REDIRECTS + 1):
                with contextlib.closing(_send(url, headers, limit)) as response:
                    if not response.has_redirect_location:
                        limit.response = response
                        yield response
                        return
                    url = _redirect(url, response.headers["Location"])
        except ZooError:
            raise
        except (HTTPError, OSError) as error:
            if limit.exceeded:
                rate = f"{patience.slowest} bytes per second over {patience.window:g} s"
                raise SourceError(f"sent fewer than {rate}") from error
            broken = SourceError(f"the connection broke off ({printable(error)})")
            raise connection_error(error) or broken from error
    raise SourceError(f"redirects more than {REDIRECTS} times", tries=1)


class _SpeedLimit:
    """Shuts down connections that are slower than `Patience` allows, also amid the headers."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.response: Any = None
        self.exceeded = False
        self.sockets: list[socket.socket] = []
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _SpeedLimit:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()
        for connection in self.sockets:
            connection.close()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Collect the sockets of new connections; httpcore calls this for each event."""
        if event == "connection.connect_tcp.complete":
            self.sockets.append(info["return_value"].get_extra_info("socket").dup())

    def _watch(self) -> None:
        before = 0
        while not self.stopped.wait(self.patience.window):
            arrived = self.response.num_bytes_downloaded if self.response else 0
            if arrived - before < self.patience.slowest * self.patience.window:
                self.exceeded = True
                for connection in self.sockets:
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
            before = arrived


def _send(url: str, headers: Mapping[str, str], limit: _SpeedLimit) -> Any:
    """Return the response of httpx to one request.

    Raises:
        SourceError: the request cannot be made at all.
    """
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    try:
        session: Any = get_session()
        parts = urllib.parse.urlsplit(url)
        login = [urllib.parse.unquote(part or "") for part in (parts.username, parts.password)]
        request = session.build_request(
            "GET",
            without_password(url),  # httpx logs it
            headers=headers,
            timeout=limit.patience.timeout,
            extensions={"trace": limit.trace},
        )
        if not request.url.host:
            raise ValueError("the URL names no host")
        return session.send(
            request,
            auth=tuple(login) if parts.username else None,
            stream=True,
            follow_redirects=False,
        )
    except HTTPError:
        raise
    except Exception as error:  # such as httpx.InvalidURL, which huggingface_hub does not export
        raise SourceError(
            f"cannot be requested ({printable(error)}); check the URL, HTTPS_PROXY and HTTP_PROXY, "
            "SSL_CERT_FILE and SSL_CERT_DIR",
            tries=1,
        ) from error


def _redirect(url: str, location: str) -> str:
    """Return the URL that a server redirects to.

    Raises:
        SourceError: it is not http(s), or http after https, which anyone on the network could
            forge.
    """
    target = urllib.parse.urljoin(url, location)
    if not is_remote(target):
        raise SourceError(f"redirects to {printable(target)}, which is not http(s)", tries=1)
    if scheme(url) == "https" and scheme(target) != "https":
        raise SourceError(f"redirects to the unencrypted {printable(target)}", tries=1)
    return target


def check_success(response: Any) -> None:
    """Raise SourceError for a response without a file, or with a compressed one."""
    status, headers = response.status_code, response.headers
    if not 200 <= status < 300:
        raise SourceError(
            f"answered {status} {printable(response.reason_phrase, 60)}",
            tries=None if status in TRANSIENT else 1,
            wait=read_number(headers.get("Retry-After")) or 0,
        )
    if (encoding := headers.get("Content-Encoding", "identity")) != "identity":
        raise SourceError(f"sends the file encoded as {printable(encoding, 60)}", tries=1)


def find_validator(headers: Mapping[str, str]) -> str | None:
    """Return what identifies the bytes of a server's version of a file."""
    etag = headers.get("ETag", "")  # a weak ETag does not promise equal bytes
    validator = etag if etag.startswith('"') else headers.get("Last-Modified", "")
    return validator if validator.isascii() and 0 < len(validator) <= 200 else None


def read_number(text: str | None) -> int | None:
    """Return the number in a header; None if there is none, such as for a date."""
    return int(text) if text and re.fullmatch("[0-9]{1,18}", text) else None
