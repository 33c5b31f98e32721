"""Tests of the layouts "coco" and "labelme", against pycocotools and a naive fill."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from pycocotools.coco import COCO

from isanet_zoo import InputError, LabelSet, Segmentation, open_dataset
from tests.learning.files import write_image
from tests.learning.test_polygons import contains, distance

SQUARE = [[1, 1], [3, 1], [3, 3], [1, 3]]  # covers rows and columns 1 and 2
IN_FOUR = [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]

quick = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write_coco(
    root: Path,
    annotations: list[dict[str, Any]],
    *,
    names: tuple[str, ...] = ("car", "person"),
    size: tuple[int, int] = (4, 4),
    path: str = "annotations/instances_train.json",
    **changes: Any,
) -> Path:
    """Write a split of one image, with category ids 10, 20, ..."""
    write_image(root / "train" / "a.png", size)
    document = {
        "images": [{"id": 5, "file_name": "a.png", "height": size[0], "width": size[1]}],
        "categories": [{"id": 10 * n, "name": name} for n, name in enumerate(names, 1)],
        "annotations": [
            {"id": n, "image_id": 5, "category_id": 10, **annotation}
            for n, annotation in enumerate(annotations)
        ],
    } | changes
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(json.dumps(document))
    return root


def square(**fields: Any) -> dict[str, Any]:
    return {"segmentation": [np.ravel(SQUARE).tolist()], **fields}


# COCO


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
@quick
@given(seed=st.integers(0, 2**32 - 1))
def test_annotations_equal_those_of_pycocotools(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(8, 60)), int(rng.integers(8, 60)))
    shapes = [
        [rng.uniform(0, 60, (rng.integers(3, 8), 2)) for _ in range(rng.integers(1, 3))]
        for _ in range(rng.integers(1, 4))
    ]
    annotations = [
        {
            "segmentation": [polygon.ravel().tolist() for polygon in polygons],
            "category_id": int(rng.choice([10, 20])),
        }
        for polygons in shapes
    ]
    write_coco(tmp_path, annotations, size=size)
    labels = open_dataset("coco", tmp_path, "train").labels(0).numpy()
    file = COCO(tmp_path / "annotations" / "instances_train.json")
    expected = np.zeros(size, np.uint8)
    for annotation in file.loadAnns(file.getAnnIds(imgIds=[5])):
        mask = file.annToMask(annotation)
        expected[mask == 1] = annotation["category_id"] // 10
    rows, columns = np.nonzero(labels != expected)
    centres = np.stack([columns, rows], axis=1) + 0.5
    nearest = [distance(polygon, centres) for polygons in shapes for polygon in polygons]
    assert (np.min(nearest, axis=0) < 0.5).all()  # on an edge, which pycocotools rounds


@quick
@given(seed=st.integers(0, 2**32 - 1))
def test_results_written_with_to_coco_are_read_exactly(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = LabelSet.generic(4)
    labels = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), rng.integers(1, 30, 2))
    annotations = Segmentation(labels, classes).to_coco(image_id=5)
    for number, annotation in enumerate(annotations):
        annotation["id"] = number
    categories = [{"id": index, "name": name} for index, name in enumerate(classes.names)]
    write_coco(tmp_path, annotations, size=labels.shape, categories=categories)
    dataset = open_dataset("coco", tmp_path, "train", unlabelled="none")
    assert dataset.label_set.names == classes.names
    assert dataset[0].labels.tolist() == labels.tolist()


def test_later_annotations_cover_earlier_ones(tmp_path: Path) -> None:
    annotations = [square(), {"segmentation": [[2, 2, 4, 2, 4, 4, 2, 4]], "category_id": 20}]
    dataset = open_dataset("coco", write_coco(tmp_path, annotations), "train")
    assert dataset.labels(0).tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 2, 2], [0, 0, 2, 2]]


@pytest.mark.parametrize(
    ("names", "unlabelled", "classes", "outside", "inside"),
    [
        (("car", "person"), None, ("background", "car", "person"), 0, 1),
        (("car", "background"), None, ("car", "background"), 1, 0),
        (("car", "_background_"), None, ("car", "_background_"), 1, 0),
        (("car", "person"), "road", ("road", "car", "person"), 0, 1),
        (("car", "person"), "person", ("car", "person"), 1, 0),
        (("car", "person"), "none", ("car", "person"), 255, 0),
    ],
)
def test_pixels_outside_all_polygons_have_the_class_of_the_option(
    tmp_path: Path,
    names: tuple[str, ...],
    unlabelled: str | None,
    classes: tuple[str, ...],
    outside: int,
    inside: int,
) -> None:
    root = write_coco(tmp_path, [square()], names=names)
    dataset = open_dataset("coco", root, "train", unlabelled=unlabelled)
    assert dataset.label_set.names == classes
    assert dataset.labels(0).tolist() == np.where(IN_FOUR, inside, outside).tolist()


def test_classes_file_orders_and_colours_the_categories(tmp_path: Path) -> None:
    root = write_coco(tmp_path, [square()])
    (root / "classes.txt").write_text("person #ff0000\ncar #00ff00\nbackground #000000\n")
    dataset = open_dataset("coco", root, "train")
    assert dataset.labels(0).tolist() == np.where(IN_FOUR, 1, 2).tolist()
    assert dataset.label_set.palette == ("#ff0000", "#00ff00", "#000000")
    (root / "classes.txt").write_text("person\nbicycle\n")
    with pytest.raises(InputError, match=r"annotation 0 of a\.png: the class 'car' is not in cla"):
        open_dataset("coco", root, "train")


def test_colours_of_the_categories_become_the_palette(tmp_path: Path) -> None:
    categories = [{"id": n, "name": f"c{n}", "color": [n, 0, 255]} for n in (10, 20)]
    labels = open_dataset(
        "coco", write_coco(tmp_path, [square()], categories=categories), "train"
    ).label_set
    assert labels.palette == ("#000000", "#0a00ff", "#1400ff")


@pytest.mark.parametrize(
    "path", ["train/_annotations.coco.json", "train.json", "annotations/instances_train2017.json"]
)
def test_files_of_other_tools_are_found(tmp_path: Path, path: str) -> None:
    dataset = open_dataset("coco", write_coco(tmp_path, [square()], path=path), "train")
    assert dataset.labels(0).tolist() == IN_FOUR


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation": []}, r"annotation 0 of a\.png: it has no segmentation, perhaps only a b"),
        ({"segmentation": None}, "it has no segmentation"),
        ({"segmentation": [[1, 1, 3]]}, r"annotation 0 of a\.png"),
        ({"segmentation": [[1, 1, 3, 3]]}, r"annotation 0 of a\.png: a polygon has fewer than 3"),
        ({"segmentation": [["a"] * 6]}, r"annotation 0 of a\.png cannot be read"),
        ({"segmentation": {"size": [4, 4], "counts": "1"}}, "do not add up to 4 x 4"),
        ({"segmentation": {"size": [4, 3], "counts": [12]}}, "its mask is 3 x 4, not 4 x 4"),
        ({"segmentation": {"counts": [16]}}, r"annotation 0 of a\.png has no 'size'"),
        ({"category_id": 7}, r"annotation 0 of a\.png: there is no category with the id 7"),
    ],
)
def test_annotation_that_cannot_be_used_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    root = write_coco(tmp_path, [{**square(), **changes}])
    with pytest.raises(InputError, match=message):
        open_dataset("coco", root, "train").labels(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 3}, r"instances_train\.json cannot be read"),
        ({"images": [{"id": 1}]}, r"instances_train\.json has no 'height'"),
        ({"images": [{"id": 1, "height": 0, "width": 3}]}, "cannot have 3 x 0 pixels"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "the name 'a'"),
        ({"categories": [3]}, "cannot be read"),
        (
            {"images": [{"id": 1, "file_name": "b.png", "height": 4, "width": 4}]},
            r"1 of 1 images in the JSON without an image: b\.png",
        ),
    ],
)
def test_file_that_is_not_as_coco_describes_it_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_dataset("coco", write_coco(tmp_path, [square()], **changes), "train")


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "\xff"])
def test_file_that_is_no_json_object_is_refused(tmp_path: Path, content: str) -> None:
    root = write_coco(tmp_path, [])
    (root / "annotations" / "instances_train.json").write_text(content, "latin-1")
    with pytest.raises(InputError, match=r"instances_train\.json"):
        open_dataset("coco", root, "train")


def test_size_that_is_not_the_images_is_refused(tmp_path: Path) -> None:
    root = write_coco(tmp_path, [square()], size=(4, 5))
    write_image(root / "train" / "a.png", (5, 4))
    with pytest.raises(InputError, match=r"instances_train\.json is 5 x 4, its image .*a\.png 4 x"):
        open_dataset("coco", root, "train")[0]


# LabelMe


def write_labelme(root: Path, shapes: list[dict[str, Any]], size: tuple[int, int] = (4, 4)) -> Path:
    write_image(root / "train" / "a.png", size)
    document = {"shapes": shapes, "imageHeight": size[0], "imageWidth": size[1]}
    (root / "train" / "a.json").write_text(json.dumps(document))
    (root / "classes.txt").write_text("background\ncar\nperson\n")
    return root


def shape(points: Any, kind: str | None = "polygon", label: str = "car", **more: Any) -> Any:
    return {"label": label, "points": points, "shape_type": kind, **more}


@quick
@given(seed=st.integers(0, 2**32 - 1))
def test_shapes_are_filled_pixel_by_pixel(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 14, 2))
    polygons = [rng.uniform(-3, 16, (rng.integers(3, 7), 2)) for _ in range(3)]
    labels = ["car", "person", "__ignore__"]
    shapes = [shape(p.tolist(), label=n) for p, n in zip(polygons, labels, strict=True)]
    root = write_labelme(tmp_path, shapes, (height, width))
    expected = np.zeros((height, width), np.uint8)
    for polygon, value in zip(polygons, (1, 2, 255), strict=True):
        for row, column in np.ndindex(height, width):
            if contains([tuple(corner) for corner in polygon], column + 0.5, row + 0.5):
                expected[row, column] = value
    assert open_dataset("labelme", root, "train").labels(0).tolist() == expected.tolist()


def test_shapes_of_every_kind_are_drawn(tmp_path: Path) -> None:
    pixels = io.BytesIO()
    Image.fromarray(np.full((2, 2), 255, np.uint8)).save(pixels, "PNG")
    encoded = base64.b64encode(pixels.getvalue()).decode()
    for same in (
        shape(SQUARE),
        shape(SQUARE, None),  # of old versions
        shape([[3, 3], [1, 1]], "rectangle"),
        shape([[2, 2], [2, 3.2]], "circle"),
        shape([[1, 1], [2, 2]], "mask", mask=encoded),
    ):
        root = write_labelme(tmp_path, [same])
        assert open_dataset("labelme", root, "train").labels(0).tolist() == IN_FOUR
    root = write_labelme(tmp_path, [shape([[3, 3], [4, 4]], "mask", mask=encoded)])
    assert open_dataset("labelme", root, "train").labels(0)[3].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (shape(SQUARE, label="dog"), r"a\.json: shape 1 \('dog'\): the class 'dog' is not in"),
        (shape([[0, 0], [2, 2]], "line"), r"a line has no area; draw a polygon"),
        (shape([[0, 0], [2, 2]]), "a polygon has fewer than 3 corners"),
        (shape([[0, 0]], "rectangle"), r"shape 1 \('car'\) cannot be read"),
        (shape([[0, 0]], "mask"), r"shape 1 \('car'\) has no 'mask'"),
        (shape([[0, 0]], "mask", mask="!"), r"shape 1 \('car'\) cannot be read"),
        (shape([[0, 0]], "mask", mask="aaaa"), r"shape 1 \('car'\): bytes"),
        ({"label": "car"}, "has no 'points'"),
        ({"label": ["car"], "points": SQUARE}, r"a\.json"),
        (3, r"a\.json"),
    ],
)
def test_shape_that_cannot_be_used_is_named(tmp_path: Path, bad: Any, message: str) -> None:
    dataset = open_dataset("labelme", write_labelme(tmp_path, [bad]), "train")
    with pytest.raises(InputError, match=message):
        dataset.labels(0)


def test_missing_classes_are_listed_from_the_labels(tmp_path: Path) -> None:
    root = write_labelme(tmp_path, [shape(SQUARE), shape(SQUARE, label="__ignore__")])
    (root / "classes.txt").unlink()
    with pytest.raises(InputError, match=r"classes\.txt does not exist; .* annotations have car$"):
        open_dataset("labelme", root, "train")


def drop_image(root: Path) -> None:
    (root / "train" / "a.png").rename(root / "train" / "b.png")


def empty_json(root: Path) -> None:
    (root / "train" / "a.json").write_text("{}")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (drop_image, r"images without a mask: .*b\.png; 1 of 1 masks without an image: .*a\.json"),
        (
            lambda root: (root / "train" / "a.json").write_text("{}"),
            r"a\.json has no 'imageHeight'",
        ),
    ],
)
def test_incomplete_folder_is_refused(
    tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    root = write_labelme(tmp_path, [shape(SQUARE)])
    harm(root)
    with pytest.raises(InputError, match=message):
        open_dataset("labelme", root, "train").labels(0)
