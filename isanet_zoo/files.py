"""Regular files: safe opening, atomic writes, hashes, recognition of HTML pages and pointers."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from isanet_zoo.errors import InputError, printable

HEAD = 512  # bytes that distinguish a checkpoint from a web page
PART_PREFIX = ".isanet_zoo-"  # of the names of temporary files
LEFTOVER_AGE = 24 * 3600  # seconds after which a temporary file belongs to no running process
LONGEST_SUFFIX = 16  # of a temporary file; a longer one could exceed the limit for names


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, in binary mode and without waiting.

    Raises:
        OSError: the path does not exist, cannot be opened, cannot be a path at all, or is a folder,
            pipe, socket or device.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        _check_regular(Path(path).stat(), path)  # before: opening a device may have an effect
        descriptor = os.open(path, flags)  # a FIFO without a writer would block otherwise
    except ValueError as error:  # a null byte, or characters that no file name has
        raise OSError(errno.EINVAL, "not a file name", os.fspath(path)) from error
    try:
        _check_regular(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))


def is_same_file(first: Path, second: Path) -> bool:
    """Return True if both paths lead to one existing file, through links or another case, too."""
    try:
        return first.samefile(second)
    except (OSError, ValueError):
        return False


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return a path with ``~`` replaced by the home folder.

    Raises:
        InputError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{printable(path, 1000)}: {error}") from error


def to_path(value: object, name: str) -> Path:
    """Return an argument of this name as a path.

    Raises:
        InputError: it is none, or empty.
    """
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise InputError(f"{name} is {value!r}; it must be a path")
    return Path(value)


def check_target(
    path: Path, *, is_ours: Callable[[Path], bool] | None = None, force: bool = False
) -> None:
    """Check that a file can be written, before the work that makes its content.

    Args:
        path: the file to write. It is not created.
        is_ours: return True for a file that isanet_zoo wrote, which may be replaced.
        force: replace any regular file.

    Raises:
        InputError: the folder is missing or not writable, `path` is a folder or device, its name is
            too long, or another file with this name exists.
    """
    name = printable(path, 1000)
    if obstacle := _obstacle(path):
        raise InputError(f"{name} cannot be written: {obstacle}")
    if os.path.lexists(path) and not force and not (is_ours and is_ours(path)):
        raise InputError(
            f"{name} exists and was not written by isanet_zoo; choose another name, or replace it "
            "with --force (in Python: force=True)"
        )


def _obstacle(path: Path) -> str | None:
    """Return what prevents a file from being written, or None."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            return "it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file"
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # no permission, a name too long, a null byte
        return getattr(error, "strerror", None) or str(error)
    folder = path.parent
    if not folder.is_dir():
        return f"{printable(folder, 1000)} is not a folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"no permission to write to {printable(folder, 1000)}"
    return None


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`, which replaces `path` when the block succeeds.

    If the block raises, `path` stays as it was and the temporary file is deleted.
    """
    suffix = path.suffix if len(path.suffix) <= LONGEST_SUFFIX else ""
    with temporary_file(path.parent, suffix) as temporary:
        yield temporary
        replace(temporary, path)


@contextlib.contextmanager
def temporary_file(folder: Path, suffix: str) -> Iterator[Path]:
    """Create a temporary file in `folder`; it is deleted on exit unless renamed."""
    path = folder / f"{PART_PREFIX}{uuid.uuid4().hex}{suffix}.part"
    path.touch(exist_ok=False)  # not `mkstemp`, whose files only their owner may read
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, *, age: float = LEFTOVER_AGE) -> None:
    """Delete temporary files of killed processes; no other file is touched.

    Args:
        folder: the folder, not those below it.
        age: seconds since the last change; younger files may be in use by a running process.
    """
    for leftover in folder.glob(f"{PART_PREFIX}*.part"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.lstat().st_mtime > age:
                leftover.unlink()


def replace(temporary: Path, final: Path) -> None:
    """Sync `temporary` to disk, then rename it to `final`."""
    with temporary.open("r+b") as file:  # Windows syncs only files that are open for writing
        os.fsync(file.fileno())
    temporary.replace(final)


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def foreign_content(head: bytes) -> str | None:
    """Return what a file is that cannot be a checkpoint, from its first bytes; else None."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "an empty file"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if text.startswith(b"<?xml"):
        return "an XML document"
    if text.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a git-lfs pointer"
    return None
