"""Regular files: safe opening, atomic writes, hashes, recognition of HTML pages and pointers."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from isanet_zoo.errors import InputError

HEAD = 512  # bytes that tell a checkpoint from a web page


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, in binary mode and without waiting.

    Raises:
        OSError: the path does not exist, cannot be opened, cannot be a path at all, or is a folder,
            pipe, socket or device.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)  # a FIFO without a writer would block otherwise
    except ValueError as error:  # an embedded null byte
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return os.fdopen(descriptor, "rb")


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return a path with ``~`` replaced by the home folder.

    Raises:
        InputError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{os.fspath(path)}: {error}") from error


def check_target(
    path: Path, *, is_ours: Callable[[Path], bool] | None = None, force: bool = False
) -> None:
    """Check that a file can be written, before the work that makes its content.

    Args:
        path: the file to write. It is not created.
        is_ours: return True for a file that isanet_zoo wrote, which may be replaced.
        force: replace any file.

    Raises:
        InputError: the folder is missing or not writable, `path` is a folder, or another file with
            this name exists.
    """
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{path} cannot be written: {folder} is not a folder")
    if path.is_dir():
        raise InputError(f"{path} cannot be written: it is a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: no permission to write to {folder}")
    if os.path.lexists(path) and not force and not (is_ours and is_ours(path)):
        raise InputError(
            f"{path} exists and was not written by isanet_zoo; use another name, or force to "
            "replace it"
        )


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`, which replaces `path` when the block succeeds.

    If the block raises, `path` stays as it was and the temporary file is deleted.
    """
    with temporary_file(path.parent, path.suffix) as temporary:
        yield temporary
        replace(temporary, path)


@contextlib.contextmanager
def temporary_file(folder: Path, suffix: str) -> Iterator[Path]:
    """Create a temporary file in `folder`; it is deleted on exit unless renamed."""
    path = folder / f".{uuid.uuid4().hex}{suffix}.part"
    path.touch(exist_ok=False)  # not `mkstemp`, whose files only their owner may read
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def replace(temporary: Path, final: Path) -> None:
    """Sync `temporary` to disk, then rename it to `final`."""
    with temporary.open("rb") as file:
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
