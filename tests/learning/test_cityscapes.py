"""Tests of the metrics, compared with the official cityscapesScripts."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from PIL import Image

from isanet_zoo import Predictor, Scores, Segmentation, SegmentationMetrics, evaluate, open_dataset
from isanet_zoo.manifest.lookup import load_label_sets
from tests.learning import tiny
from tests.learning.test_evaluation import write

official: Any = importlib.import_module(
    "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
)
LABELS = load_label_sets()["cityscapes"]


@pytest.fixture(autouse=True)
def _plain_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate classes only, without colours in the output, and write nothing."""
    monkeypatch.setattr(official.args, "evalInstLevelScore", False)
    monkeypatch.setattr(official.args, "JSONOutput", False)
    monkeypatch.setattr(official.args, "quiet", True)


def assert_scores(ours: Scores, confusion: NDArray[Any]) -> None:
    """Compare with the official scores of a confusion matrix over all official ids."""
    theirs = {
        name: official.getIouScoreForLabel(label, confusion, official.args)
        for name, label in zip(LABELS.names, LABELS.official_ids, strict=True)
    }
    assert ours.iou == pytest.approx(theirs, nan_ok=True)
    average = official.getScoreAverage(theirs, official.args)
    assert ours.miou == pytest.approx(average, nan_ok=True)


def test_classes_and_ids_equal_the_official_ones() -> None:
    judged = [label for label in official.labels if not label.ignoreInEval]
    judged.sort(key=lambda label: label.trainId)
    assert LABELS.official_ids == tuple(label.id for label in judged)
    # The names are those of sssegmentation, without blanks.
    assert LABELS.names == tuple(label.name.replace(" ", "_") for label in judged)
    assert LABELS.colours == tuple(label.color for label in judged)


@given(seed=st.integers(0, 9999), kinds=st.integers(1, 19), void=st.sampled_from([0.0, 0.4, 1.0]))
@settings(max_examples=25, deadline=None)
def test_scores_of_random_maps_equal_the_official_ones(seed: int, kinds: int, void: float) -> None:
    chance = np.random.default_rng(seed)
    confusion = official.generateMatrix(official.args)
    metrics = SegmentationMetrics(19, classes=LABELS.names)
    nowhere = [label for label in official.args.evalLabels if label not in LABELS.official_ids]
    ids = np.array(LABELS.official_ids)
    for _ in range(2):
        found, wanted = chance.integers(0, kinds, (2, 20, 30))
        hidden = chance.random(wanted.shape) < void
        np.add.at(
            confusion,
            (np.where(hidden, chance.choice(nowhere, wanted.shape), ids[wanted]), ids[found]),
            np.ulonglong(1),
        )
        metrics.update(found, np.where(hidden, 255, wanted))
    scores = metrics.compute()
    assert_scores(scores, confusion)
    assert math.isnan(scores.miou) == (void == 1)


def test_scores_of_a_data_set_equal_the_official_ones(tmp_path: Path) -> None:
    predictor = Predictor(tiny.network(LABELS))
    chance = np.random.default_rng(1)
    for number, size in enumerate([(48, 64), (40, 56), (33, 70)]):
        image, _ = tiny.draw(chance, size)
        mask = chance.integers(0, 34, size).astype(np.uint8)
        write("cityscapes", tmp_path, str(number), image, mask)
    dataset = open_dataset("cityscapes", tmp_path, "val")
    confusion = official.generateMatrix(official.args)
    for image_path, mask_path in dataset.pairs:
        segmentation = predictor(image_path)
        assert isinstance(segmentation, Segmentation)
        with Image.open(mask_path) as opened:  # a part of the mask is correct
            mask = np.array(opened)
        right = chance.random(mask.shape) < 0.5
        mask[right] = segmentation.official_ids()[right]
        Image.fromarray(mask).save(mask_path)
        submission = tmp_path / "submission" / image_path.name
        submission.parent.mkdir(exist_ok=True)
        Image.fromarray(segmentation.official_ids()).save(submission)
        official.evaluatePair(str(submission), str(mask_path), confusion, None, None, official.args)
    scores = evaluate(predictor, dataset)
    assert_scores(scores, confusion)
    assert 0.05 < scores.pixel_accuracy < 0.9
