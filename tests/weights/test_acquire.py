from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import multiprocessing
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

import isanet_zoo
from isanet_zoo.cache import CacheEntry
from isanet_zoo.errors import DownloadError, IntegrityError, OfflineError
from isanet_zoo.manifest.weights import Weights
from isanet_zoo.weights import acquire, tensors
from isanet_zoo.weights.http import Patience
from isanet_zoo.weights.layouts import SSSEG
from tests.conftest import TinyZoo
from tests.weights.server import HTML, LFS_POINTER, Answer, Server, closed_url, running

HASTY = Patience(tries=4, backoff=0.001, timeout=0.5, longest_wait=0.01)
WHOLE = {"model.safetensors", "model.json"}

PASSING: dict[str, list[Answer]] = {
    "cut": [Answer(cut=600_000)],
    "cut before the first byte": [Answer(cut=0)],
    "cut three times": [Answer(cut=300_000)] * 3,
    "cut, ranges ignored": [Answer(cut=600_000), Answer(ranges=False)],
    "cut, another part": [Answer(cut=600_000), Answer(headers={"Content-Range": "bytes 5-9/10"})],
    "cut, 416": [Answer(cut=600_000), Answer(status=416)],
    "stall": [Answer(cut=600_000, stall=True)],
    "silence": [Answer(cut=0, stall=True)],
    "chunked": [Answer(chunked=True)],
    "chunked, cut": [Answer(cut=600_000, chunked=True)],
    "429": [Answer(status=429)],
    "429, with a pause": [Answer(status=429, headers={"Retry-After": "9"})],
    "500": [Answer(status=500)],
    "503": [Answer(status=503)],
}

LASTING: dict[str, Answer] = {
    "cut": Answer(cut=1000, ranges=False),
    "a lie about the length": Answer(cut=600_000, lie=True),
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


def obtain(weights: Weights, *sources: str, force: bool = False) -> Path:
    weights = replace(weights, sources=sources)
    return acquire.acquire(weights, force=force, progress=False, patience=HASTY)


def refusal(weights: Weights, *sources: str) -> DownloadError:
    with pytest.raises(DownloadError) as caught:
        obtain(weights, *sources)
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
    """Check that the cache has the published tensors and knows the file they came in."""
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
def test_a_passing_fault_ends_with_the_published_weights(
    tiny_zoo: TinyZoo, server: Server, fault: str
) -> None:
    source = server.source(published(tiny_zoo), *PASSING[fault])
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights, source.url))
    assert files(tiny_zoo.weights) == WHOLE


def test_a_file_that_changes_meanwhile_is_fetched_anew(tiny_zoo: TinyZoo, server: Server) -> None:
    publish = Answer(publish=published(tiny_zoo))
    source = server.source(changed(tiny_zoo), Answer(cut=600_000), publish)
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights, source.url))


@pytest.mark.parametrize("fault", LASTING)
def test_a_lasting_fault_leads_to_the_next_source(
    tiny_zoo: TinyZoo, server: Server, fault: str
) -> None:
    bad = server.source(published(tiny_zoo), then=LASTING[fault])
    good = server.source(published(tiny_zoo))
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights, bad.url, good.url))
    assert bad.seen
    assert files(tiny_zoo.weights) == WHOLE


def test_when_all_sources_fail_one_error_says_everything(
    tiny_zoo: TinyZoo, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = server.source(published(tiny_zoo), then=Answer(status=404))
    monkeypatch.setenv("ISANET_ZOO_MIRROR", mirror.mirror)
    bad = [server.source(published(tiny_zoo), then=answer).url for answer in LASTING.values()]
    error = refusal(tiny_zoo.weights, *bad, closed_url())
    assert [url for url, _ in error.tried] == [mirror.url, *bad, error.tried[-1][0]]
    assert all(f"{url}: {reason}" in str(error) for url, reason in error.tried)
    assert str(tiny_zoo.weights.path().with_name(tiny_zoo.weights.filename)) in str(error)
    assert files(tiny_zoo.weights) == set()


def without_auxiliary_head(zoo: TinyZoo) -> dict[str, torch.Tensor]:
    return {
        key: tensor for key, tensor in zoo.state.items() if not key.startswith("auxiliary_decoder.")
    }


def on_many_disks(file: bytes) -> bytes:
    """Let a zip say that it is one of several."""
    start = file.rindex(b"PK\x06\x07")  # the locator; its last number counts the disks
    return file[: start + 16] + (2).to_bytes(4, "little") + file[start + 20 :]


class Bomb:
    """What a hostile pickle would run."""

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
        "a malicious pickle in a zip",
        "a malicious pickle",
        "a missing tensor",
        "nan",
        "no auxiliary head",
        "a number as a key",
        "a sparse tensor",
        "a tensor without data",
        "a truncated zip",
        "a part of a zip",
        "a stump",
        "a page",
        "rubbish",
    ],
)
def test_refused_content_leads_to_the_next_source(
    tiny_zoo: TinyZoo, server: Server, spoil: Callable[[TinyZoo], bytes]
) -> None:
    bad, good = server.source(spoil(tiny_zoo)), server.source(published(tiny_zoo))
    assert [url for url, _ in refusal(tiny_zoo.weights, bad.url).tried] == [bad.url]
    assert files(tiny_zoo.weights) == set()
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights, bad.url, good.url))
    assert files(tiny_zoo.weights) == WHOLE
    assert not (tiny_zoo.mirror / "crater").exists()


@pytest.mark.parametrize("form", ["{folder}", "{uri}", "{http}", "/nowhere, {http}", "{bad},{uri}"])
def test_a_mirror_is_asked_before_the_publisher(
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


def put_by_hand(zoo: TinyZoo, content: bytes) -> Path:
    path = zoo.weights.path().with_name(zoo.weights.filename)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_file_put_by_hand_comes_first_and_is_kept(
    tiny_zoo: TinyZoo, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher, mirror = (server.source(changed(tiny_zoo)) for _ in range(2))
    monkeypatch.setenv("ISANET_ZOO_MIRROR", mirror.mirror)
    by_hand = put_by_hand(tiny_zoo, published(tiny_zoo))
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights, publisher.url))
    assert publisher.seen == mirror.seen == []
    assert by_hand.read_bytes() == published(tiny_zoo)


def test_a_bad_file_put_by_hand_is_passed_over_and_kept(tiny_zoo: TinyZoo, server: Server) -> None:
    by_hand = put_by_hand(tiny_zoo, HTML)
    assert str(by_hand) in str(refusal(tiny_zoo.weights))
    publisher = server.source(published(tiny_zoo))
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights, publisher.url))
    assert by_hand.read_bytes() == HTML


def claims(zoo: TinyZoo) -> dict[str, Mapping[str, Any]]:
    """What the manifest may say of the published file."""
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
def test_what_the_manifest_knows_decides_between_copies(
    tiny_zoo: TinyZoo, server: Server, claim: str
) -> None:
    weights = replace(tiny_zoo.weights, **claims(tiny_zoo)[claim])
    other = server.source(changed(tiny_zoo, epoch=60))
    good = server.source(published(tiny_zoo))
    [(url, error)] = refusal(weights, other.url).tried
    assert url == other.url
    assert isinstance(error, IntegrityError)
    assert_holds(tiny_zoo, obtain(weights, other.url, good.url))


def test_trust_grows_with_what_is_known(tiny_zoo: TinyZoo, server: Server) -> None:
    weights = tiny_zoo.weights
    before = weights.trust
    obtain(weights, server.source(published(tiny_zoo)).url)
    assert (before, weights.trust) == ("unverified", "pinned")
    for claim in ("sha256", "sha256_prefix"):
        known = replace(weights, **claims(tiny_zoo)[claim])
        assert known.trust == "verified"
        assert_holds(tiny_zoo, obtain(known))


def test_a_cached_file_that_the_manifest_contradicts_is_fetched_again(
    tiny_zoo: TinyZoo, server: Server
) -> None:
    obtain(tiny_zoo.weights, server.source(changed(tiny_zoo)).url)
    weights = replace(tiny_zoo.weights, **claims(tiny_zoo)["sha256"])
    assert_holds(tiny_zoo, obtain(weights, server.source(published(tiny_zoo)).url))


# --- many at once


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Gives processes that have torch imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def obtain_in_a_process(
    weights: Weights, environment: dict[str, str], locks_work: bool = True
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    if not locks_work:
        setattr(CacheEntry, "lock", lockless)  # noqa: B010
    assert acquire.acquire(weights, progress=False).is_file()


@contextlib.contextmanager
def lockless(entry: CacheEntry) -> Iterator[None]:
    """A lock of a file system on which locks do nothing."""
    entry.folder.mkdir(parents=True, exist_ok=True)
    yield


@pytest.mark.parametrize(("locks_work", "downloads"), [(True, 1), (False, 8)])
def test_eight_processes_end_with_one_good_file(
    tiny_zoo: TinyZoo,
    server: Server,
    processes: ForkServerContext,
    locks_work: bool,
    downloads: int,
) -> None:
    everybody = threading.Barrier(downloads)

    def delay() -> None:
        everybody.wait(60)
        time.sleep(0.5)  # for the others to come to the lock

    source = server.source(published(tiny_zoo), then=Answer(before=delay))
    weights = replace(tiny_zoo.weights, sources=(source.url,))
    arguments = (weights, dict(os.environ), locks_work)
    started = [
        processes.Process(target=obtain_in_a_process, args=arguments, daemon=True) for _ in range(8)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0] * 8
    assert len(source.seen) == downloads
    assert_holds(tiny_zoo, weights.path())
    assert files(weights) == WHOLE


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_transfer_harms_closed_url(
    tiny_zoo: TinyZoo, server: Server, processes: ForkServerContext
) -> None:
    source = server.source(published(tiny_zoo), Answer(cut=600_000, stall=True))
    weights = replace(tiny_zoo.weights, sources=(source.url,))
    folder = weights.path().parent
    process = processes.Process(target=obtain_in_a_process, args=(weights, dict(os.environ)))
    process.start()
    try:
        wait_for(lambda: any(part.stat().st_size for part in folder.glob("*.part")))
    finally:
        process.kill()
        process.join()
    assert not weights.path().exists()
    assert_holds(tiny_zoo, obtain(weights, source.url))
    assert {name for name in files(weights) if not name.endswith(".part")} == WHOLE


def test_two_that_find_the_same_damage_both_get_the_file(
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
    errors: list[Exception] = []

    def one() -> None:
        try:
            obtain(tiny_zoo.weights, source.url)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert_holds(tiny_zoo, tiny_zoo.weights.path())


# --- what is cached already


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
def test_a_damaged_file_is_set_aside_and_fetched_again(
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
def test_a_damaged_file_is_never_loaded_offline(
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


def test_a_damaged_file_is_replaced_by_the_same_tensors_only(
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


def test_what_is_cached_needs_no_network_and_no_lock(
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
def test_offline_is_said_at_once_with_the_ways_out(
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


def test_offline_a_file_put_by_hand_is_a_way_out(tiny_zoo: TinyZoo) -> None:
    put_by_hand(tiny_zoo, published(tiny_zoo))
    assert_holds(tiny_zoo, acquire.download("isanet_tiny", progress=False))


def test_force_fetches_again(tiny_zoo: TinyZoo, server: Server) -> None:
    obtain(tiny_zoo.weights, server.source(changed(tiny_zoo)).url)
    source = server.source(published(tiny_zoo))
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights, source.url, force=True))
    assert len(source.seen) == 1
    assert files(tiny_zoo.weights) == WHOLE


def test_force_that_fails_leaves_the_cached_file(tiny_zoo: TinyZoo, server: Server) -> None:
    obtain(tiny_zoo.weights, server.source(published(tiny_zoo)).url)
    gone = server.source(b"", then=Answer(status=404))
    with pytest.raises(DownloadError):
        obtain(tiny_zoo.weights, gone.url, force=True)
    assert_holds(tiny_zoo, obtain(tiny_zoo.weights))


# --- a disk that does not take it


@pytest.mark.parametrize("part", ["", "isanet_tiny"])
def test_a_cache_that_cannot_be_written_is_one_clear_error(
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
def test_a_disk_that_fills_while_converting_is_said_at_once(
    tiny_zoo: TinyZoo, server: Server, monkeypatch: pytest.MonkeyPatch, refuse: Exception
) -> None:
    def save_file(*_: object, **__: object) -> None:
        raise refuse

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)
    source, spare = (server.source(published(tiny_zoo)) for _ in range(2))
    assert "No space left" in str(refusal(tiny_zoo.weights, source.url, spare.url))
    assert (len(source.seen), len(spare.seen)) == (1, 0)
    assert files(tiny_zoo.weights) == set()


# --- on the way


def test_progress_goes_to_stderr(
    tiny_zoo: TinyZoo, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    source = server.source(published(tiny_zoo), Answer(cut=600_000), Answer(status=416))
    weights = replace(tiny_zoo.weights, sources=(source.url,))
    assert_holds(tiny_zoo, acquire.acquire(weights, patience=HASTY))
    out, err = capsys.readouterr()
    assert out == ""
    assert "isanet_tiny.pth: 100%" in err


def test_a_quiet_download_says_nothing(
    tiny_zoo: TinyZoo, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    obtain(tiny_zoo.weights, server.source(published(tiny_zoo)).url)
    assert capfd.readouterr() == ("", "")
