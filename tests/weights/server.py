"""A local file server that answers each request as scripted, faults included."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

HTML = b"<!DOCTYPE html>\n<html><body>Too many people want this file.</body></html>\n" * 20
LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 267412345\n"
)
LONGEST_STALL = 20.0
CERTIFICATE = Path(__file__).parents[1] / "data" / "localhost.pem"

Validator = Literal["strong", "weak", "date", "none"]


@dataclass(frozen=True)
class Answer:
    """The answer to one request; by default that of a correct server.

    Attributes:
        status: answer with this status, without the file.
        headers: send these instead of the true ones.
        body: serve this instead of the file.
        publish: replace the file by another version before the answer.
        cut: close the connection after so many bytes of the body.
        shrink: with `cut`, send a Content-Length that fits what is sent.
        stall: with `cut`, stop sending and leave the connection open.
        drip: seconds before each byte.
        drip_headers: with `drip`, send the headers so.
        endless: repeat the body for ever, without a Content-Length.
        ranges: support Range.
        start: answer any Range with the part from here.
        conditional: support If-Range.
        chunked: send no length.
        zipped: compress the body.
        before: called first; it may wait.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    publish: bytes | None = None
    cut: int | None = None
    shrink: bool = False
    stall: bool = False
    drip: float = 0.0
    drip_headers: bool = False
    endless: bool = False
    ranges: bool = True
    start: int | None = None
    conditional: bool = True
    chunked: bool = False
    zipped: bool = False
    before: Callable[[], object] = lambda: None


GOOD = Answer()


@dataclass(frozen=True)
class Seen:
    """A request that arrived."""

    path: str
    range: str | None
    if_range: str | None
    encoding: str | None
    authorization: str | None


@dataclass
class Source:
    """A file on the server, its answers, and the requests it received."""

    url: str
    content: bytes
    validator: Validator
    answers: Iterator[Answer]
    version: int = 1
    seen: list[Seen] = field(default_factory=list)

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    @property
    def moved_url(self) -> str:
        """A URL that redirects to the file."""
        return self.url.replace(self.path, f"/moved{self.path}")

    @property
    def mirror(self) -> str:
        """The folder that the file is in."""
        return self.url.rpartition("/")[0]

    def identity(self) -> dict[str, str]:
        """Return the headers that identify this version of the file."""
        date = formatdate(1_600_000_000 + 60 * self.version, usegmt=True)
        return {
            "strong": {"ETag": f'"v{self.version}"', "Last-Modified": date},
            "weak": {"ETag": f'W/"v{self.version}"'},
            "date": {"Last-Modified": date},
            "none": {},
        }[self.validator]

    def accepts(self, if_range: str | None) -> bool:
        """Return True if the client's part is of the version that is served."""
        values = {value for value in self.identity().values() if not value.startswith("W/")}
        return if_range is None or if_range in values


class Server(ThreadingHTTPServer):
    """A server on a free port; every request for a source is recorded there."""

    def __init__(self, tls: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(CERTIFICATE)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.url = self.url.replace("http:", "https:")
        self.sources: dict[str, Source] = {}
        self.closing = threading.Event()
        self.turn = threading.Lock()

    def source(
        self,
        content: bytes,
        *answers: Answer,
        then: Answer = GOOD,
        name: str = "isanet_tiny.pth",
        validator: Validator = "strong",
    ) -> Source:
        """Add a file, whose first requests receive `answers`, and all others `then`."""
        path = f"/{len(self.sources)}/{name}"
        script = itertools.chain(answers, itertools.repeat(then))
        source = Source(f"{self.url}{path}", content, validator, script)
        self.sources[path] = source
        return source

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: clients close connections in these tests."""


@contextlib.contextmanager
def running(tls: bool = False) -> Iterator[Server]:
    """Run a server."""
    with Server(tls) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


def closed_url() -> str:
    """Return a URL at which no server listens."""
    with Server() as server:
        return f"{server.url}/isanet_tiny.pth"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        path = self.path.removeprefix("/moved")
        names = ("Range", "If-Range", "Accept-Encoding", "Authorization")
        seen = Seen(self.path, *(self.headers[name] for name in names))
        with self.server.turn:
            source = self.server.sources[path]
            source.seen.append(seen)
            if path != self.path:
                self._send(302, {"Location": path, "Content-Length": "0"})
                return
            answer = next(source.answers)
            if answer.publish is not None:
                source.content, source.version = answer.publish, source.version + 1
        answer.before()
        if answer.status is not None:
            self._send(answer.status, {"Content-Length": "0", **answer.headers})
        else:
            self._serve(source, answer, seen)

    def _serve(self, source: Source, answer: Answer, seen: Seen) -> None:
        body = source.content if answer.body is None else answer.body
        status, headers = 200, source.identity()
        requested = re.fullmatch(r"bytes=(\d+)-", seen.range or "")
        fits = source.accepts(seen.if_range) or not answer.conditional
        if requested and fits and answer.ranges and answer.body is None:
            start, total = int(requested[1]) if answer.start is None else answer.start, len(body)
            if start >= total:
                self._send(416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"})
                return
            status, body = 206, body[start:]
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        if answer.endless:
            self._repeat(body)
            return
        if answer.zipped:
            body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
        sent = body[: answer.cut]
        if answer.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(sent if answer.shrink else body))
        if answer.drip_headers:
            self._drip(b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 1000, answer.drip)
            return
        self._send(status, {**headers, **answer.headers})
        if answer.drip:
            self._drip(sent, answer.drip)
            return
        if answer.chunked:
            end = b"0\r\n\r\n" if sent == body else b""
            sent = b"%x\r\n%b\r\n" % (len(sent), sent) + end if sent else end
        self.wfile.write(sent)
        if answer.stall:
            self.server.closing.wait(LONGEST_STALL)

    def _drip(self, content: bytes, pause: float) -> None:
        for byte in content:
            if self.server.closing.wait(pause):
                return
            self.wfile.write(bytes([byte]))

    def _repeat(self, body: bytes) -> None:
        self._send(200, {})
        while not self.server.closing.is_set():
            self.wfile.write(body)

    def _send(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass
