"""Tests of masks in colours, and of `classes.txt` with colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from isanet_zoo import InputError, open_dataset
from isanet_zoo.learning.classes import read_classes
from isanet_zoo.learning.masks import read_mask
from tests.learning.files import write_image

COLOURS = {(128, 64, 128): 0, (0, 0, 0): 7, (0, 0, 1): 3, (255, 255, 255): 255}
CODES = tuple((red << 16 | green << 8 | blue, v) for (red, green, blue), v in COLOURS.items())


def write(root: Path, classes: str, mask: Any, mode: str | None = None) -> Path:
    """Write a data set of one image, with a mask in colours (h, w, 3) or values (h, w)."""
    image = Image.fromarray(np.array(mask, np.uint8))
    for folder in ("images/train", "masks/train"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (image.convert(mode) if mode else image).save(root / "masks" / "train" / "a.png")
    write_image(root / "images" / "train" / "a.png", (image.height, image.width))
    (root / "classes.txt").write_text(classes)
    return root


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32 - 1), mode=st.sampled_from(["RGB", "RGBA"]))
def test_colours_are_read_pixel_by_pixel(tmp_path: Path, seed: int, mode: str) -> None:
    rng = np.random.default_rng(seed)
    pixels = np.array(list(COLOURS), np.uint8)[rng.integers(0, 4, rng.integers(1, 9, 2))]
    path = tmp_path / "mask.png"
    Image.fromarray(pixels).convert(mode).save(path)
    expected = [[COLOURS[tuple(pixel)] for pixel in row] for row in pixels.tolist()]
    assert read_mask(path, CODES).tolist() == expected


def test_colour_of_no_class_is_named_with_its_fraction(tmp_path: Path) -> None:
    pixels = np.zeros((10, 10, 3), np.uint8)
    pixels[0, :5] = (1, 2, 3)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=r"mask\.png contains #010203 \(5\.00% of its pixels\)"):
        read_mask(tmp_path / "mask.png", CODES)


def test_grey_levels_in_colour_are_refused_with_the_way_out(tmp_path: Path) -> None:
    root = write(tmp_path, "sky\nroad\n", np.ones((2, 2, 3)))
    with pytest.raises(InputError, match=r"contains #010101 .* if its grey levels are class ids"):
        open_dataset("folder", root, "train").labels(0)


def test_masks_in_the_colours_of_the_classes_are_read(tmp_path: Path) -> None:
    mask = [[(128, 64, 128), (0, 0, 255)], [(0, 0, 0), (0, 0, 255)]]
    classes = "road #804080\nroad sign #0000FF\n"
    root = write(tmp_path, classes, mask)
    dataset = open_dataset("folder", root, "train", unlabelled="#000000")
    assert dataset.labels(0).tolist() == [[0, 1], [255, 1]]
    assert dataset.label_set.names == ("road", "road sign")
    assert dataset.label_set.palette == ("#804080", "#0000ff")
    with pytest.raises(InputError, match="#000000"):
        open_dataset("folder", root, "train").labels(0)
    with pytest.raises(InputError, match="unlabelled is #804080, the colour of a class"):
        open_dataset("folder", root, "train", unlabelled="#804080")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("road #804080\nsky\n", r"has a colour for 'road', but none for 'sky'"),
        ("road #804080\nsky #12345\n", r"has the colour '#12345'; write it like #804080"),
        ("road #abcdef\nsky #ABCDEF\n", r"each colour once, one per line; found #abcdef"),
        ("road #804080\nroad #000000\n", r"each class once, one per line; found road"),
    ],
)
def test_colours_that_cannot_be_used_are_refused(
    tmp_path: Path, classes: str, message: str
) -> None:
    (tmp_path / "classes.txt").write_text(classes)
    with pytest.raises(InputError, match=message):
        read_classes(tmp_path / "classes.txt")


def test_name_may_contain_a_hash(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("c#\n#2\n")
    assert read_classes(tmp_path / "classes.txt").names == ("c#", "#2")


# Values without a class


@pytest.mark.parametrize("mode", [None, "1", "RGB"])
def test_binary_masks_have_two_classes(tmp_path: Path, mode: str | None) -> None:
    root = write(tmp_path, "other\nroad\n", [[0, 255, 255]], mode)
    dataset = open_dataset("folder", root, "train", binary=True)
    assert dataset.labels(0).tolist() == [[0, 1, 1]]
    assert dataset.label_set.official_ids == (0, 255)


def test_binary_masks_with_other_values_or_classes_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, "other\nroad\n", [[0, 254]])
    with pytest.raises(InputError, match=r"a\.png contains 254; the ids of .* are 0\.\.255"):
        open_dataset("folder", root, "train", binary=True).labels(0)
    (root / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(InputError, match="binary masks have two classes"):
        open_dataset("folder", root, "train", binary=True)


@pytest.mark.parametrize(
    ("unlabelled", "expected"),
    [(0, [255, 0, 1, 255]), ("1", [0, 255, 1, 255]), (None, None), (2, [0, 1, 255, 255])],
)
def test_value_of_unlabelled_pixels_is_skipped_by_the_ids(
    tmp_path: Path, unlabelled: int | str | None, expected: list[int] | None
) -> None:
    dataset = open_dataset(
        "folder", write(tmp_path, "a\nb\n", [[0, 1, 2, 255]]), "train", unlabelled=unlabelled
    )
    if expected is None:
        with pytest.raises(InputError, match="contains 2"):
            dataset.labels(0)
    else:
        assert dataset.labels(0).tolist() == [expected]


@pytest.mark.parametrize("unlabelled", [256, -1, "sky", "#12", 1.5])
def test_value_that_no_mask_has_is_refused(tmp_path: Path, unlabelled: Any) -> None:
    root = write(tmp_path, "a\nb\n", [[0]])
    with pytest.raises(InputError, match=r"it must be a mask value from 0 to 255, or a colour"):
        open_dataset("folder", root, "train", unlabelled=unlabelled)


def test_options_of_other_layouts_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a.png")
    write_image(tmp_path / "trainannot" / "a.png")
    with pytest.raises(InputError, match="binary is an option of the layout 'folder'"):
        open_dataset("camvid", tmp_path, "train", binary=True)
    with pytest.raises(InputError, match="a fixed value of unlabelled pixels"):
        open_dataset("camvid", tmp_path, "train", unlabelled=0)
