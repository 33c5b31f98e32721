"""Tests of the metrics, compared with chainercv's values and with torchmetrics."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from torch import distributed
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from isanet_zoo import InputError, SegmentationMetrics
from tests import reference
from tests.learning import tiny


def random_maps(seed: int, num_classes: int, ignored: float) -> list[NDArray[np.int64]]:
    """Return a prediction and a target, both (13, 17), of which a fraction is ignored."""
    rng = np.random.default_rng(seed)
    prediction, target = rng.integers(0, num_classes, (2, 13, 17))
    target[rng.random(target.shape) < ignored] = 255
    return [prediction, target]


maps = st.builds(
    random_maps,
    seed=st.integers(0, 9999),
    num_classes=st.integers(1, 6),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
)


def test_iou_of_each_class_equals_upstream_s() -> None:
    with np.load(reference.DATA / "golden" / "ssseg_eval_voc.npz") as pairs:
        metrics = SegmentationMetrics(21, ignore_index=-1)
        for number in range(3):
            metrics.update(pairs[f"pred{number}"], pairs[f"gt{number}"])
    expected = json.loads((reference.DATA / "golden" / "ssseg_eval.json").read_text())["voc"]
    scores = metrics.compute()
    np.testing.assert_allclose(list(scores.iou.values()), expected["iou"], rtol=0, atol=1e-12)
    assert scores.miou == pytest.approx(expected["miou"], abs=1e-12)
    assert scores.pixel_accuracy == pytest.approx(expected["all_accuracy"], abs=1e-12)
    assert scores.classes_evaluated == 21


@given(pairs=st.lists(maps, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_metrics_equal_torchmetrics(pairs: list[list[NDArray[np.int64]]]) -> None:
    options: dict[str, Any] = {"num_classes": 6, "ignore_index": 255, "average": "none"}
    jaccard = MulticlassJaccardIndex(**options)
    recall = MulticlassAccuracy(**options)
    overall = MulticlassAccuracy(**options | {"average": "micro"})
    metrics = SegmentationMetrics(6)
    occur: set[int] = set()
    wanted: set[int] = set()
    for prediction, target in pairs:
        metrics.update(prediction, torch.from_numpy(target))
        for peer in (jaccard, recall, overall):
            peer.update(torch.from_numpy(prediction), torch.from_numpy(target))
        counted = target != 255
        wanted |= set(target[counted].tolist())
        occur |= set(prediction[counted].tolist()) | wanted
    scores = metrics.compute()
    assert scores.classes_evaluated == len(occur)
    for index, iou in scores.iou.items():
        assert math.isnan(iou) == (index not in occur)
    if not occur:
        assert all(map(math.isnan, (scores.miou, scores.pixel_accuracy, scores.mean_accuracy)))
        return
    theirs = jaccard.compute()
    np.testing.assert_allclose(
        [scores.iou[index] for index in sorted(occur)], theirs[sorted(occur)], atol=1e-6
    )
    assert scores.miou == pytest.approx(theirs[sorted(occur)].mean().item(), abs=1e-6)
    assert scores.pixel_accuracy == pytest.approx(overall.compute().item(), abs=1e-6)
    assert scores.mean_accuracy == pytest.approx(
        recall.compute()[sorted(wanted)].mean().item(), abs=1e-6
    )


@given(first=maps, second=maps)
@settings(max_examples=30, deadline=None)
def test_merged_counts_equal_counts_of_all_images(
    first: list[NDArray[np.int64]], second: list[NDArray[np.int64]]
) -> None:
    together, left, right = (SegmentationMetrics(6) for _ in range(3))
    for metrics, pair in ((together, first), (together, second), (left, first), (right, second)):
        metrics.update(*pair)
    left.merge(right)
    np.testing.assert_array_equal(left.confusion, together.confusion)
    assert left.confusion.dtype == np.int64
    left.reset()
    assert not left.confusion.any()


def test_rows_are_targets_and_columns_predictions() -> None:
    metrics = SegmentationMetrics(3)
    prediction, target = np.array([2, 2, 1], np.uint8), np.array([0, 0, 255], np.uint8)
    prediction.flags.writeable = False  # like arrays of Pillow
    metrics.update(prediction, target)
    np.testing.assert_array_equal(metrics.confusion, [[0, 0, 2], [0, 0, 0], [0, 0, 0]])


def test_table_names_classes_and_how_many_miou_is_the_mean_of() -> None:
    metrics = SegmentationMetrics(4, classes=("sky", "road", "car", "mIoU"))
    metrics.update(np.array([0, 1, 1, 1, 2]), np.array([0, 0, 1, 255, 1]))
    scores = metrics.compute()
    rows = [line.rsplit(maxsplit=1) for line in scores.table().splitlines()]
    assert [(name.strip(), value) for name, value in rows] == [
        ("sky", "50.00"),
        ("road", "33.33"),
        ("car (no pixel in the masks)", "0.00"),
        ("mIoU (no pixel in the masks)", "nan"),
        ("mIoU (mean of 3 of 4 classes)", "27.78"),
        ("pixel accuracy", "50.00"),
        ("mean accuracy", "50.00"),
    ]
    assert scores.absent == ("car", "mIoU")
    assert scores.classes_evaluated == 3


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"\(2, 3\), target \(3, 2\)"),
        (np.array([3]), np.array([0]), r"prediction has ids 3\.\.3, expected 0\.\.2"),
        (np.array([0]), np.array([7]), r"target has ids 7\.\.7"),
        (np.array([0, 0]), np.array([-1, 1]), r"target has ids -1\.\.1"),
        (np.array([0.5]), np.array([0]), r"contain class ids, got torch\.float64; pass integers"),
        (np.array([0]), torch.zeros(1), r"contain class ids, got torch\.float32"),
    ],
)
def test_map_of_wrong_shape_type_or_ids_is_refused_and_not_counted(
    prediction: NDArray[np.int64], target: NDArray[np.int64], message: str
) -> None:
    metrics = SegmentationMetrics(3)
    with pytest.raises(InputError, match=message):
        metrics.update(prediction, target)
    assert not metrics.confusion.any()


def test_wrong_number_of_names_is_refused() -> None:
    with pytest.raises(InputError, match="2 names for 3 classes"):
        SegmentationMetrics(3, classes=("sky", "road"))
    with pytest.raises(InputError, match="cannot merge"):
        SegmentationMetrics(2, classes=("sky", "road")).merge(SegmentationMetrics(2))


def count_on_one_process(rank: int, folder: str) -> None:
    tiny.join_group(rank, folder)
    metrics = SegmentationMetrics(6)
    metrics.update(*random_maps(rank, 6, 0.3))
    metrics.all_reduce()
    np.save(f"{folder}/{rank}.npy", metrics.confusion)
    distributed.destroy_process_group()


def test_all_reduce_adds_the_counts_of_all_processes(tmp_path: Path) -> None:
    tiny.run(count_on_one_process, str(tmp_path), processes=2)
    together = SegmentationMetrics(6)
    for rank in range(2):
        together.update(*random_maps(rank, 6, 0.3))
    for rank in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / f"{rank}.npy"), together.confusion)
