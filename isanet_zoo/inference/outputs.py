"""Result files of a folder run: their names, which of them exist, and which are to be written."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from isanet_zoo.errors import InputError, printable
from isanet_zoo.files import remove_leftovers
from isanet_zoo.weights.http import is_remote

PARTS = ("labels", "overlay", "confidence")  # of a result


@dataclass(frozen=True)
class Outputs:
    """What is written for each image.

    Attributes:
        folder: where.
        parts: some of `PARTS`; none for no files.
        raw: write labels as grey levels instead of a palette.
    """

    folder: Path
    parts: tuple[str, ...] = ("labels", "overlay")
    raw: bool = False

    def files(self, name: str) -> tuple[Path, ...]:
        """Return the result files of an image whose results have this name."""
        return tuple(self.folder / f"{name}.{part}.png" for part in self.parts)


def plan(named: Mapping[str, str]) -> dict[str, str]:
    """Return the name of each image's results: its relative path without the suffix.

    The suffix is kept where two images differ only in it. Names that differ only in case or Unicode
    form are one file on some systems, and count as equal.

    Args:
        named: paths or URLs of images, with their relative paths.

    Raises:
        InputError: two images would have the same results.
    """
    stems = Counter(_folded(_without_suffix(name)) for name in named.values())
    owners: dict[str, str] = {}
    planned = {}
    for source, name in named.items():
        stem = _without_suffix(name)
        planned[source] = stem if stems[_folded(stem)] == 1 else name
        if (other := owners.setdefault(_folded(planned[source]), source)) != source:
            raise InputError(
                f"{other} and {source} would have the same results; keep their folders with "
                "--recursive, or use two --out folders"
            )
    return planned


def pending(
    planned: Mapping[str, str], outputs: Outputs, *, resume: bool = False, overwrite: bool = False
) -> dict[str, str]:
    """Return the images that are to be segmented, with the names of their results.

    Files are written atomically, so that one that exists is complete.

    Args:
        planned: the images, from `plan`.
        outputs: what is written.
        resume: skip images whose files all exist.
        overwrite: replace existing files.

    Raises:
        InputError: there are results and neither option, or a result would replace an image.
    """
    _check_inputs(planned, outputs)
    if overwrite or not outputs.parts or not outputs.folder.is_dir():
        return dict(planned)
    found = {source: _count_existing(outputs.files(name)) for source, name in planned.items()}
    if resume:
        return {source: planned[source] for source, n in found.items() if n < len(outputs.parts)}
    if present := [source for source, number in found.items() if number]:
        raise InputError(
            f"{outputs.folder} has results of {len(present)} of these {len(planned)} images, such "
            f"as {printable(present[0])}; skip finished images with --resume, replace results "
            "with --overwrite, or choose another --out"
        )
    return dict(planned)


def make_folders(planned: Mapping[str, str], outputs: Outputs) -> None:
    """Create the folders of the results, and delete temporary files of killed processes.

    Raises:
        InputError: a folder cannot be created.
    """
    for folder in sorted({outputs.folder / PurePath(name).parent for name in planned.values()}):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"--out: {folder} cannot be a folder: {reason}") from error
        remove_leftovers(folder)


def _check_inputs(planned: Mapping[str, str], outputs: Outputs) -> None:
    """Raise InputError if a result would replace an image."""
    endings = tuple(f".{part}.png" for part in outputs.parts)
    similar = [
        source
        for source in planned
        if not is_remote(source) and _folded(source).endswith(endings or "/")
    ]
    inputs = {identity for source in similar if (identity := _identity(Path(source)))}
    for source, name in planned.items() if inputs else ():
        for target in outputs.files(name):
            if _identity(target) in inputs:
                raise InputError(
                    f"{target}, a result of {source}, would replace an image; choose another --out"
                )


def _count_existing(files: tuple[Path, ...]) -> int:
    return sum(map(os.path.lexists, files))


def _without_suffix(name: str) -> str:
    return name.removesuffix(PurePath(name).suffix)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of an existing file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
