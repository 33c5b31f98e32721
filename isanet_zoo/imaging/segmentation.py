"""A label map, and what one does with it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from isanet_zoo.errors import InputError
from isanet_zoo.imaging.reading import ImageLike, read_image
from isanet_zoo.manifest.labels import LabelSet

LOSSLESS = frozenset({".bmp", ".png", ".tif", ".tiff"})  # Pillow sorts a GIF's palette anew


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The classes of a picture's pixels, at the picture's size.

    Attributes:
        labels: (H, W) uint8, the network's class ids.
        label_set: what the ids mean.
        confidence: (H, W) float32 in 0..1, the softmax probability of each label, if asked for.
        probabilities: (K, H, W) float32 in 0..1, if asked for.
        path: the picture's file, if it came from one.
    """

    labels: NDArray[np.uint8]
    label_set: LabelSet
    confidence: NDArray[np.float32] | None = None
    probabilities: NDArray[np.float32] | None = None
    path: Path | None = None

    def present(self, min_fraction: float = 0.0) -> list[tuple[int, str, float]]:
        """Return the classes in the picture as (id, name, fraction of pixels), largest first.

        Args:
            min_fraction: leave out classes below this share, 0..1.
        """
        counts = np.bincount(self.labels.ravel(), minlength=len(self.label_set))
        fractions = counts / self.labels.size
        return [
            (int(index), self.label_set.names[index], float(fractions[index]))
            for index in np.argsort(-fractions, kind="stable")
            if index < len(self.label_set) and counts[index] and fractions[index] >= min_fraction
        ]

    def mask(self, which: int | str) -> NDArray[np.bool_]:
        """Return where a class is, (H, W) bool.

        Args:
            which: its id, its name, or the first synonym of its name.

        Raises:
            UnknownModelError: there is no such class.
        """
        mask: NDArray[np.bool_] = self.labels == self.label_set.index(which)
        return mask

    def official_ids(self) -> NDArray[np.uint8]:
        """Return the map in the data set's own ids (Cityscapes 7..33, ADE20K 1..150), (H, W)."""
        table = np.full(256, self.label_set.ignore_index, np.uint8)
        table[: len(self.label_set)] = self.label_set.official_ids
        return table[self.labels]

    def to_image(self) -> Image.Image:
        """Return a palette image (mode ``"P"``): a pixel's value is its class id."""
        image = Image.fromarray(self.labels)
        image.putpalette(self._colours().tobytes())
        return image

    def overlay(
        self, image: ImageLike | None = None, alpha: float = 0.5, legend: bool = True
    ) -> Image.Image:
        """Return the picture with the classes' colours laid over it, at the picture's size.

        Args:
            image: the picture; read again from `path` if None.
            alpha: weight of the colours, 0..1.
            legend: list the largest classes in a corner.

        Raises:
            InputError: there is no picture, or it has another size, or `alpha` is out of range.
        """
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha is {alpha}; it must be within 0..1")
        if image is None:
            if self.path is None:
                raise InputError("the picture came from memory; give it again: overlay(image)")
            image = self.path
        picture = read_image(image)
        height, width = self.labels.shape
        if picture.size != (height, width):
            raise InputError(
                f"the picture is {picture.size[1]} x {picture.size[0]}, the labels {width} x "
                f"{height}; give the picture that was segmented"
            )
        pixels = picture.pixels.permute(1, 2, 0).cpu().numpy()  # (H, W, 3)
        colours = self._colours()[self.labels]  # (H, W, 3)
        blend = Image.fromarray(((1 - alpha) * pixels + alpha * colours).round().astype(np.uint8))
        if legend:
            self._draw_legend(blend)
        return blend

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_image()` to a file of a lossless format, such as ``.png``.

        Raises:
            InputError: the format would change ids.
        """
        if (suffix := Path(path).suffix.lower()) not in LOSSLESS:
            raise InputError(
                f"{path}: {suffix or 'a name without suffix'} would not keep class ids; "
                f"use one of {', '.join(sorted(LOSSLESS))}"
            )
        self.to_image().save(path)

    def _colours(self) -> NDArray[np.uint8]:
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.label_set)] = self.label_set.colours
        return table

    def _draw_legend(self, image: Image.Image) -> None:
        """Draw as many rows, largest class first, as the picture has room for."""
        height, width = self.labels.shape
        em = max(10, round(min(height, width) / 36))  # font size in pixels
        row, gap = round(1.5 * em), em // 2
        font: Any = ImageFont.load_default(em)
        rows = [
            (self.label_set.colours[index], f"{self.label_set.short_name(index)}  {fraction:.1%}")
            for index, _, fraction in self.present(0.001)
        ][: max((height - 4 * gap) // row, 0)]
        if not rows:
            return
        box_width = round(max(font.getlength(text) for _, text in rows)) + em + 3 * gap
        if box_width + 2 * gap > width:
            return
        draw = ImageDraw.Draw(image, "RGBA")
        box = (gap, gap, gap + box_width, 2 * gap + row * len(rows))
        draw.rounded_rectangle(box, radius=gap, fill=(255, 255, 255, 200))
        for number, (colour, text) in enumerate(rows):
            left, top = 2 * gap, round(1.5 * gap) + row * number
            swatch = (left, top + (row - em) // 2, left + em, top + (row + em) // 2)
            draw.rectangle(swatch, fill=colour, outline=(0, 0, 0))
            draw.text((left + em + gap, top + row // 2), text, (0, 0, 0), font, anchor="lm")
