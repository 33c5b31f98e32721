"""A local file server that mishandles its requests as a script says."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

HTML = b"<!DOCTYPE html>\n<html><body>Too many people want this file.</body></html>\n" * 20
LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 267412345\n"
)
LONGEST_STALL = 20.0

Validator = Literal["strong", "weak", "date", "none"]


@dataclass(frozen=True)
class Answer:
    """How one request is answered; by default as a good server does.

    Attributes:
        status: answer this status, and nothing of the file.
        headers: send these in place of the true ones.
        body: serve this in the file's place.
        publish: replace the file by another version before answering.
        cut: close the connection after so many bytes of the body.
        lie: with `cut`, say a Content-Length that fits what is sent.
        stall: with `cut`, fall silent and leave the connection open.
        ranges: honour Range.
        start: answer any Range with the part from here.
        conditional: honour If-Range.
        chunked: say no length.
        zipped: compress the body.
        before: called first; it may wait.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    publish: bytes | None = None
    cut: int | None = None
    lie: bool = False
    stall: bool = False
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


@dataclass
class Source:
    """A file on the server, and what is done to the requests for it."""

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
        """An address that redirects to the file."""
        return self.url.replace(self.path, f"/moved{self.path}")

    @property
    def mirror(self) -> str:
        """The folder that the file is in."""
        return self.url.rpartition("/")[0]

    def identity(self) -> dict[str, str]:
        """The headers that tell this version of the file from others."""
        date = formatdate(1_600_000_000 + 60 * self.version, usegmt=True)
        return {
            "strong": {"ETag": f'"v{self.version}"', "Last-Modified": date},
            "weak": {"ETag": f'W/"v{self.version}"'},
            "date": {"Last-Modified": date},
            "none": {},
        }[self.validator]

    def accepts(self, if_range: str | None) -> bool:
        """Say whether the version that a client has a part of is still the one that is served."""
        values = {value for value in self.identity().values() if not value.startswith("W/")}
        return if_range is None or if_range in values


class Server(ThreadingHTTPServer):
    """Serves files on a port of its own; every request of a source is recorded there."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
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
        """Put a file on the server, whose first requests get `answers`, the others `then`."""
        path = f"/{len(self.sources)}/{name}"
        script = itertools.chain(answers, itertools.repeat(then))
        source = Source(f"http://127.0.0.1:{self.server_port}{path}", content, validator, script)
        self.sources[path] = source
        return source

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients hang up in these tests."""


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Run a server."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


def nobody() -> str:
    """Return a URL at which nothing listens."""
    with Server() as server:
        return f"http://127.0.0.1:{server.server_port}/isanet_tiny.pth"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        path = self.path.removeprefix("/moved")
        seen = Seen(self.path, self.headers["Range"], self.headers["If-Range"])
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
        asked = re.fullmatch(r"bytes=(\d+)-", seen.range or "")
        fits = source.accepts(seen.if_range) or not answer.conditional
        if asked and fits and answer.ranges and answer.body is None:
            start, total = int(asked[1]) if answer.start is None else answer.start, len(body)
            if start >= total:
                self._send(416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"})
                return
            status, body = 206, body[start:]
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        if answer.zipped:
            body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
        sent = body[: answer.cut]
        if answer.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(sent if answer.lie else body))
        self._send(status, {**headers, **answer.headers})
        if answer.chunked:
            end = b"0\r\n\r\n" if sent == body else b""
            sent = b"%x\r\n%b\r\n" % (len(sent), sent) + end if sent else end
        self.wfile.write(sent)
        if answer.stall:
            self.server.closing.wait(LONGEST_STALL)

    def _send(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass
