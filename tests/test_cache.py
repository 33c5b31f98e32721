from __future__ import annotations

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


def test_a_placed_file_is_whole_and_alone(entry: CacheEntry) -> None:
    assert damage(entry) is None
    assert entry.model.read_bytes() == CONTENT
    assert names(entry) == {"model.safetensors", "model.json"}
    assert entry.record() == describe(entry.model)


def test_the_side_file_is_what_a_script_would_read(entry: CacheEntry) -> None:
    side = json.loads(entry.side.read_text("utf-8"))
    assert side["size"] == len(CONTENT)
    assert side["sha256"] == hashlib.sha256(CONTENT).hexdigest()


def test_files_are_as_readable_as_the_umask_says(entry: CacheEntry) -> None:
    plain = entry.folder / "plain"
    plain.touch()
    assert stat.S_IMODE(entry.model.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("position", [0, 1, len(CONTENT) // 2, len(CONTENT) - 1])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_found(entry: CacheEntry, position: int, bit: int) -> None:
    content = bytearray(CONTENT)
    content[position] ^= 1 << bit
    entry.model.write_bytes(content)
    assert "sha256" in (damage(entry) or "")


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"\0"])
def test_a_wrong_length_is_found(entry: CacheEntry, content: bytes) -> None:
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
    ],
    ids=["empty", "half", "a list", "another key", "another type", "no text"],
)
def test_a_broken_side_file_vouches_for_nothing(
    entry: CacheEntry, spoil: Callable[[str], str]
) -> None:
    entry.side.write_text(spoil(entry.side.read_text("utf-8")), "utf-8", "surrogateescape")
    assert entry.record() is None


def test_a_missing_side_file_vouches_for_nothing(entry: CacheEntry) -> None:
    entry.side.unlink()
    assert entry.record() is None


@pytest.mark.parametrize("survived", [0, 1])
def test_a_stop_while_placing_never_vouches_for_the_wrong_file(
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


def test_a_file_set_aside_is_no_longer_an_entry(entry: CacheEntry) -> None:
    assert cache.entries() == [entry]
    assert entry.set_aside() == entry.folder / "model.damaged"
    assert (entry.folder / "model.damaged").read_bytes() == CONTENT
    assert not entry.model.exists()
    assert cache.entries() == []


def test_entries_are_the_folders_with_a_model(entry: CacheEntry) -> None:
    another = CacheEntry.of("another")
    another.folder.mkdir()
    fill(another)
    CacheEntry.of("empty").folder.mkdir()
    (cache.cache_root() / "stray file").touch()
    assert cache.entries() == [another, entry]


def test_no_cache_has_no_entries() -> None:
    assert not cache.cache_root().exists()
    assert cache.entries() == []


def test_one_at_a_time_fills_an_entry(entry: CacheEntry) -> None:
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


def test_the_cache_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISANET_ZOO_CACHE", "~/weights")
    assert cache.cache_root() == Path.home() / "weights"


def test_the_cache_is_else_where_the_hub_keeps_assets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ISANET_ZOO_CACHE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    assert not cache.cache_root().exists()
    theirs = huggingface_hub.cached_assets_path(
        "isanet_zoo", "weights", "tiny", assets_dir=tmp_path / "assets"
    )
    assert CacheEntry.of("tiny").folder == theirs
