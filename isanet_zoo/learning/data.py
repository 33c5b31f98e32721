"""Data sets on disk: pairs of a picture and a mask of class ids, in the layouts they come in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from isanet_zoo.errors import InputError
from isanet_zoo.imaging.formats import SUFFIXES, open_image, upright
from isanet_zoo.imaging.reading import read_image
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.lookup import load_label_sets

MOST = 255  # classes, so that 255 remains for pixels without one
NAMED = 3  # how many files of a kind an error lists


class Sample(NamedTuple):
    """A picture and what is to be seen in it."""

    pixels: Tensor  # (3, H, W) uint8, RGB
    labels: Tensor  # (H, W) uint8: the network's class ids, or the label set's ignore_index


class SegmentationDataset(Dataset[Sample]):
    """Pictures and masks in files; index it, or give it to a `DataLoader`.

    Args:
        pairs: the files of each picture and its mask, an 8-bit index image (a palette is ignored).
        label_set: the classes. Its official ids are what the masks hold.
        ignored: further values that masks may hold; such pixels have no class. None allows all.
        name: what errors and reports call the data set.

    Raises:
        InputError: there are no pairs.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[Path, Path]],
        label_set: LabelSet,
        *,
        ignored: Iterable[int] | None = (255,),
        name: str = "folder",
    ) -> None:
        self.pairs = tuple(pairs)
        self.label_set = label_set
        self.name = name
        if not self.pairs:
            raise InputError(f"{name} holds no pictures")
        self._ids = torch.full((256,), label_set.ignore_index, dtype=torch.uint8)
        self._ids[list(label_set.official_ids)] = torch.arange(len(label_set), dtype=torch.uint8)
        self._known = torch.full((256,), ignored is None)
        self._known[[*label_set.official_ids, *(ignored or ())]] = True

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Read a pair.

        Raises:
            InputError: a file cannot be read, the mask holds colours or ids that no class has, or
                the two differ in size.
        """
        image, mask = self.pairs[index]
        pixels, labels = read_image(image).pixels, self.labels(index)
        if labels.shape != pixels.shape[-2:]:
            raise InputError(
                f"{mask} is {labels.shape[1]} x {labels.shape[0]}, its picture {image} "
                f"{pixels.shape[2]} x {pixels.shape[1]}; a mask needs the picture's size"
            )
        return Sample(pixels, labels)

    def labels(self, index: int) -> Tensor:
        """Read a mask alone, (H, W) uint8; see `Sample`.

        Raises:
            InputError: it cannot be read, or holds colours or ids that no class has.
        """
        path = self.pairs[index][1]
        ids = _read_mask(path).long()
        if not self._known[ids].all():
            strange = sorted(set(ids[~self._known[ids]].tolist()))
            official = self.label_set.official_ids
            raise InputError(
                f"{path} holds {', '.join(map(str, strange[:10]))}; the ids of "
                f"{self.label_set.title} are {min(official)}..{max(official)}"
            )
        return self._ids[ids]

    def path(self, index: int) -> Path:
        """Return the file of a picture."""
        return self.pairs[index][0]


def _read_mask(path: Path) -> Tensor:
    """Read an index image as (H, W) uint8: the indices, whatever palette they point into."""
    with open_image(path) as (image, _):
        mode, ids = image.mode, np.array(upright(image))
    if mode not in ("L", "P"):
        kind = "colours" if mode.startswith(("RGB", "CMYK", "YCbCr")) else f"mode {mode}"
        raise InputError(
            f"{path} holds {kind} where class ids are expected; save it with 8 bits per pixel, "
            "the value being the class id"
        )
    return torch.from_numpy(ids)


@dataclass(frozen=True)
class Layout:
    """How a data set lies on disk.

    Attributes:
        tree: what is expected, for error messages.
        find: from root and split to the pairs.
        ignored: mask values beside the classes' ids; None for any.
    """

    tree: str
    find: Callable[[Path, str], Iterable[tuple[Path, Path]]]
    ignored: tuple[int, ...] | None


def open_dataset(
    layout: str,
    root: str | Path,
    split: str,
    *,
    label_set: LabelSet | None = None,
) -> SegmentationDataset:
    """Open a split of a data set.

    Args:
        layout: ``"voc"``, ``"ade20k"``, ``"cityscapes"``, ``"camvid"``, as they are distributed, or
            ``"folder"``: pictures in ``images/<split>``, 8-bit masks of the same names in
            ``masks/<split>`` (255 is ignored), and the classes' names in ``classes.txt``.
        root: the folder.
        split: such as ``"train"`` or ``"val"``; for VOC also ``"trainaug"``, whose masks lie in
            ``SegmentationClassAug`` where there is one.
        label_set: the classes; the data set's own if None.

    Raises:
        InputError: the layout is unknown, a folder or file is missing, or a mask is without its
            picture or the other way round.
    """
    if layout not in LAYOUTS:
        raise InputError(f"layout is {layout!r}; choose one of {', '.join(LAYOUTS)}")
    rules, root = LAYOUTS[layout], Path(root)
    try:
        if label_set is None:
            known = load_label_sets()
            label_set = known[layout] if layout in known else read_classes(root / "classes.txt")
        pairs = list(rules.find(root, split))
    except FileNotFoundError as error:
        raise InputError(
            f"{error.args[0]} is not there; a {layout} data set is expected as {rules.tree}"
        ) from None
    return SegmentationDataset(
        pairs, label_set, ignored=rules.ignored, name=f"{label_set.title} {split}"
    )


def read_classes(path: Path) -> LabelSet:
    """Read names of classes, one per line in the order of their ids.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is no text, is empty, names too many classes, or a class twice.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        lines = path.read_text("utf-8-sig").splitlines()  # some editors begin with a mark
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8: {error}") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) > MOST:
        raise InputError(f"{path} names {len(names)} classes; 8-bit masks have room for {MOST}")
    if not names or len(set(names)) != len(names):
        raise InputError(f"{path} has to name each class once, one per line; it has {names}")
    folder = path.parent.resolve().name
    return replace(LabelSet.generic(len(names)), name=folder, title=folder, names=names)


def _voc(root: Path, split: str) -> Iterable[tuple[Path, Path]]:
    if (root / "VOCdevkit" / "VOC2012").is_dir():
        root = root / "VOCdevkit" / "VOC2012"
    names = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not names.is_file():
        raise FileNotFoundError(names)
    masks = root / "SegmentationClassAug"
    if split != "trainaug" or not masks.is_dir():
        masks = root / "SegmentationClass"
    # A line is an id, or the two files of DeepLab's lists.
    stems = [Path(line.split()[0]).stem for line in names.read_text().splitlines() if line.strip()]
    return _match(
        {stem: root / "JPEGImages" / f"{stem}.jpg" for stem in stems},
        {stem: masks / f"{stem}.png" for stem in stems},
    )


def _ade20k(root: Path, split: str) -> Iterable[tuple[Path, Path]]:
    if (root / "ADEChallengeData2016").is_dir():
        root = root / "ADEChallengeData2016"
    folder = {"train": "training", "val": "validation"}.get(split, split)
    return _match(_files(root / "images" / folder), _files(root / "annotations" / folder))


def _cityscapes(root: Path, split: str) -> Iterable[tuple[Path, Path]]:
    image, mask = "_leftImg8bit", "_gtFine_labelIds"
    return _match(
        {f"{path.parent.name}/{path.stem.removesuffix(image)}": path
         for path in _cities(root / "leftImg8bit" / split, f"*{image}.png")},
        {f"{path.parent.name}/{path.stem.removesuffix(mask)}": path
         for path in _cities(root / "gtFine" / split, f"*{mask}.png")},
    )  # fmt: skip


def _cities(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    return sorted(folder.glob(f"*/{pattern}"))


def _camvid(root: Path, split: str) -> Iterable[tuple[Path, Path]]:
    return _match(_files(root / split), _files(root / f"{split}annot"))


def _folders(root: Path, split: str) -> Iterable[tuple[Path, Path]]:
    return _match(_files(root / "images" / split), _files(root / "masks" / split))


def _files(folder: Path) -> dict[str, Path]:
    """Return the pictures in a folder by stem."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            if path.stem in files:
                raise InputError(f"{files[path.stem]} and {path.name} have one name; keep one")
            files[path.stem] = path
    return files


def _match(images: dict[str, Path], masks: dict[str, Path]) -> Iterable[tuple[Path, Path]]:
    """Pair pictures and masks.

    Raises:
        InputError: one is without the other, or is not there.
    """
    files = [path for stem, path in images.items() if stem not in masks]
    files += [path for stem, path in masks.items() if stem not in images]
    if files:
        raise InputError(f"{_some(files)}: a picture without a mask, or a mask without a picture")
    absent = [path for path in (*images.values(), *masks.values()) if not path.is_file()]
    if absent:
        raise InputError(f"{_some(absent)}: not there, though the list of the split names it")
    return [(image, masks[stem]) for stem, image in images.items()]


def _some(files: list[Path]) -> str:
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    return ", ".join(map(str, files[:NAMED])) + more


LAYOUTS = {
    "voc": Layout(
        "ROOT/{JPEGImages,SegmentationClass,ImageSets/Segmentation/SPLIT.txt}", _voc, (255,)
    ),
    "ade20k": Layout(
        "ROOT/{images,annotations}/{training,validation}/ADE_*.{jpg,png}", _ade20k, (0,)
    ),
    "cityscapes": Layout(
        "ROOT/{leftImg8bit,gtFine}/SPLIT/CITY/*_{leftImg8bit,gtFine_labelIds}.png",
        _cityscapes,
        None,
    ),
    "camvid": Layout("ROOT/{SPLIT,SPLITannot}/*.png", _camvid, (11, 255)),
    "folder": Layout("ROOT/{images/SPLIT,masks/SPLIT,classes.txt}", _folders, (255,)),
}
