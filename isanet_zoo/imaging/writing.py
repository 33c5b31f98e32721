"""Image files that isanet_zoo writes: atomically, with a mark that tells them from others."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, PngImagePlugin

from isanet_zoo.errors import InputError, printable
from isanet_zoo.files import atomic_write
from isanet_zoo.imaging.formats import open_image

LOSSLESS = {".bmp": "BMP", ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF"}  # suffix -> format
MARK = "isanet-zoo"  # the PNG text `Software`


def write_image(image: Image.Image, path: Path) -> None:
    """Write an image in the lossless format of the suffix; an existing file is replaced at once.

    Raises:
        InputError: the format is not lossless, or the file cannot be written; an existing one is
            unchanged.
    """
    name, kind = printable(path, 1000), LOSSLESS.get(path.suffix.lower())
    if kind is None:
        raise InputError(
            f"{name}: {path.suffix or 'a name without suffix'} would not keep class ids; use one "
            f"of {', '.join(sorted(LOSSLESS))}"
        )
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", MARK)
    options = {"pnginfo": text} if kind == "PNG" else {}
    try:
        with atomic_write(path) as temporary:
            image.save(temporary, kind, **options)
    except (OSError, ValueError) as error:  # no space, no permission, no file name
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{name} cannot be written: {reason}") from error


def is_marked(path: Path) -> bool:
    """Return True for a PNG that `write_image` wrote."""
    try:
        with open_image(path) as (image, _):
            return image.format == "PNG" and image.info.get("Software") == MARK
    except InputError:
        return False
