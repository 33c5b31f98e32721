from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from isanet_zoo import files
from isanet_zoo.errors import InputError

LONG_NAME = "n" * 300


def make_loop(folder: Path) -> Path:
    """Return a symbolic link that leads to itself."""
    loop = folder / "loop"
    loop.symlink_to(loop)
    return loop


def make_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


NOT_FILES: dict[str, Callable[[Path], Path]] = {
    "missing": lambda folder: folder / "missing",
    "folder": lambda folder: folder,
    "pipe": make_pipe,
    "device": lambda folder: Path("/dev/zero"),
    "loop": make_loop,
    "long name": lambda folder: folder / LONG_NAME,
    "null byte": lambda folder: folder / "a\0b",
    "surrogate": lambda folder: folder / "a\ud800b",
    "inside a file": lambda folder: Path(__file__) / "inside",
}


@pytest.mark.parametrize("kind", NOT_FILES)
def test_open_regular_of_anything_else_raises_at_once(tmp_path: Path, kind: str) -> None:
    start = time.monotonic()
    with pytest.raises(OSError, match=r"\[Errno \d+\] .*'"):
        files.open_regular(NOT_FILES[kind](tmp_path))
    assert time.monotonic() - start < 1


def test_open_regular_closes_the_descriptor_of_a_pipe_that_took_a_file_s_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    status, pipe = file.stat(), make_pipe(tmp_path)
    closed: list[int] = []
    monkeypatch.setattr(Path, "stat", lambda path: status)
    monkeypatch.setattr(os, "close", closed.append)
    with pytest.raises(OSError, match="not a regular file"):
        files.open_regular(pipe)
    monkeypatch.undo()
    (descriptor,) = closed
    os.close(descriptor)


def test_open_regular_does_not_open_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening some devices has an effect."""
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
    with pytest.raises(OSError, match="not a regular file"):
        files.open_regular("/dev/zero")


def test_open_regular_reads_files_and_links_to_files(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"content")
    link.symlink_to(file)
    for path in (file, link, str(link)):
        with files.open_regular(path) as opened:
            assert opened.read() == b"content"


def test_expand_user_replaces_the_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.expand_user("~/a") == tmp_path / "a"
    assert files.expand_user(Path("a/~")) == Path("a/~")


def test_expand_user_of_an_unknown_user_is_an_input_error() -> None:
    with pytest.raises(InputError, match="~nosuchuser/weights"):
        files.expand_user("~nosuchuser/weights")


# check_target


def test_check_target_of_a_new_name_creates_nothing(tmp_path: Path) -> None:
    files.check_target(tmp_path / "new.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("folder", "it is a folder"),
        ("pipe", "not a regular file"),
        ("device", "not a regular file"),
        ("loop", os.strerror(errno.ELOOP)),
        ("long name", os.strerror(errno.ENAMETOOLONG)),
        ("null byte", "embedded null"),
        ("inside a file", "is not a folder"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_check_target_that_cannot_be_written_is_an_input_error(
    tmp_path: Path, kind: str, message: str, force: bool
) -> None:
    with pytest.raises(InputError, match=f"cannot be written: .*{message}"):
        files.check_target(NOT_FILES[kind](tmp_path), force=force)


def test_check_target_in_a_missing_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing is not a folder"):
        files.check_target(tmp_path / "missing" / "a.csv")


def test_check_target_without_permission_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=f"no permission to write to {tmp_path}"):
        files.check_target(tmp_path / "a.csv")


def test_check_target_in_an_unreadable_folder_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> os.stat_result:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(InputError, match=os.strerror(errno.EACCES)):
        files.check_target(tmp_path / "a.csv")


def test_check_target_keeps_files_of_others_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("mine")
    for is_ours in (None, lambda path: False):
        with pytest.raises(InputError, match=r"--force \(in Python: force=True\)"):
            files.check_target(path, is_ours=is_ours)
    files.check_target(path, is_ours=lambda path: True)
    files.check_target(path, force=True)
    assert path.read_text() == "mine"


def test_check_target_takes_a_broken_link_for_an_existing_file(tmp_path: Path) -> None:
    link = tmp_path / "a.csv"
    link.symlink_to(tmp_path / "missing")
    with pytest.raises(InputError, match="exists"):
        files.check_target(link)


@given(st.text(max_size=400))
def test_check_target_of_any_name_in_a_missing_folder_is_one_line(name: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n\x1b]*$"):
        files.check_target(Path(f"/nonexistent-isanet-zoo/folder/{name}"))


# Atomic writes


def test_atomic_write_replaces_the_file_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")
    with files.atomic_write(path) as temporary:
        assert temporary.name.endswith(".png.part")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_that_fails_keeps_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("old")

    def fail() -> None:
        with files.atomic_write(path) as temporary:
            temporary.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_supports_the_longest_names(tmp_path: Path) -> None:
    for name in ("n" * 251 + ".png", "a." + "s" * 250):
        with files.atomic_write(tmp_path / name) as temporary:
            temporary.write_text("content")
        assert (tmp_path / name).read_text() == "content"


def test_atomic_write_gives_the_permissions_of_the_umask(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    with files.atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("content")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_temporary_file_is_deleted_on_any_exit(tmp_path: Path) -> None:
    def interrupted() -> None:
        with files.temporary_file(tmp_path, ".x") as path:
            assert list(tmp_path.iterdir()) == [path]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_replace_syncs_the_bytes_before_the_name_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "final"
    existed = []
    monkeypatch.setattr(os, "fsync", lambda _: existed.append(final.exists()))
    with files.temporary_file(tmp_path, ".x") as temporary:
        temporary.write_bytes(b"content")
        files.replace(temporary, final)
    assert existed == [False]
    assert final.read_bytes() == b"content"


def test_remove_leftovers_deletes_only_old_files_of_ours(tmp_path: Path) -> None:
    with files.temporary_file(tmp_path, ".download") as path:
        ours = path.name
    old, young = tmp_path / ours, tmp_path / ours.replace(".download", ".json")
    others = [tmp_path / name for name in (".hidden.part", "movie.part", ".isanet_zoo-notes")]
    for file in (old, young, *others):
        file.touch()
    long_ago = time.time() - files.LEFTOVER_AGE - 60
    for file in (old, *others):
        os.utime(file, (long_ago, long_ago))
    files.remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {young, *others}


# Contents


def test_hash_file_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000  # several blocks
    (tmp_path / "file").write_bytes(content)
    assert files.hash_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"<!DOCTYPE html>\n<html>", "an HTML page"),
        (b"\xef\xbb\xbf\r\n <HTML><p>no", "an HTML page"),
        (b'<?xml version="1.0"?><Error>', "an XML document"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "a git-lfs pointer"),
        (b"", "an empty file"),
    ],
)
def test_foreign_content_is_recognised(head: bytes, kind: str) -> None:
    assert files.foreign_content(head) == kind


@pytest.mark.parametrize(
    "head", [b"PK\x03\x04", b"\x80\x02}q\x00", b"\x80\x02\x8a\nl\xfc", b'\x08\0\0\0\0\0\0\0{"a"']
)
def test_checkpoints_are_not_foreign_content(head: bytes) -> None:
    assert files.foreign_content(head) is None


@pytest.mark.skipif(not hasattr(os, "setuid") or os.getuid() != 0, reason="needs root")
def test_files_of_another_user_are_permission_errors_and_input_errors(tmp_path: Path) -> None:
    """In a process of another user, as permissions do not bind root."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (private / "file").touch(mode=0o600)
    script = """
import os, sys
from pathlib import Path
from isanet_zoo import files
from isanet_zoo.errors import InputError
os.setgid(65534); os.setuid(65534)
for path in (Path(sys.argv[1]) / "file", Path(sys.argv[1]) / "new"):
    try:
        files.open_regular(path)
    except PermissionError:
        print("PermissionError")
    try:
        files.check_target(path)
    except InputError as error:
        print("InputError")
"""
    arguments = [sys.executable, "-c", script, str(private)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["PermissionError", "InputError"] * 2
