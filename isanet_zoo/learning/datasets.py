"""Layouts of data sets on disk: the rules that pair images with masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from isanet_zoo.errors import InputError, printable
from isanet_zoo.files import open_regular
from isanet_zoo.imaging.formats import SUFFIXES, list_folder, stem_key
from isanet_zoo.learning.data import SegmentationDataset
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.lookup import load_label_sets

MAX_CLASSES = 255  # 255 remains for pixels without a class
MAX_TEXT = 1 << 24  # bytes of a list of names
LISTED = 3  # files of a kind that an error lists

Pairs: TypeAlias = list[tuple[Path, Path]]


@dataclass(frozen=True)
class DatasetLayout:
    """Where a data set keeps its images and masks.

    Attributes:
        tree: the expected folders, for error messages.
        find: return the pairs of a split, from the root folder and the split's name.
        ignored: mask values beside the classes' ids; None for any.
    """

    tree: str
    find: Callable[[Path, str], Pairs]
    ignored: tuple[int, ...] | None


def open_dataset(
    layout: str, root: str | Path, split: str, *, label_set: LabelSet | None = None
) -> SegmentationDataset:
    """Open a split of a data set.

    Args:
        layout: ``"voc"``, ``"ade20k"``, ``"cityscapes"``, ``"camvid"``, as they are distributed;
            ``"pascal_context"``, with the 59-class masks of mmsegmentation's converter; or
            ``"folder"``: images in ``images/<split>``, 8-bit masks of the same names in
            ``masks/<split>`` (255 is ignored), and the classes' names in ``classes.txt``.
        root: the folder.
        split: such as ``"train"`` or ``"val"``; for VOC also ``"trainaug"``, with the masks of
            ``SegmentationClassAug`` if that folder exists.
        label_set: the classes; the data set's own if None.

    Raises:
        InputError: the layout is unknown, a folder or file is missing, an image has no mask or a
            mask no image, or `classes.txt` cannot be used.
    """
    if not isinstance(layout, str) or layout not in DATASET_LAYOUTS:
        raise InputError(f"layout is {layout!r}; choose one of {', '.join(DATASET_LAYOUTS)}")
    if not isinstance(root, (str, Path)) or not str(root):
        raise InputError(f"root is {root!r}; pass the folder of the data set")
    rules, root = DATASET_LAYOUTS[layout], Path(root)
    try:
        if label_set is None:
            published = load_label_sets()
            label_set = published.get(layout) or read_classes(root / "classes.txt")
        pairs = rules.find(root, split)
    except FileNotFoundError as error:
        raise InputError(
            f"{error.filename or error} does not exist; a {layout} data set is expected as "
            f"{rules.tree}"
        ) from None
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
    return SegmentationDataset(
        pairs, label_set, ignored=rules.ignored, name=f"{label_set.title} {split}"
    )


def read_classes(path: Path) -> LabelSet:
    """Read the names of classes, one per line in the order of their ids.

    Raises:
        InputError: there is no such file, it is not a text, it is empty, or it contains too many
            names or a name twice.
    """
    try:
        names = tuple(_read_lines(path))
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist; write the names of the classes into it, one per line in the "
            "order of their ids"
        ) from None
    if len(names) > MAX_CLASSES:
        raise InputError(f"{path} has {len(names)} names; 8-bit masks allow {MAX_CLASSES} classes")
    if not names or len(set(names)) != len(names):
        twice = ", ".join(sorted({name for name in names if names.count(name) > 1})) or "no name"
        raise InputError(f"{path} must contain each class once, one per line; found {twice}")
    folder = printable(path.parent.resolve().name, 90) or "folder"
    try:
        return replace(LabelSet.generic(len(names)), name=folder, title=folder, names=names)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a text file without blank ones."""
    with open_regular(path) as file:
        content = file.read(MAX_TEXT + 1)
    try:
        lines = content.decode("utf-8-sig").splitlines()  # some editors write a byte order mark
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text in UTF-8: {error}") from error
    if len(content) > MAX_TEXT:
        raise InputError(f"{path} is longer than {MAX_TEXT} bytes; it must be a list of names")
    return [line.strip() for line in lines if line.strip()]


def _voc(root: Path, split: str) -> Pairs:
    if (root / "VOCdevkit" / "VOC2012").is_dir():
        root = root / "VOCdevkit" / "VOC2012"
    masks = root / "SegmentationClassAug"
    if split != "trainaug" or not masks.is_dir():
        masks = root / "SegmentationClass"
    return _listed(root, masks, root / "ImageSets" / "Segmentation" / f"{split}.txt")


def _pascal_context(root: Path, split: str) -> Pairs:
    if (root / "VOCdevkit" / "VOC2010").is_dir():
        root = root / "VOCdevkit" / "VOC2010"
    names = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    return _listed(root, root / "SegmentationClassContext", names)


def _listed(root: Path, masks: Path, names: Path) -> Pairs:
    """Return the pairs in VOC's folders that a text file lists."""
    # A line is an id, or the two files of DeepLab's lists.
    stems = dict.fromkeys(_listed_stem(line) for line in _read_lines(names))
    return list(
        zip(
            _select(_images(root / "JPEGImages"), stems, names.name),
            _select(_images(masks), stems, names.name),
            strict=True,
        )
    )


def _listed_stem(line: str) -> str:
    path = Path(line.split()[0])
    return stem_key(path if path.suffix.lower() in SUFFIXES else Path(f"{path}.png"))


def _select(files: dict[str, Path], stems: Iterable[str], names: str) -> list[Path]:
    """Return the files of the stems that a text file lists.

    Raises:
        InputError: there is no such file.
    """
    if absent := [stem for stem in stems if stem not in files]:
        folder = next(iter(files.values())).parent
        raise InputError(f"{folder} has no image of {_some(absent)}, listed in {names}")
    return [files[stem] for stem in stems]


def _ade20k(root: Path, split: str) -> Pairs:
    if (root / "ADEChallengeData2016").is_dir():
        root = root / "ADEChallengeData2016"
    folder = {"train": "training", "val": "validation"}.get(split, split)
    return _match(_images(root / "images" / folder), _images(root / "annotations" / folder))


def _cityscapes(root: Path, split: str) -> Pairs:
    return _match(
        _cities(root / "leftImg8bit" / split, "_leftImg8bit"),
        _cities(root / "gtFine" / split, "_gtFine_labelIds"),
    )


def _cities(folder: Path, ending: str) -> dict[str, Path]:
    """Return the PNGs of a kind in all cities of a split, by city and stem."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    return {
        f"{path.parent.name}/{stem_key(path).removesuffix(ending)}": path
        for path in sorted(folder.glob(f"*/*{ending}.png"))
        if not path.name.startswith(".")
    }


def _camvid(root: Path, split: str) -> Pairs:
    return _match(_images(root / split), _images(root / f"{split}annot"))


def _folder(root: Path, split: str) -> Pairs:
    return _match(_images(root / "images" / split), _images(root / "masks" / split))


def _images(folder: Path) -> dict[str, Path]:
    """Return the image files in a folder by stem.

    Raises:
        FileNotFoundError: there is no such folder.
        InputError: there are no images, or two of one stem.
    """
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    images: dict[str, Path] = {}
    for path in list_folder(folder):
        if (other := images.setdefault(stem_key(path), path)) != path:
            raise InputError(f"{other} and {path.name} have the same name; keep one of them")
    return images


def _match(images: dict[str, Path], masks: dict[str, Path]) -> Pairs:
    """Pair images and masks of the same stem.

    Raises:
        InputError: one has no counterpart.
    """
    alone = [stem for stem in images if stem not in masks]
    alone_masks = [stem for stem in masks if stem not in images]
    problems = [
        f"{count} without {counterpart}: {_some([files[stem] for stem in stems])}"
        for stems, files, count, counterpart in (
            (alone, images, f"{len(alone)} of {len(images)} images", "a mask"),
            (alone_masks, masks, f"{len(alone_masks)} of {len(masks)} masks", "an image"),
        )
        if stems
    ]
    if problems:
        raise InputError(
            f"{'; '.join(problems)}; an image and its mask must have the same name but for the "
            f"extension{_advice(alone, alone_masks)}"
        )
    return [(image, masks[stem]) for stem, image in images.items()]


def _advice(images: list[str], masks: list[str]) -> str:
    """Return a hint if the names differ by one ending, such as `_mask`, else an empty string."""
    for image in images[:1]:
        for mask in masks:
            ending = mask.removeprefix(image)
            if ending != mask and {f"{stem}{ending}" for stem in images} <= set(masks):
                return f"; remove {ending!r} from the names of the masks"
    return ""


def _some(files: Iterable[str | Path]) -> str:
    names = [str(file) for file in files]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


DATASET_LAYOUTS = {
    "voc": DatasetLayout(
        "ROOT/{JPEGImages,SegmentationClass,ImageSets/Segmentation/SPLIT.txt}", _voc, (255,)
    ),
    "pascal_context": DatasetLayout(
        "ROOT/{JPEGImages,SegmentationClassContext,ImageSets/SegmentationContext/SPLIT.txt}",
        _pascal_context,
        (0, 255),
    ),
    "ade20k": DatasetLayout(
        "ROOT/{images,annotations}/{training,validation}/ADE_*.{jpg,png}", _ade20k, (0,)
    ),
    "cityscapes": DatasetLayout(
        "ROOT/{leftImg8bit,gtFine}/SPLIT/CITY/*_{leftImg8bit,gtFine_labelIds}.png",
        _cityscapes,
        None,
    ),
    "camvid": DatasetLayout("ROOT/{SPLIT,SPLITannot}/*.png", _camvid, (11, 255)),
    "folder": DatasetLayout("ROOT/{images/SPLIT,masks/SPLIT,classes.txt}", _folder, (255,)),
}
