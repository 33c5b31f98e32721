"""Masks in image files: class ids of one channel, or colours of classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from isanet_zoo.errors import InputError
from isanet_zoo.imaging.formats import open_image, upright

LOSSY = ("AVIF", "JPEG", "JPEG2000", "MPO", "WEBP")  # formats that may change class ids
LISTED = 10  # colours that an error lists at most


class MaskReader(Protocol):
    """A function that reads the mask of an image."""

    @property
    def key(self) -> str:
        """What the values depend on beside the two files."""

    def __call__(self, image: Path, mask: Path) -> Tensor:
        """Return the values of a mask, (H, W) uint8.

        Raises:
            InputError: it cannot be read, or contains something that no class has.
        """


@dataclass(frozen=True)
class ImageMasks:
    """Reader of masks in image files.

    Attributes:
        colours: the value of each colour, as (0xrrggbb, value); empty if masks have no colours.
    """

    colours: tuple[tuple[int, int], ...] = ()

    @property
    def key(self) -> str:
        """The colours and their values."""
        return repr(self.colours) if self.colours else ""

    def __call__(self, image: Path, mask: Path) -> Tensor:
        """Return the values of a mask, (H, W) uint8; see `read_mask`."""
        return read_mask(mask, self.colours)


def read_mask(path: Path, colours: tuple[tuple[int, int], ...] = ()) -> Tensor:
    """Read a mask as (H, W) uint8.

    An image of one channel or with a palette contains the values themselves; black and white are 0
    and 255. An image in colours is read through `colours`. Like an image, a mask is rotated by its
    EXIF orientation, if it has one.

    Args:
        path: the file.
        colours: the value of each colour, as (0xrrggbb, value).

    Raises:
        InputError: it cannot be read, does not have 8 bits per channel, is compressed with loss, or
            has a colour that is not listed.
    """
    with open_image(path) as (image, name):
        if image.format in LOSSY:
            raise _refusal(name, f"{image.format} data, whose compression changes pixel values,")
        if image.mode in ("1", "L", "P"):
            values = upright(image)
            return torch.from_numpy(np.array(values.convert("L") if image.mode == "1" else values))
        if not image.mode.startswith(("RGB", "CMYK", "YCbCr")):
            raise _refusal(name, f"mode {image.mode}")
        return torch.from_numpy(_from_colours(upright(image), name, colours))


def _from_colours(
    image: Image.Image, name: str, colours: tuple[tuple[int, int], ...]
) -> NDArray[np.uint8]:
    """Return the value of each pixel's colour, (H, W)."""
    rgb: NDArray[Any] = np.asarray(image.convert("RGB")).astype(np.int32)
    codes = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]  # (H, W)
    if not colours:
        raise _refusal(name, f"colours ({_names(codes)})")
    table = np.array(sorted(colours))  # (colours, 2)
    places = np.searchsorted(table[:, 0], codes).clip(max=len(table) - 1)
    unknown = table[places, 0] != codes
    if unknown.any():
        advice = "write the colour of each class into classes.txt, such as road #804080"
        if (rgb == rgb[..., :1]).all():
            advice = "if its grey levels are class ids, save it as grey; else " + advice
        raise InputError(
            f"{name} contains {_names(codes[unknown])} ({unknown.mean():.2%} of its pixels), the "
            f"colour of no class; {advice}; if pixels of a colour have no class, pass it as "
            "unlabelled. Mixed colours at edges come from resizing or smoothing"
        )
    values: NDArray[np.uint8] = table[places, 1].astype(np.uint8)
    return values


def _names(codes: NDArray[Any]) -> str:
    """Return the most frequent colours, such as ``"#804080, #000000, ..."``."""
    values, counts = np.unique(codes, return_counts=True)
    names = [f"#{code:06x}" for code in values[np.argsort(-counts, kind="stable")]]
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def _refusal(name: str, found: str) -> InputError:
    return InputError(
        f"{name} contains {found} where class ids are expected; save it as a PNG with 8 bits per "
        "pixel, the value being the class id"
    )
