"""Folder runs: image files in, files of label maps and overlays out."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from isanet_zoo.errors import InputError
from isanet_zoo.files import check_target
from isanet_zoo.imaging.reading import LoadedImage
from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.imaging.writing import is_marked, write_image
from isanet_zoo.inference.predictor import Predictor
from isanet_zoo.inference.threads import in_order


@dataclass(frozen=True)
class Result:
    """The files written for one image, or the error that prevented them."""

    path: Path
    segmentation: Segmentation | None = None
    files: tuple[Path, ...] = ()
    error: InputError | None = None


def segment_files(
    predictor: Predictor, planned: dict[Path, tuple[Path, ...]], *, force: bool = False
) -> Iterator[Result]:
    """Segment images and write an index PNG, an overlay and, if requested, the confidence of each.

    Images are read ahead of the network, and results written behind it, in threads. An image that
    cannot be read or a result that cannot be written is a `Result` with an error.

    Args:
        predictor: the network and its options.
        planned: images and their result files, from `plan`.
        force: replace files that isanet_zoo did not write, too.
    """
    failed: list[Result] = []
    read = in_order(functools.partial(_read, predictor, force), planned.items())
    segmented = predictor._stream(_readable(read, failed))
    for result in in_order(functools.partial(_write, planned), segmented):
        while failed:
            yield failed.pop(0)
        yield result
    yield from failed


def _read(
    predictor: Predictor, force: bool, item: tuple[Path, tuple[Path, ...]]
) -> LoadedImage | Result:
    """Read an image, unless its results cannot be written."""
    path, targets = item
    try:
        for target in targets[: 3 if predictor.confidence else 2]:
            check_target(target, is_ours=is_marked, force=force)
        return predictor._read(path)
    except InputError as error:
        return Result(path, error=error)


def _readable(
    items: Iterable[LoadedImage | Result], failed: list[Result]
) -> Iterator[tuple[LoadedImage, LoadedImage]]:
    """Yield each image as its own key; append errors to `failed`."""
    for item in items:
        if isinstance(item, Result):
            failed.append(item)
        else:
            yield item, item


def _write(planned: dict[Path, tuple[Path, ...]], item: tuple[LoadedImage, Segmentation]) -> Result:
    image, segmentation = item
    assert image.path is not None
    parts = [segmentation.to_image(), segmentation.overlay(image)]
    if segmentation.confidence is not None:
        parts.append(Image.fromarray((255 * segmentation.confidence).round().astype("uint8")))
    files = planned[image.path][: len(parts)]
    try:
        for part, file in zip(parts, files, strict=True):
            write_image(part, file)
    except InputError as error:
        return Result(image.path, error=error)
    return Result(image.path, segmentation, files)
