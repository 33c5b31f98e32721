"""Tests of the layouts of data sets on disk, and of the errors of incomplete ones."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import features

from isanet_zoo import InputError, open_dataset
from isanet_zoo.commands.data_arguments import LAYOUTS
from isanet_zoo.imaging.formats import SUFFIXES
from isanet_zoo.learning.layouts import DATASET_LAYOUTS, guess_layout
from tests.learning.files import IDS, write_folder, write_image, write_mask, write_split

CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


# Layouts


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("palette", [False, True])
def test_voc_masks_are_indices_independent_of_the_palette(
    tmp_path: Path, nested: bool, palette: bool
) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2012" if nested else tmp_path
    for split, stem in (("train", "2007_000001"), ("val", "2007_000002")):
        write_split(root, split, f"{stem}\n\n")
        write_image(root / "JPEGImages" / f"{stem}.jpg", level=len(split))
        write_mask(root / "SegmentationClass" / f"{stem}.png", palette=palette)
    for split in ("train", "val"):
        dataset = open_dataset("voc", tmp_path, split)
        assert len(dataset) == 1
        assert dataset.name == f"PASCAL VOC 2012 {split}"
        pixels, labels = dataset[0]
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 2, 3))
        assert (pixels == len(split)).all()
        assert labels.tolist() == IDS.tolist()
        assert dataset.path(0).name == f"2007_00000{'12'[split == 'val']}.jpg"


@pytest.mark.parametrize(
    "lines", ["a\nb.1\n", "/JPEGImages/a.jpg /SegmentationClassAug/a.png\nx/b.1.jpg x/b.1.png\n"]
)
@pytest.mark.parametrize("augmented", [True, False])
def test_voc_trainaug_prefers_the_augmented_masks(
    tmp_path: Path, lines: str, augmented: bool
) -> None:
    write_split(tmp_path, "trainaug", lines)
    write_split(tmp_path, "train", lines)
    for stem in ("a", "b.1"):
        write_image(tmp_path / "JPEGImages" / f"{stem}.jpg")
        write_mask(tmp_path / "SegmentationClass" / f"{stem}.png", np.full((2, 3), 4, np.uint8))
        if augmented:
            write_mask(tmp_path / "SegmentationClassAug" / f"{stem}.png", IDS % 20)
    dataset = open_dataset("voc", tmp_path, "trainaug")
    assert [dataset.path(index).stem for index in range(len(dataset))] == ["a", "b.1"]
    for index in range(2):
        expected = IDS % 20 if augmented else np.full((2, 3), 4)
        assert dataset.labels(index).tolist() == expected.tolist()
        assert (open_dataset("voc", tmp_path, "train").labels(index) == 4).all()


@pytest.mark.parametrize("nested", [False, True])
def test_pascal_context_ids_start_at_1_and_0_and_255_are_ignored(
    tmp_path: Path, nested: bool
) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2010" if nested else tmp_path
    names = root / "ImageSets" / "SegmentationContext" / "val.txt"
    names.parent.mkdir(parents=True)
    names.write_text("2008_000002\n")
    write_image(root / "JPEGImages" / "2008_000002.jpg", (1, 61))
    write_image(root / "JPEGImages" / "2008_000003.jpg", (1, 61))  # of another split
    mask = root / "SegmentationClassContext" / "2008_000002.png"
    write_mask(mask, np.array([[*range(60), 255]], np.uint8))
    dataset = open_dataset("pascal_context", tmp_path, "val")
    assert len(dataset) == 1
    assert dataset.labels(0).tolist() == [[255, *range(59), 255]]
    assert dataset.label_set.names[:2] == ("aeroplane", "bag")
    write_mask(mask, np.array([[60] * 61], np.uint8))
    with pytest.raises(InputError, match=r"2\.png contains 60; the ids of PASCAL Con.* 1\.\.59"):
        dataset.labels(0)


@pytest.mark.parametrize("nested", [False, True])
def test_ade20k_ids_start_at_1_and_0_is_ignored(tmp_path: Path, nested: bool) -> None:
    root = tmp_path / "ADEChallengeData2016" if nested else tmp_path
    ids = np.arange(151, dtype=np.uint8)[None]
    for name in ("training", "validation"):
        write_image(root / "images" / name / "ADE_1.jpg", (1, 151))
        write_mask(root / "annotations" / name / "ADE_1.png", ids)
    for split, name in (("train", "training"), ("val", "validation"), ("training", "training")):
        dataset = open_dataset("ade20k", tmp_path, split)
        assert dataset.labels(0).tolist() == [[255, *range(150)]]
        assert dataset.path(0).parent.name == name
    write_mask(root / "annotations" / "training" / "ADE_1.png", ids + 1)
    with pytest.raises(InputError, match=r"ADE_1\.png contains 151; the ids of ADE20K are 1\.\.15"):
        open_dataset("ade20k", tmp_path, "train").labels(0)


def test_cityscapes_ids_become_train_ids_and_all_others_are_ignored(tmp_path: Path) -> None:
    for city in ("ulm", "bonn"):  # the same stem in both
        image = tmp_path / "leftImg8bit" / "val" / city / "x_0_1_leftImg8bit.png"
        write_image(image, (1, 256), level=len(city))
        mask = tmp_path / "gtFine" / "val" / city / "x_0_1_gtFine_labelIds.png"
        write_mask(mask, np.arange(256, dtype=np.uint8)[None])
        write_mask(mask.with_name("x_0_1_gtFine_instanceIds.png"))  # not read
        mask.with_name("._x_0_1_gtFine_labelIds.png").write_bytes(b"resource fork")
    dataset = open_dataset("cityscapes", tmp_path, "val")
    assert [path.parent.name for path, _ in dataset.pairs] == ["bonn", "ulm"]
    assert [image.parent.name for image, _ in dataset.pairs] == [
        mask.parent.name for _, mask in dataset.pairs
    ]
    expected = [CITYSCAPES.index(value) if value in CITYSCAPES else 255 for value in range(256)]
    assert dataset[0].labels.tolist() == [expected]


def test_camvid_void_is_ignored(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a.png", (1, 13))
    write_mask(tmp_path / "trainannot" / "a.png", np.array([[*range(12), 255]], np.uint8))
    dataset = open_dataset("camvid", tmp_path, "train")
    assert dataset[0].labels.tolist() == [[*range(11), 255, 255]]
    write_mask(tmp_path / "trainannot" / "a.png", np.array([[12, 0, 200, 12]], np.uint8))
    with pytest.raises(InputError, match=r"contains 12, 200; the ids of CamVid are 0\.\.10"):
        dataset.labels(0)


def test_folder_reads_its_classes_from_a_file(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "streets", classes="sky\n\n  road \ntree, bush\n")
    write_image(root / "images" / "train" / "b.PNG")
    write_mask(root / "masks" / "train" / "b.png", palette=True)
    (root / "images" / "train" / "notes.txt").write_text("not an image")
    dataset = open_dataset("folder", str(root), "train")
    assert dataset.name == "streets train"
    assert dataset.label_set.names == ("sky", "road", "tree, bush")
    assert (dataset.label_set.name, dataset.label_set.ignore_index) == ("streets", 255)
    assert [dataset.path(index).name for index in range(len(dataset))] == ["a.jpg", "b.PNG"]
    assert dataset[0].labels.tolist() == dataset[1].labels.tolist() == IDS.tolist()


# Names of files


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_folder_includes_every_suffix_of_the_reader(tmp_path: Path, suffix: str) -> None:
    if suffix.startswith(".avif") and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    root = write_folder(tmp_path)
    image = root / "images" / "train" / f"b{suffix}"
    write_image(image.with_suffix(".png")).rename(image)  # content decides, not the name
    write_mask(root / "masks" / "train" / "b.png")
    dataset = open_dataset("folder", root, "train")
    assert [path.name for path, _ in dataset.pairs] == ["a.jpg", f"b{suffix}"]
    assert dataset[1].labels.tolist() == IDS.tolist()


@pytest.mark.parametrize("layout", ["folder", "voc"])
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_another_unicode_form_match(
    tmp_path: Path, layout: str, forms: tuple[Any, Any]
) -> None:
    image, mask = (unicodedata.normalize(form, "Straße-übung") for form in forms)
    if layout == "voc":
        write_split(tmp_path, "train", f"{mask}\n")
        write_image(tmp_path / "JPEGImages" / f"{image}.jpg")
        write_mask(tmp_path / "SegmentationClass" / f"{mask}.png")
    else:
        write_image(tmp_path / "images" / "train" / f"{image}.jpg")
        write_mask(tmp_path / "masks" / "train" / f"{mask}.png")
        (tmp_path / "classes.txt").write_text("sky\nroad\ntree\n")
    assert open_dataset(layout, tmp_path, "train")[0].labels.tolist() == IDS.tolist()


def test_names_that_start_with_a_dot_are_skipped(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    for folder in ("images", "masks"):
        for name in ("._a.png", ".hidden.jpg", ".DS_Store"):
            (root / folder / "train" / name).write_bytes(b"no image")
    assert len(open_dataset("folder", root, "train")) == 1


@pytest.mark.parametrize("ending", ["_mask", "_gt", "_labelIds", ".jpg", "-seg"])
def test_masks_with_an_ending_are_refused_with_the_ending(tmp_path: Path, ending: str) -> None:
    root = write_folder(tmp_path)
    write_image(root / "images" / "train" / "b.jpg")
    mask = root / "masks" / "train" / "a.png"
    for stem in "ab":
        write_mask(mask.with_name(f"{stem}{ending}.png"))
    mask.unlink()
    with pytest.raises(InputError) as caught:
        open_dataset("folder", root, "train")
    message = str(caught.value)
    assert "2 of 2 images without a mask" in message
    assert f"a{ending}.png" in message
    assert "must have the same name but for the extension" in message
    assert f"remove '{ending}' from the names of the masks" in message


def test_unmatched_names_without_a_common_ending_are_listed(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    mask = root / "masks" / "train" / "a.png"
    mask.rename(mask.with_name("mask_1.png"))
    with pytest.raises(InputError, match=r"/a\.jpg; .*/mask_1\.png; .* same name") as caught:
        open_dataset("folder", root, "train")
    assert "remove" not in str(caught.value)


def test_two_images_of_the_same_stem_are_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    write_image(root / "images" / "train" / "a.png")
    with pytest.raises(InputError, match=r"a\.jpg and a\.png have the same name; keep one"):
        open_dataset("folder", root, "train")


# Missing and unusable files


def drop_image(root: Path) -> None:
    (root / "images" / "train" / "a.jpg").unlink()


def drop_mask(root: Path) -> None:
    (root / "masks" / "train" / "a.png").unlink()


def add_images(root: Path) -> None:
    for stem in "bcdefg":
        write_image(root / "images" / "train" / f"{stem}.jpg")


def make_masks_arrays(root: Path) -> None:
    mask = root / "masks" / "train" / "a.png"
    mask.rename(mask.with_suffix(".npy"))


def write_classes(content: str | bytes) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (root / "classes.txt").write_bytes(data)

    return write


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (drop_image, r"images/train contains no images"),
        (drop_mask, r"masks/train contains no images"),
        (make_masks_arrays, r"masks/train contains no images.*a\.npy"),
        (
            add_images,
            r"6 of 7 images without a mask: \S+/b\.jpg, \S+/c\.jpg, \S+/d\.jpg and 3 more",
        ),
        (
            lambda root: (root / "classes.txt").unlink(),
            r"classes\.txt does not exist; write the names of the classes into it, one per line",
        ),
        (write_classes(""), r"classes\.txt must contain each class once.*found no name"),
        (write_classes("\n \n"), r"classes\.txt must contain each class once"),
        (write_classes("sky\nroad\nsky\n"), r"once, one per line; found sky"),
        (write_classes("sky\n"), r"has 1 class \(sky\), .* add a class for all other pixels"),
        (write_classes("\n".join(map(str, range(256)))), r"has 256 names; 8-bit masks allow 255"),
        (write_classes(b"sk\xff"), r"classes\.txt is not a text in UTF-8"),
        (write_classes(b"a\n" * (1 << 24)), r"classes\.txt is longer than"),
        (write_classes("sky\nroad\x1b[31m\n"), r"classes\.txt: .*names"),
    ],
)
def test_incomplete_folder_is_refused_with_what_is_missing(
    tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    root = write_folder(tmp_path)
    open_dataset("folder", root, "train")
    harm(root)
    with pytest.raises(InputError, match=message):
        open_dataset("folder", root, "train")


@pytest.mark.parametrize("layout", ["voc", "pascal_context", "ade20k", "cityscapes", "camvid"])
def test_missing_root_is_named_with_the_expected_tree(tmp_path: Path, layout: str) -> None:
    with pytest.raises(
        InputError,
        match=rf"{tmp_path}/none.* does not exist; a {layout} data set is expected as ROOT",
    ):
        open_dataset(layout, tmp_path / "none", "train")


@pytest.mark.parametrize("root", ["x" * 300, "a\0b"])
@pytest.mark.parametrize("layout", ["voc", "camvid", "folder", "cityscapes"])
def test_root_that_cannot_be_a_path_is_an_input_error(layout: str, root: str) -> None:
    with pytest.raises(InputError):
        open_dataset(layout, root, "train")


def test_unknown_layouts_and_splits_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="layout is 'kitti'; choose one of pascal_context, voc, ade"
    ):
        open_dataset("kitti", tmp_path, "train")
    root = write_folder(tmp_path)
    with pytest.raises(InputError, match="images/test does not exist"):
        open_dataset("folder", root, "test")
    write_image(tmp_path / "JPEGImages" / "a.jpg")
    write_mask(tmp_path / "SegmentationClass" / "a.png")
    write_split(tmp_path, "train", "")
    with pytest.raises(InputError, match=r"Segmentation/minival\.txt does not exist"):
        open_dataset("voc", tmp_path, "minival")
    with pytest.raises(InputError, match="PASCAL VOC 2012 train contains no images"):
        open_dataset("voc", tmp_path, "train")


@pytest.mark.parametrize("absent", ["JPEGImages/b.jpg", "SegmentationClass/b.png"])
def test_list_that_names_an_absent_file_is_refused(tmp_path: Path, absent: str) -> None:
    write_split(tmp_path, "train", "a\nb\n")
    for stem in "ab":
        write_image(tmp_path / "JPEGImages" / f"{stem}.jpg")
        write_mask(tmp_path / "SegmentationClass" / f"{stem}.png")
    (tmp_path / absent).unlink()
    folder = absent.partition("/")[0]
    with pytest.raises(InputError, match=rf"{folder} has no image of b, listed in train\.txt"):
        open_dataset("voc", tmp_path, "train")


def test_cityscapes_pairs_within_a_city(tmp_path: Path) -> None:
    write_image(tmp_path / "leftImg8bit" / "val" / "ulm" / "x_leftImg8bit.png")
    write_mask(tmp_path / "gtFine" / "val" / "bonn" / "x_gtFine_labelIds.png")
    with pytest.raises(InputError, match=r"1 of 1 images without a mask: .*ulm.* 1 of 1 masks w"):
        open_dataset("cityscapes", tmp_path, "val")


@pytest.mark.parametrize("name", ["x" * 200, "a\u00a0b", "a\nb", "\udcff"])
def test_folder_with_an_unusual_name_is_a_data_set(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    root = write_folder(tmp_path / name)
    label_set = open_dataset("folder", root, "train").label_set
    assert label_set.title.isprintable()


@pytest.mark.parametrize("root", ["", None, 3])
def test_root_that_is_no_path_is_refused(root: object) -> None:
    with pytest.raises(InputError, match="pass the folder of the data set"):
        open_dataset("folder", root, "train")  # type: ignore[arg-type]


@pytest.mark.parametrize("split", ["..", "../../val", "/val", "a/../b", None, 3])
def test_split_outside_the_root_is_refused(split: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"split is .*; it must be a name such as 'val'"):
        open_dataset("folder", write_folder(tmp_path), split)


# Divided by content


def write_flat(root: Path, count: int, folder: str = "") -> Path:
    """Write a folder of images that are not divided into splits."""
    for number in range(count):
        write_image(root / "images" / folder / f"{number}.png", level=number)
        write_mask(root / "masks" / folder / f"{number}.png")
    (root / "classes.txt").write_text("sky\nroad\ntree\n")
    return root


def names(root: Path, split: str, fraction: float = 0.3) -> set[str]:
    dataset = open_dataset("folder", root, split, val_fraction=fraction)
    return {path.name for path, _ in dataset.pairs}


@pytest.mark.parametrize("folder", ["", "train"])
def test_val_fraction_divides_by_the_hash_of_the_bytes(tmp_path: Path, folder: str) -> None:
    root = write_flat(tmp_path, 60, folder)
    expected = {
        path.name
        for path in (root / "images" / folder).iterdir()
        if int(hashlib.sha256(path.read_bytes()).hexdigest()[:16], 16) / 2**64 < 0.3
    }
    assert names(root, "val") == expected
    assert 8 < len(expected) < 28
    assert names(root, "train") == {f"{number}.png" for number in range(60)} - expected
    assert names(root, "val", 0.1) < expected < names(root, "val", 0.6)


def test_split_of_an_image_depends_on_its_bytes_alone(tmp_path: Path) -> None:
    root = write_flat(tmp_path, 30)
    before = names(root, "val")
    write_flat(root, 60)
    moved = root / "images" / "7.png"
    for path in (moved, root / "masks" / "7.png"):
        path.rename(path.with_name("other.png"))
    known = {name if name != "other.png" else "7.png" for name in names(root, "val")}
    assert {name for name in known if int(name[:-4]) < 30} == before


@pytest.mark.parametrize("fraction", [1e-6, 0.999999])
def test_each_split_has_an_image(tmp_path: Path, fraction: float) -> None:
    root = write_flat(tmp_path, 5)
    sizes = sorted(len(names(root, split, fraction)) for split in ("train", "val"))
    assert sizes == [1, 4]


@pytest.mark.parametrize(
    ("split", "fraction", "message"),
    [
        ("test", 0.2, "split is 'test'; with val_fraction it must be 'train' or 'val'"),
        ("val", 0, "val_fraction is 0; it must be above 0 and below 1"),
        ("val", 1, "val_fraction is 1"),
        ("val", "half", "val_fraction is 'half'"),
    ],
)
def test_split_that_cannot_be_made_is_refused(
    tmp_path: Path, split: str, fraction: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_dataset("folder", write_flat(tmp_path, 3), split, val_fraction=fraction)


def test_missing_split_is_named_with_the_option_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images/val does not exist; .* with val_fraction, also"):
        open_dataset("folder", write_flat(tmp_path, 3), "val")


# Guessed layouts


@pytest.mark.parametrize(
    ("files", "layout"),
    [
        (("JPEGImages/a.jpg", "SegmentationClass/a.png"), "voc"),
        (("VOCdevkit/VOC2012/JPEGImages/a.jpg",), "voc"),
        (("JPEGImages/a.jpg", "SegmentationClassContext/a.png"), "pascal_context"),
        (("annotations/training/a.png", "images/training/a.jpg"), "ade20k"),
        (("leftImg8bit/val/ulm/a.png",), "cityscapes"),
        (("val/a.png", "valannot/a.png"), "camvid"),
        (("annotations/instances_train.json", "train/a.jpg"), "coco"),
        (("train/_annotations.coco.json", "classes.txt"), "coco"),
        (("train/a.json", "train/a.jpg", "classes.txt"), "labelme"),
        (("images/train/a.jpg", "masks/train/a.png"), "folder"),
        (("classes.txt",), "folder"),
        (("train/a.json", "train/a.JPG"), "labelme"),
        (("a.jpg", "run/recipe.json", "b.json"), None),
    ],
)
def test_layout_is_guessed_from_the_files(
    tmp_path: Path, files: tuple[str, ...], layout: str | None
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert guess_layout(tmp_path) == layout


def test_layouts_of_the_command_line_are_all_of_them() -> None:
    assert set(LAYOUTS) == set(DATASET_LAYOUTS)
