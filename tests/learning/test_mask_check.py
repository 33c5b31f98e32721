"""Tests of the check of all masks: counts, listed problems, the cache on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import ExifTags, Image

from isanet_zoo import InputError, LabelSet, SegmentationDataset
from isanet_zoo.cache import cache_root
from isanet_zoo.learning import masks
from isanet_zoo.learning.mask_check import check_masks
from isanet_zoo.learning.masks import read_mask
from tests.learning.files import write_image, write_mask

Masks = list[Any]  # of arrays (h, w) of mask values
LABELS = LabelSet("own", "Own", ("road", "tree", "sky"), ("#000000",) * 3, (0, 1, 7))


def write(folder: Path, masks: Masks, labels: LabelSet = LABELS) -> SegmentationDataset:
    """Write a data set with the given mask values; 255 is ignored."""
    pairs = []
    for number, mask in enumerate(masks):
        array = np.array(mask, np.uint8)
        image = write_image(folder / f"{number}.jpg", array.shape)
        pairs.append((image, write_mask(folder / f"{number}.png", array)))
    return SegmentationDataset(pairs, labels, name="mine")


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list of the masks that are read from now on."""
    reads: list[Path] = []
    real = read_mask

    def read(path: Path, *colours: Any) -> Any:
        reads.append(path)
        return real(path, *colours)

    monkeypatch.setattr(masks, "read_mask", read)
    return reads


@given(
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=4),
    ignored=st.sampled_from([0.0, 0.5]),
)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_pixels_are_counted_per_class(
    tmp_path_factory: pytest.TempPathFactory, seeds: list[int], ignored: float
) -> None:
    masks = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        mask = rng.choice([0, 1, 7], rng.integers(2, 9, 2))
        mask[rng.random(mask.shape) < ignored] = 255
        mask[0, :2] = 0, 7
        masks.append(mask)
    dataset = write(tmp_path_factory.mktemp("data"), masks)
    expected = [sum(int((mask == value).sum()) for mask in masks) for value in (0, 1, 7)]
    for _ in range(2):  # the second time from the cache
        (pixels,) = check_masks([dataset])
        assert pixels.tolist() == expected


# Problems


def test_all_problems_of_all_data_sets_are_listed_at_once(tmp_path: Path) -> None:
    training = write(tmp_path / "train", [[[0, 1]], [[0, 3]], [[1, 7]]])
    validation = write(tmp_path / "val", [[[0, 9, 8]], [[0, 7]], [[0, 1]]])
    training.pairs[0][1].write_bytes(b"not an image")
    write_image(validation.pairs[1][0], (5, 5))
    validation.pairs[2][0].unlink()
    with pytest.raises(InputError) as caught:
        check_masks([training, validation])
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 of 6 pairs of image and mask cannot be used:"
    for line, pattern in zip(
        lines[1:],
        (
            "train/0.png is not an image",
            "train/1.png contains 3; the ids of Own are 0..7",
            "val/0.png contains 8, 9",
            "val/1.png is 2 x 1, its image",
            "val/2.jpg cannot be read: No such file",
        ),
        strict=True,
    ):
        assert pattern in line


def test_list_of_problems_is_bounded(tmp_path: Path) -> None:
    dataset = write(tmp_path, [[[0, 3]]] * 25)
    with pytest.raises(InputError) as caught:
        check_masks([dataset])
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert lines[-1].strip() == "and 15 more"


def test_single_problem_is_one_line(tmp_path: Path) -> None:
    dataset = write(tmp_path, [[[0, 3]], [[0, 1]]])
    with pytest.raises(InputError, match=r"^[^\n]*0\.png contains 3; the ids of [^\n]*$"):
        check_masks([dataset])


@pytest.mark.parametrize("kind", ["jpg", "png", "late png", "tif"])
@pytest.mark.parametrize("rotated_mask", [True, False])
def test_size_is_compared_after_exif_rotation(
    tmp_path: Path, kind: str, rotated_mask: bool
) -> None:
    image, mask = tmp_path / f"a.{kind[-3:]}", tmp_path / "mask.png"
    write_image(image, (2, 3), orientation=6)
    if kind == "late png":
        image.write_bytes(move_exif_to_end(image.read_bytes()))
    write_mask(mask, np.array([[0, 1, 7], [0, 1, 7]], np.uint8), orientation=1 + 5 * rotated_mask)
    dataset = SegmentationDataset([(image, mask)], LABELS)
    if rotated_mask:
        assert check_masks([dataset])[0].tolist() == [2, 2, 2]
        assert dataset[0].pixels.shape == (3, 3, 2)
    elif kind != "late png":  # its size in the header is the mask's
        with pytest.raises(InputError, match="EXIF"):
            check_masks([dataset])


def move_exif_to_end(png: bytes) -> bytes:
    """Move the chunk eXIf of a PNG behind the pixels."""
    start = png.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(png[start : start + 4], "big")
    last = png.index(b"IEND") - 4
    return png[:start] + png[end:last] + png[start:end] + png[last:]


def test_late_exif_of_a_png_is_found_by_pillow(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", orientation=6)
    path.write_bytes(move_exif_to_end(path.read_bytes()))
    with Image.open(path) as image:
        assert "exif" not in image.info
        assert image.getexif()[ExifTags.Base.Orientation] == 6


# Data sets that make no sense


@pytest.mark.parametrize("masks", [[[[0, 255]]], [[[0, 0]], [[255, 255]]]])
def test_masks_of_only_0_and_255_are_refused_with_the_way_out(tmp_path: Path, masks: Masks) -> None:
    with pytest.raises(InputError) as caught:
        check_masks([write(tmp_path, masks)])
    message = str(caught.value)
    assert "contain only 0 and 255" in message
    assert "no pixel of tree, sky" in message
    assert "replace it by the id of its class, such as 1 for 'tree'" in message


def test_255_that_is_the_id_of_a_class_is_no_problem(tmp_path: Path) -> None:
    labels = LabelSet("own", "Own", ("a", "b"), ("#000000",) * 2, (0, 255), ignore_index=9)
    assert check_masks([write(tmp_path, [[[0, 255]]], labels)])[0].tolist() == [1, 1]


def test_masks_that_are_all_ignored_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"every pixel of the 2 masks of mine is ignored.*\[255\]"):
        check_masks([write(tmp_path, [[[255, 255]], [[255]]])])


def test_classes_without_a_pixel_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_masks([write(tmp_path, [[[0, 1]], [[0, 255]]])])
    (record,) = caplog.records
    assert record.getMessage() == "the 2 masks of mine have no pixel of sky"
    caplog.clear()
    check_masks([write(tmp_path / "all", [[[0, 1, 7]]])])
    assert not caplog.records


# Cache


def test_unchanged_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write(tmp_path, [[[0, 1]], [[1, 7]]])
    reads = count_reads(monkeypatch)
    moments: list[tuple[int, int | None]] = []
    first = check_masks([dataset], progress=lambda *moment: moments.append(moment))
    assert sorted(reads) == [mask for _, mask in dataset.pairs]
    assert moments == [(1, 2), (2, 2)]
    assert check_masks([dataset])[0].tolist() == first[0].tolist()
    assert len(reads) == 2


@pytest.mark.parametrize("which", ["image", "mask"])
def test_changed_file_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    dataset = write(tmp_path, [[[0, 1]], [[1, 7]]])
    check_masks([dataset])
    image, mask = dataset.pairs[1]
    if which == "image":
        write_image(image, (3, 3))
    else:
        write_mask(mask, np.array([[0, 0]], np.uint8))
    os.utime(image if which == "image" else mask, ns=(1, 1))
    reads = count_reads(monkeypatch)
    if which == "image":
        with pytest.raises(InputError, match=r"1\.png is 2 x 1, its image"):
            check_masks([dataset])
    else:
        assert check_masks([dataset])[0].tolist() == [3, 1, 0]
    assert reads == [mask]


def test_problem_is_reported_again_and_gone_after_it_is_fixed(tmp_path: Path) -> None:
    dataset = write(tmp_path, [[[0, 3]]])
    for _ in range(2):
        with pytest.raises(InputError, match="contains 3"):
            check_masks([dataset])
    write_mask(dataset.pairs[0][1], np.array([[0, 7]], np.uint8))
    os.utime(dataset.pairs[0][1], ns=(1, 1))
    assert check_masks([dataset])[0].tolist() == [1, 0, 1]


def test_other_classes_use_the_same_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write(tmp_path, [[[0, 1]]])
    check_masks([dataset])
    reads = count_reads(monkeypatch)
    other = SegmentationDataset(dataset.pairs, LabelSet.generic(2))
    assert check_masks([other])[0].tolist() == [1, 1]
    third = LabelSet("own", "Own", ("a", "b"), ("#000000",) * 2, (1, 2))
    with pytest.raises(InputError, match=r"contains 0; the ids of Own are 1\.\.2"):
        check_masks([SegmentationDataset(dataset.pairs, third)])
    assert not reads


@pytest.mark.parametrize(
    "content", ["", "[]", "[" * 100_000, "{}", "damage", "counts", "signature"]
)
def test_damaged_cache_is_ignored(tmp_path: Path, content: str) -> None:
    dataset = write(tmp_path, [[[0, 1]]])
    check_masks([dataset])
    (cache,) = (cache_root() / "masks").iterdir()
    entries = json.loads(cache.read_text())
    (key,) = entries
    changed = {
        "damage": {key: 3},
        "counts": {key: [entries[key][0], [[400, 1]], *entries[key][2:]]},
        "signature": {key: ["x", *entries[key][1:]]},
    }
    cache.write_text(json.dumps(changed[content]) if content in changed else content)
    assert check_masks([dataset])[0].tolist() == [1, 1, 0]
    assert json.loads(cache.read_text()) == entries


def test_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ISANET_ZOO_CACHE", str(tmp_path / "file"))
    assert check_masks([write(tmp_path, [[[0, 1]]])])[0].tolist() == [1, 1, 0]
