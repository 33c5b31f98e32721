"""Inputs of a folder run: images, folders, URLs, and lists of images and URLs."""

from __future__ import annotations

import os
import re
import stat
import urllib.parse
from collections.abc import Iterable
from pathlib import Path, PurePath

from isanet_zoo.errors import InputError, printable
from isanet_zoo.files import is_same_file, open_regular
from isanet_zoo.imaging.formats import find_files, refuse_video
from isanet_zoo.imaging.reading import is_single
from isanet_zoo.weights.http import is_remote

MOST_NAMED = 5  # missing files in an error message
UNSAFE = re.compile(r'[\\/:*?"<>|\x00-\x1f]')  # characters that not every file name can have


def find_inputs(
    arguments: Iterable[str], *, stdin: Iterable[bytes] = (), recursive: bool, out: Path
) -> dict[str, str]:
    """Return the path or URL of each image, once, with the relative path that names its results.

    Args:
        arguments: paths of images and folders; http(s) URLs; text files (``.txt``) that contain a
            path or URL per line; ``"-"`` for `stdin`.
        stdin: lines of such a list.
        recursive: search the folders below a folder, too, and keep in the names the folders below
            it, all folders of other paths, and hosts and folders of URLs.
        out: the folder of the results, which is not searched.

    Raises:
        InputError: a path is empty, a folder or list has no images, or a folder is `out`.
    """
    named: dict[str, str] = {}
    for argument in arguments:
        if argument and argument != "-" and not is_remote(argument) and not is_single(argument):
            named |= _list_folder(Path(argument), recursive, out)
            continue
        for source in _expand(argument, stdin):
            if not source:
                raise InputError("a path is empty; pass an image or a folder")
            source = source if is_remote(source) else str(Path(source))
            named.setdefault(source, _name(source, recursive))
    return named


def _expand(argument: str, stdin: Iterable[bytes]) -> Iterable[str]:
    """Return the paths and URLs of a list, or the path or URL itself."""
    if argument == "-":
        found = _lines(stdin)
    elif argument.lower().endswith(".txt") and not is_remote(argument):
        try:
            with open_regular(argument) as file:
                found = _lines(file)
        except OSError as error:
            raise InputError(f"{argument} cannot be read: {error.strerror}") from error
    else:
        return [argument]
    if not found:
        raise InputError(f"{argument} is empty; write one path or URL per line")
    return found


def _lines(lines: Iterable[bytes]) -> list[str]:
    """Return the lines that are not empty."""
    return [os.fsdecode(text) for line in lines if (text := line.rstrip(b"\r\n"))]


def _list_folder(folder: Path, recursive: bool, out: Path) -> dict[str, str]:
    """Return the images of a folder, with their paths relative to it."""
    if is_same_file(folder, out):
        raise InputError(f"{out} is the folder of the images; choose another one with --out")
    files = find_files(folder, recursive=recursive, skip=out)
    start = len(os.path.join(folder, ""))  # noqa: PTH118 - with a final separator
    return {file: file[start:].replace(os.sep, "/") for file in files}


def _name(source: str, keep_folders: bool) -> str:
    """Return the relative path that names the results of a path or URL."""
    if is_remote(source):
        try:
            url = urllib.parse.urlsplit(source)
            host = url.hostname or ""
        except ValueError as error:
            raise InputError(f"{source} is not a URL: {error}") from error
        query = f"?{url.query}" if url.query else ""
        path = [host, *urllib.parse.unquote(url.path).split("/")]
        path[-1] += query
        parts = [UNSAFE.sub("_", part) for part in path]
    else:
        pure = PurePath(source)
        parts = list(pure.parts[1:] if pure.anchor else pure.parts)
    parts = [part for part in parts if part not in ("", ".", "..")] or ["image"]
    return "/".join(parts if keep_folders else parts[-1:])


def check_files(sources: Iterable[str]) -> None:
    """Check that the files among paths and URLs exist and are no folders or videos.

    Raises:
        InputError: they do not; the message names the first ones.
    """
    missing = []
    for source in sources:
        if is_remote(source):
            continue
        refuse_video(source)
        try:
            mode = Path(source).stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            missing.append(source)
        except (OSError, ValueError):  # such as a name too long; reading it reports the error
            continue
        else:
            if stat.S_ISDIR(mode):
                raise InputError(f"{source} is a folder; pass it as an argument, not in a list")
    if missing:
        shown = "".join(f"\n  {printable(source)}" for source in missing[:MOST_NAMED])
        more = f"\n  and {rest} more" if (rest := len(missing) - MOST_NAMED) > 0 else ""
        raise InputError(f"{len(missing)} of the images do not exist:{shown}{more}")
