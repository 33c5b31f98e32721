"""Images of any kind as (3, H, W) uint8 RGB."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from isanet_zoo.errors import InputError
from isanet_zoo.imaging.formats import (
    FileLike,
    check_depth,
    list_folder,
    open_image,
    translated_errors,
    upright,
)

ACCEPTED = (
    "pass a path, a PIL image, a uint8 array (H, W[, 3|4]), a uint8 tensor (3, H, W), the bytes of "
    "an image file, a file opened in binary mode, a folder, or an iterable of these"
)
# Pillow's images and open files are not thread-safe, and an iterable may contain one repeatedly.
_locks = tuple(threading.Lock() for _ in range(64))


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """An image that has been read.

    Attributes:
        pixels: (3, H, W) uint8, RGB, upright.
        path: its file, if it was read from a path.
    """

    pixels: Tensor
    path: Path | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.pixels.shape[-2:]
        return height, width


ImageLike: TypeAlias = FileLike | Image.Image | np.ndarray[Any, Any] | Tensor | LoadedImage
"""An image: a path, bytes or binary file of one, a PIL image, array or tensor; see `read_image`."""


def is_single(images: object) -> bool:
    """Return True for one image, False for a folder or another iterable."""
    if isinstance(images, (str, os.PathLike)):
        with contextlib.suppress(OSError):  # such as a name that is too long
            return images == "" or not Path(os.fsdecode(images)).is_dir()
        return True
    kinds = (Image.Image, np.ndarray, Tensor, LoadedImage, bytes, bytearray, memoryview)
    return isinstance(images, kinds) or hasattr(images, "read")


def find_images(images: Iterable[ImageLike] | ImageLike) -> Iterable[ImageLike]:
    """Return several images one by one; for a folder, those in it, by name.

    Raises:
        InputError: a folder without images, or an object that is no collection of images.
    """
    if is_single(images):
        return [images]  # type: ignore[list-item]
    if isinstance(images, (str, os.PathLike)):
        return list_folder(Path(os.fsdecode(images)))
    if not isinstance(images, Iterable) or isinstance(images, Mapping):
        raise InputError(f"expected images, got {type(images).__name__}; {ACCEPTED}")
    return images  # type: ignore[return-value]


def read_image(image: ImageLike) -> LoadedImage:
    """Read one image.

    Args:
        image: a path, the bytes of an image file, a file opened in binary mode, a PIL image, an
            (H, W[, 1|3|4]) uint8 array, grey or RGB(A), a (3, H, W) uint8 tensor, or a
            `LoadedImage`. Alpha is dropped; EXIF orientation is applied.

    Raises:
        InputError: it cannot be read or is not 8-bit; the message names it and the way out.
    """
    if isinstance(image, LoadedImage):
        return image
    if isinstance(image, Tensor):
        return LoadedImage(_from_tensor(image))
    if isinstance(image, np.ndarray):
        return LoadedImage(_from_array(image))
    if isinstance(image, Image.Image):
        name = f"PIL image of mode {image.mode}"
        with _locks[id(image) // 16 % len(_locks)], translated_errors(name):
            return LoadedImage(_from_pil(image, name))
    if isinstance(image, (str, os.PathLike)):
        with open_image(image) as (opened, name):
            return LoadedImage(_from_pil(opened, name), Path(os.fsdecode(image)))
    if isinstance(image, (bytes, bytearray, memoryview)) or hasattr(image, "read"):
        with _locks[id(image) // 16 % len(_locks)], open_image(image) as (opened, name):
            return LoadedImage(_from_pil(opened, name))
    raise InputError(f"expected an image, got {type(image).__name__}; {ACCEPTED}")


def _from_pil(image: Image.Image, name: str) -> Tensor:
    check_depth(image, name)
    image = upright(image)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBa"):
        image = image.convert("RGBA")  # Pillow warns of a palette with alpha otherwise
    return _from_array(np.asarray(image.convert("RGB")))


def _from_tensor(tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.uint8:
        raise InputError(
            f"tensor is {tensor.dtype}, expected torch.uint8 in 0..255; "
            "for floats in 0..1: (x * 255).round().to(torch.uint8)"
        )
    if tensor.ndim != 3 or tensor.shape[0] != 3 or 0 in tensor.shape:
        raise InputError(
            f"tensor has shape {tuple(tensor.shape)}, expected (3, H, W); pass a batch as a list, "
            "channels last as x.permute(2, 0, 1), grey as x.expand(3, -1, -1)"
        )
    if tensor.is_meta or tensor.layout != torch.strided:
        kind = "on the meta device" if tensor.is_meta else tensor.layout
        raise InputError(f"tensor is {kind}; pass a dense one with data")
    return tensor.clone()  # images are read ahead, and a stream may reuse its buffer


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
            f"array has shape {array.shape}, expected (H, W), (H, W, 3) or (H, W, 4); pass a batch "
            "as a list, channels first as x.transpose(1, 2, 0)"
        )
    return torch.from_numpy(np.array(array[:, :, :3].transpose(2, 0, 1), order="C"))  # (3, H, W)
