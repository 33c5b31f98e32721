from __future__ import annotations

import errno
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from isanet_zoo.errors import DownloadError, IntegrityError, SourceError
from isanet_zoo.weights import fetch
from isanet_zoo.weights.http import Patience
from tests.weights.server import (
    GOOD,
    HTML,
    LFS_POINTER,
    LONGEST_STALL,
    Answer,
    Seen,
    Server,
    Validator,
    running,
)

CONTENT = b"".join(hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(25_000))
OTHER = CONTENT[::-1]
HASTY = Patience(tries=4, backoff=0.001, timeout=10, longest_wait=0.01)
STALLED = replace(HASTY, timeout=0.3)
PAUSES = Patience(tries=4, backoff=1.0, timeout=10, longest_wait=60.0)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds between attempts, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


def get(
    folder: Path, source: str, *, patience: Patience = HASTY, limit: int | None = None
) -> bytes:
    """Transfer a file; return its bytes."""
    path = folder / "download"
    fetched = fetch.transfer(source, path, limit=limit, patience=patience)
    content = path.read_bytes()
    assert fetched == (source, hashlib.sha256(content).hexdigest(), len(content))
    return content


def refusal(folder: Path, source: str, patience: Patience = HASTY) -> str:
    """Transfer a file that no attempt returns; return the error."""
    with pytest.raises(SourceError) as caught:
        get(folder, source, patience=patience)
    return str(caught.value)


def ranges(requests: Sequence[Seen]) -> list[tuple[str | None, str | None]]:
    return [(request.range, request.if_range) for request in requests]


# Resume


def test_interrupted_transfer_resumes_where_it_ended(server: Server, tmp_path: Path) -> None:
    source = server.source(CONTENT, Answer(cut=300_000), Answer(cut=200_000))
    assert get(tmp_path, source.url) == CONTENT
    assert ranges(source.seen) == [
        (None, None),
        ("bytes=300000-", '"v1"'),
        ("bytes=500000-", '"v1"'),
    ]


def test_every_attempt_starts_at_the_original_url(server: Server, tmp_path: Path) -> None:
    source = server.source(CONTENT, Answer(cut=300_000))
    assert get(tmp_path, source.moved_url) == CONTENT
    moved = f"/moved{source.path}"
    assert [seen.path for seen in source.seen] == [moved, source.path, moved, source.path]
    assert ranges(source.seen[2:]) == [("bytes=300000-", '"v1"')] * 2


def test_stalled_transfer_keeps_what_arrived(server: Server, tmp_path: Path) -> None:
    source = server.source(CONTENT, Answer(cut=300_000, stall=True))
    start = time.monotonic()
    assert get(tmp_path, source.url, patience=STALLED) == CONTENT
    assert ranges(source.seen)[1:] == [("bytes=300000-", '"v1"')]
    assert time.monotonic() - start < LONGEST_STALL / 2  # the client closed the connection


def test_chunked_transfer_resumes_where_it_ended(server: Server, tmp_path: Path) -> None:
    source = server.source(CONTENT, Answer(cut=300_000, chunked=True))
    assert get(tmp_path, source.url) == CONTENT
    assert ranges(source.seen)[1:] == [("bytes=300000-", '"v1"')]


@pytest.mark.parametrize(
    ("validator", "second"),
    [
        ("date", ("bytes=300000-", "Sun, 13 Sep 2020 12:27:40 GMT")),
        ("weak", (None, None)),
        ("none", (None, None)),
    ],
)
def test_transfer_resumes_only_with_a_header_that_identifies_the_bytes(
    server: Server, tmp_path: Path, validator: Validator, second: tuple[str | None, str | None]
) -> None:
    source = server.source(CONTENT, Answer(cut=300_000), validator=validator)
    assert get(tmp_path, source.url) == CONTENT
    assert ranges(source.seen)[1:] == [second]


@pytest.mark.parametrize("new", [OTHER, OTHER[:100_000]], ids=["as long", "shorter"])
def test_republished_file_is_not_mixed_with_its_former_version(
    server: Server, tmp_path: Path, new: bytes
) -> None:
    source = server.source(CONTENT, Answer(cut=300_000), Answer(publish=new))
    assert get(tmp_path, source.url) == new


def test_republished_file_is_not_mixed_if_the_server_ignores_if_range(
    server: Server, tmp_path: Path
) -> None:
    source = server.source(
        CONTENT, Answer(cut=300_000), Answer(publish=OTHER, conditional=False), GOOD
    )
    assert get(tmp_path, source.url) == OTHER


@pytest.mark.parametrize(
    "second",
    [
        Answer(status=416),
        Answer(start=0),
        Answer(start=400_000),
        Answer(headers={"Content-Range": "bytes 300000-400000/400001"}),
        Answer(headers={"Content-Range": "all of it"}),
    ],
    ids=["416", "from the start", "from elsewhere", "of another size", "no numbers"],
)
def test_wrong_answer_to_a_range_restarts_the_transfer(
    server: Server, tmp_path: Path, second: Answer
) -> None:
    source = server.source(CONTENT, Answer(cut=300_000), second)
    assert get(tmp_path, source.url) == CONTENT
    assert ranges(source.seen)[2:] == [(None, None)]


def test_server_without_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    source = server.source(CONTENT, Answer(cut=300_000), Answer(ranges=False))
    assert get(tmp_path, source.url) == CONTENT
    assert len(source.seen) == 2


def test_part_that_was_not_requested_is_not_the_file(server: Server, tmp_path: Path) -> None:
    part = Answer(status=206, headers={"Content-Range": "bytes 0-0/1", "Content-Length": "0"})
    source = server.source(CONTENT, part)
    assert get(tmp_path, source.url) == CONTENT


fault = st.one_of(
    st.builds(
        Answer,
        cut=st.integers(0, len(CONTENT) - 1),
        publish=st.sampled_from([None, None, CONTENT, OTHER, CONTENT[:500_000]]),
        ranges=st.booleans(),
        chunked=st.booleans(),
    ),
    st.builds(Answer, status=st.sampled_from([408, 416, 429, 500, 503])),
    st.builds(
        Answer,
        cut=st.integers(0, len(CONTENT)),
        headers=st.fixed_dictionaries({"Content-Range": st.just("bytes 7-99/100")}),
    ),
)


@settings(deadline=None, max_examples=60)
@given(
    faults=st.lists(fault, max_size=6),
    validator=st.sampled_from(["strong", "weak", "date", "none"]),
)
def test_any_sequence_of_passing_faults_ends_with_the_published_bytes(
    server: Server,
    tmp_path_factory: pytest.TempPathFactory,
    faults: list[Answer],
    validator: Validator,
) -> None:
    source = server.source(CONTENT, *faults, validator=validator)
    patience = Patience(tries=len(faults) + 1, backoff=0.0, timeout=5.0)
    assert get(tmp_path_factory.mktemp("any"), source.url, patience=patience) == source.content


# Retries


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_transient_status_is_retried(server: Server, tmp_path: Path, status: int) -> None:
    source = server.source(CONTENT, then=Answer(status=status))
    error = refusal(tmp_path, source.url)
    assert str(status) in error
    assert len(source.seen) == HASTY.tries


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_final_status_is_not_retried(server: Server, tmp_path: Path, status: int) -> None:
    source = server.source(CONTENT, then=Answer(status=status))
    error = refusal(tmp_path, source.url)
    assert str(status) in error
    assert len(source.seen) == 1


def test_pauses_between_attempts_double(
    server: Server, tmp_path: Path, pauses: list[float]
) -> None:
    source = server.source(CONTENT, *[Answer(status=503)] * 3)
    assert get(tmp_path, source.url, patience=PAUSES) == CONTENT
    assert pauses == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [
        ("7", 7.0),
        ("0", 1.0),
        ("86400", 60.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 1.0),
        ("-5", 1.0),
        ("9" * 5000, 1.0),
    ],
)
def test_pause_follows_retry_after_within_limits(
    server: Server, tmp_path: Path, pauses: list[float], retry_after: str, pause: float
) -> None:
    source = server.source(CONTENT, Answer(status=429, headers={"Retry-After": retry_after}))
    assert get(tmp_path, source.url, patience=PAUSES) == CONTENT
    assert pauses == [pause]


def test_retry_is_one_warning_line(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = server.source(CONTENT, Answer(status=503))
    get(tmp_path, source.url)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    text = f"{source.url}: answered 503 Service Unavailable; next attempt in 0 s"
    assert record.getMessage() == text


# Responses that are not the file


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (HTML, "an HTML page"),
        (b"\xef\xbb\xbf\r\n <HTML><p>no", "an HTML page"),
        (LFS_POINTER, "a git-lfs pointer"),
        (b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "an XML document"),
        (b"", "an empty file"),
    ],
)
def test_page_instead_of_a_checkpoint_is_named(
    server: Server, tmp_path: Path, body: bytes, name: str
) -> None:
    source = server.source(body)
    local = tmp_path / "local"
    local.write_bytes(body)
    for place in (source.url, str(local)):
        assert refusal(tmp_path, place) == f"returned {name} instead of a checkpoint"
    assert len(source.seen) == 1


def test_compressed_response_is_refused(server: Server, tmp_path: Path) -> None:
    source = server.source(CONTENT, then=Answer(zipped=True))
    error = refusal(tmp_path, source.url)
    assert "gzip" in error


@pytest.mark.parametrize("etag", ['"\xe9"', '"' + "x" * 300 + '"'])
def test_etag_that_cannot_be_sent_back_is_not_used(
    server: Server, tmp_path: Path, etag: str
) -> None:
    cut = Answer(cut=300_000, headers={"ETag": etag})
    source = server.source(CONTENT, cut, validator="none")
    assert get(tmp_path, source.url) == CONTENT
    assert ranges(source.seen) == [(None, None)] * 2


# Bounds


@pytest.mark.parametrize("chunked", [False, True])
def test_file_beyond_the_limit_is_refused_without_a_retry(
    server: Server, tmp_path: Path, chunked: bool
) -> None:
    source = server.source(CONTENT, then=Answer(chunked=chunked))
    assert get(tmp_path, source.url, limit=len(CONTENT)) == CONTENT
    with pytest.raises(IntegrityError, match=f"at most {len(CONTENT) - 1} are expected"):
        get(tmp_path, source.url, limit=len(CONTENT) - 1)
    assert len(source.seen) == 2


def test_declared_size_beyond_the_limit_is_refused_before_the_body(
    server: Server, tmp_path: Path
) -> None:
    huge = Answer(cut=0, stall=True, headers={"Content-Length": str(10**15)})
    source = server.source(CONTENT, then=huge)
    start = time.monotonic()
    with pytest.raises(IntegrityError, match=f"has {10**15} bytes or more"):
        get(tmp_path, source.url, limit=1000, patience=Patience(timeout=10))
    assert time.monotonic() - start < 1


def test_endless_body_ends_at_the_limit(server: Server, tmp_path: Path) -> None:
    source = server.source(CONTENT, then=Answer(endless=True))
    with pytest.raises(IntegrityError, match="at most 3000000 are expected"):
        get(tmp_path, source.url, limit=3_000_000)
    assert (tmp_path / "download").stat().st_size < 4_000_000


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/dev/zero"), os.mkfifo])
def test_device_or_pipe_as_a_source_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "source")
    start = time.monotonic()
    assert "not a regular file" in refusal(tmp_path, str(tmp_path / "source"))
    assert time.monotonic() - start < 1


def test_local_file_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    local = tmp_path / "local"
    with local.open("wb") as file:
        file.truncate(10**12)  # sparse
    with pytest.raises(IntegrityError, match=f"has {10**12} bytes or more; at most 1000 are"):
        get(tmp_path, str(local), limit=1000)


# Local files


def test_local_sources_are_paths_and_file_urls(tmp_path: Path) -> None:
    folder = tmp_path / "with 100% spaces"
    folder.mkdir()
    local = folder / "file.pth"
    local.write_bytes(CONTENT)
    url = local.as_uri()
    for source in (str(local), url, url.replace("file://", "FILE://localhost")):
        assert get(tmp_path, source) == CONTENT


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/nonexistent/file.pth", os.strerror(errno.ENOENT)),
        ("/nonexistent/" + "n" * 300, ""),
        ("n" * 300, os.strerror(errno.ENAMETOOLONG)),
        ("file:///a%00b", "not a file name"),
        ("file://[", "Invalid IPv6 URL"),
        ("file://elsewhere/etc/hostname", os.strerror(errno.ENOENT)),
        ("file://", "folder"),
        ("/", "folder"),
        ("", "folder"),
        ("ftp://127.0.0.1/file.pth", "neither an http(s) or file URL nor a path"),
    ],
)
def test_unusable_local_source_is_a_source_error(tmp_path: Path, source: str, reason: str) -> None:
    assert reason in refusal(tmp_path, source)


# The disk


def fill_disk(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Make each file that is opened for writing full after so many bytes."""

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            free = room - self.tell()
            if free <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(memoryview(data)[:free])

    real = Path.open

    def open_(path: Path, mode: str = "r", buffering: int = -1, **options: Any) -> Any:
        if mode != "wb":
            return real(path, mode, buffering, **options)
        return io.BufferedWriter(Full(path, "w")) if buffering else Full(path, "w")

    monkeypatch.setattr(Path, "open", open_)


@pytest.mark.parametrize("size", [fetch.BLOCK, 2 * fetch.BLOCK + 100])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_full_disk_is_a_download_error_at_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, fraction: float
) -> None:
    source = server.source(CONTENT[:size])
    fill_disk(monkeypatch, int(fraction * (size - 1)))
    with pytest.raises(DownloadError, match=os.strerror(errno.ENOSPC)):
        get(tmp_path, source.url)
    assert len(source.seen) == 1


def test_progress_reports_all_bytes(server: Server, tmp_path: Path) -> None:
    source = server.source(CONTENT, Answer(cut=300_000))
    shown: list[tuple[int, int | None]] = []

    def show(done: int, total: int | None) -> None:
        shown.append((done, total))

    fetch.transfer(source.url, tmp_path / "download", show=show, patience=HASTY)
    assert shown == sorted(shown)
    assert shown[-1] == (len(CONTENT), len(CONTENT))
    assert (300_000, len(CONTENT)) in shown
