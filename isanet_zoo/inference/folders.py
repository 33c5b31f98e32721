"""Folder runs: images in, files of label maps, overlays and confidence out."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from isanet_zoo.errors import InputError, printable
from isanet_zoo.files import check_target
from isanet_zoo.imaging.reading import LoadedImage
from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.imaging.writing import is_marked, write_image
from isanet_zoo.inference.outputs import Outputs
from isanet_zoo.inference.predictor import Predictor
from isanet_zoo.inference.threads import in_order


@dataclass(frozen=True)
class Result:
    """The files written for one image, a path or URL, or the error that prevented them."""

    source: str
    segmentation: Segmentation | None = None
    files: tuple[Path, ...] = ()
    error: InputError | None = None


Read: TypeAlias = tuple[str, LoadedImage]  # an image with its source


def segment_files(
    predictor: Predictor, planned: Mapping[str, str], outputs: Outputs
) -> Iterator[Result]:
    """Segment images and write the results of each, over those of earlier runs.

    Images are read ahead of the network, and results written behind it, in threads. An image that
    cannot be read or a result that cannot be written is a `Result` with an error.

    Args:
        predictor: the network and its options.
        planned: images with the names of their results, from `plan`.
        outputs: what is written. Files that isanet_zoo did not write are not replaced.
    """
    failed: list[Result] = []
    read = in_order(functools.partial(_read, predictor, outputs), planned.items())
    segmented = predictor._stream(_readable(read, failed))
    write = functools.partial(_write, planned, outputs)
    for result in in_order(write, segmented, early=True):
        while failed:
            yield failed.pop(0)
        yield result
    yield from failed


def _read(predictor: Predictor, outputs: Outputs, item: tuple[str, str]) -> Read | Result:
    """Read an image, unless its results cannot be written."""
    source, name = item
    try:
        for target in outputs.files(name):
            _check_target(target)
        return source, predictor._read(source)
    except InputError as error:
        return Result(source, error=error)


def _check_target(target: Path) -> None:
    if os.path.lexists(target) and not is_marked(target):
        raise InputError(
            f"{printable(target, 1000)} exists and was not written by isanet_zoo; move it, or "
            "choose another --out"
        )
    check_target(target, force=True)


def _readable(
    items: Iterable[Read | Result], failed: list[Result]
) -> Iterator[tuple[Read, LoadedImage]]:
    """Yield each image with itself and its source as its key; append errors to `failed`."""
    for item in items:
        if isinstance(item, Result):
            failed.append(item)
        else:
            yield item, item[1]


def _write(planned: Mapping[str, str], outputs: Outputs, item: tuple[Read, Segmentation]) -> Result:
    """Write the files of one result."""
    (source, image), segmentation = item
    files = outputs.files(planned[source])
    try:
        for part, file in zip(outputs.parts, files, strict=True):
            write_image(_draw(part, image, segmentation, outputs.raw), file)
    except InputError as error:
        return Result(source, error=error)
    return Result(source, segmentation, files)


def _draw(part: str, image: LoadedImage, segmentation: Segmentation, raw: bool) -> Image.Image:
    """Return one part of a result."""
    if part == "overlay":
        return segmentation.overlay(image)
    if part == "confidence":
        assert segmentation.confidence is not None
        return Image.fromarray((255 * segmentation.confidence).round().astype("uint8"))
    return Image.fromarray(segmentation.labels) if raw else segmentation.to_image()
