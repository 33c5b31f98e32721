"""From pictures in files to results in files beside each other."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from isanet_zoo.errors import InputError
from isanet_zoo.imaging.formats import list_folder
from isanet_zoo.imaging.reading import LoadedImage, read_image
from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.inference.predictor import Predictor
from isanet_zoo.inference.threads import in_order


@dataclass(frozen=True)
class Result:
    """What became of one picture: its files, or the error that it ended in."""

    path: Path
    segmentation: Segmentation | None = None
    files: tuple[Path, ...] = ()
    error: InputError | None = None


def plan(sources: Iterable[Path], out: Path) -> dict[Path, Path]:
    """Return every picture of some files and folders, once, with a stem for its results in `out`.

    Pictures of one name keep what tells them apart.

    Raises:
        InputError: two results would get one name, or would lie among the pictures of a folder.
    """
    pictures: dict[Path, None] = {}
    for source in sources:
        if source.is_dir() and source.resolve() == out.resolve():
            raise InputError(
                f"{out} is the folder of the pictures; name another one for the results"
            )
        pictures |= dict.fromkeys(list_folder(source) if source.is_dir() else [source])
    stems = Counter(picture.stem for picture in pictures)
    names = {
        picture: picture.stem if stems[picture.stem] == 1 else picture.name for picture in pictures
    }
    name, count = Counter(names.values()).most_common(1)[0]
    if count > 1:
        raise InputError(f"several pictures are called {name}; segment one folder at a time")
    return {picture: out / name for picture, name in names.items()}


def segment_files(predictor: Predictor, stems: dict[Path, Path]) -> Iterator[Result]:
    """Segment pictures and write an index PNG, an overlay and, if it is known, the confidence.

    Pictures are read ahead of the network and results written behind it, both in threads.

    Args:
        predictor: what segments.
        stems: each picture's path, and the path of its results less ``.labels.png`` and the like.

    Raises:
        InputError: a result cannot be written. (A picture that cannot be read is a `Result`.)
    """
    waiting: deque[LoadedImage | Result] = deque()  # read, but not yet segmented; or unreadable

    def readable() -> Iterator[LoadedImage]:
        for item in in_order(_read, stems):
            waiting.append(item)
            if isinstance(item, LoadedImage):
                yield item

    def segmented() -> Iterator[tuple[LoadedImage, Segmentation] | Result]:
        for segmentation in predictor.stream(readable()):
            while isinstance(item := waiting.popleft(), Result):
                yield item
            yield item, segmentation
        yield from (item for item in waiting if isinstance(item, Result))

    def finish(item: tuple[LoadedImage, Segmentation] | Result) -> Result:
        if isinstance(item, Result):
            return item
        picture, segmentation = item
        assert picture.path is not None
        files = _write(segmentation, picture, stems[picture.path])
        return Result(picture.path, segmentation, files)

    return in_order(finish, segmented())


def _read(path: Path) -> LoadedImage | Result:
    try:
        return read_image(path)
    except InputError as error:
        return Result(path, error=error)


def _write(segmentation: Segmentation, picture: LoadedImage, stem: Path) -> tuple[Path, ...]:
    parts = {"labels": segmentation.to_image(), "overlay": segmentation.overlay(picture)}
    if segmentation.confidence is not None:
        levels = (255 * segmentation.confidence).round().astype("uint8")
        parts["confidence"] = Image.fromarray(levels)
    files = tuple(stem.with_name(f"{stem.name}.{part}.png") for part in parts)
    for file, image in zip(files, parts.values(), strict=True):
        try:
            image.save(file)
        except OSError as error:
            raise InputError(f"{file} cannot be written: {error}") from error
    return files
