"""Tests of `SegmentationDataset`: values of masks, sizes, EXIF orientation, unusable files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from isanet_zoo import InputError, LabelSet, SegmentationDataset, open_dataset
from tests.learning.files import IDS, write_folder, write_image, write_mask

UPRIGHT = np.arange(6, dtype=np.uint8).reshape(2, 3) % 3
STORED = {  # EXIF orientation -> how the pixels of `UPRIGHT` are stored under it
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: UPRIGHT.T[::-1],
    7: UPRIGHT.T[::-1, ::-1],
    8: UPRIGHT.T[:, ::-1],
}


def pair(tmp_path: Path, **options: Any) -> SegmentationDataset:
    """Return a data set of the files a.jpg and a.png with three classes."""
    return SegmentationDataset(
        [(tmp_path / "a.jpg", tmp_path / "a.png")], LabelSet.generic(3), **options
    )


def test_custom_label_set_maps_official_ids_to_train_ids(tmp_path: Path) -> None:
    root = write_folder(tmp_path, classes="")  # not read
    own = LabelSet("own", "Own", ("b", "c"), ("#000000", "#ffffff"), (2, 1), ignore_index=9)
    dataset = open_dataset("folder", root, "train", label_set=own)
    with pytest.raises(InputError, match=r"a\.png contains 0; the ids of Own are 1\.\.2"):
        dataset.labels(0)
    dataset = SegmentationDataset(dataset.pairs, own, ignored=None)
    assert dataset.labels(0).tolist() == [[9, 1, 0], [0, 1, 9]]
    dataset = SegmentationDataset(dataset.pairs, own, ignored=(0, 255))
    assert dataset.labels(0).tolist() == [[9, 1, 0], [0, 1, 9]]


def test_data_loader_reads_samples_of_any_size(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    write_image(root / "images" / "train" / "b.jpg", (5, 4))
    write_mask(root / "masks" / "train" / "b.png", np.ones((5, 4), np.uint8))
    loader: DataLoader[Any] = DataLoader(open_dataset("folder", root, "train"), batch_size=None)
    shapes = [(tuple(sample.pixels.shape), tuple(sample.labels.shape)) for sample in loader]
    assert shapes == [((3, 2, 3), (2, 3)), ((3, 5, 4), (5, 4))]


@pytest.mark.parametrize("orientation", STORED)
def test_mask_with_exif_orientation_is_rotated_like_an_image(
    tmp_path: Path, orientation: int
) -> None:
    stored = np.ascontiguousarray(STORED[orientation])
    write_image(tmp_path / "a.jpg", (stored.shape[0], stored.shape[1]), orientation=orientation)
    write_mask(tmp_path / "a.png", stored, orientation=orientation)
    pixels, labels = pair(tmp_path)[0]
    assert pixels.shape == (3, 2, 3)
    assert labels.tolist() == UPRIGHT.tolist()


def test_rotated_image_with_unrotated_mask_is_refused_with_exif_as_reason(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", (2, 3), orientation=6)
    write_mask(tmp_path / "a.png", UPRIGHT)
    with pytest.raises(InputError, match=r"a\.png is 3 x 2, .* 2 x 3; .* EXIF orientation"):
        pair(tmp_path)[0]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (4, 2)), r"a\.png is 4 x 2, its image .*a\.jpg 3 x 2; a mask needs the s"),
        (Image.new("L", (3, 2), 3), r"a\.png contains 3; the ids of .* are 0\.\.2"),
        (
            Image.new("RGB", (3, 2)),
            r"a\.png contains colours \(#000000\) where class ids are expected",
        ),
        (
            Image.new("RGBA", (3, 2)),
            r"a\.png contains colours \(#000000\) where class ids are expected",
        ),
        (Image.new("I;16", (3, 2)), r"a\.png contains mode I;16 where class ids are expected"),
    ],
)
def test_mask_of_wrong_size_ids_or_mode_is_refused(
    tmp_path: Path, mask: Image.Image, message: str
) -> None:
    write_image(tmp_path / "a.jpg")
    mask.save(tmp_path / "a.png")
    with pytest.raises(InputError, match=message):
        pair(tmp_path)[0]


def test_black_and_white_mask_contains_0_and_255(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    mask = Image.new("1", (3, 2))
    mask.putpixel((1, 0), 1)
    mask.save(tmp_path / "a.png")
    assert pair(tmp_path).labels(0).tolist() == [[0, 255, 0], [0, 0, 0]]


def test_mask_with_lossy_compression_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    Image.new("L", (3, 2)).save(tmp_path / "a.png", format="JPEG")
    with pytest.raises(InputError, match=r"JPEG data, whose compression changes pixel values"):
        pair(tmp_path)[0]


def test_error_of_many_unknown_ids_lists_the_first(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", (1, 200))
    write_mask(tmp_path / "a.png", np.arange(200, dtype=np.uint8)[None])
    with pytest.raises(InputError, match=r"contains 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, \.\.\.; the"):
        pair(tmp_path)[0]


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_unreadable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    root = write_folder(tmp_path)
    mask, image = root / "masks" / "train" / "a.png", root / "images" / "train" / "a.jpg"
    whole = mask.read_bytes()
    mask.write_bytes(whole[: len(whole) // 2] if content is None else content)
    dataset = open_dataset("folder", root, "train")
    with pytest.raises(InputError, match=r"masks/train/a\.png"):
        dataset.labels(0)
    mask.write_bytes(whole)
    image.write_bytes(content or b"")
    with pytest.raises(InputError, match=r"images/train/a\.jpg"):
        dataset[0]


def test_mask_beyond_the_pixel_bound_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mask(tmp_path / "a.png", np.zeros((9, 9), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80)
    with pytest.raises(InputError, match=r"a\.png is too large"):
        pair(tmp_path).labels(0)


def test_data_set_without_pairs_or_with_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mine contains no images"):
        SegmentationDataset([], LabelSet.generic(2), name="mine")
    with pytest.raises(InputError, match=r"mine has 1 class \(class 0\), .* such as 'other'"):
        SegmentationDataset([(tmp_path, tmp_path)], LabelSet.generic(1), name="mine")


def test_labels_are_those_of_the_sample(tmp_path: Path) -> None:
    dataset = open_dataset("folder", write_folder(tmp_path), "train")
    assert torch.equal(dataset.labels(0), dataset[0].labels)
    assert dataset.labels(0).dtype == torch.uint8
    assert dataset.labels(0).tolist() == IDS.tolist()
