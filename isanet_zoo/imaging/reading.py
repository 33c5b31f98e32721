"""Pictures in: whatever a user has becomes (3, H, W) uint8 RGB, or one clear error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from isanet_zoo.errors import InputError, printable

TURNS = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """A picture that has been read.

    Attributes:
        pixels: (3, H, W) uint8, RGB, upright.
        path: the file that it came from, if any.
    """

    pixels: Tensor
    path: Path | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.pixels.shape[-2:]
        return height, width


ImageLike: TypeAlias = (
    str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor | LoadedImage
)


def is_single(images: object) -> bool:
    """Say whether `images` is one picture; a folder or another iterable is several."""
    if isinstance(images, (str, os.PathLike)):
        with contextlib.suppress(OSError):  # a name that the system does not take is no folder
            return not Path(images).is_dir()
        return True
    return isinstance(images, (Image.Image, np.ndarray, Tensor, LoadedImage))


def find_images(images: Iterable[ImageLike] | ImageLike) -> Iterable[ImageLike]:
    """Return several pictures one by one; for a folder, those in it, by name.

    Raises:
        InputError: a folder without pictures, or something that is no collection of pictures.
    """
    if is_single(images):
        return [images]  # type: ignore[list-item]
    if isinstance(images, (str, os.PathLike)):
        return list_folder(Path(images))
    if not isinstance(images, Iterable):
        raise InputError(f"expected pictures, got {type(images).__name__}; {_ACCEPTED}")
    return images


def list_folder(folder: Path) -> list[Path]:
    """Return the pictures in a folder (not below it), by name.

    Raises:
        InputError: there are none.
    """
    pictures = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not pictures:
        raise InputError(f"{folder} holds no pictures; looked for {', '.join(sorted(SUFFIXES))}")
    return pictures


def read_image(image: ImageLike) -> LoadedImage:
    """Read one picture.

    Args:
        image: a path, a PIL image, an (H, W[, 1|3|4]) uint8 array, grey or RGB(A), a (3, H, W)
            uint8 tensor, or a `LoadedImage`. Alpha is dropped; EXIF orientation is applied.

    Raises:
        InputError: it cannot be read or is not 8-bit; the message names it and says what to do.
    """
    if isinstance(image, LoadedImage):
        return image
    if isinstance(image, Tensor):
        return LoadedImage(_from_tensor(image))
    if isinstance(image, np.ndarray):
        return LoadedImage(_from_array(image))
    if isinstance(image, Image.Image):
        with _naming(what := f"a PIL image of mode {image.mode}"):
            return LoadedImage(_from_pil(image, what))
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        return LoadedImage(_from_file(path), path)
    raise InputError(f"expected a picture, got {type(image).__name__}; {_ACCEPTED}")


_ACCEPTED = (
    "give a path, a PIL image, a uint8 array (H, W[, 3|4]), a uint8 tensor (3, H, W), "
    "a folder, or an iterable of these"
)


def _from_tensor(tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.uint8:
        raise InputError(
            f"tensor is {tensor.dtype}, expected torch.uint8 in 0..255; "
            "for floats in 0..1: (x * 255).round().to(torch.uint8)"
        )
    if tensor.ndim != 3 or tensor.shape[0] != 3 or 0 in tensor.shape:
        raise InputError(
            f"tensor has shape {tuple(tensor.shape)}, expected (3, H, W); "
            "give a batch as a list, grey as x.expand(3, -1, -1)"
        )
    return tensor.clone()  # pictures are read ahead, and a stream may reuse its buffer


def _from_array(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype != np.uint8:
        raise InputError(
            f"array is {array.dtype}, expected uint8 in 0..255; "
            "for floats in 0..1: (x * 255).round().astype('uint8')"
        )
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[2] == 1:
        array = np.broadcast_to(array, (*array.shape[:2], 3))
    if array.ndim != 3 or array.shape[2] not in (3, 4) or 0 in array.shape:
        raise InputError(
            f"array has shape {array.shape}, expected (H, W), (H, W, 3) or (H, W, 4); "
            "give a batch as a list, channels first as x.transpose(1, 2, 0)"
        )
    return torch.from_numpy(np.array(array[:, :, :3].transpose(2, 0, 1), order="C"))  # (3, H, W)


def _from_file(path: Path) -> Tensor:
    what = printable(path)
    with _naming(what):
        if what.startswith(("http:", "https:")):
            raise InputError(f"{what} is a URL; download the picture first")
        if not path.exists():
            raise InputError(f"{what}: there is no such file")
        if path.is_dir():
            raise InputError(f"{what} is a folder; give it on its own, not among pictures")
        if path.stat().st_size == 0:
            raise InputError(f"{what} is an empty file; fetch or copy it again")
        with Image.open(path) as image:
            # Pillow itself only warns up to twice its limit.
            if (limit := Image.MAX_IMAGE_PIXELS) and image.width * image.height > limit:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            return _from_pil(image, what)


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Turn whatever Pillow raises about a picture into an error that names it."""
    try:
        yield
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{what} is too large ({error}); make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS "
            "if you trust it"
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{what} is no picture, whatever its name; expected {', '.join(sorted(SUFFIXES))}"
        ) from error
    except Exception as error:  # the bytes of a damaged picture can make a decoder raise anything
        raise InputError(f"{what} is damaged or cannot be read: {error}") from error


def _from_pil(image: Image.Image, what: str) -> Tensor:
    if _is_deep(image):
        raise InputError(
            f"{what} has more than 8 bits per channel; convert it first, "
            "for 16 bits: (x / 257).round().astype('uint8')"
        )
    if (turn := TURNS.get(_orientation(image))) is not None:
        image = image.transpose(turn)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBa"):
        image = image.convert("RGBA")  # Pillow's own way from a palette with alpha to plain colours
    return _from_array(np.asarray(image.convert("RGB")))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1..8; 1, upright, where nothing readable says otherwise."""
    image.load()  # PNG may have its EXIF behind the pixels
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # the pixels are good whatever is wrong with what is said about them
        return 1


def _is_deep(image: Image.Image) -> bool:
    """Say whether a picture has more than 8 bits per channel, even where Pillow would drop them."""
    tiles: Iterator[Any] = iter(getattr(image, "tile", ()))
    coding = " ".join(str(tile[3]) for tile in tiles)  # how the file packs its pixels
    packed = ";16" in coding.replace("BGR;16", "")  # 5, 6 and 5 bits, which is not deep
    return packed or image.mode.startswith(("I", "F"))
