"""Segmentation results: label map, class fractions, masks, overlay with legend, COCO."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from isanet_zoo.errors import InputError, printable
from isanet_zoo.files import is_same_file
from isanet_zoo.imaging.coco import annotate, find_runs
from isanet_zoo.imaging.reading import ImageLike, read_image
from isanet_zoo.imaging.writing import write_image
from isanet_zoo.manifest.labels import LabelSet


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """The classes of an image's pixels, at the image's size.

    Attributes:
        labels: (H, W) uint8, the network's class ids.
        label_set: names, colours and official ids of the classes.
        confidence: (H, W) float32 in 0..1, the softmax probability of each label, if requested.
        probabilities: (K, H, W) float32 in 0..1, if requested.
        path: the image's file, if it was read from a path.
    """

    labels: NDArray[np.uint8]
    label_set: LabelSet
    confidence: NDArray[np.float32] | None = None
    probabilities: NDArray[np.float32] | None = None
    path: Path | None = None

    def __repr__(self) -> str:
        height, width = self.labels.shape
        largest, *others = [
            f"{self.label_set.short_name(index)} {fraction:.1%}"
            for index, _, fraction in self.present()
        ] or ["no class"]
        shown = [largest, *others[:2], *([f"{len(others) - 2} more"] if len(others) > 2 else [])]
        name = f"{printable(self.path)}, " if self.path else ""
        return f"<Segmentation {name}{width} x {height}: {', '.join(shown)}>"

    def present(self, min_fraction: float = 0.0) -> list[tuple[int, str, float]]:
        """Return the classes in the image as (id, name, fraction of pixels), largest first.

        Args:
            min_fraction: smallest fraction to include, 0..1.
        """
        counts = np.bincount(self.labels.ravel(), minlength=len(self.label_set))
        fractions = counts / self.labels.size
        return [
            (int(index), self.label_set.names[index], float(fractions[index]))
            for index in np.argsort(-fractions, kind="stable")
            if index < len(self.label_set) and counts[index] and fractions[index] >= min_fraction
        ]

    def mask(self, which: int | str) -> NDArray[np.bool_]:
        """Return the mask of a class, (H, W) bool.

        Args:
            which: the class's id, its name, or the first synonym of its name.

        Raises:
            UnknownModelError: there is no such class.
        """
        return np.equal(self.labels, self.label_set.index(which))

    def official_ids(self) -> NDArray[np.uint8]:
        """Return the label map in official ids (Cityscapes 7..33, ADE20K 1..150), (H, W)."""
        table = np.full(256, self.label_set.ignore_index, np.uint8)
        table[: len(self.label_set)] = self.label_set.official_ids
        return table[self.labels]

    def to_dict(self) -> dict[str, Any]:
        """Return a summary for JSON.

        Returns:
            ``image`` (its path or None), ``width`` and ``height`` in pixels, ``label_set`` (the
            name of the data set) and ``classes``, largest first: ``id``, ``name`` and ``fraction``
            of the pixels.
        """
        height, width = self.labels.shape
        return {
            "image": None if self.path is None else str(self.path),
            "width": width,
            "height": height,
            "label_set": self.label_set.name,
            "classes": [
                {"id": index, "name": name, "fraction": fraction}
                for index, name, fraction in self.present()
            ],
        }

    def to_coco(self, *, image_id: int | str) -> list[dict[str, Any]]:
        """Return an annotation in COCO's format for each class in the image, by class id.

        An annotation has ``image_id``, ``category_id`` (the class id), ``segmentation`` (compressed
        run lengths, as `pycocotools.mask.encode` writes them, as text for JSON), ``area`` in
        pixels, ``bbox`` as [left, top, width, height], and ``iscrowd`` (0). A data set's file also
        requires an ``id`` that is unique in it.

        Args:
            image_id: the image's ``id`` in the data set.
        """
        size = self.labels.shape[0], self.labels.shape[1]
        return [
            {"image_id": image_id, "category_id": index, **annotate(runs, size)}
            for index, runs in find_runs(self.labels).items()
            if index < len(self.label_set)
        ]

    def to_image(self) -> Image.Image:
        """Return a palette image (mode ``"P"``): a pixel's value is its class id."""
        image = Image.fromarray(self.labels)
        image.putpalette(self._colours().tobytes())
        return image

    def overlay(
        self, image: ImageLike | None = None, alpha: float = 0.5, legend: bool = True
    ) -> Image.Image:
        """Return the image blended with the classes' colours, RGB, at the image's size.

        Args:
            image: the segmented image; read again from `path` if None.
            alpha: weight of the colours, 0..1.
            legend: list the largest classes in a corner.

        Raises:
            InputError: there is no image, it has another size, or `alpha` is out of range.
        """
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha is {alpha}; it must be within 0..1")
        if image is None:
            if self.path is None:
                raise InputError("the image has no path; pass it again: overlay(image)")
            image = self.path
        loaded = read_image(image)
        height, width = self.labels.shape
        if loaded.size != (height, width):
            raise InputError(
                f"the image is {loaded.size[1]} x {loaded.size[0]}, the labels {width} x {height}; "
                "pass the image that was segmented"
            )
        pixels = loaded.pixels.permute(1, 2, 0).cpu().numpy()  # (H, W, 3)
        colours = self._colours()[self.labels]  # (H, W, 3)
        blend = Image.fromarray(((1 - alpha) * pixels + alpha * colours).round().astype(np.uint8))
        if legend:
            self._draw_legend(blend)
        return blend

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_image()` to a file of a lossless format, such as ``.png``.

        An existing file is replaced when the new one is complete.

        Raises:
            InputError: the format is lossy, the file is the segmented image, or cannot be written.
        """
        if self.path is not None and is_same_file(Path(path), self.path):
            raise InputError(f"{path} is the segmented image; choose another name")
        write_image(self.to_image(), Path(path))

    def _colours(self) -> NDArray[np.uint8]:
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.label_set)] = self.label_set.colours
        return table

    def _draw_legend(self, image: Image.Image) -> None:
        """Draw as many rows, largest class first, as fit into the image."""
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
