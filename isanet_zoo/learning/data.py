"""A segmentation data set: pairs of an image file and a mask file of class ids."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from isanet_zoo.errors import InputError
from isanet_zoo.imaging.reading import read_image
from isanet_zoo.learning.masks import ImageMasks, MaskReader
from isanet_zoo.manifest.labels import LabelSet

LISTED = 10  # ids that an error lists at most


class Sample(NamedTuple):
    """An image and the class of each of its pixels."""

    pixels: Tensor  # (3, H, W) uint8, RGB
    labels: Tensor  # (H, W) uint8: the network's class ids, or the label set's ignore_index


class SegmentationDataset(Dataset[Sample]):
    """Images and masks in files; index it, or pass it to a `DataLoader`.

    Args:
        pairs: the files of each image and its mask.
        label_set: the classes. Masks contain its official ids.
        ignored: further values that masks may contain; such pixels have no class. None allows all.
        name: the data set's name in errors and reports.
        read: reader of masks; by default they are 8-bit index images, whose palette is ignored.

    Raises:
        InputError: there are no pairs, or fewer than two classes.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[Path, Path]],
        label_set: LabelSet,
        *,
        ignored: Iterable[int] | None = (255,),
        name: str = "folder",
        read: MaskReader | None = None,
    ) -> None:
        self.pairs = tuple(pairs)
        self.read = read or ImageMasks()
        self.label_set = label_set
        self.name = name
        if not self.pairs:
            raise InputError(f"{name} contains no images")
        if len(label_set) < 2:
            raise InputError(
                f"{name} has {len(label_set)} class ({', '.join(label_set.names)}), which every "
                "pixel would belong to; add a class for all other pixels, such as 'other'"
            )
        self._ids = torch.full((256,), label_set.ignore_index, dtype=torch.uint8)
        self._ids[list(label_set.official_ids)] = torch.arange(len(label_set), dtype=torch.uint8)
        self._allowed = torch.full((256,), ignored is None)
        self._allowed[[*label_set.official_ids, *(ignored or ())]] = True

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Read a pair.

        Raises:
            InputError: a file cannot be read, the mask contains colours or ids that no class has,
                or the sizes of image and mask differ.
        """
        image, mask = self.pairs[index]
        pixels, labels = read_image(image).pixels, self.labels(index)
        check_sizes(image, (pixels.shape[1], pixels.shape[2]), mask, tuple(labels.shape))
        return Sample(pixels, labels)

    def labels(self, index: int) -> Tensor:
        """Read a mask alone, (H, W) uint8; see `Sample`.

        Raises:
            InputError: it cannot be read, or contains colours or ids that no class has.
        """
        image, mask = self.pairs[index]
        values = self.read(image, mask).long()
        self.check_values(mask, torch.bincount(values.flatten(), minlength=256))
        return self._ids[values]

    def check_values(self, mask: Path, counts: Tensor) -> None:
        """Check the values of a mask, from the number of pixels of each value, (256,).

        Raises:
            InputError: a value is neither the id of a class nor ignored.
        """
        unknown = ((counts > 0) & ~self._allowed).nonzero().flatten().tolist()
        if unknown:
            ids = self.label_set.official_ids
            more = ", ..." if len(unknown) > LISTED else ""
            raise InputError(
                f"{mask} contains {', '.join(map(str, unknown[:LISTED]))}{more}; the ids of "
                f"{self.label_set.title} are {min(ids)}..{max(ids)}"
            )

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.pairs[index][0]


def check_sizes(
    image: Path, image_size: tuple[int, int], mask: Path, mask_size: tuple[int, ...]
) -> None:
    """Compare the (height, width) of an upright image and mask.

    Raises:
        InputError: they differ.
    """
    if image_size == mask_size:
        return
    advice = "a mask needs the size of its image"
    if image_size == mask_size[::-1]:
        advice = "one of them is rotated, probably by its EXIF orientation; save both upright"
    raise InputError(
        f"{mask} is {mask_size[1]} x {mask_size[0]}, its image {image} "
        f"{image_size[1]} x {image_size[0]}; {advice}"
    )
