"""Layouts of data sets on disk: the rules that pair images with masks or annotations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from isanet_zoo.errors import InputError
from isanet_zoo.imaging.formats import SUFFIXES, list_folder, stem_key
from isanet_zoo.learning.annotations import CocoFile
from isanet_zoo.learning.classes import read_lines

LISTED = 3  # files of a kind that an error lists

Pairs: TypeAlias = list[tuple[Path, Path]]


class Found(NamedTuple):
    """The files of a split."""

    pairs: Pairs
    images: Mapping[str, Path] = {}  # without a mask, by stem
    masks: Mapping[str, Path] = {}  # without an image
    coco: CocoFile | None = None
    identities: Mapping[Path, object] = {}  # of images, in `coco`

    @property
    def problem(self) -> str:
        """The images without masks and masks without images, or an empty string."""
        parts = [
            f"{len(alone)} of {len(self.pairs) + len(alone)} {kind} without {counterpart}: "
            f"{_some(alone.values())}"
            for alone, kind, counterpart in (
                (self.images, "images", "a mask"),
                (self.masks, "masks" if self.coco is None else "images in the JSON", "an image"),
            )
            if alone
        ]
        if not parts or self.coco:
            return "; ".join(parts)
        return (
            f"{'; '.join(parts)}; an image and its mask must have the same name but for the "
            f"extension{_advice(list(self.images), list(self.masks))}"
        )


@dataclass(frozen=True)
class DatasetLayout:
    """Where a data set keeps its images and masks.

    Attributes:
        tree: the expected folders, for error messages.
        find: return the files of a split, from the root folder and the split's name.
        signs: patterns of files or folders that only this layout has.
        ignored: mask values beside the classes' ids; None for any.
    """

    tree: str
    find: Callable[[Path, str], Found]
    signs: tuple[str, ...]
    ignored: tuple[int, ...] | None = (255,)


def _voc(root: Path, split: str) -> Found:
    if (root / "VOCdevkit" / "VOC2012").is_dir():
        root = root / "VOCdevkit" / "VOC2012"
    masks = root / "SegmentationClassAug"
    if split != "trainaug" or not masks.is_dir():
        masks = root / "SegmentationClass"
    return _listed(root, masks, root / "ImageSets" / "Segmentation" / f"{split}.txt")


def _pascal_context(root: Path, split: str) -> Found:
    if (root / "VOCdevkit" / "VOC2010").is_dir():
        root = root / "VOCdevkit" / "VOC2010"
    names = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    return _listed(root, root / "SegmentationClassContext", names)


def _listed(root: Path, masks: Path, names: Path) -> Found:
    """Return the pairs in VOC's folders that a text file lists."""
    # A line is an id, or the two files of DeepLab's lists.
    stems = dict.fromkeys(_listed_stem(line) for line in read_lines(names))
    images = _select(_images(root / "JPEGImages"), stems, names.name)
    return Found(list(zip(images, _select(_images(masks), stems, names.name), strict=True)))


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


def _ade20k(root: Path, split: str) -> Found:
    if (root / "ADEChallengeData2016").is_dir():
        root = root / "ADEChallengeData2016"
    folder = {"train": "training", "val": "validation"}.get(split, split)
    return _match(_images(root / "images" / folder), _images(root / "annotations" / folder))


def _cityscapes(root: Path, split: str) -> Found:
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


def _camvid(root: Path, split: str) -> Found:
    return _match(_images(root / split), _images(root / f"{split}annot"))


def _folder(root: Path, split: str) -> Found:
    return _match(_images(root / "images" / split), _images(root / "masks" / split))


def _coco(root: Path, split: str) -> Found:
    names = (
        f"annotations/instances_{split or 'default'}.json",
        f"annotations/instances_{split}2017.json",
        f"{split}/_annotations.coco.json",
        f"{split or 'annotations'}.json",
        "result.json",  # of Label Studio
    )
    files = [root / name for name in names if split or "2017" not in name]
    path = next((path for path in files if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(files[0])
    coco, identities, absent = CocoFile(path), {}, {}
    folders = [root / "images" / split, root / split, root / f"{split}2017", root, root / "images"]
    for identity, name in coco.images.items():
        candidates = [folder / name for folder in (path.parent, *folders)]
        image = next((file for file in candidates if file.is_file()), None)
        if image is None:
            absent[name] = Path(name)
        elif image in identities:
            raise InputError(f"{path} has two images with the file_name {name!r}")
        else:
            identities[image] = identity
    return Found([(image, path) for image in identities], {}, absent, coco, identities)


def _labelme(root: Path, split: str) -> Found:
    folder = root / "images" / split if (root / "images" / split).is_dir() else root / split
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return _match(
        {stem_key(path): path for path in files if path.suffix.lower() in SUFFIXES},
        {stem_key(path): path for path in files if path.suffix.lower() == ".json"},
    )


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


def _match(images: dict[str, Path], masks: dict[str, Path]) -> Found:
    """Pair images and masks of the same stem."""
    return Found(
        [(image, masks[stem]) for stem, image in images.items() if stem in masks],
        {stem: image for stem, image in images.items() if stem not in masks},
        {stem: mask for stem, mask in masks.items() if stem not in images},
    )


def _advice(images: list[str], masks: list[str]) -> str:
    """Return a hint if the names differ by one ending, such as `_mask`, else an empty string."""
    for image in images[:1]:
        for mask in masks:
            ending = mask.removeprefix(image)
            if ending != mask and {f"{stem}{ending}" for stem in images} <= set(masks):
                return f"; remove {ending!r} from the names of the masks"
    return ""


def _some(files: Iterable[str | Path]) -> str:
    names = list(map(str, files))
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


DATASET_LAYOUTS = {
    "pascal_context": DatasetLayout(
        "ROOT/{JPEGImages,SegmentationClassContext,ImageSets/SegmentationContext/SPLIT.txt}",
        _pascal_context,
        ("SegmentationClassContext", "VOCdevkit/VOC2010/SegmentationClassContext"),
        (0, 255),
    ),
    "voc": DatasetLayout(
        "ROOT/{JPEGImages,SegmentationClass,ImageSets/Segmentation/SPLIT.txt}",
        _voc,
        ("SegmentationClass*", "VOCdevkit/VOC2012"),
    ),
    "ade20k": DatasetLayout(
        "ROOT/{images,annotations}/{training,validation}/ADE_*.{jpg,png}",
        _ade20k,
        ("annotations/training", "annotations/validation", "ADEChallengeData2016"),
        (0,),
    ),
    "cityscapes": DatasetLayout(
        "ROOT/{leftImg8bit,gtFine}/SPLIT/CITY/*_{leftImg8bit,gtFine_labelIds}.png",
        _cityscapes,
        ("leftImg8bit", "gtFine"),
        None,
    ),
    "camvid": DatasetLayout(
        "ROOT/{SPLIT,SPLITannot}/*.png", _camvid, ("trainannot", "valannot", "testannot"), (11, 255)
    ),
    "coco": DatasetLayout(
        "ROOT/annotations/instances_SPLIT.json and ROOT/{SPLIT,images/SPLIT}/*.jpg",
        _coco,
        ("annotations/*.json", "_annotations.coco.json", "*/_annotations.coco.json", "result.json"),
    ),
    "labelme": DatasetLayout(
        "ROOT/SPLIT/*.{jpg,json}, ROOT/classes.txt", _labelme, ("*.json", "*/*.json", "*/*/*.json")
    ),
    "folder": DatasetLayout(
        "ROOT/{images/SPLIT,masks/SPLIT,classes.txt}", _folder, ("masks", "classes.txt")
    ),
}


def guess_layout(root: Path) -> str | None:
    """Return the name of the layout that the files in a folder suggest; None if there is none."""
    if (root / "images").is_dir() and (root / "masks").is_dir():
        return "folder"
    for name, layout in DATASET_LAYOUTS.items():
        found = (path for sign in layout.signs for path in root.glob(sign))
        if any(name != "labelme" or _is_beside_image(path) for path in found):
            return name
    return None


def _is_beside_image(path: Path) -> bool:
    """Return True if an image in the same folder has the same name but for the suffix."""
    endings = [ending for suffix in SUFFIXES for ending in (suffix, suffix.upper())]
    return any(path.with_suffix(ending).is_file() for ending in endings)
