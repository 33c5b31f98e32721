"""The layouts of data sets on disk, what masks become, and what is said about broken ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from isanet_zoo.errors import InputError
from isanet_zoo.learning.data import SegmentationDataset, open_dataset
from isanet_zoo.manifest.labels import LabelSet

IDS = np.array([[0, 1, 2], [2, 1, 255]], np.uint8)
CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def draw(path: Path, size: tuple[int, int] = (2, 3), *, level: int = 9) -> Path:
    """Save a grey picture of a (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path)
    return path


def annotate(path: Path, ids: NDArray[np.uint8] = IDS, *, palette: bool = False) -> Path:
    """Save a mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    if palette:
        image = Image.fromarray(ids).convert("P")
        image.putdata(ids.flatten().tolist())
        image.putpalette([index * 7 % 256 for index in range(768)])
        assert image.mode == "P"
    image.save(path)
    return path


def voc(root: Path, split: str, lines: str) -> Path:
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines)
    return root


def folder(root: Path, *, classes: str = "sky\nroad\ntree\n") -> Path:
    """Make a data set of one picture in layout "folder"."""
    draw(root / "images" / "train" / "a.jpg")
    annotate(root / "masks" / "train" / "a.png")
    (root / "classes.txt").write_text(classes)
    return root


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("palette", [False, True])
def test_voc_s_masks_are_indices_whatever_their_palette(
    tmp_path: Path, nested: bool, palette: bool
) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2012" if nested else tmp_path
    for split, stem in (("train", "2007_000001"), ("val", "2007_000002")):
        voc(root, split, f"{stem}\n\n")
        draw(root / "JPEGImages" / f"{stem}.jpg", level=len(split))
        annotate(root / "SegmentationClass" / f"{stem}.png", palette=palette)
    for split in ("train", "val"):
        dataset = open_dataset("voc", tmp_path, split)
        assert len(dataset) == 1
        assert dataset.name == f"PASCAL VOC 2012 {split}"
        pixels, labels = dataset[0]
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 2, 3))
        assert (pixels == len(split)).all()
        assert labels.dtype == torch.uint8
        assert labels.tolist() == IDS.tolist()
        assert torch.equal(dataset.labels(0), labels)
        assert dataset.path(0).name == f"2007_00000{'12'[split == 'val']}.jpg"


@pytest.mark.parametrize(
    "lines", ["a\nb\n", "/JPEGImages/a.jpg /SegmentationClassAug/a.png\nJPEGImages/b.jpg x/b.png\n"]
)
@pytest.mark.parametrize("augmented", [True, False])
def test_voc_s_trainaug_prefers_the_augmented_masks(
    tmp_path: Path, lines: str, augmented: bool
) -> None:
    voc(tmp_path, "trainaug", lines)
    voc(tmp_path, "train", lines)
    for stem in "ab":
        draw(tmp_path / "JPEGImages" / f"{stem}.jpg")
        annotate(tmp_path / "SegmentationClass" / f"{stem}.png", np.full((2, 3), 4, np.uint8))
        if augmented:
            annotate(tmp_path / "SegmentationClassAug" / f"{stem}.png", IDS % 20)
    dataset = open_dataset("voc", tmp_path, "trainaug")
    assert [dataset.path(index).stem for index in range(len(dataset))] == ["a", "b"]
    for index in range(2):
        expected = IDS % 20 if augmented else np.full((2, 3), 4)
        assert dataset.labels(index).tolist() == expected.tolist()
        assert (open_dataset("voc", tmp_path, "train").labels(index) == 4).all()


@pytest.mark.parametrize("nested", [False, True])
def test_ade20k_counts_from_one_and_0_is_ignored(tmp_path: Path, nested: bool) -> None:
    root = tmp_path / "ADEChallengeData2016" if nested else tmp_path
    ids = np.arange(151, dtype=np.uint8)[None]
    for name in ("training", "validation"):
        draw(root / "images" / name / "ADE_1.jpg", (1, 151))
        annotate(root / "annotations" / name / "ADE_1.png", ids)
    for split, name in (("train", "training"), ("val", "validation"), ("training", "training")):
        dataset = open_dataset("ade20k", tmp_path, split)
        assert dataset.labels(0).tolist() == [[255, *range(150)]]
        assert dataset.path(0).parent.name == name
    annotate(root / "annotations" / "training" / "ADE_1.png", ids + 1)
    with pytest.raises(InputError, match=r"ADE_1\.png holds 151; the ids of ADE20K are 1\.\.150"):
        open_dataset("ade20k", tmp_path, "train").labels(0)


def test_cityscapes_ids_become_train_ids_and_all_others_are_ignored(tmp_path: Path) -> None:
    for city in ("ulm", "bonn"):  # the same stem in both
        image = tmp_path / "leftImg8bit" / "val" / city / "x_0_1_leftImg8bit.png"
        draw(image, (1, 256), level=len(city))
        mask = tmp_path / "gtFine" / "val" / city / "x_0_1_gtFine_labelIds.png"
        annotate(mask, np.arange(256, dtype=np.uint8)[None])
        annotate(mask.with_name("x_0_1_gtFine_instanceIds.png"))  # of no interest
    dataset = open_dataset("cityscapes", tmp_path, "val")
    assert [path.parent.name for path, _ in dataset.pairs] == ["bonn", "ulm"]
    assert [image.parent.name for image, _ in dataset.pairs] == [
        mask.parent.name for _, mask in dataset.pairs
    ]
    expected = [CITYSCAPES.index(value) if value in CITYSCAPES else 255 for value in range(256)]
    assert dataset[0].labels.tolist() == [expected]


def test_camvid_s_void_is_ignored(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "a.png", (1, 13))
    annotate(tmp_path / "trainannot" / "a.png", np.array([[*range(12), 255]], np.uint8))
    dataset = open_dataset("camvid", tmp_path, "train")
    assert dataset[0].labels.tolist() == [[*range(11), 255, 255]]
    annotate(tmp_path / "trainannot" / "a.png", np.array([[12, 0, 200, 12]], np.uint8))
    with pytest.raises(InputError, match=r"holds 12, 200; the ids of CamVid are 0\.\.10"):
        dataset.labels(0)


def test_folder_takes_its_classes_from_a_file(tmp_path: Path) -> None:
    root = folder(tmp_path / "streets", classes="sky\n\n  road \ntree, bush\n")
    draw(root / "images" / "train" / "b.PNG")
    annotate(root / "masks" / "train" / "b.png", palette=True)
    (root / "images" / "train" / "notes.txt").write_text("no picture")
    dataset = open_dataset("folder", str(root), "train")
    assert dataset.name == "streets train"
    assert dataset.label_set.names == ("sky", "road", "tree, bush")
    assert (dataset.label_set.name, dataset.label_set.ignore_index) == ("streets", 255)
    assert [dataset.path(index).name for index in range(len(dataset))] == ["a.jpg", "b.PNG"]
    assert dataset[0].labels.tolist() == dataset[1].labels.tolist() == IDS.tolist()


def test_a_label_set_of_one_s_own_says_what_masks_hold(tmp_path: Path) -> None:
    root = folder(tmp_path, classes="")  # not read
    own = LabelSet("own", "Own", ("b", "c"), ("#000000", "#ffffff"), (2, 1), ignore_index=9)
    dataset = open_dataset("folder", root, "train", label_set=own)
    with pytest.raises(InputError, match=r"a\.png holds 0; the ids of Own are 1\.\.2"):
        dataset.labels(0)
    dataset = SegmentationDataset(dataset.pairs, own, ignored=None)
    assert dataset.labels(0).tolist() == [[9, 1, 0], [0, 1, 9]]
    dataset = SegmentationDataset(dataset.pairs, own, ignored=(0, 255))
    assert dataset.labels(0).tolist() == [[9, 1, 0], [0, 1, 9]]


def test_a_loader_takes_it(tmp_path: Path) -> None:
    root = folder(tmp_path)
    draw(root / "images" / "train" / "b.jpg", (5, 4))
    annotate(root / "masks" / "train" / "b.png", np.ones((5, 4), np.uint8))
    dataset = open_dataset("folder", root, "train")
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=None)
    shapes = [(tuple(sample.pixels.shape), tuple(sample.labels.shape)) for sample in loader]
    assert shapes == [((3, 2, 3), (2, 3)), ((3, 5, 4), (5, 4))]


def drop_picture(root: Path) -> None:
    (root / "images" / "train" / "a.jpg").unlink()


def drop_mask(root: Path) -> None:
    (root / "masks" / "train" / "a.png").unlink()


def drop_many_masks(root: Path) -> None:
    for stem in "abcdef":
        draw(root / "images" / "train" / f"{stem}.jpg")
    drop_mask(root)


def drop_all(root: Path) -> None:
    drop_mask(root)
    drop_picture(root)


def write_classes(text: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        (root / "classes.txt").write_text(text)

    return write


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (drop_picture, r"masks/train/a\.png: a picture without a mask, or a mask without a pic"),
        (drop_mask, r"images/train/a\.jpg: a picture without a mask"),
        (drop_many_masks, r"/a\.jpg, [^ ]*/b\.jpg, [^ ]*/c\.jpg and 3 more: a picture without"),
        (drop_all, "train holds no pictures"),
        (lambda root: (root / "classes.txt").unlink(), r"classes\.txt is not there; a folder data"),
        (write_classes(""), r"classes\.txt has to name each class once"),
        (write_classes("\n \n"), r"classes\.txt has to name each class once"),
        (write_classes("sky\nroad\nsky\n"), r"once, one per line; it has \('sky', 'road', 'sky'\)"),
    ],
)
def test_incomplete_folders_are_named(
    tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    root = folder(tmp_path)
    open_dataset("folder", root, "train")
    harm(root)
    with pytest.raises(InputError, match=message):
        open_dataset("folder", root, "train")


@pytest.mark.parametrize("layout", ["voc", "ade20k", "cityscapes", "camvid", "folder"])
def test_a_missing_root_is_named_with_what_is_expected(tmp_path: Path, layout: str) -> None:
    with pytest.raises(
        InputError,
        match=rf"{tmp_path}/none.* is not there; a {layout} data set is expected as ROOT",
    ):
        open_dataset(layout, tmp_path / "none", "train")


def test_unknown_layouts_and_splits_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layout is 'coco'; choose one of voc, ade20k, citysc"):
        open_dataset("coco", tmp_path, "train")
    root = folder(tmp_path)
    with pytest.raises(InputError, match="images/test is not there"):
        open_dataset("folder", root, "test")
    voc(tmp_path, "train", "")
    with pytest.raises(InputError, match=r"Segmentation/minival\.txt is not there"):
        open_dataset("voc", tmp_path, "minival")
    with pytest.raises(InputError, match="PASCAL VOC 2012 train holds no pictures"):
        open_dataset("voc", tmp_path, "train")


@pytest.mark.parametrize("absent", ["JPEGImages/b.jpg", "SegmentationClass/b.png"])
def test_a_list_that_names_an_absent_file_is_an_error(tmp_path: Path, absent: str) -> None:
    voc(tmp_path, "train", "a\nb\n")
    for stem in "ab":
        draw(tmp_path / "JPEGImages" / f"{stem}.jpg")
        annotate(tmp_path / "SegmentationClass" / f"{stem}.png")
    (tmp_path / absent).unlink()
    with pytest.raises(InputError, match=f"{absent}: not there, though the list of the split"):
        open_dataset("voc", tmp_path, "train")


def test_cities_pair_by_city(tmp_path: Path) -> None:
    draw(tmp_path / "leftImg8bit" / "val" / "ulm" / "x_leftImg8bit.png")
    annotate(tmp_path / "gtFine" / "val" / "bonn" / "x_gtFine_labelIds.png")
    with pytest.raises(InputError, match="a picture without a mask, or a mask without a picture"):
        open_dataset("cityscapes", tmp_path, "val")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (4, 2)), r"a\.png is 4 x 2, its picture .*a\.jpg 3 x 2; a mask needs"),
        (Image.new("L", (3, 2), 3), r"a\.png holds 3; the ids of .* are 0\.\.2"),
        (Image.new("RGB", (3, 2)), r"a\.png holds colours where class ids are expected"),
        (Image.new("RGBA", (3, 2)), r"a\.png holds colours where class ids are expected"),
        (Image.new("I;16", (3, 2)), r"a\.png holds mode I;16 where class ids are expected"),
        (Image.new("1", (3, 2)), r"a\.png holds mode 1 where class ids are expected"),
    ],
)
def test_masks_that_cannot_be_used_are_named(
    tmp_path: Path, mask: Image.Image, message: str
) -> None:
    root = folder(tmp_path)
    mask.save(root / "masks" / "train" / "a.png")
    with pytest.raises(InputError, match=message):
        open_dataset("folder", root, "train")[0]


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_files_that_are_no_images_are_named(tmp_path: Path, content: bytes | None) -> None:
    root = folder(tmp_path)
    mask, picture = root / "masks" / "train" / "a.png", root / "images" / "train" / "a.jpg"
    whole = mask.read_bytes()
    mask.write_bytes(whole[: len(whole) // 2] if content is None else content)
    dataset = open_dataset("folder", root, "train")
    with pytest.raises(InputError, match=r"a\.png is (an empty file|not an image|damaged)"):
        dataset.labels(0)
    mask.write_bytes(whole)
    picture.write_bytes(content or b"")
    with pytest.raises(InputError, match=r"a\.jpg"):
        dataset[0]


def test_pairs_are_needed() -> None:
    with pytest.raises(InputError, match="mine holds no pictures"):
        SegmentationDataset([], LabelSet.generic(2), name="mine")
