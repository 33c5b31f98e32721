"""Image files: supported formats, checked opening, folders."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, NoReturn, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PHOTOMETRIC_INTERPRETATION,
    SAMPLEFORMAT,
    SAMPLESPERPIXEL,
    ImageFileDirectory_v2,
)

from isanet_zoo.errors import InputError, printable
from isanet_zoo.files import HEAD, foreign_content, open_regular

FORMATS = {  # Pillow's name -> suffixes
    "AVIF": (".avif", ".avifs"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"),
    "JPEG2000": (".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx"),
    "PNG": (".apng", ".png"),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
BYTES_PER_PIXEL = 16  # of a file, beyond SPARE_BYTES; also bounds it by Pillow's bound on pixels
SPARE_BYTES = 1 << 24  # for metadata
MOST_SCANS = 100  # of a JPEG; each takes time for the whole image, even if it is a few bytes
MOST_TAGS = 500  # of a TIFF; Pillow prints a warning for each one that is damaged
START_OF_SCAN = b"\xff\xda"
URL = re.compile(r"[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)

FileLike: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]
logger = logging.getLogger(__name__)


def list_folder(folder: Path) -> list[Path]:
    """Return the image files in a folder, by name; see `find_files`."""
    return [Path(name) for name in find_files(folder)]


def find_files(folder: Path, *, recursive: bool = False, skip: Path | None = None) -> list[str]:
    """Return the paths of the image files in a folder, sorted; log how many others it contains.

    Names that start with a dot are ignored, such as macOS's ``._a.png``.

    Args:
        folder: where to look.
        recursive: look in the folders below it, too; links to folders are not followed.
        skip: a folder below it that is not searched.

    Raises:
        InputError: there are no image files, or a folder cannot be read.
    """
    images: list[str] = []
    entries, subfolders, example = 0, 0, ""
    for parent, folders, names in os.walk(folder, onerror=_refuse_folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = sorted(name for name in names if not name.startswith("."))
        images += [
            os.path.join(parent, name)  # noqa: PTH118 - a `Path` takes ten times the memory
            for name in names
            if Path(name).suffix.lower() in SUFFIXES
        ]
        entries += len(names)
        example = example or next(iter(sorted(names + folders)), "")
        if not recursive:
            subfolders = len(folders)
            break
        if skip and skip.exists():
            folders[:] = [name for name in folders if not Path(parent, name).samefile(skip)]
    others = f"{entries - len(images)} other files are skipped"
    others += "" if recursive else f", {subfolders} subfolders are not searched"
    if not images:
        found = f", such as {example}" if example else ""
        suffixes = ", ".join(sorted(SUFFIXES))
        raise InputError(f"{folder} contains no images; {others}{found}; looked for {suffixes}")
    if len(images) < entries or subfolders:
        logger.warning("%s: %d images; %s", printable(folder), len(images), others)
    return images


def _refuse_folder(error: OSError) -> NoReturn:
    raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error


def stem_key(path: Path) -> str:
    """Return a file's name without suffix in Unicode's NFC, to match names of any system."""
    return unicodedata.normalize("NFC", path.stem)


@contextlib.contextmanager
def open_image(source: FileLike) -> Iterator[tuple[Image.Image, str]]:
    """Yield an image, not yet decoded, and its name for error messages.

    Its format is one of `FORMATS`, and its size within ``PIL.Image.MAX_IMAGE_PIXELS``.

    Args:
        source: a path, the bytes of an image file, or a file opened in binary mode.

    Raises:
        InputError: it cannot be opened, or decoding it in the block fails.
    """
    name = _name(source)
    if isinstance(source, (str, os.PathLike)):
        refuse_video(os.fsdecode(source))
    with translated_errors(name), _stream(source, name) as stream:
        size, most = stream.seek(0, os.SEEK_END), Image.MAX_IMAGE_PIXELS
        if size == 0:
            raise InputError(f"{name} is an empty file; fetch or copy it again")
        if most and size > most * BYTES_PER_PIXEL:
            raise Image.DecompressionBombError(f"{size} bytes")
        if (tags := _count_tiff_tags(stream)) > MOST_TAGS:
            raise InputError(f"{name} has {tags} TIFF tags, more than {MOST_TAGS}; save it anew")
        Image.init()
        try:
            image = Image.open(stream, formats=[kind for kind in FORMATS if kind in Image.OPEN])
        except UnidentifiedImageError as error:
            raise InputError(f"{name} is {_content(stream)}") from error
        # Pillow itself only warns up to twice its bound.
        if most and image.width * image.height > most:
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
        if size > SPARE_BYTES + BYTES_PER_PIXEL * image.width * image.height:
            raise InputError(
                f"{name} has {size} bytes for {image.width} x {image.height} pixels; save it anew"
            )
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise InputError(
                f"{name} holds several images; save the one to use as a file, or pass it as a PIL "
                "image after image.seek(number)"
            )
        if image.format in ("JPEG", "MPO"):
            stream.seek(0)
            if (scans := stream.read().count(START_OF_SCAN)) > MOST_SCANS:
                raise InputError(f"{name} has {scans} scans, more than {MOST_SCANS}; save it anew")
        yield image, name


def refuse_video(path: str) -> None:
    """Raise InputError, which shows how to read the frames, for the name of a video file."""
    if Path(path).suffix.lower() in VIDEOS:
        raise InputError(
            f"{printable(path)} is a video; predict its frames, such as with PyAV:\n"
            f"    frames = av.open({path!r}).decode(video=0)  # pip install av\n"
            '    predictor = isanet_zoo.Predictor("isanet_efficientnet_lite0os8_camvid")\n'
            "    results = predictor.stream(frame.to_image() for frame in frames)\n"
            "or write a video of the overlays with examples/video.py"
        )


def _count_tiff_tags(stream: IO[bytes]) -> int:
    """Return the number of tags in the first directory of a TIFF; 0 for other files."""
    stream.seek(0)
    head = stream.read(16)
    order: Literal["little", "big"] = "little" if head.startswith(b"II") else "big"
    version = int.from_bytes(head[2:4], order)
    if head[:2] not in (b"II", b"MM") or version not in (42, 43):
        stream.seek(0)
        return 0
    position, width = (head[4:8], 2) if version == 42 else (head[8:16], 8)  # 43: BigTIFF
    stream.seek(min(int.from_bytes(position, order), stream.seek(0, os.SEEK_END)))
    tags = int.from_bytes(stream.read(width), order)
    stream.seek(0)
    return tags


def upright(image: Image.Image) -> Image.Image:
    """Return the image, decoded and with its EXIF orientation applied; broken EXIF is ignored."""
    image.load()  # a PNG may have its EXIF behind the pixels
    with contextlib.suppress(Exception):
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = image.copy()
            ImageOps.exif_transpose(image, in_place=True)
    return image


def check_depth(image: Image.Image, name: str) -> None:
    """Check that an image that is not yet decoded has 8 bits per channel.

    Raises:
        InputError: it has more, even where Pillow would drop them, or values that are no levels.
    """
    tags: Any = getattr(image, "tag_v2", {})  # of a TIFF
    tiles: Iterable[Any] = getattr(image, "tile", ())
    packing = " ".join(str(tile[3]) for tile in tiles).replace("BGR;16", "")  # 5, 6 and 5 bits
    most = re.search(r"'RGB', (\d+)", packing)  # the largest value of a PPM
    if image.mode == "F" or np.max(tags.get(SAMPLEFORMAT, 1)) in (2, 3):
        raise InputError(
            f"{name} has signed or floating-point values; scale them to 0..255 and save them as "
            "uint8 first"
        )
    if (
        ";16" in packing
        or (most and int(most[1]) > 255)
        or image.mode.startswith("I")
        or np.max(tags.get(BITSPERSAMPLE, 8)) > 8
    ):
        raise InputError(
            f"{name} has more than 8 bits per channel; convert it first, "
            "for 16 bits: (x / 257).round().astype('uint8')"
        )


@contextlib.contextmanager
def translated_errors(name: str) -> Iterator[None]:
    """Convert the errors of Pillow and of the system within the block to `InputError`."""
    try:
        yield
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{name} is too large ({error}); make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS "
            "if you trust it"
        ) from error
    except Exception as error:  # the bytes of a damaged image can make a decoder raise anything
        reason = str(error) or type(error).__name__
        raise InputError(f"{name} is damaged or cannot be read: {reason}") from error


def _name(source: FileLike) -> str:
    """Return the name of an image file for error messages."""
    if isinstance(source, (str, os.PathLike)):
        return printable(os.fsdecode(source)) or "'' (an empty path)"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{type(source).__name__} (the content of a file, not its path)"
    return f"open file {printable(getattr(source, 'name', type(source).__name__))}"


def _stream(source: FileLike, name: str) -> BinaryIO:
    """Open a file; read an open one from its start to its end."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        try:
            return open_regular(path)
        except OSError as error:
            reason = f" cannot be read: {error.strerror}"
            if URL.match(path):
                reason = (
                    " is a URL; download the image first (predict downloads from http and https)"
                )
            elif not path or isinstance(error, FileNotFoundError):
                reason = ": there is no such file"
            elif isinstance(error, IsADirectoryError):
                reason = " is a folder; pass it alone, not among images"
            raise InputError(name + reason) from error
    if isinstance(source, io.TextIOBase):
        raise InputError(f"{name} is opened as text; use open(path, 'rb')")
    with contextlib.suppress(AttributeError, OSError):  # such as of a pipe
        source.seek(0)
    most = Image.MAX_IMAGE_PIXELS
    return io.BytesIO(source.read(most * BYTES_PER_PIXEL + 1 if most else -1))


def _content(stream: BinaryIO) -> str:
    """Return what a file contains that Pillow cannot open, and the way out."""
    stream.seek(0)
    head = stream.read(HEAD)
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        with contextlib.suppress(Exception):  # of a damaged one
            return _tiff_content(stream, head[: 16 if b"+" in head[:4] else 8])
    kind = foreign_content(head)
    if kind is None and re.search(rb"[\0-\x08]", head):
        kind = "damaged or of another format"
    return f"{kind or 'not an image file'}; supported are {', '.join(FORMATS)}"


def _tiff_content(stream: BinaryIO, header: bytes) -> str:
    tags = ImageFileDirectory_v2(header)
    stream.seek(tags.next)
    tags.load(stream)
    kind = {1: "unsigned", 2: "signed", 3: "floating-point"}[int(np.max(tags.get(SAMPLEFORMAT, 1)))]
    colours = {0: "miniswhite", 1: "minisblack", 2: "rgb"}.get(tags[PHOTOMETRIC_INTERPRETATION], "")
    return (
        f"a TIFF of {tags.get(SAMPLESPERPIXEL, 1)} bands of {np.max(tags[BITSPERSAMPLE])}-bit "
        f"{kind} values ({colours or 'other colours'}); save it as grey or RGB of 8 bits per band"
    )
