"""What one does with a label map, on maps small enough to count by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from isanet_zoo.errors import InputError, UnknownModelError
from isanet_zoo.imaging.segmentation import LOSSLESS, Segmentation
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.lookup import get_weights
from tests.reference import make_picture

VOC, ADE20K, CITYSCAPES = (
    get_weights(f"isanet_resnet50os8_{dataset}").label_set
    for dataset in ("voc", "ade20k", "cityscapes")
)


def segmentation(labels: Any, label_set: LabelSet = VOC, path: Path | None = None) -> Segmentation:
    return Segmentation(np.array(labels, np.uint8), label_set, path=path)


@pytest.fixture
def street() -> Segmentation:
    """A map of 200 x 300 with four classes, in unequal shares."""
    labels = np.zeros((200, 300), np.uint8)
    labels[100:], labels[150:, :90], labels[:20, 200:] = 7, 15, 2
    return segmentation(labels)


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    return make_picture("img375x500")[:200, :300]


def test_present_gives_shares_largest_first() -> None:
    result = segmentation([[5, 5, 5, 5], [5, 2, 2, 9], [9, 2, 0, 15], [5, 5, 5, 5]])
    assert result.present() == [
        (5, "bottle", 9 / 16),
        (2, "bicycle", 3 / 16),
        (9, "chair", 2 / 16),
        (0, "__background__", 1 / 16),
        (15, "person", 1 / 16),
    ]
    assert [index for index, _, _ in result.present(2 / 16)] == [5, 2, 9]
    assert result.present(0.6) == []


def test_present_knows_nothing_of_pixels_without_a_class() -> None:
    assert segmentation([[255, 3]]).present() == [(3, "bird", 0.5)]


def test_mask_by_id_name_and_first_synonym() -> None:
    labels = np.array([[1, 0], [1, 25]], np.uint8)
    result = Segmentation(labels, ADE20K)
    assert ADE20K.names[1] == "building, edifice"
    for which in (1, "building, edifice", "building"):
        assert result.mask(which).tolist() == [[True, False], [True, False]]
    assert result.mask("wall").dtype == np.bool_
    assert not result.mask("sky").any()


@pytest.mark.parametrize(
    ("which", "advice"),
    [("bulding", "did you mean building"), ("xyzzy", "label_set.names"), (150, "0..149"), (-1, "")],
)
def test_mask_of_an_unknown_class_gives_advice(which: int | str, advice: str) -> None:
    with pytest.raises(UnknownModelError, match=f"{which!r}; .*{advice}"):
        segmentation([[0]], ADE20K).mask(which)


def test_official_ids_are_the_data_sets_own() -> None:
    cityscapes = segmentation([[*range(19), 255]], CITYSCAPES).official_ids()
    assert cityscapes.tolist() == [
        [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33, 255],
    ]
    assert cityscapes.dtype == np.uint8
    ade20k = segmentation([range(150)], ADE20K).official_ids()
    assert ade20k.tolist() == [list(range(1, 151))]


@pytest.mark.parametrize("label_set", [VOC, ADE20K, CITYSCAPES], ids=lambda labels: labels.name)
@pytest.mark.parametrize("suffix", sorted(LOSSLESS | {".PNG"}))
def test_a_saved_map_keeps_ids_and_colours(
    label_set: LabelSet, suffix: str, tmp_path: Path
) -> None:
    everything = np.arange(len(label_set), dtype=np.uint8)
    few = np.array([6, 0, 18, 6], np.uint8)
    for labels in (np.tile(everything, (3, 1)), np.tile(few, (3, 1))):
        path = tmp_path / f"map{suffix}"
        Segmentation(labels, label_set).save(path)
        with Image.open(path) as image:
            assert image.mode == "P"
            assert np.array_equal(np.asarray(image), labels)
            colours = np.asarray(image.convert("RGB"))
        assert np.array_equal(colours, np.array(label_set.colours, np.uint8)[labels])


def test_classes_of_one_colour_are_kept_apart(tmp_path: Path) -> None:
    assert ADE20K.colours[6] == ADE20K.colours[48]
    for suffix in sorted(LOSSLESS):
        segmentation([[6, 48, 6, 48]], ADE20K).save(tmp_path / f"map{suffix}")
        with Image.open(tmp_path / f"map{suffix}") as image:
            assert np.asarray(image).tolist() == [[6, 48, 6, 48]], suffix


@pytest.mark.parametrize("name", ["map.jpg", "map.webp", "map"])
def test_formats_that_change_ids_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{name}: .*would not keep class ids; use .*\.png"):
        segmentation([[0]]).save(tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("alpha", [0, 0.25, 0.5, 1])
def test_overlay_blends_picture_and_colours(
    street: Segmentation, picture: NDArray[np.uint8], alpha: float
) -> None:
    blend = np.asarray(street.overlay(picture, alpha, legend=False)).astype(float)
    colours = np.array(VOC.colours)[street.labels]
    expected = picture + alpha * (colours - picture.astype(float))
    assert blend.shape == (200, 300, 3)
    assert np.abs(blend - expected).max() <= 0.5


def test_overlay_takes_every_form_of_the_picture(
    street: Segmentation, picture: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    tensor = torch.from_numpy(picture.transpose(2, 0, 1).copy())
    expected = np.asarray(street.overlay(picture))
    for form in (path, str(path), tensor, Image.fromarray(picture)):
        assert np.array_equal(np.asarray(street.overlay(form)), expected)
    remembered = segmentation(street.labels, path=path).overlay()
    assert np.array_equal(np.asarray(remembered), expected)


def test_legend_is_drawn_inside_and_leaves_the_rest_alone(
    street: Segmentation, picture: NDArray[np.uint8]
) -> None:
    plain = np.asarray(street.overlay(picture, legend=False))
    drawn = np.asarray(street.overlay(picture, legend=True))
    rows, columns = np.nonzero((drawn != plain).any(2))
    assert 0 < rows.min() < rows.max() < 199
    assert 0 < columns.min() < columns.max() < 299
    assert (rows.max() - rows.min()) * (columns.max() - columns.min()) < plain[:, :, 0].size / 3


def test_legend_shows_each_colour_largest_first(
    street: Segmentation, picture: NDArray[np.uint8]
) -> None:
    dark = np.zeros_like(picture)
    drawn = np.asarray(street.overlay(dark, alpha=0, legend=True))
    top = [
        np.nonzero((drawn == VOC.colours[index]).all(2))[0].min()
        for index, _, _ in street.present()
        if index != 0  # the background is black, as is the picture
    ]
    assert len(top) == 3
    assert top == sorted(top)


@pytest.mark.parametrize("size", [(1, 1), (12, 200), (200, 12), (30, 30)])
def test_a_picture_without_room_has_no_legend(size: tuple[int, int]) -> None:
    labels = np.full(size, 20, np.uint8)
    picture = np.zeros((*size, 3), np.uint8)
    result = segmentation(labels)
    with_legend, without = result.overlay(picture), result.overlay(picture, legend=False)
    assert np.array_equal(np.asarray(with_legend), np.asarray(without))


def test_a_legend_of_150_classes_stays_inside(picture: NDArray[np.uint8]) -> None:
    labels = np.tile(np.arange(150, dtype=np.uint8), (200, 2))
    result = segmentation(labels, ADE20K)
    plain = np.asarray(result.overlay(picture, legend=False))
    drawn = np.asarray(result.overlay(picture))
    assert (drawn != plain).any()
    edge = np.ones(labels.shape, bool)
    edge[1:-1, 1:-1] = False
    assert np.array_equal(drawn[edge], plain[edge])


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_overlay_refuses_weights_out_of_range(street: Segmentation, alpha: float) -> None:
    with pytest.raises(InputError, match=f"alpha is {alpha}"):
        street.overlay(np.zeros((200, 300, 3), np.uint8), alpha)


def test_overlay_needs_the_picture_that_was_segmented(
    street: Segmentation, picture: NDArray[np.uint8]
) -> None:
    with pytest.raises(InputError, match="give it again"):
        street.overlay()
    with pytest.raises(InputError, match="picture is 200 x 300, the labels 300 x 200"):
        street.overlay(picture.transpose(1, 0, 2))
