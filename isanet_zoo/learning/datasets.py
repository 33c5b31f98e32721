"""Data sets on disk: `open_dataset`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from isanet_zoo.errors import InputError
from isanet_zoo.files import hash_file
from isanet_zoo.inference.threads import in_order
from isanet_zoo.learning.annotations import LabelMeMasks, read_labels
from isanet_zoo.learning.classes import COLOUR, add_background, make_label_set, read_classes
from isanet_zoo.learning.data import SegmentationDataset
from isanet_zoo.learning.layouts import DATASET_LAYOUTS, Found, Pairs
from isanet_zoo.learning.masks import ImageMasks, MaskReader
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.lookup import load_label_sets
from isanet_zoo.records import real_number

BLACK, WHITE = 0x000000, 0xFFFFFF


def open_dataset(
    layout: str,
    root: str | Path,
    split: str,
    *,
    label_set: LabelSet | None = None,
    binary: bool = False,
    unlabelled: int | str | None = None,
    val_fraction: float | None = None,
) -> SegmentationDataset:
    """Open a split of a data set.

    Args:
        layout: ``"voc"``, ``"ade20k"``, ``"cityscapes"``, ``"camvid"``, as they are distributed;
            ``"pascal_context"``, with the 59-class masks of mmsegmentation's converter; or

            - ``"folder"``: images in ``images/<split>``, masks of the same names in
              ``masks/<split>``, and the classes' names in ``classes.txt``. Masks contain class ids,
              or the colours of lines such as ``road #804080``.
            - ``"coco"``: polygons and run lengths in ``annotations/instances_<split>.json``. The
              classes are its categories, or those of ``classes.txt`` if there is one.
            - ``"labelme"``: a JSON file beside each image in ``<split>``, and ``classes.txt``.
        root: the folder.
        split: such as ``"train"`` or ``"val"``; for VOC also ``"trainaug"``, with the masks of
            ``SegmentationClassAug`` if that folder exists.
        label_set: the classes; the data set's own if None.
        binary: masks of a folder contain 0, the first class, and 255, the second.
        unlabelled: pixels without a class. For a folder, their value beside 255, or their colour
            such as ``"#000000"``. For polygons, the class of pixels outside all of them, which is
            added if necessary, or ``"none"``; ``"background"`` if None.
        val_fraction: fraction of the images in split ``"val"``; the others are ``"train"``. The
            split of an image depends on its bytes alone. They are those of the folders without a
            split (``images``, ``masks``), or of ``train``.

    Raises:
        InputError: an option is unknown, a folder or file is missing, an image has no mask or a
            mask no image, or classes or annotations cannot be used.
    """
    found = find_files(layout, root, split, val_fraction=val_fraction)
    if found.problem:
        raise InputError(found.problem)
    return make_dataset(
        layout, root, split, found, label_set=label_set, binary=binary, unlabelled=unlabelled
    )


def find_files(
    layout: str, root: str | Path, split: str, *, val_fraction: float | None = None
) -> Found:
    """Find the files of a split, also those without a counterpart; see `open_dataset`."""
    if not isinstance(layout, str) or layout not in DATASET_LAYOUTS:
        raise InputError(f"layout is {layout!r}; choose one of {', '.join(DATASET_LAYOUTS)}")
    if not isinstance(root, (str, Path)) or not str(root):
        raise InputError(f"root is {root!r}; pass the folder of the data set")
    if not isinstance(split, str) or Path(split).is_absolute() or ".." in Path(split).parts:
        raise InputError(f"split is {split!r}; it must be a name such as 'val'")
    find, root = DATASET_LAYOUTS[layout].find, Path(root)
    with _translated_errors(layout, val_fraction is None):
        if val_fraction is None:
            return find(root, split)
        real_number("val_fraction", val_fraction, "above 0 and below 1", 1e-9, 1.0)
        if split not in ("train", "val"):
            raise InputError(f"split is {split!r}; with val_fraction it must be 'train' or 'val'")
        try:
            found = find(root, "train")
        except FileNotFoundError:
            found = find(root, "")
        return found._replace(pairs=_divide(found.pairs, split, val_fraction))


def _divide(pairs: Pairs, split: str, fraction: float) -> Pairs:
    """Return the pairs of a split; each has at least one if there are two images."""
    hashes = list(in_order(lambda pair: int(hash_file(pair[0])[:16], 16), pairs))
    bound = min(max(int(fraction * 2**64), min(hashes, default=0) + 1), max(hashes, default=1))
    return [
        pair
        for pair, number in zip(pairs, hashes, strict=True)
        if (number < bound) == (split == "val")
    ]


@contextlib.contextmanager
def _translated_errors(layout: str, has_splits: bool) -> Iterator[None]:
    """Convert errors of the file system to `InputError`."""
    try:
        yield
    except FileNotFoundError as error:
        advice = "; with val_fraction, also without SPLIT"
        raise InputError(
            f"{error.filename or error} does not exist; a {layout} data set is expected as "
            f"{DATASET_LAYOUTS[layout].tree}{advice if has_splits else ''}"
        ) from None
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error


def make_dataset(
    layout: str,
    root: str | Path,
    split: str,
    found: Found,
    *,
    label_set: LabelSet | None = None,
    binary: bool = False,
    unlabelled: int | str | None = None,
) -> SegmentationDataset:
    """Make a data set of the pairs that `find_files` found; see `open_dataset`."""
    root, ignored = Path(root), DATASET_LAYOUTS[layout].ignored
    published = load_label_sets().get(layout)
    if binary and layout != "folder":
        raise InputError(f"binary is an option of the layout 'folder', not of {layout!r}")
    if unlabelled is not None and published:
        raise InputError(f"the masks of {layout} have a fixed value of unlabelled pixels")
    read: MaskReader = ImageMasks()
    if layout in ("coco", "labelme"):
        labels, read = _annotations(root, found, label_set, unlabelled)
    elif layout == "folder":
        labels, read, ignored = _folder(root, label_set, binary, unlabelled)
    else:
        labels = label_set or published or read_classes(root / "classes.txt")
    name = f"{labels.title} {split}"
    return SegmentationDataset(found.pairs, labels, ignored=ignored, name=name, read=read)


def _annotations(
    root: Path, found: Found, label_set: LabelSet | None, unlabelled: int | str | None
) -> tuple[LabelSet, MaskReader]:
    """Return the classes and the reader of annotations in JSON."""
    labels, file = label_set, root / "classes.txt"
    if labels is None and found.coco and not file.exists():
        labels = make_label_set(found.coco.names, root, found.coco.colours)
    elif labels is None and not file.exists():
        names = sorted(set[str]().union(*(read_labels(mask) for _, mask in found.pairs)))
        raise InputError(
            f"{file} does not exist; write the names of the classes into it, one per line in the "
            f"order of their ids. The annotations have {', '.join(names) or 'no labels'}"
        )
    labels = labels or read_classes(file)
    complete, background = add_background(labels, None if unlabelled is None else str(unlabelled))
    if label_set and len(complete) > len(labels):  # the caller states all classes
        complete, background = labels, labels.ignore_index
    values = {name: index for index, name in enumerate(complete.names)}
    complete = replace(complete, official_ids=tuple(values.values()))
    if found.coco:
        identities = {image: found.identities[image] for image, _ in found.pairs}
        return complete, found.coco.reader(identities, values, background)
    return complete, LabelMeMasks(values, background, complete.ignore_index)


def _folder(
    root: Path, label_set: LabelSet | None, binary: bool, unlabelled: int | str | None
) -> tuple[LabelSet, MaskReader, tuple[int, ...]]:
    """Return the classes, the reader of masks in image files, and their ignored values."""
    labels = label_set or read_classes(root / "classes.txt")
    if binary:
        if len(labels) != 2 or unlabelled is not None:
            raise InputError(
                f"binary masks have two classes and no unlabelled pixels; {labels.title} has the "
                f"classes {', '.join(labels.names)}, and unlabelled is {unlabelled}"
            )
        labels = replace(labels, official_ids=(0, 255))
        return labels, ImageMasks(((BLACK, 0), (WHITE, 255))), ()
    text, value, nothing = str(unlabelled), 255, {}
    if COLOUR.fullmatch(text):
        if text.lower() in labels.palette:
            raise InputError(f"unlabelled is {text}, the colour of a class of {labels.title}")
        nothing = {int(text[1:], 16): 255}
    elif unlabelled is not None:
        if not re.fullmatch(r"[0-9]{1,3}", text) or int(text) > 255:
            raise InputError(
                f"unlabelled is {text!r}; it must be a mask value from 0 to 255, or a colour such "
                "as #000000"
            )
        value = int(text)
    if label_set is None and value < len(labels):
        ids = [number for number in range(len(labels) + 1) if number != value]
        labels = replace(labels, official_ids=tuple(ids))
    codes = [int(colour[1:], 16) for colour in labels.palette]
    colours = dict(zip(codes, labels.official_ids, strict=True)) | nothing
    return labels, ImageMasks(tuple(colours.items())), tuple({255, value})
