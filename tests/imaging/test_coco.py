"""COCO annotations, against pycocotools and against masks made pixel by pixel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from pycocotools import mask as coco
from pycocotools.coco import COCO

from isanet_zoo.imaging.segmentation import Segmentation
from isanet_zoo.manifest.labels import LabelSet

CLASSES = LabelSet.generic(4)


def check(labels: NDArray[np.uint8]) -> None:
    """Compare each annotation with what pycocotools makes of the same mask."""
    annotations = Segmentation(labels, CLASSES).to_coco(image_id=7)
    assert [a["category_id"] for a in annotations] == sorted(set(labels[labels < 4].tolist()))
    for annotation in json.loads(json.dumps(annotations)):
        mask = labels == annotation["category_id"]
        theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert annotation["segmentation"]["counts"] == theirs["counts"].decode()
        assert annotation["segmentation"]["size"] == theirs["size"]
        assert annotation["area"] == coco.area(theirs) == mask.sum()
        assert annotation["bbox"] == coco.toBbox(theirs).tolist()
        assert annotation["image_id"] == 7


maps = arrays.arrays(
    np.uint8,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.sampled_from([0, 1, 3, 255]),
)


@settings(deadline=None)
@given(labels=maps)
def test_annotations_of_random_maps_equal_those_of_pycocotools(labels: NDArray[np.uint8]) -> None:
    check(labels)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 300), width=st.integers(1, 300))
def test_annotations_with_long_runs_equal_those_of_pycocotools(
    seed: int, height: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.uint8)
    for _ in range(5):
        top, left = rng.integers(0, height), rng.integers(0, width)
        area = slice(top, rng.integers(top, height + 1)), slice(left, rng.integers(left, width + 1))
        labels[area] = rng.integers(0, 4)
    check(labels)


def test_runs_of_large_maps_equal_those_of_pycocotools() -> None:
    labels = np.zeros((2000, 1500), np.uint8)
    labels[1999, 1499], labels[0, 0] = 1, 1  # differences of both signs, over 2^20
    check(labels)
    check(np.full((3, 2), 255, np.uint8))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
def test_data_set_of_annotations_is_read_by_pycocotools(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 1], [0, 0, 1]], np.uint8)
    annotations = Segmentation(labels, CLASSES).to_coco(image_id=1)
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 2, "width": 3}],
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES.names)],
        "annotations": [{"id": n, **one} for n, one in enumerate(annotations, 1)],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(document))
    data = COCO(path)
    for k in (0, 1):
        (annotation,) = data.loadAnns(data.getAnnIds(imgIds=[1], catIds=[k]))
        assert np.array_equal(data.annToMask(annotation), labels == k)


@pytest.mark.parametrize("labels", [[[255, 255]], [[9]]])
def test_pixels_without_a_class_have_no_annotation(labels: list[list[int]]) -> None:
    assert Segmentation(np.array(labels, np.uint8), CLASSES).to_coco(image_id="a") == []
