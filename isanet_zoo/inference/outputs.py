"""Names of the result files of a folder run."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from isanet_zoo.errors import InputError
from isanet_zoo.imaging.formats import list_folder
from isanet_zoo.imaging.reading import is_single
from isanet_zoo.imaging.writing import is_same_file

PARTS = ("labels", "overlay", "confidence")  # of a result; the last one if requested


def plan(sources: Iterable[str], out: Path) -> dict[Path, tuple[Path, ...]]:
    """Return each image of some files and folders, once, with the files of its `PARTS` in `out`.

    Their names have the image's suffix where two images have one stem. Names that differ only in
    case or Unicode form are one file on some systems, and count as equal.

    Raises:
        InputError: a path is empty, a folder has no images or is `out`, two images would have the
            same results, or a result would replace an image.
    """
    images: dict[Path, None] = {}
    for source in sources:
        if not source:
            raise InputError("a path is empty; pass an image or a folder")
        if is_same_file(Path(source), out):
            raise InputError(f"{out} is the folder of the images; choose another one with --out")
        images |= dict.fromkeys([Path(source)] if is_single(source) else list_folder(Path(source)))
    stems = Counter(_folded(image.stem) for image in images)
    inputs = {_identity(image) for image in images} - {None}
    named: dict[str, Path] = {}
    planned = {}
    for image in images:
        name = image.stem if stems[_folded(image.stem)] == 1 else image.name
        if (other := named.setdefault(_folded(name), image)) != image:
            raise InputError(f"{other} and {image} would have the same results; use two folders")
        planned[image] = tuple(out / f"{name}.{part}.png" for part in PARTS)
        for target in planned[image]:
            if _identity(target) in inputs:
                raise InputError(
                    f"{target}, a result of {image}, would replace an image; choose another --out"
                )
    return planned


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of an existing file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
