from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

import isanet_zoo
from isanet_zoo.cache import CacheEntry
from isanet_zoo.errors import DownloadError, InputError, IntegrityError, OfflineError
from isanet_zoo.manifest.weights import Weights
from isanet_zoo.weights import acquire, tensors
from isanet_zoo.weights.http import Patience
from isanet_zoo.weights.integrity import verify
from isanet_zoo.weights.layouts import SSSEG
from tests.conftest import TinyZoo
from tests.weights.server import HTML, LFS_POINTER, Answer, Server, closed_url, running

HASTY = Patience(tries=4, backoff=0.001, timeout=10, longest_wait=0.01)
STALLED = replace(HASTY, timeout=0.2)
WHOLE = {"model.safetensors", "model.json"}

PASSING: dict[str, list[Answer]] = {
    "cut": [Answer(cut=600_000)],
    "cut before the first byte": [Answer(cut=0)],
    "cut three times": [Answer(cut=300_000)] * 3,
    "cut, ranges ignored": [Answer(cut=600_000), Answer(ranges=False)],
    "cut, another part": [Answer(cut=600_000), Answer(headers={"Content-Range": "bytes 5-9/10"})],
    "cut, 416": [Answer(cut=600_000), Answer(status=416)],
    "stall": [Answer(cut=600_000, stall=True)],
    "no answer": [Answer(cut=0, stall=True)],
    "chunked": [Answer(chunked=True)],
    "chunked, cut": [Answer(cut=600_000, chunked=True)],
    "429": [Answer(status=429)],
    "429, with a pause": [Answer(status=429, headers={"Retry-After": "9"})],
    "500": [Answer(status=500)],
    "503": [Answer(status=503)],
}

LASTING: dict[str, Answer] = {
    "cut": Answer(cut=1000, ranges=False),
    "a false length": Answer(cut=600_000, shrink=True),
    "stall": Answer(cut=1000, ranges=False, stall=True),
    "403": Answer(status=403),
    "404": Answer(status=404),
    "429": Answer(status=429),
    "500": Answer(status=500),
    "503": Answer(status=503),
    "an HTML page": Answer(body=HTML),
    "a git-lfs pointer": Answer(body=LFS_POINTER),
    "an empty file": Answer(body=b""),
    "gzip": Answer(zipped=True),
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("ISANET_ZOO_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running() as server:
        yield server


def obtain(
    weights: Weights, *sources: str, force: bool = False, patience: Patience = HASTY
) -> Path:
    weights = replace(weights, sources=sources)
    return acquire.acquire(weights, force=force, progress=False, patience=patience)


def refusal(weights: Weights, *sources: str, patience: Patience = HASTY) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        obtain(weights, *sources, patience=patience)
    return caught.value


def files(weights: Weights) -> set[str]:
    """The names in the weights' cache folder."""
    return {path.name for path in weights.path().parent.iterdir()} - {".lock"}


def published(zoo: TinyZoo) -> bytes:
    return zoo.published.read_bytes()


def save(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def changed(zoo: TinyZoo, **more: object) -> bytes:
    """Another file that fits the network."""
    bias = {"decoder.1.bias": zoo.state["decoder.1.bias"] + 1}
    return save({"model": zoo.state | bias, **more})


def assert_holds(zoo: TinyZoo, path: Path) -> None:
    """Check that the cache has the published tensors and records their file."""
    expected = {SSSEG.ours(key): tensor for key, tensor in zoo.state.items()}
    cached = safetensors.torch.load_file(path)
    assert cached.keys() == expected.keys()
    assert all(torch.equal(cached[key], expected[key]) for key in expected)
    record = CacheEntry.of(zoo.weights.name).record()
    assert record is not None
    assert record.source_sha256 == hashlib.sha256(published(zoo)).hexdigest()
    assert record.source_size == len(published(zoo))
    assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("fault", PASSING)
def test_acquire_after_a_passing_fault_returns_the_published_weights(
    tiny_zoo: TinyZoo, server: Server, fault: str
) -> None:
    source = server.source(published(tiny_zoo), *PASSING[fault])
    patience = STALLED if any(answer.stall for answer in PASSING[fault]) else HASTY
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights, source.url, patience=patience))
    assert files(tiny_zoo.weights) == WHOLE


def test_acquire_of_a_file_republished_meanwhile_returns_the_new_one(
    tiny_zoo: TinyZoo, server: Server
) -> None:
    publish = Answer(publish=published(tiny_zoo))
    source = server.source(changed(tiny_zoo), Answer(cut=600_000), publish)
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights, source.url))


@pytest.mark.parametrize("fault", LASTING)
def test_acquire_after_a_lasting_fault_tries_the_next_source(
    tiny_zoo: TinyZoo, server: Server, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    bad = server.source(published(tiny_zoo), then=LASTING[fault])
    good = server.source(published(tiny_zoo))
    patience = STALLED if LASTING[fault].stall else HASTY
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights, bad.url, good.url, patience=patience))
    assert bad.seen
    assert caplog.records[-1].levelname == "WARNING"
    assert caplog.records[-1].getMessage().startswith(f"{bad.url}: ")
    assert files(tiny_zoo.weights) == WHOLE


def test_acquire_after_a_failed_server_tries_it_last(tiny_zoo: TinyZoo, server: Server) -> None:
    with running() as other:
        bad = other.source(published(tiny_zoo), then=Answer(status=503))
        good = server.source(published(tiny_zoo))
        obtain(tiny_zoo.weights, bad.url, good.url)
        requests = len(bad.seen)
        assert requests > 0
        obtain(tiny_zoo.weights, bad.url, good.url, force=True)
        assert len(bad.seen) == requests


def test_acquire_without_a_good_source_is_one_error_that_lists_all(
    tiny_zoo: TinyZoo, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = server.source(published(tiny_zoo), then=Answer(status=404))
    monkeypatch.setenv("ISANET_ZOO_MIRROR", mirror.mirror)
    bad = [server.source(published(tiny_zoo), then=answer).url for answer in LASTING.values()]
    error = refusal(tiny_zoo.weights, *bad, closed_url(), patience=STALLED)
    assert [url for url, _ in error.tried] == [mirror.url, *bad, error.tried[-1][0]]
    assert all(f"{url}: {reason}" in str(error) for url, reason in error.tried)
    assert str(tiny_zoo.weights.path().with_name(tiny_zoo.weights.filename)) in str(error)
    assert files(tiny_zoo.weights) == set()


def without_auxiliary_head(zoo: TinyZoo) -> dict[str, torch.Tensor]:
    return {
        key: tensor for key, tensor in zoo.state.items() if not key.startswith("auxiliary_decoder.")
    }


def on_many_disks(file: bytes) -> bytes:
    """Return a zip that claims to be one of several."""
    start = file.rindex(b"PK\x06\x07")  # the locator; its last number counts the disks
    return file[: start + 16] + (2).to_bytes(4, "little") + file[start + 20 :]


class Bomb:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Any, ...]]:
        return os.mkdir, (str(self.crater),)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda zoo: save({"model": zoo.state, "epoch": Bomb(zoo.mirror / "crater")}),
        lambda zoo: pickle.dumps(Bomb(zoo.mirror / "crater")),
        lambda zoo: save({"model": dict(list(zoo.state.items())[1:])}),
        lambda zoo: save({"model": zoo.state | {"decoder.1.bias": torch.full((5,), torch.nan)}}),
        lambda zoo: save({"model": without_auxiliary_head(zoo)}),
        lambda zoo: save({"model": zoo.state | {7: torch.zeros(5)}}),
        lambda zoo: save({"model": zoo.state | {"decoder.1.bias": torch.ones(5).to_sparse()}}),
        lambda zoo: save({"model": zoo.state | {"decoder.1.bias": torch.ones(5, device="meta")}}),
        lambda zoo: published(zoo)[:-100],
        lambda zoo: on_many_disks(published(zoo)),
        lambda zoo: published(zoo)[:1000],
        lambda zoo: HTML,
        lambda zoo: b"\x80\x02" + bytes(1000),
    ],
    ids=[
        "malicious pickle in a zip",
        "malicious pickle",
        "missing tensor",
        "nan",
        "no auxiliary head",
        "number as a key",
        "sparse tensor",
        "tensor without data",
        "truncated zip",
        "part of a zip",
        "first bytes",
        "HTML page",
        "zeros",
    ],
)
def test_acquire_after_refused_content_tries_the_next_source(
    tiny_zoo: TinyZoo, server: Server, spoil: Callable[[TinyZoo], bytes]
) -> None:
    bad, good = server.source(spoil(tiny_zoo)), server.source(published(tiny_zoo))
    assert [url for url, _ in refusal(tiny_zoo.weights, bad.url).tried] == [bad.url]
    assert files(tiny_zoo.weights) == set()
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights, bad.url, good.url))
    assert files(tiny_zoo.weights) == WHOLE
    assert not (tiny_zoo.mirror / "crater").exists()


@pytest.mark.parametrize("form", ["{folder}", "{uri}", "{http}", "/nowhere, {http}", "{bad},{uri}"])
def test_acquire_tries_mirrors_before_the_publisher(
    tiny_zoo: TinyZoo, server: Server, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    publisher = server.source(changed(tiny_zoo))
    places = {
        "folder": tiny_zoo.mirror,
        "uri": tiny_zoo.mirror.as_uri(),
        "http": server.source(published(tiny_zoo)).mirror,
        "bad": server.source(b"", then=Answer(status=404)).mirror,
    }
    monkeypatch.setenv("ISANET_ZOO_MIRROR", form.format_map(places))
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights, publisher.url))
    assert publisher.seen == []
    assert tiny_zoo.published.exists()


def test_password_of_a_mirror_is_neither_logged_nor_stored(
    tiny_zoo: TinyZoo,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    source = server.source(published(tiny_zoo), *[Answer(status=503)] * 5)
    secret = source.mirror.replace("http://", "http://user:p%40ss@")
    monkeypatch.setenv("ISANET_ZOO_MIRROR", secret)
    message = str(refusal(tiny_zoo.weights))
    assert f"{source.url}: answered 503" in message
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights))
    record = CacheEntry.of("isanet_tiny").record()
    assert record is not None
    assert record.source == source.url
    assert "p%40ss" not in message + caplog.text
    assert source.seen[0].authorization == "Basic dXNlcjpwQHNz"  # user:p@ss


def put_by_hand(zoo: TinyZoo, content: bytes) -> Path:
    path = zoo.weights.path().with_name(zoo.weights.filename)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_acquire_tries_a_file_put_by_hand_first_and_keeps_it(
    tiny_zoo: TinyZoo, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher, mirror = (server.source(changed(tiny_zoo)) for _ in range(2))
    monkeypatch.setenv("ISANET_ZOO_MIRROR", mirror.mirror)
    by_hand = put_by_hand(tiny_zoo, published(tiny_zoo))
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights, publisher.url))
    assert publisher.seen == mirror.seen == []
    assert by_hand.read_bytes() == published(tiny_zoo)


def test_acquire_skips_a_bad_file_put_by_hand_and_keeps_it(
    tiny_zoo: TinyZoo, server: Server
) -> None:
    by_hand = put_by_hand(tiny_zoo, HTML)
    assert str(by_hand) in str(refusal(tiny_zoo.weights))
    publisher = server.source(published(tiny_zoo))
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights, publisher.url))
    assert by_hand.read_bytes() == HTML


def claims(zoo: TinyZoo) -> dict[str, Mapping[str, Any]]:
    """Return facts that the manifest may have about the published file."""
    content = published(zoo)
    sha256 = hashlib.sha256(content).hexdigest()
    return {
        "sha256": {"sha256": sha256},
        "sha256_prefix": {"sha256_prefix": sha256[:8]},
        "size": {"size": len(content)},
        "state_digest": {
            "state_digest": tensors.state_digest(
                {SSSEG.ours(key): tensor for key, tensor in zoo.state.items()}
            )
        },
    }


@pytest.mark.parametrize("claim", ["sha256", "sha256_prefix", "size", "state_digest"])
def test_acquire_refuses_a_copy_that_the_manifest_contradicts(
    tiny_zoo: TinyZoo, server: Server, claim: str
) -> None:
    weights = replace(tiny_zoo.weights, **claims(tiny_zoo)[claim])
    other = server.source(changed(tiny_zoo, epoch=60))
    good = server.source(published(tiny_zoo))
    [(url, error)] = refusal(weights, other.url).tried
    assert url == other.url
    assert isinstance(error, IntegrityError)
    assert_holds(tiny_zoo, obtain(weights, other.url, good.url))


def test_trust_follows_from_the_manifest_and_the_side_file(
    tiny_zoo: TinyZoo, server: Server
) -> None:
    weights = tiny_zoo.weights
    before = weights.trust
    obtain(weights, server.source(published(tiny_zoo)).url)
    assert (before, weights.trust) == ("unverified", "pinned")
    for claim in ("sha256", "sha256_prefix"):
        known = replace(weights, **claims(tiny_zoo)[claim])
        assert known.trust == "verified"
        assert_holds(tiny_zoo, obtain(known))


def test_acquire_replaces_a_cached_file_that_the_manifest_contradicts(
    tiny_zoo: TinyZoo, server: Server
) -> None:
    obtain(tiny_zoo.weights, server.source(changed(tiny_zoo)).url)
    weights = replace(tiny_zoo.weights, **claims(tiny_zoo)["sha256"])
    assert_holds(tiny_zoo, obtain(weights, server.source(published(tiny_zoo)).url))


# Several processes and threads


@contextlib.contextmanager
def lockless(entry: CacheEntry) -> Iterator[None]:
    """Lock nothing, as some file systems do."""
    entry.folder.mkdir(parents=True, exist_ok=True)
    yield


def run_in_threads(count: int, act: Callable[[], object]) -> list[Exception]:
    """Call a function in several threads at once; return the errors."""
    errors: list[Exception] = []

    def one() -> None:
        try:
            act()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return errors


@pytest.mark.parametrize(("locks_work", "downloads"), [(True, 1), (False, 4)])
def test_acquire_many_times_at_once_stores_one_good_file(
    tiny_zoo: TinyZoo,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    locks_work: bool,
    downloads: int,
) -> None:
    """Locks of open files exclude threads as they exclude processes."""
    everybody = threading.Barrier(downloads)

    def delay() -> None:
        everybody.wait(60)
        time.sleep(0.1)  # the others reach the lock

    source = server.source(published(tiny_zoo), then=Answer(before=delay))
    if not locks_work:
        monkeypatch.setattr(CacheEntry, "lock", lockless)
    patient = Patience(timeout=60)
    weights = replace(tiny_zoo.weights, sources=(source.url,))
    assert run_in_threads(
        4, lambda: acquire.acquire(weights, progress=False, patience=patient)
    ) == []  # fmt: skip
    assert len(source.seen) == downloads
    assert_holds(tiny_zoo, weights.path())
    assert files(weights) == WHOLE


STOPPED = """
import sys
from dataclasses import replace
from pathlib import Path
from isanet_zoo.manifest import lookup
from isanet_zoo.weights.acquire import acquire
lookup.manifest_path = lambda: Path(sys.argv[1])
acquire(replace(lookup.get_weights("isanet_tiny"), sources=(sys.argv[2],)), progress=False)
"""


def test_acquire_after_a_killed_process_succeeds(tiny_zoo: TinyZoo, server: Server) -> None:
    source = server.source(published(tiny_zoo), Answer(cut=600_000, stall=True))
    folder = tiny_zoo.weights.path().parent
    arguments = [sys.executable, "-c", STOPPED, str(tiny_zoo.manifest), source.url]
    with subprocess.Popen(arguments) as process:
        try:
            wait_for(lambda: any(part.stat().st_size for part in folder.glob(".*.part")))
        finally:
            process.kill()
    assert not tiny_zoo.weights.path().exists()
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights, source.url))
    assert {name for name in files(tiny_zoo.weights) if not name.endswith(".part")} == WHOLE


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_acquire_in_two_threads_that_find_the_same_damage_succeeds(
    tiny_zoo: TinyZoo, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = server.source(published(tiny_zoo))
    obtain(tiny_zoo.weights, source.url).write_bytes(b"damaged")
    both = threading.Barrier(2)
    set_aside = CacheEntry.set_aside

    def at_once(entry: CacheEntry) -> Path:
        both.wait(10)
        return set_aside(entry)

    monkeypatch.setattr(CacheEntry, "lock", lockless)
    monkeypatch.setattr(CacheEntry, "set_aside", at_once)
    assert run_in_threads(2, lambda: obtain(tiny_zoo.weights, source.url)) == []
    assert_holds(tiny_zoo, tiny_zoo.weights.path())


# Cached files


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[CacheEntry], object]] = {
    "a flipped bit": lambda entry: flip(entry.model),
    "half a file": lambda entry: os.truncate(entry.model, entry.model.stat().st_size // 2),
    "no side file": lambda entry: entry.side.unlink(),
    "half a side file": lambda entry: os.truncate(entry.side, 40),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_acquire_sets_a_damaged_file_aside_and_downloads_again(
    tiny_zoo: TinyZoo, server: Server, damage: str
) -> None:
    source = server.source(published(tiny_zoo))
    path = obtain(tiny_zoo.weights, source.url)
    DAMAGES[damage](CacheEntry.of(tiny_zoo.weights.name))
    spoilt = path.read_bytes()
    assert obtain(tiny_zoo.weights, source.url) == path
    assert_holds(tiny_zoo, path)
    assert path.with_name("model.damaged").read_bytes() == spoilt
    assert len(source.seen) == 2


@pytest.mark.parametrize("damage", DAMAGES)
def test_create_model_offline_never_loads_a_damaged_file(
    tiny_zoo: TinyZoo, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    isanet_zoo.create_model("isanet_tiny", pretrained=True)
    monkeypatch.delenv("ISANET_ZOO_MIRROR")
    isanet_zoo.create_model("isanet_tiny", pretrained=True)
    DAMAGES[damage](CacheEntry.of("isanet_tiny"))
    for _ in range(2):
        with pytest.raises(OfflineError):
            isanet_zoo.create_model("isanet_tiny", pretrained=True)
    assert "model.safetensors" not in files(tiny_zoo.weights)
    assert "model.damaged" in files(tiny_zoo.weights)


def test_acquire_replaces_a_damaged_file_by_the_same_tensors_only(
    tiny_zoo: TinyZoo, server: Server
) -> None:
    source = server.source(published(tiny_zoo))
    flip(obtain(tiny_zoo.weights, source.url))
    other = server.source(changed(tiny_zoo))
    [(_, error)] = refusal(tiny_zoo.weights, other.url).tried
    assert isinstance(error, IntegrityError)
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights, other.url, source.url))


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}


def test_acquire_of_a_cached_file_needs_no_network_and_no_lock(
    tiny_zoo: TinyZoo, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = server.source(published(tiny_zoo))
    path = obtain(tiny_zoo.weights, source.url)
    before = times(path.parent)
    for name in ("socket", "create_connection"):
        monkeypatch.setattr(socket, name, lambda *_, **__: pytest.fail("a socket"))
    monkeypatch.setattr(CacheEntry, "lock", lambda entry: pytest.fail("a lock"))
    assert obtain(tiny_zoo.weights, source.url) == path
    assert times(path.parent) == before
    assert len(source.seen) == 1


@pytest.mark.parametrize("variable", ["ISANET_ZOO_OFFLINE", "HF_HUB_OFFLINE"])
def test_acquire_offline_raises_at_once_with_the_ways_out(
    tiny_zoo: TinyZoo, server: Server, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    source = server.source(published(tiny_zoo))
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("a connection"))
    start = time.monotonic()
    error = refusal(tiny_zoo.weights, source.url)
    assert time.monotonic() - start < 1.0
    assert isinstance(error, OfflineError)
    by_hand = str(tiny_zoo.weights.path().with_name(tiny_zoo.weights.filename))
    for way_out in ("Unset ISANET_ZOO_OFFLINE and HF_HUB_OFFLINE", by_hand, "ISANET_ZOO_MIRROR"):
        assert way_out in str(error)


def test_download_offline_uses_a_file_put_by_hand(tiny_zoo: TinyZoo) -> None:
    put_by_hand(tiny_zoo, published(tiny_zoo))
    assert_holds(tiny_zoo, acquire.download("isanet_tiny", progress=False))


def test_acquire_with_force_downloads_again(tiny_zoo: TinyZoo, server: Server) -> None:
    obtain(tiny_zoo.weights, server.source(changed(tiny_zoo)).url)
    source = server.source(published(tiny_zoo))
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights, source.url, force=True))
    assert len(source.seen) == 1
    assert files(tiny_zoo.weights) == WHOLE


def test_acquire_with_force_that_fails_keeps_the_cached_file(
    tiny_zoo: TinyZoo, server: Server
) -> None:
    obtain(tiny_zoo.weights, server.source(published(tiny_zoo)).url)
    gone = server.source(b"", then=Answer(status=404))
    with pytest.raises(DownloadError):
        obtain(tiny_zoo.weights, gone.url, force=True)
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights))


# Disks and permissions


@pytest.mark.parametrize("part", ["", "isanet_tiny"])
def test_acquire_into_a_cache_that_cannot_be_written_is_a_download_error(
    tiny_zoo: TinyZoo, server: Server, tmp_path: Path, part: str
) -> None:
    blocked = tmp_path / "cache" / part
    blocked.parent.mkdir(exist_ok=True)
    blocked.touch()
    source = server.source(published(tiny_zoo))
    assert "ISANET_ZOO_CACHE" in str(refusal(tiny_zoo.weights, source.url))
    assert source.seen == []


@pytest.mark.parametrize(
    "refuse",
    [OSError(errno.ENOSPC, "No space left"), safetensors.SafetensorError("No space left")],
    ids=["python", "safetensors"],
)
def test_acquire_on_a_disk_that_fills_while_converting_is_a_download_error(
    tiny_zoo: TinyZoo, server: Server, monkeypatch: pytest.MonkeyPatch, refuse: Exception
) -> None:
    def save_file(*_: object, **__: object) -> None:
        raise refuse

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)
    source, spare = (server.source(published(tiny_zoo)) for _ in range(2))
    assert "No space left" in str(refusal(tiny_zoo.weights, source.url, spare.url))
    assert (len(source.seen), len(spare.seen)) == (1, 0)
    assert files(tiny_zoo.weights) == set()


def deny(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Make a file unreadable, as permissions do for all users but root."""
    real = os.open

    def open_(name: Any, *arguments: Any, **options: Any) -> int:
        if str(name) == str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(name, *arguments, **options)

    monkeypatch.setattr(os, "open", open_)


@pytest.mark.parametrize("part", ["model", "side"])
def test_unreadable_cached_file_is_a_download_error_and_not_damage(
    tiny_zoo: TinyZoo, server: Server, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    source = server.source(published(tiny_zoo))
    path = obtain(tiny_zoo.weights, source.url)
    before = times(path.parent)
    deny(monkeypatch, getattr(CacheEntry.of("isanet_tiny"), part))
    for use in (
        lambda: obtain(tiny_zoo.weights, source.url),
        lambda: isanet_zoo.download("isanet_tiny"),
        lambda: isanet_zoo.create_model("isanet_tiny", pretrained=True),
    ):
        with pytest.raises(DownloadError, match=r"Permission denied.*ISANET_ZOO_CACHE"):
            use()
    assert tiny_zoo.weights.trust in ("pinned", "unverified")
    assert times(path.parent) == before
    assert len(source.seen) == 1


ANOTHER_USER = """
import os, sys
from pathlib import Path
import isanet_zoo.weights.acquire
from huggingface_hub.utils import WeakFileLock, tqdm  # while Python's folders can be read
from isanet_zoo.manifest import lookup
os.setgid(65534)
os.setuid(65534)
lookup.manifest_path = lambda: Path(sys.argv[1])
try:
    isanet_zoo.download("isanet_tiny", progress=False)
except isanet_zoo.ZooError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root")
@pytest.mark.parametrize("mode", ["0600 files", "0700 folder", "0555 folder"])
def test_download_from_the_cache_of_another_user_is_one_error(
    tiny_zoo: TinyZoo, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    with tempfile.TemporaryDirectory() as public:
        Path(public).chmod(0o755)
        cache, manifest = Path(public) / "cache", Path(public) / "manifest.json"
        shutil.copy(tiny_zoo.manifest, manifest)
        monkeypatch.setenv("ISANET_ZOO_CACHE", str(cache))
        monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
        path = acquire.download("isanet_tiny", progress=False)
        if mode == "0555 folder":
            path.unlink()
            path.with_name("model.json").unlink()
        for file in path.parent.iterdir():
            file.chmod(0o600)
        path.parent.chmod({"0700 folder": 0o700, "0555 folder": 0o555}.get(mode, 0o755))
        before = times(path.parent)
        arguments = [sys.executable, "-c", ANOTHER_USER, str(manifest)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert times(path.parent) == before
    assert done.stdout.startswith("DownloadError the cache folder")
    assert "Permission denied" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("chosen", "error"),
    [
        ("~nosuchuser/weights", InputError),
        ("/dev/null", DownloadError),
        ("/dev/null/cache", DownloadError),
        ("n" * 300, DownloadError),
        ("loop", DownloadError),
    ],
)
def test_unusable_cache_variable_is_one_error_at_once(
    tiny_zoo: TinyZoo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chosen: str,
    error: type[Exception],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    monkeypatch.setenv("ISANET_ZOO_CACHE", chosen)
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    for use in (isanet_zoo.download, lambda name: isanet_zoo.create_model(name, pretrained=True)):
        with pytest.raises(error):
            use("isanet_tiny")


@pytest.mark.parametrize(
    "mirror", ["http://[::1", "http://", "http:///x", "file://[", "ftp://x", "\udcff", "n" * 300]
)
def test_unusable_mirror_is_one_error(
    tiny_zoo: TinyZoo, server: Server, monkeypatch: pytest.MonkeyPatch, mirror: str
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", mirror)
    ((source, error),) = refusal(tiny_zoo.weights).tried
    assert source.startswith(mirror.rstrip("/"))
    assert type(error).__name__ == "SourceError"
    good = server.source(published(tiny_zoo))
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights, good.url))


@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "folder", "sparse"])
def test_special_file_in_a_mirror_is_one_error_at_once(
    tiny_zoo: TinyZoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mirror = tmp_path / kind
    mirror.mkdir()
    path = mirror / tiny_zoo.weights.filename
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(10**12)
    else:
        path.symlink_to(path if kind == "loop" else Path("/dev/zero"))
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(mirror))
    start = time.monotonic()
    ((source, _), *_) = refusal(tiny_zoo.weights).tried
    assert source == str(path)
    assert time.monotonic() - start < 1
    assert files(tiny_zoo.weights) == set()


# load_published


def count_reads(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[str]:
    """Record every opening of a file."""
    opened: list[str] = []
    real = os.open

    def open_(name: Any, *arguments: Any, **options: Any) -> int:
        if str(name) == str(path):
            opened.append(str(name))
        return real(name, *arguments, **options)

    monkeypatch.setattr(os, "open", open_)
    return opened


def test_load_published_reads_a_cached_file_once(
    tiny_zoo: TinyZoo, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = obtain(tiny_zoo.weights, server.source(published(tiny_zoo)).url)
    opened = count_reads(monkeypatch, path)
    checkpoint, found, trust = acquire.load_published(tiny_zoo.weights)
    assert (found, trust, len(opened)) == (path, "pinned", 1)
    expected = {SSSEG.ours(key): tensor for key, tensor in tiny_zoo.state.items()}
    assert all(torch.equal(checkpoint.state[key], expected[key]) for key in expected)
    assert checkpoint.network == tiny_zoo.weights.network


def test_load_published_reads_a_packaged_file_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = isanet_zoo.get_weights("isanet_efficientnet_lite0os8_camvid")
    opened = count_reads(monkeypatch, weights.path())
    assert acquire.load_published(weights)[1:] == (weights.packaged, "verified")
    assert len(opened) == 1


def test_load_published_downloads_on_first_use(
    tiny_zoo: TinyZoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISANET_ZOO_MIRROR", str(tiny_zoo.mirror))
    _, path, trust = acquire.load_published(tiny_zoo.weights, progress=False)
    assert trust == "unverified"
    assert_holds(tiny_zoo, path)
    assert tiny_zoo.weights.trust == "pinned"


def test_load_published_of_a_cache_of_version_0_1_0_needs_no_source(tiny_zoo: TinyZoo) -> None:
    """The files are written by hand here, as that version wrote them."""
    state = {SSSEG.ours(key): tensor for key, tensor in tiny_zoo.state.items()}
    path = tiny_zoo.weights.path()
    path.parent.mkdir(parents=True)
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    side = {
        "name": "isanet_tiny",
        "source": "https://weights.invalid/isanet_tiny.pth",
        "source_sha256": hashlib.sha256(published(tiny_zoo)).hexdigest(),
        "source_size": len(published(tiny_zoo)),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "size": path.stat().st_size,
        "state_digest": tensors.state_digest(state),
    }
    path.with_name("model.json").write_text(json.dumps(side, indent=2) + "\n", "utf-8")
    _, _, trust = acquire.load_published(tiny_zoo.weights)
    assert trust == "pinned"
    assert acquire.download("isanet_tiny") == path
    assert_holds(tiny_zoo, path)
    assert verify(tiny_zoo.weights) is None


def test_download_imports_no_torch_for_cached_and_offline_weights(tiny_zoo: TinyZoo) -> None:
    obtain(tiny_zoo.weights, str(tiny_zoo.published))
    code = """
import sys
from pathlib import Path
import isanet_zoo
from isanet_zoo.manifest import lookup
lookup.manifest_path = lambda: Path(sys.argv[1])
isanet_zoo.download("isanet_tiny")
try:
    isanet_zoo.download("isanet_tiny", force=True, progress=True)
except isanet_zoo.OfflineError:
    print(sorted({"torch", "timm", "numpy", "httpx", "httpx2"} & sys.modules.keys()))
"""
    arguments = [sys.executable, "-c", code, str(tiny_zoo.manifest)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# Progress


def test_acquire_draws_progress_on_stderr(
    tiny_zoo: TinyZoo, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    source = server.source(published(tiny_zoo), Answer(cut=600_000), Answer(status=416))
    weights = replace(tiny_zoo.weights, sources=(source.url,))
    assert_holds(tiny_zoo, acquire.acquire(weights, patience=HASTY))
    out, err = capsys.readouterr()
    assert out == ""
    assert "isanet_tiny.pth: 100%" in err


def test_acquire_without_progress_prints_nothing(
    tiny_zoo: TinyZoo, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    obtain(tiny_zoo.weights, server.source(published(tiny_zoo)).url)
    assert capfd.readouterr() == ("", "")
