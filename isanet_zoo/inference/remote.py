"""Images from http(s) URLs, downloaded with bounds on size and time."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from isanet_zoo.errors import InputError, ZooError, printable
from isanet_zoo.imaging.reading import ImageLike, LoadedImage, read_image
from isanet_zoo.weights.fetch import transfer
from isanet_zoo.weights.http import Patience, is_remote, without_password
from isanet_zoo.weights.sources import check_online

LARGEST = 1 << 27  # bytes of an image file
PATIENCE = Patience(tries=3, timeout=20.0, window=30.0, slowest=1 << 15)


def read_any(image: ImageLike) -> LoadedImage:
    """Read an image as `read_image` does, or from an http(s) URL.

    Raises:
        InputError: it cannot be downloaded or read, has more than `LARGEST` bytes, or offline mode
            is on.
    """
    if not (isinstance(image, str) and is_remote(image)):
        return read_image(image)
    url = without_password(image)
    try:
        check_online(image)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "image")
            transfer(image, path, limit=LARGEST, patience=PATIENCE, kind="an image")
            content = io.BytesIO(path.read_bytes())
    except ZooError as error:
        raise InputError(f"{printable(url, 1000)}: {error}") from error
    content.name = url  # for the messages of `read_image`
    return read_image(content)
