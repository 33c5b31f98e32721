"""Image and mask files, and data sets of one image, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

IDS = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)


def write_image(
    path: Path, size: tuple[int, int] = (2, 3), *, level: int = 9, orientation: int = 1
) -> Path:
    """Save a grey image of a (height, width), with an EXIF orientation other than 1 on request."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.full((*size, 3), level, np.uint8))
    return _save(image, path, orientation)


def write_mask(
    path: Path, ids: NDArray[np.uint8] = IDS, *, palette: bool = False, orientation: int = 1
) -> Path:
    """Save a mask, with a palette or an EXIF orientation on request."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    if palette:
        image = Image.fromarray(ids).convert("P")
        image.putdata(ids.flatten().tolist())
        image.putpalette([index * 7 % 256 for index in range(768)])
        assert image.mode == "P"
    return _save(image, path, orientation)


def _save(image: Image.Image, path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    if orientation == 1:
        image.save(path)
    else:
        image.save(path, exif=exif)
    return path


def write_folder(root: Path, *, classes: str = "sky\nroad\ntree\n") -> Path:
    """Write a data set of one image in layout "folder"."""
    write_image(root / "images" / "train" / "a.jpg")
    write_mask(root / "masks" / "train" / "a.png")
    (root / "classes.txt").write_text(classes)
    return root


def write_split(root: Path, split: str, lines: str) -> Path:
    """Write the list of a split of VOC."""
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines)
    return root
