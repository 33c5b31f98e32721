from __future__ import annotations

import errno
import hashlib
import http.client
import io
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from isanet_zoo.errors import (
    CheckpointError,
    DownloadError,
    IntegrityError,
    OfflineError,
    SourceError,
)
from isanet_zoo.weights import fetch
from isanet_zoo.weights.fetch import Fetched, Patience
from tests.weights.server import (
    GOOD,
    HTML,
    LFS_POINTER,
    LONGEST_STALL,
    Answer,
    Seen,
    Server,
    Validator,
    nobody,
    running,
)

CONTENT = b"".join(hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(25_000))
OTHER = CONTENT[::-1]
HASTY = Patience(tries=4, backoff=0.001, timeout=0.5, longest_wait=0.01)
PAUSES = Patience(tries=4, backoff=1.0, timeout=0.5, longest_wait=60.0)


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ISANET_ZOO_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that are waited between attempts, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


def get(folder: Path, *sources: str, patience: Patience = HASTY) -> bytes:
    """Fetch the first complete copy."""

    def read(path: Path, fetched: Fetched) -> bytes:
        content = path.read_bytes()
        assert fetched.size == len(content)
        assert fetched.sha256 == hashlib.sha256(content).hexdigest()
        return content

    try:
        return fetch.fetch(
            "isanet_tiny.pth",
            sources,
            folder,
            read,
            by_hand=folder / "isanet_tiny.pth",
            patience=patience,
        )
    finally:
        assert list(folder.glob("*.part")) == []


def refusal(folder: Path, *sources: str, patience: Patience = HASTY) -> list[str]:
    """Fetch what cannot be had; return the error of each source."""
    with pytest.raises(DownloadError) as caught:
        get(folder, *sources, patience=patience)
    assert [source for source, _ in caught.value.tried] == list(sources)
    return [str(error) for _, error in caught.value.tried]


def ranges(requests: Sequence[Seen]) -> list[tuple[str | None, str | None]]:
    return [(request.range, request.if_range) for request in requests]


def test_an_interrupted_transfer_goes_on_where_it_broke_off(server: Server, tmp_path: Path) -> None:
    source = server.source(CONTENT, Answer(cut=300_000), Answer(cut=200_000))
    assert get(tmp_path, source.url) == CONTENT
    assert ranges(source.seen) == [
        (None, None),
        ("bytes=300000-", '"v1"'),
        ("bytes=500000-", '"v1"'),
    ]


def test_every_attempt_asks_the_original_url(server: Server, tmp_path: Path) -> None:
    source = server.source(CONTENT, Answer(cut=300_000))
    assert get(tmp_path, source.moved_url) == CONTENT
    moved = f"/moved{source.path}"
    assert [seen.path for seen in source.seen] == [moved, source.path, moved, source.path]
    assert ranges(source.seen[2:]) == [("bytes=300000-", '"v1"')] * 2


def test_a_stalled_transfer_keeps_what_arrived(server: Server, tmp_path: Path) -> None:
    source = server.source(CONTENT, Answer(cut=300_000, stall=True))
    start = time.monotonic()
    assert get(tmp_path, source.url) == CONTENT
    assert ranges(source.seen)[1:] == [("bytes=300000-", '"v1"')]
    assert time.monotonic() - start < LONGEST_STALL / 2  # it was the client that hung up


def test_a_chunked_transfer_goes_on_where_it_broke_off(server: Server, tmp_path: Path) -> None:
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
def test_only_what_identifies_the_bytes_allows_to_go_on(
    server: Server, tmp_path: Path, validator: Validator, second: tuple[str | None, str | None]
) -> None:
    source = server.source(CONTENT, Answer(cut=300_000), validator=validator)
    assert get(tmp_path, source.url) == CONTENT
    assert ranges(source.seen)[1:] == [second]


@pytest.mark.parametrize("new", [OTHER, OTHER[:100_000]], ids=["as long", "shorter"])
def test_versions_of_a_file_are_not_mixed(server: Server, tmp_path: Path, new: bytes) -> None:
    source = server.source(CONTENT, Answer(cut=300_000), Answer(publish=new))
    assert get(tmp_path, source.url) == new


def test_versions_are_not_mixed_where_the_server_ignores_if_range(
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
    ids=["416", "from the beginning", "from elsewhere", "of another length", "nonsense"],
)
def test_a_wrong_answer_to_a_range_starts_afresh(
    server: Server, tmp_path: Path, second: Answer
) -> None:
    source = server.source(CONTENT, Answer(cut=300_000), second)
    assert get(tmp_path, source.url) == CONTENT
    assert ranges(source.seen)[2:] == [(None, None)]


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    source = server.source(CONTENT, Answer(cut=300_000), Answer(ranges=False))
    assert get(tmp_path, source.url) == CONTENT
    assert len(source.seen) == 2


def test_a_part_that_nobody_asked_for_is_not_the_file(server: Server, tmp_path: Path) -> None:
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
def test_any_run_of_passing_faults_ends_with_the_published_bytes(
    server: Server,
    tmp_path_factory: pytest.TempPathFactory,
    faults: list[Answer],
    validator: Validator,
) -> None:
    source = server.source(CONTENT, *faults, validator=validator)
    patience = Patience(tries=len(faults) + 1, backoff=0.0, timeout=5.0)
    assert get(tmp_path_factory.mktemp("any"), source.url, patience=patience) == source.content


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_an_answer_that_may_pass_is_asked_for_again(
    server: Server, tmp_path: Path, status: int
) -> None:
    source = server.source(CONTENT, then=Answer(status=status))
    [error] = refusal(tmp_path, source.url)
    assert str(status) in error
    assert len(source.seen) == HASTY.tries


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_a_final_answer_is_not_asked_for_again(server: Server, tmp_path: Path, status: int) -> None:
    source = server.source(CONTENT, then=Answer(status=status))
    [error] = refusal(tmp_path, source.url)
    assert str(status) in error
    assert len(source.seen) == 1


def test_pauses_grow(server: Server, tmp_path: Path, pauses: list[float]) -> None:
    source = server.source(CONTENT, *[Answer(status=503)] * 3)
    assert get(tmp_path, source.url, patience=PAUSES) == CONTENT
    assert pauses == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [("7", 7.0), ("0", 1.0), ("86400", 60.0), ("Fri, 31 Dec 1999 23:59:59 GMT", 1.0), ("-5", 1.0)],
)
def test_a_pause_is_as_long_as_the_server_asks_for_within_limits(
    server: Server, tmp_path: Path, pauses: list[float], retry_after: str, pause: float
) -> None:
    source = server.source(CONTENT, Answer(status=429, headers={"Retry-After": retry_after}))
    assert get(tmp_path, source.url, patience=PAUSES) == CONTENT
    assert pauses == [pause]


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
def test_what_is_no_checkpoint_is_called_by_its_name(
    server: Server, tmp_path: Path, body: bytes, name: str
) -> None:
    source = server.source(body)
    local = tmp_path / "local"
    local.write_bytes(body)
    errors = refusal(tmp_path, source.url, str(local))
    assert all(name in error for error in errors)
    assert len(source.seen) == 1


def test_an_encoded_file_is_refused(server: Server, tmp_path: Path) -> None:
    source = server.source(CONTENT, then=Answer(zipped=True))
    [error] = refusal(tmp_path, source.url)
    assert "gzip" in error


def test_no_hop_may_leave_https(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_tls(handler: urllib.request.HTTPSHandler, request: urllib.request.Request) -> Any:
        return handler.do_open(http.client.HTTPConnection, request)

    monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", without_tls)
    source = server.source(CONTENT)
    assert get(tmp_path, source.moved_url.replace("http:", "https:")) == CONTENT
    target = server.source(CONTENT)
    hop = server.source(b"", then=Answer(status=302, headers={"Location": target.url}))
    [error] = refusal(tmp_path, hop.url.replace("http:", "https:"))
    assert f"redirects to the unencrypted {target.url}" in error
    assert target.seen == []


def test_sources_are_asked_in_order_until_one_is_accepted(server: Server, tmp_path: Path) -> None:
    bad, good, unneeded = (server.source(content) for content in (OTHER, CONTENT, CONTENT))
    looked_at = []

    def accept(path: Path, fetched: Fetched) -> str:
        looked_at.append(fetched.source)
        if path.read_bytes() != CONTENT:
            raise (CheckpointError if fetched.source == bad.url else IntegrityError)("not this")
        return fetched.source

    folder = tmp_path / "transfers"
    folder.mkdir()
    local = tmp_path / "isanet_tiny.pth"
    local.write_bytes(OTHER)
    sources = [nobody(), bad.url, str(local), good.url, unneeded.url]
    chosen = fetch.fetch("isanet_tiny.pth", sources, folder, accept, by_hand=local, patience=HASTY)
    assert chosen == good.url
    assert looked_at == [bad.url, str(local), good.url]
    assert unneeded.seen == []
    assert list(folder.iterdir()) == []
    assert local.read_bytes() == OTHER


def test_the_last_word_names_every_source_and_the_way_by_hand(
    server: Server, tmp_path: Path
) -> None:
    sources = [
        server.source(CONTENT, then=Answer(status=404)).url,
        server.source(CONTENT, then=Answer(cut=10, ranges=False)).url,
        nobody(),
        str(tmp_path / "absent.pth"),
        str(tmp_path),
        "http://[::1/isanet_tiny.pth",
    ]
    with pytest.raises(DownloadError) as caught:
        get(tmp_path, *sources)
    message = str(caught.value)
    for (source, error), expected in zip(caught.value.tried, sources, strict=True):
        assert source == expected
        assert f"{source}: {error}" in message
    assert str(tmp_path / "isanet_tiny.pth") in message
    assert "ISANET_ZOO_MIRROR" in message


def test_an_error_holds_no_connection_open(server: Server, tmp_path: Path) -> None:
    source = server.source(CONTENT, then=Answer(status=404, headers={"Content-Length": "9"}))
    with pytest.raises(DownloadError) as caught:
        get(tmp_path, source.url)
    [(_, error)] = caught.value.tried
    assert isinstance(error, SourceError)
    assert isinstance(error.__cause__, urllib.error.HTTPError)
    assert error.__cause__.closed


def fill_disk(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Let each file that is opened for writing take only so many bytes."""

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
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_full_disk_is_said_at_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, share: float
) -> None:
    source, spare = (server.source(CONTENT[:size]) for _ in range(2))
    fill_disk(monkeypatch, int(share * (size - 1)))
    with pytest.raises(DownloadError, match=os.strerror(errno.ENOSPC)):
        get(tmp_path, source.url, spare.url)
    assert (len(source.seen), len(spare.seen)) == (1, 0)


def test_progress_is_told_of_all_bytes(server: Server, tmp_path: Path) -> None:
    source = server.source(CONTENT, Answer(cut=300_000))
    told: list[tuple[int, int | None]] = []
    fetch.fetch(
        "isanet_tiny.pth",
        [source.url],
        tmp_path,
        lambda path, fetched: None,
        by_hand=tmp_path / "isanet_tiny.pth",
        progress=lambda done, total: told.append((done, total)),
        patience=HASTY,
    )
    assert told == sorted(told)
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert (300_000, len(CONTENT)) in told


@pytest.mark.parametrize("variable", ["ISANET_ZOO_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("value", ["1", "true", "YES", " on "])
def test_offline_asks_no_server(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    source = server.source(CONTENT)
    monkeypatch.setenv(variable, value)
    with pytest.raises(OfflineError) as caught:
        get(tmp_path, source.url)
    assert source.seen == []
    assert [url for url, _ in caught.value.tried] == [source.url]


@pytest.mark.parametrize("value", ["", "0", "false", "no"])
def test_offline_can_be_said_no_to(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("ISANET_ZOO_OFFLINE", value)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert get(tmp_path, server.source(CONTENT).url) == CONTENT


def test_offline_still_reads_local_sources(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISANET_ZOO_OFFLINE", "1")
    folder = tmp_path / "with 100% spaces"
    folder.mkdir()
    (folder / "file.pth").write_bytes(CONTENT)
    remote = server.source(OTHER)
    for local in (str(folder / "file.pth"), (folder / "file.pth").as_uri()):
        assert get(tmp_path, remote.url, local) == CONTENT
    assert remote.seen == []


@pytest.mark.parametrize(
    ("mirror", "expected"),
    [
        ("", []),
        (" , ", []),
        ("/data/weights/", ["/data/weights/a b.pth"]),
        ("~/weights", [str(Path("~/weights/a b.pth").expanduser())]),
        ("https://example.org/w/", ["https://example.org/w/a%20b.pth"]),
        ("file:///data", ["file:///data/a%20b.pth"]),
        ("/one, http://two", ["/one/a b.pth", "http://two/a%20b.pth"]),
    ],
)
def test_mirrors_are_folders_and_urls(
    monkeypatch: pytest.MonkeyPatch, mirror: str, expected: list[str]
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", mirror)
    assert fetch.mirrored("a b.pth") == expected
