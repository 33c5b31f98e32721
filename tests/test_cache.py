from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest

from isanet_zoo import cache, files
from isanet_zoo.cache import CacheEntry, SideFile
from isanet_zoo.errors import DownloadError, InputError, OfflineError, SourceError
from isanet_zoo.manifest.lookup import list_models

CONTENT = bytes(range(256)) * 40


def describe(model: Path) -> SideFile:
    return SideFile(
        name="tiny",
        source="here",
        source_sha256="0" * 64,
        source_size=1,
        sha256=files.hash_file(model),
        size=model.stat().st_size,
        state_digest="1" * 64,
    )


def fill(entry: CacheEntry, content: bytes = CONTENT) -> None:
    with files.temporary_file(entry.folder, ".safetensors") as model:
        model.write_bytes(content)
        entry.place(model, describe(model))


def damage(entry: CacheEntry) -> str | None:
    """Compare the model file with the side file."""
    record = entry.record()
    assert record is not None
    return record.compare(entry.model.stat().st_size, files.hash_file(entry.model))


@pytest.fixture
def entry() -> CacheEntry:
    """An entry with a file in it."""
    entry = CacheEntry.of("tiny")
    entry.folder.mkdir(parents=True)
    fill(entry)
    return entry


def names(entry: CacheEntry) -> set[str]:
    return {path.name for path in entry.folder.iterdir()}


def test_place_stores_the_file_and_its_record_alone(entry: CacheEntry) -> None:
    assert damage(entry) is None
    assert entry.model.read_bytes() == CONTENT
    assert names(entry) == {"model.safetensors", "model.json"}
    assert entry.record() == describe(entry.model)


def test_side_file_is_json_with_size_and_hash(entry: CacheEntry) -> None:
    side = json.loads(entry.side.read_text("utf-8"))
    assert side["size"] == len(CONTENT)
    assert side["sha256"] == hashlib.sha256(CONTENT).hexdigest()


def test_place_gives_files_the_permissions_of_the_umask(entry: CacheEntry) -> None:
    plain = entry.folder / "plain"
    plain.touch()
    assert stat.S_IMODE(entry.model.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("position", [0, 1, len(CONTENT) // 2, len(CONTENT) - 1])
@pytest.mark.parametrize("bit", [0, 7])
def test_compare_finds_a_flipped_bit(entry: CacheEntry, position: int, bit: int) -> None:
    content = bytearray(CONTENT)
    content[position] ^= 1 << bit
    entry.model.write_bytes(content)
    assert "sha256" in (damage(entry) or "")


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"\0"])
def test_compare_finds_a_wrong_size(entry: CacheEntry, content: bytes) -> None:
    entry.model.write_bytes(content)
    assert f"{len(content)} bytes" in (damage(entry) or "")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"sha256"', '"sha1"'),
        lambda text: text.replace('"size": ', '"size": "many", "was": '),
        lambda text: "\udcff",
        lambda text: "[" * 100_000,
        lambda text: " " * cache.SIDE_LIMIT + text,
    ],
    ids=["empty", "half", "list", "other key", "other type", "not text", "deep", "long"],
)
def test_record_of_a_damaged_side_file_is_none(
    entry: CacheEntry, spoil: Callable[[str], str]
) -> None:
    entry.side.write_text(spoil(entry.side.read_text("utf-8")), "utf-8", "surrogateescape")
    assert entry.record() is None


def test_record_of_a_missing_side_file_is_none(entry: CacheEntry) -> None:
    entry.side.unlink()
    assert entry.record() is None


@pytest.mark.parametrize("survived", [0, 1])
def test_place_that_is_interrupted_never_records_the_wrong_file(
    entry: CacheEntry, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    moves = 0

    def replace_until_stopped(temporary: Path, final: Path) -> None:
        nonlocal moves
        if moves == survived:
            raise KeyboardInterrupt
        moves += 1
        temporary.replace(final)

    monkeypatch.setattr(cache, "replace_file", replace_until_stopped)
    monkeypatch.setattr(files, "replace", replace_until_stopped)
    with pytest.raises(KeyboardInterrupt):
        fill(entry, b"a new file")
    assert (damage(entry) is None) == (entry.model.read_bytes() == CONTENT)
    assert not list(entry.folder.glob("*.part"))


def test_set_aside_removes_the_file_from_the_entries(entry: CacheEntry) -> None:
    assert cache.entries() == [entry]
    assert entry.set_aside() == entry.folder / "model.damaged"
    assert (entry.folder / "model.damaged").read_bytes() == CONTENT
    assert not entry.model.exists()
    assert cache.entries() == []


def test_entries_are_the_folders_with_a_model_file(entry: CacheEntry) -> None:
    another = CacheEntry.of("another")
    another.folder.mkdir()
    fill(another)
    CacheEntry.of("empty").folder.mkdir()
    (cache.cache_root() / "stray file").touch()
    assert cache.entries() == [another, entry]


def test_entries_of_a_missing_cache_are_none() -> None:
    assert not cache.cache_root().exists()
    assert cache.entries() == []


def test_lock_admits_one_thread_at_a_time(entry: CacheEntry) -> None:
    inside, most = 0, 0

    def visit() -> None:
        nonlocal inside, most
        for _ in range(5):
            with entry.lock():
                inside += 1
                most = max(most, inside)
                threading.Event().wait(0.001)
                inside -= 1

    threads = [threading.Thread(target=visit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_lock_removes_old_leftovers(entry: CacheEntry) -> None:
    with files.temporary_file(entry.folder, ".download") as path:
        old = path
    old.touch()
    long_ago = time.time() - files.LEFTOVER_AGE - 60
    os.utime(old, (long_ago, long_ago))
    with entry.lock():
        assert not old.exists()


def test_cache_root_is_the_folder_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISANET_ZOO_CACHE", "~/weights")
    assert cache.cache_root() == Path.home() / "weights"


def test_cache_root_without_the_variable_is_the_hub_s_folder_for_assets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ISANET_ZOO_CACHE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    assert not cache.cache_root().exists()
    theirs = huggingface_hub.cached_assets_path(
        "isanet_zoo", "weights", "tiny", assets_dir=tmp_path / "assets"
    )
    assert CacheEntry.of("tiny").folder == theirs


def test_cache_root_of_an_unknown_user_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISANET_ZOO_CACHE", "~nosuchuser/weights")
    with pytest.raises(InputError, match="~nosuchuser/weights"):
        cache.cache_root()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/a", "a\\b", ".hidden", "a\n", "a\0", "é", "n" * 300]
)
def test_entry_of_a_name_that_could_leave_the_cache_is_an_input_error(name: str) -> None:
    with pytest.raises(InputError, match="is not a name of weights"):
        CacheEntry.of(name)


def test_entry_of_every_published_name_is_in_the_cache() -> None:
    for name in list_models():
        assert CacheEntry.of(name).folder.parent == cache.cache_root()


def test_record_that_cannot_be_read_is_an_os_error(
    entry: CacheEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(cache, "open_regular", deny)
    with pytest.raises(PermissionError):
        entry.record()


def test_usable_cache_converts_os_errors_but_not_ours() -> None:
    def fail(error: Exception) -> None:
        with cache.usable_cache():
            raise error

    with pytest.raises(DownloadError, match=r"cannot be used .*No space.*ISANET_ZOO_CACHE"):
        fail(OSError(errno.ENOSPC, "No space left on device"))
    for error in (OfflineError("offline"), SourceError("no"), InputError("no"), KeyError("no")):
        with pytest.raises(type(error), match=r"no|offline"):
            fail(error)


# Removal


def test_remove_deletes_the_files_of_an_entry_and_its_folder(entry: CacheEntry) -> None:
    entry.set_aside()
    fill(entry)
    with entry.lock():
        pass
    assert entry.remove() == []
    assert not entry.folder.exists()
    assert cache.cache_root().exists()


def test_remove_keeps_files_of_others(entry: CacheEntry) -> None:
    by_hand, part = entry.folder / "published.pth", entry.folder / ".movie.part"
    by_hand.write_bytes(b"downloaded for hours")
    part.touch()
    assert entry.remove() == [part, by_hand]
    assert names(entry) == {by_hand.name, part.name}


def test_remove_keeps_a_model_file_without_a_side_file(entry: CacheEntry) -> None:
    entry.side.unlink()
    assert entry.remove() == [entry.model]
    assert entry.model.read_bytes() == CONTENT


# Waiting for another process


def test_lock_that_is_held_is_announced_once(
    entry: CacheEntry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "QUIET_WAIT", 0.1)
    entered = threading.Event()

    def wait() -> None:
        with entry.lock():
            entered.set()

    waiting = threading.Thread(target=wait)
    with entry.lock():
        waiting.start()
        assert not entered.wait(0.4)
        (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(entry.folder / ".lock") in record.getMessage()
    assert entered.wait(10)
    waiting.join()
    assert len(caplog.records) == 1


def test_lock_that_is_free_is_silent(entry: CacheEntry, caplog: pytest.LogCaptureFixture) -> None:
    with entry.lock():
        pass
    assert caplog.records == []
