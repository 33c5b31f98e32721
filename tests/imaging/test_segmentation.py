"""Segmentation results, on label maps small enough to count by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from isanet_zoo.errors import InputError, UnknownModelError
from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.imaging.writing import LOSSLESS, is_marked, write_image
from isanet_zoo.manifest.labels import LabelSet
from isanet_zoo.manifest.lookup import get_weights
from tests.reference import make_image

VOC, ADE20K, CITYSCAPES = (
    get_weights(f"isanet_resnet50os8_{dataset}").label_set
    for dataset in ("voc", "ade20k", "cityscapes")
)


def segmentation(labels: Any, label_set: LabelSet = VOC, path: Path | None = None) -> Segmentation:
    return Segmentation(np.array(labels, np.uint8), label_set, path=path)


@pytest.fixture
def street() -> Segmentation:
    """A label map of 200 x 300 with four classes of unequal size."""
    labels = np.zeros((200, 300), np.uint8)
    labels[100:], labels[150:, :90], labels[:20, 200:] = 7, 15, 2
    return segmentation(labels)


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return make_image("img375x500")[:200, :300]


def test_present_returns_fractions_largest_first() -> None:
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


def test_present_excludes_pixels_without_a_class() -> None:
    assert segmentation([[255, 3]]).present() == [(3, "bird", 0.5)]


def test_summary_is_json_with_classes_largest_first(tmp_path: Path) -> None:
    result = segmentation([[5, 5, 255], [5, 2, 2]], path=tmp_path / "photo.jpg")
    summary = result.to_dict()
    assert json.loads(json.dumps(summary)) == summary
    classes = summary.pop("classes")
    assert summary == {
        "image": str(tmp_path / "photo.jpg"),
        "width": 3,
        "height": 2,
        "label_set": "voc",
    }
    assert classes == [
        {"id": 5, "name": "bottle", "fraction": 3 / 6},
        {"id": 2, "name": "bicycle", "fraction": 2 / 6},
    ]
    assert segmentation([[0]]).to_dict()["image"] is None


@pytest.mark.parametrize(
    ("labels", "path", "expected"),
    [
        ([[1, 1, 1], [1, 1, 25]], None, "<Segmentation 3 x 2: building 83.3%, house 16.7%>"),
        ([range(9)], None, "<Segmentation 9 x 1: wall 11.1%, building 11.1%, sky 11.1%, 6 more>"),
        ([[255]], None, "<Segmentation 1 x 1: no class>"),
        ([[0]], "a\x1b.jpg", "<Segmentation a\\x1b.jpg, 1 x 1: wall 100.0%>"),
    ],
)
def test_repr_is_one_short_line(labels: Any, path: str | None, expected: str) -> None:
    assert repr(segmentation(labels, ADE20K, Path(path) if path else None)) == expected


def test_mask_is_found_by_id_name_and_first_synonym() -> None:
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
def test_mask_of_an_unknown_class_suggests_a_name(which: int | str, advice: str) -> None:
    with pytest.raises(UnknownModelError, match=f"{which!r}; .*{advice}"):
        segmentation([[0]], ADE20K).mask(which)


def test_official_ids_are_those_of_the_data_set() -> None:
    cityscapes = segmentation([[*range(19), 255]], CITYSCAPES).official_ids()
    assert cityscapes.tolist() == [
        [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33, 255],
    ]
    assert cityscapes.dtype == np.uint8
    ade20k = segmentation([range(150)], ADE20K).official_ids()
    assert ade20k.tolist() == [list(range(1, 151))]


@pytest.mark.parametrize("label_set", [VOC, ADE20K, CITYSCAPES], ids=lambda labels: labels.name)
@pytest.mark.parametrize("suffix", sorted(LOSSLESS.keys() | {".PNG"}))
def test_saved_map_keeps_ids_and_colours(label_set: LabelSet, suffix: str, tmp_path: Path) -> None:
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


def test_saved_classes_of_one_colour_keep_their_ids(tmp_path: Path) -> None:
    assert ADE20K.colours[6] == ADE20K.colours[48]
    for suffix in sorted(LOSSLESS):
        segmentation([[6, 48, 6, 48]], ADE20K).save(tmp_path / f"map{suffix}")
        with Image.open(tmp_path / f"map{suffix}") as saved:
            assert np.asarray(saved).tolist() == [[6, 48, 6, 48]], suffix


@pytest.mark.parametrize("name", ["map.jpg", "map.webp", "map"])
def test_save_in_a_format_that_changes_ids_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{name}: .*would not keep class ids; use .*\.png"):
        segmentation([[0]]).save(tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("alpha", [0, 0.25, 0.5, 1])
def test_overlay_blends_image_and_colours(
    street: Segmentation, image: NDArray[np.uint8], alpha: float
) -> None:
    blend = np.asarray(street.overlay(image, alpha, legend=False)).astype(float)
    colours = np.array(VOC.colours)[street.labels]
    expected = image + alpha * (colours - image.astype(float))
    assert blend.shape == (200, 300, 3)
    assert np.abs(blend - expected).max() <= 0.5


def test_overlay_accepts_every_kind_of_image(
    street: Segmentation, image: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
    expected = np.asarray(street.overlay(image))
    for form in (path, str(path), tensor, Image.fromarray(image)):
        assert np.array_equal(np.asarray(street.overlay(form)), expected)
    remembered = segmentation(street.labels, path=path).overlay()
    assert np.array_equal(np.asarray(remembered), expected)


def test_legend_changes_only_a_corner(street: Segmentation, image: NDArray[np.uint8]) -> None:
    plain = np.asarray(street.overlay(image, legend=False))
    drawn = np.asarray(street.overlay(image, legend=True))
    rows, columns = np.nonzero((drawn != plain).any(2))
    assert 0 < rows.min() < rows.max() < 199
    assert 0 < columns.min() < columns.max() < 299
    assert (rows.max() - rows.min()) * (columns.max() - columns.min()) < plain[:, :, 0].size / 3


def test_legend_lists_colours_largest_first(street: Segmentation, image: NDArray[np.uint8]) -> None:
    dark = np.zeros_like(image)
    drawn = np.asarray(street.overlay(dark, alpha=0, legend=True))
    top = [
        np.nonzero((drawn == VOC.colours[index]).all(2))[0].min()
        for index, _, _ in street.present()
        if index != 0  # the background is black, as is the image
    ]
    assert len(top) == 3
    assert top == sorted(top)


@pytest.mark.parametrize("size", [(1, 1), (12, 200), (200, 12), (30, 30)])
def test_legend_is_left_out_of_a_small_image(size: tuple[int, int]) -> None:
    labels = np.full(size, 20, np.uint8)
    image = np.zeros((*size, 3), np.uint8)
    result = segmentation(labels)
    with_legend, without = result.overlay(image), result.overlay(image, legend=False)
    assert np.array_equal(np.asarray(with_legend), np.asarray(without))


def test_legend_of_150_classes_stays_inside(image: NDArray[np.uint8]) -> None:
    labels = np.tile(np.arange(150, dtype=np.uint8), (200, 2))
    result = segmentation(labels, ADE20K)
    plain = np.asarray(result.overlay(image, legend=False))
    drawn = np.asarray(result.overlay(image))
    assert (drawn != plain).any()
    edge = np.ones(labels.shape, bool)
    edge[1:-1, 1:-1] = False
    assert np.array_equal(drawn[edge], plain[edge])


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_overlay_with_alpha_out_of_range_is_refused(street: Segmentation, alpha: float) -> None:
    with pytest.raises(InputError, match=f"alpha is {alpha}"):
        street.overlay(np.zeros((200, 300, 3), np.uint8), alpha)


def test_overlay_on_another_image_is_refused(
    street: Segmentation, image: NDArray[np.uint8]
) -> None:
    with pytest.raises(InputError, match="pass it again"):
        street.overlay()
    with pytest.raises(InputError, match="image is 200 x 300, the labels 300 x 200"):
        street.overlay(image.transpose(1, 0, 2))


class TestSave:
    def test_png_is_marked_as_written_by_this_library(self, tmp_path: Path) -> None:
        segmentation([[1]]).save(tmp_path / "map.png")
        assert is_marked(tmp_path / "map.png")
        with Image.open(tmp_path / "map.png") as image:
            assert image.info["Software"] == "isanet-zoo"
            image.save(tmp_path / "other.png")
        (tmp_path / "text.png").write_text("Software isanet-zoo")
        for name in ("other.png", "text.png", "missing.png", "long" * 100 + ".png"):
            assert not is_marked(tmp_path / name)
        os.mkfifo(tmp_path / "pipe.png")
        assert not is_marked(tmp_path / "pipe.png")

    def test_full_disk_leaves_the_existing_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "map.png"
        segmentation([[1]]).save(path)
        before = path.read_bytes()

        def fill_disk(image: Image.Image, target: Path, *_: object, **__: object) -> None:
            target.write_bytes(before[:20])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Image.Image, "save", fill_disk)
        with pytest.raises(InputError, match=r"map\.png cannot be written: No space left"):
            segmentation([[2]]).save(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_segmented_image_is_never_replaced(self, tmp_path: Path) -> None:
        path, link = tmp_path / "photo.png", tmp_path / "link.png"
        Image.new("RGB", (1, 1)).save(path)
        link.hardlink_to(path)
        before = path.read_bytes()
        for target in (path, link, tmp_path / ".." / tmp_path.name / "photo.png"):
            with pytest.raises(InputError, match=r"is the segmented image; choose another name"):
                segmentation([[0]], path=path).save(target)
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("no/such/folder.png", "No such file"),
            ("folder.png", "[Dd]irectory|folder"),
            (f"{'x' * 300}.png", "too long"),
            ("null\0.png", "null"),
        ],
    )
    def test_path_that_cannot_be_written_is_an_input_error(
        self, name: str, reason: str, tmp_path: Path
    ) -> None:
        (tmp_path / "folder.png").mkdir()
        with pytest.raises(InputError, match=f"cannot be written: .*{reason}"):
            segmentation([[0]]).save(tmp_path / name)
        assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]

    def test_suffix_in_capitals_is_accepted(self, tmp_path: Path) -> None:
        write_image(Image.new("L", (2, 3)), tmp_path / "A.PNG")
        assert is_marked(tmp_path / "A.PNG")
